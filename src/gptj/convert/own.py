"""This project's own form of a model: model.json, tokenizer.json, weights.safetensors.

The names and shapes are ours, a layer's tensors apart; `optimizer.safetensors` is there where
training can go on from the model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gptj.config import ModelConfig
from gptj.convert import names, safetensors
from gptj.convert.source import COUNT, MU, NU, SCHEDULE_COUNT, Source
from gptj.convert.tokenizers import load_tokenizer
from gptj.errors import UserError
from gptj.files import Folder

CONFIG, TOKENIZER = "model.json", "tokenizer.json"
WEIGHTS, OPTIMIZER, STEP = "weights.safetensors", "optimizer.safetensors", "step"


def is_own(folder: Folder) -> bool:
    """Whether `folder` is one of ours."""
    return CONFIG in folder and WEIGHTS in folder


def read(folder: Folder) -> Source:
    """The model in one of our folders.

    Raises:
      UserError: a file is missing or damaged, or contradicts model.json.
    """
    config = read_config(folder)
    table = names.tensors(config)
    found = safetensors.tensors(folder.file(WEIGHTS))
    names.check_names(f"{folder}/{WEIGHTS}", found, table)
    for name, weight in table.items():
        names.check_shape(f"{folder}/{WEIGHTS}", name, found[name].shape, weight.shape)
        names.check_float(f"{folder}/{WEIGHTS}", name, found[name].dtype)
    optimizer = None
    if OPTIMIZER in folder:
        optimizer = safetensors.tensors(folder.file(OPTIMIZER))
        moments = [prefix + name for prefix in (MU, NU) for name in table]
        expected = [*moments, COUNT, SCHEDULE_COUNT]
        names.check_names(f"{folder}/{OPTIMIZER}", optimizer, expected)
        for prefix in (MU, NU):
            for name, weight in table.items():
                moment = optimizer[prefix + name]
                names.check_shape(
                    f"{folder}/{OPTIMIZER}", prefix + name, moment.shape, weight.shape
                )
                names.check_float(f"{folder}/{OPTIMIZER}", prefix + name, moment.dtype)
        for name in (COUNT, SCHEDULE_COUNT):
            if optimizer[name].shape or optimizer[name].dtype != np.int32:
                raise UserError(f"{folder}/{OPTIMIZER}: {name} is not a counter, one int32")
    step = safetensors.metadata(folder.file(WEIGHTS)).get(STEP)
    if step is not None and not (step.isascii() and step.isdigit()):
        raise UserError(f"{folder}/{WEIGHTS}: its step {step[:40]!r} is not a whole number")
    return Source(
        "gptj",
        str(folder),
        config,
        {name: found[name] for name in table},
        lambda: load_tokenizer(folder),
        None if step is None else int(step),
        optimizer,
    )


def read_config(folder: Folder) -> ModelConfig:
    """The shape in a folder's model.json."""
    where = f"{folder}/{CONFIG}"
    try:
        values = json.loads(folder.file(CONFIG).text())
        if not isinstance(values, dict):
            raise UserError("it must hold a JSON object of model config fields")
        return ModelConfig.from_dict(values)
    except ValueError as error:  # a UserError is one
        raise UserError(f"{where} is not a model's config: {error}") from None


def write(source: Source, folder: Path) -> None:
    """Write `source` into the folder."""
    source.config.save(folder / CONFIG)
    if tokenizer := source.tokenizer():
        tokenizer.save(folder / TOKENIZER)
    metadata = {} if source.step is None else {STEP: str(source.step)}
    safetensors.write(folder / WEIGHTS, source.weights, metadata)
    if source.optimizer is not None:
        safetensors.write(folder / OPTIMIZER, source.optimizer, {})
