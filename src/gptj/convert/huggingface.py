"""Hugging Face's GPT-J: a folder of config.json, safetensors or .bin files, and a tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from gptj.config import ModelConfig
from gptj.convert import names, pickled, safetensors
from gptj.convert.source import Source
from gptj.convert.tensor import Tensor
from gptj.convert.tokenizers import load_tokenizer, save_tokenizer, token_count
from gptj.errors import UserError
from gptj.files import Folder
from gptj.model import Block, Params, Weight

CONFIG, INDEX_SUFFIX = "config.json", ".index.json"
FILES = ("model.safetensors", "pytorch_model.bin")
SHARD_BYTES = 5 * 10**9

LINEAR = True
"""torch's linear layers hold [out, in], the transpose of ours."""

_LAYER = "transformer.h.{}."
NAMES: Params[tuple[str, bool]] = Params(
    embedding=("transformer.wte.weight", False),
    blocks=Block(
        norm_scale=(_LAYER + "ln_1.weight", False),
        norm_offset=(_LAYER + "ln_1.bias", False),
        query=(_LAYER + "attn.q_proj.weight", LINEAR),
        key=(_LAYER + "attn.k_proj.weight", LINEAR),
        value=(_LAYER + "attn.v_proj.weight", LINEAR),
        attention_out=(_LAYER + "attn.out_proj.weight", LINEAR),
        ffn_in=(_LAYER + "mlp.fc_in.weight", LINEAR),
        ffn_in_bias=(_LAYER + "mlp.fc_in.bias", False),
        ffn_out=(_LAYER + "mlp.fc_out.weight", LINEAR),
        ffn_out_bias=(_LAYER + "mlp.fc_out.bias", False),
    ),
    norm_scale=("transformer.ln_f.weight", False),
    norm_offset=("transformer.ln_f.bias", False),
    output=("lm_head.weight", LINEAR),
    output_bias=("lm_head.bias", False),
)

BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)")
"""Constants that some versions saved beside the weights: the causal mask and rotary tables."""

FIELDS = {
    "n_layer": "layers",
    "n_embd": "d_model",
    "n_head": "heads",
    "rotary_dim": "rotary_dims",
    "n_positions": "context",
    "layer_norm_epsilon": "layer_norm_eps",
}
"""config.json's names for what `ModelConfig` holds, beside n_inner and vocab_size."""

