"""PEFT's LoRA adapters: a folder of adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np

from gptj.adapters import FIELDS, LoRAConfig, Target
from gptj.config import ModelConfig
from gptj.convert import huggingface, safetensors
from gptj.convert.adapted import Adapter, Halves, check_shapes
from gptj.convert.tensor import Tensor
from gptj.errors import UserError
from gptj.files import Folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

MODULES: dict[str, Target] = {
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "out_proj": "out",
    "fc_in": "ffn_in",
    "fc_out": "ffn_out",
}
"""What transformers calls the matrices."""

MUST_BE: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None,),
    "layers_pattern": (None, []),
    "layer_replication": (None,),
    "lora_bias": (False,),
    "target_parameters": (None, []),
    "exclude_modules": (None, []),
    "trainable_token_indices": (None,),
}
"""Fields that change what the adapters do, and the values with which they are ours."""


def is_peft(folder: Folder) -> bool:
    """Whether a folder holds adapters of PEFT's."""
    return CONFIG in folder


def read(folder: Folder) -> Adapter:
    """The adapters in a folder.

    Raises:
      UserError: a file is missing or damaged, or they are not plain LoRA of GPT-J's matrices.
    """
    where = f"{folder}/{CONFIG}"
    values = _values(folder)
    for name, allowed in MUST_BE.items():
        if name in values and values[name] not in allowed:
            wanted = " or ".join(map(repr, allowed))
            raise UserError(f"{where}: {name}={values[name]!r} is not supported, only {wanted}")
    modules = values.get("target_modules")
    is_list = isinstance(modules, list) and all(isinstance(each, str) for each in modules)
    if not is_list or not modules or not {*modules} <= MODULES.keys():
        raise UserError(
            f"{where}: target_modules={modules!r} must be a list of {', '.join(MODULES)}"
        )
    try:
        lora = LoRAConfig(
            rank=values["r"],
            alpha=float(values["lora_alpha"]),
            targets=tuple(each for each in get_args(Target) if each in map(MODULES.get, modules)),
            dropout=float(values.get("lora_dropout") or 0.0),
            rank_stabilised=bool(values.get("use_rslora")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} is not PEFT's config of LoRA: {error}") from None
    found = safetensors.tensors(folder.file(WEIGHTS))

    def halves(field: str, layer: int) -> Halves:
        name = _name(field, layer)
        try:
            down, up = (_half(found[f"{name}.lora_{half}.weight"]) for half in "AB")
        except KeyError as error:
            raise UserError(f"{folder}/{WEIGHTS} lacks {error.args[0]}") from None
        return down, up

    return Adapter(str(folder), lora, halves, values.get("base_model_name_or_path"))


def check(adapter: Adapter, folder: Folder, config: ModelConfig) -> None:
    """See that the tensors of a folder are those that adapters of a model have.

    Raises:
      UserError: one is missing, or more, or of another shape.
    """
    found = {*safetensors.tensors(folder.file(WEIGHTS))}
    wanted = set()
    for target in adapter.lora.targets:
        field = FIELDS[target]
        for layer in range(config.layers):
            check_shapes(adapter.place, config, adapter.lora, adapter.read(field, layer), field)
            wanted |= {f"{_name(field, layer)}.lora_{half}.weight" for half in "AB"}
    if strange := sorted(found - wanted):
        raise UserError(f"{folder}/{WEIGHTS} holds {strange[0]}, which is no adapter of this model")


def write(adapter: Adapter, config: ModelConfig, base: str, folder: Path) -> None:
    """Write adapters as PEFT reads them; `base` is what they call the model they belong to."""
    lora = adapter.lora
    names = {ours: theirs for theirs, ours in MODULES.items()}
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "target_modules": [names[target] for target in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    found: dict[str, Tensor] = {}
    for target in lora.targets:
        for layer in range(config.layers):
            field = FIELDS[target]
            for half, array in zip("AB", adapter.read(field, layer), strict=True):
                name = f"{_name(field, layer)}.lora_{half}.weight"
                found[name] = _in_memory(np.ascontiguousarray(array.T))
    safetensors.write(folder / WEIGHTS, dict(sorted(found.items())), {"format": "pt"})


def _name(field: str, layer: int) -> str:
    own, _ = getattr(huggingface.NAMES.blocks, field)
    return _PREFIX + own.format(layer).removesuffix(".weight")


def _in_memory(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)


def _half(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.read().astype(np.float32).T)


def _values(folder: Folder) -> dict[str, Any]:
    try:
        return dict(json.loads(folder.file(CONFIG).text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{folder}/{CONFIG} is not a JSON object: {error}") from None