MUST_BE: dict[str, tuple[Any, ...]] = {
    "model_type": ("gptj",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "scale_attn_weights": (True,),
    "rotary": (True,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "jax": (True, False),
}
"""Fields that change what the model computes, and the values that leave it a GPT-J."""

HARMLESS = frozenset(
    """
    architectures attn_pdrop bos_token_id dtype embd_pdrop eos_token_id gradient_checkpointing
    id2label initializer_range label2id pad_token_id resid_pdrop return_dict summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    task_specific_params tie_word_embeddings tokenizer_class torch_dtype transformers_version
    use_cache _name_or_path n_ctx output_attentions output_hidden_states chunk_size_feed_forward
    problem_type sep_token_id decoder_start_token_id finetuning_task prefix
    badwordsids newlinemode antemplate welcome memory authorsnote nobreakmodel formatoptns
    """.split()  # noqa: SIM905
)
"""Fields that do not change the model: training, generation, labels, and KoboldAI's additions."""

PADDED = {50400: 50257}
"""Rows of GPT-J's embedding -> tokens that mean something, where no tokenizer tells."""

DEFAULTS = {"n_positions": 2048, "layer_norm_epsilon": 1e-5, "rotary_dim": 64}
"""What transformers takes for a field that config.json leaves out."""


def is_huggingface(folder: Folder) -> bool:
    """Whether `folder` looks like one of Hugging Face's."""
    return CONFIG in folder


def read(folder: Folder) -> Source:
    """The model in a Hugging Face folder.

    Raises:
      UserError: a file is missing, damaged or dangerous; config.json asks for what GPT-J does not
        have, or contradicts the tensors; names the file and the field or tensor.
    """
    raw = _json(folder, CONFIG)
    found = {n: t for n, t in _stored(folder).items() if not BUFFERS.fullmatch(n)}
    tokenizer = load_tokenizer(folder)
    config = read_config(raw, f"{folder}/{CONFIG}", token_count(tokenizer))
    if raw.get("tie_word_embeddings") and "transformer.wte.weight" in found:
        found["lm_head.weight"] = found["transformer.wte.weight"]
    expected = names.by_name(NAMES, config.layers)
    foreign = {name: record[0].format(layer) for name, (record, layer) in expected.items()}
    names.check_names(str(folder), found, foreign.values())
    ours = {}
    for name, weight in names.tensors(config).items():
        turned = expected[name][0][1]
        ours[name] = _ours(str(folder), foreign[name], found[foreign[name]], weight, turned)
    return Source("huggingface", str(folder), config, ours, lambda: tokenizer)


def read_config(raw: dict[str, Any], where: str, tokens: int | None = None) -> ModelConfig:
    """The shape that a config.json describes; `tokens` is how many its tokenizer has.

    Raises:
      UserError: a field is missing, unknown, or asks for what GPT-J does not have.
    """
    for name, allowed in MUST_BE.items():
        if name in raw and raw[name] not in allowed:
            wanted = " or ".join(map(repr, allowed))
            raise UserError(f"{where}: {name}={raw[name]!r} is not supported, GPT-J has {wanted}")
    known = {*MUST_BE, *HARMLESS, *FIELDS, "n_inner", "vocab_size"}
    unknown = [n for n, v in raw.items() if n not in known and v not in (None, False, {}, [])]
    if unknown:
        raise UserError(
            f"{where} has fields that GPT-J does not know: {', '.join(unknown)}; if they do not "
            "change what the model computes, delete them from the file"
        )
    raw = {**DEFAULTS, **raw}
    if missing := sorted({"n_layer", "n_embd", "n_head", "vocab_size"} - set(raw)):
        raise UserError(f"{where} lacks {', '.join(missing)}: it is not a GPT-J's config")
    if raw["rotary_dim"] is None:
        raise UserError(f"{where}: rotary_dim=null is not supported, GPT-J rotates a whole number")
    rows = raw["vocab_size"]
    fields = {ours: raw[theirs] for theirs, ours in FIELDS.items()}
    inner = raw.get("n_inner")
    try:
        return ModelConfig(
            **fields,
            d_ff=4 * fields["d_model"] if inner is None else inner,
            vocab_size=min(rows, tokens or PADDED.get(rows, rows)),
            padded_vocab_size=rows,
        )
    except (UserError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None


def _ours(where: str, name: str, tensor: Tensor, weight: Weight, turned: bool) -> Tensor:
    """A foreign tensor as our weight: a view, turned and with the heads apart."""
    shape = names.matrix_shape(weight)
    names.check_shape(where, name, tensor.shape, shape[::-1] if turned else shape)
    names.check_float(where, name, tensor.dtype)
    return tensor.viewed(weight.shape, turned)


def _stored(folder: Folder) -> dict[str, Tensor]:
    """The tensors of all the folder's weight files by their own names."""
    for name in FILES:
        if name in folder:
            return _file(folder, name)
        if name + INDEX_SUFFIX in folder:
            return _sharded(folder, name + INDEX_SUFFIX)
    raise UserError(f"{folder} has neither of {' and '.join(FILES)}: get the whole folder")


def _file(folder: Folder, name: str) -> dict[str, Tensor]:
    container = safetensors if name.endswith(".safetensors") else pickled
    return container.tensors(folder.file(name))


def _sharded(folder: Folder, index: str) -> dict[str, Tensor]:
    where = _json(folder, index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{folder}/{index} has no weight_map from tensors to files")
    found: dict[str, Tensor] = {}
    for name in sorted(set(where.values())):
        held = _file(folder, name)
        if twice := sorted(set(held) & set(found)):
            raise UserError(f"{folder}: {twice[0]} stands in {name} and in another file as well")
        if strange := sorted(key for key in held if where.get(key) != name):
            raise UserError(f"{folder}/{index} does not say that {strange[0]} is in {name}")
        found |= held
    if lost := sorted(set(where) - set(found)):
        raise UserError(f"{folder}/{index} names {lost[0]}, which is not in {where[lost[0]]}")
    return found


def _json(folder: Folder, name: str) -> dict[str, Any]:
    try:
        value = json.loads(folder.file(name).text())
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}/{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{folder}/{name} is not a JSON object")
    return value


def write(source: Source, folder: Path) -> None:
    """Write `source` into the folder as transformers reads it, in files of at most 5 GB."""
    config, expected = source.config, names.by_name(NAMES, source.config.layers)
    tensors = {}
    for name, (record, layer) in expected.items():
        theirs, turned = record
        tensors[theirs.format(layer)] = _theirs(source, name, turned)
    shards = _split(tensors)
    shard_of: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = FILES[0]
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors.write(folder / name, shard, {"format": "pt"})
        shard_of |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(tensor.bytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": shard_of}
        _dump(folder / (FILES[0] + INDEX_SUFFIX), index)
    tokenizer = source.tokenizer()
    end = tokenizer.eos_id if tokenizer else min(50256, config.vocab_size - 1)
    ids = {"bos_token_id": end, "eos_token_id": end}
    _dump(folder / CONFIG, {**config_json(config, source.dtype), **ids})
    _dump(folder / "generation_config.json", {"_from_model_config": True, **ids})
    if tokenizer:
        save_tokenizer(tokenizer, folder, config.context)


def config_json(config: ModelConfig, dtype: np.dtype[Any]) -> dict[str, Any]:
    """The config.json of a model, without the ids of its special tokens."""
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        **{theirs: getattr(config, ours) for theirs, ours in FIELDS.items()},
        "n_inner": None if config.d_ff == 4 * config.d_model else config.d_ff,
        "vocab_size": config.padded_vocab_size,
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": dtype.name,
    }


def _theirs(source: Source, name: str, turned: bool) -> Tensor:
    """Our tensor `name` in their shape; the embedding with its bias added, which they lack."""
    tensor = source.weights[name]
    shape = names.matrix_shape(names.tensors(source.config)[name])
    if name == "embedding" and source.config.embedding_bias:
        bias = source.weights["embedding_bias"]

        def biased(x: np.ndarray) -> np.ndarray:
            sum_ = x.astype(np.float32) + bias.read().astype(np.float32)
            return np.asarray(sum_, tensor.dtype)

        return tensor.changed(shape, biased)
    flat = tensor.viewed(shape)
    return flat.viewed(shape[::-1], turned=True) if turned else flat


def _split(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in groups of at most `SHARD_BYTES`, or of one tensor."""
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in tensors.items():
        if shards[-1] and tensor.bytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.bytes
    return shards


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
