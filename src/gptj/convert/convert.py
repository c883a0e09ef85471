"""From any kind of model on disk to any other, a tensor at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from gptj.checkpoint import CheckpointError
from gptj.config import PRESETS
from gptj.convert import huggingface, mesh_transformer, own, peft
from gptj.convert.open import adapter_at, config_named, open_source
from gptj.convert.source import Source
from gptj.convert.tensor import count_nans
from gptj.errors import UserError

Kind = Literal["gptj", "huggingface", "mesh-transformer", "peft"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ConvertConfig:
    """Write a model of any kind as another, a tensor at a time, in little memory.

    Weights keep their bits unless `--dtype` changes their type. What the other kind has no place
    for is said: Hugging Face's holds no optimizer, and no bias of the embedding (it is added in).
    """

    source: tyro.conf.Positional[str]
    """A model: a folder, an archive, a URL such as gs://bucket/step_383500, or a Hub id."""
    out: tyro.conf.Positional[Path]
    """The folder to write; it must not exist, or be empty."""
    to: Kind = "gptj"
    """The kind to write: this project's, transformers', or Mesh Transformer JAX's; of adapters
    alone, PEFT's."""
    dtype: Dtype | None = None
    """The type to store the weights in. Default: as they are."""
    shards: int | None = None
    """Parts of a mesh-transformer checkpoint: 1, 2, 4, 8 or 16. Default: 8, as GPT-J's."""
    slim: bool = False
    """Leave the optimizer's state out, and as the original did store bfloat16."""
    config: str | None = None
    """The model's shape, for an original checkpoint without a config.json: a JSON file (the
    original's, or ours) or a preset's name."""
    tokenizer: str | None = None
    """A tokenizer to write beside the weights, as `gptj prepare` takes it. Default: the model's."""
    base: str | None = None
    """The model that adapters belong to, if it is not where they say."""


@dataclass(frozen=True)
class Converted:
    """What `convert` did."""

    source: Source
    out: Path
    notes: tuple[str, ...]
    """What did not come along, in sentences."""


def convert(config: ConvertConfig) -> Converted:
    """Write the model at `config.source` as `config.to`, all or nothing.

    Raises:
      UserError: it cannot be read, the other kind cannot hold it, or it cannot be written.
    """
    if config.to != "mesh-transformer" and config.shards is not None:
        raise UserError("shards counts the parts of a mesh-transformer checkpoint: leave it out")
    shape = config_named(config.config)
    source = open_source(config.source, config=shape, tokenizer=config.tokenizer, base=config.base)
    if config.to == "peft":
        return _convert_adapter(config, source)
    notes = []
    if source.optimizer is not None and (config.slim or config.to == "huggingface"):
        source = replace(source, optimizer=None)
        notes.append("the optimizer's state is left out")
    if source.config.embedding_bias and config.to == "huggingface":
        notes.append("the embedding's bias is added into the embedding")
    if source.tokenizer() is None:
        notes.append("there is no tokenizer to write: name one with --tokenizer")
    nans: dict[str, int] = {}
    source = _counting_nans(source, nans)
    narrow: Dtype | None = "bfloat16" if config.slim else None
    if dtype := config.dtype or narrow:
        source = stored_in(source, np.dtype(jnp.dtype(dtype)))
    write(source, config.out, config.to, 8 if config.shards is None else config.shards)
    if damaged := [name for name, count in nans.items() if count]:
        notes.append(
            f"{sum(nans.values()):,} weights are not numbers (NaN), in {len(damaged)} tensors, "
            f"{damaged[0]} the first: the model is damaged"
        )
    return Converted(source, config.out, tuple(notes))


def _convert_adapter(config: ConvertConfig, source: Source) -> Converted:
    """Write adapters as PEFT's, and nothing of the model that they belong to."""
    adapter = adapter_at(config.source)
    if adapter is None:
        raise UserError(f"{config.source} is a whole model, and to=peft writes adapters of one")
    for name in ("dtype", "slim"):
        if getattr(config, name):
            raise UserError(f"{name} is not for adapters, which are float32: leave it out")
    base = config.base or adapter.base or ""

    def fill(folder: Path) -> None:
        peft.write(adapter, source.config, base, folder)
        if tokenizer := source.tokenizer():
            tokenizer.save(folder / own.TOKENIZER)

    write_folder(config.out, fill)
    return Converted(source, config.out, (f"they belong to {base}",))


def _counting_nans(source: Source, nans: dict[str, int]) -> Source:
    """`source`, putting into `nans` how many of a tensor's elements are NaN when it is read."""

    def counted(array: np.ndarray, name: str) -> np.ndarray:
        nans[name] = count_nans(array)
        return array

    weights = {
        name: tensor.changed(tensor.shape, functools.partial(counted, name=name))
        for name, tensor in source.weights.items()
    }
    return replace(source, weights=weights)


def stored_in(source: Source, dtype: np.dtype[Any]) -> Source:
    """`source` with its weights in `dtype`; an optimizer's moments keep their own."""
    cast = {name: tensor.cast(dtype, name) for name, tensor in source.weights.items()}
    return dataclasses.replace(source, weights=cast)


def write(source: Source, out: str | os.PathLike[str], to: Kind = "gptj", shards: int = 8) -> None:
    """Write `source` into the new folder `out`, which appears whole or not at all.

    Raises:
      UserError: the folder exists and is not empty.
      CheckpointError: it cannot be written; then none is left.
    """

    def fill(folder: Path) -> None:
        if to == "huggingface":
            huggingface.write(source, folder)
        elif to == "mesh-transformer":
            mesh_transformer.write(source, folder, shards)
        else:
            own.write(source, folder)

    _check_holds(source, to)
    write_folder(out, fill)


def write_folder(out: str | os.PathLike[str], fill: Callable[[Path], None]) -> None:
    """Have `fill` write into a new folder that appears as `out`, whole or not at all."""
    folder = Path(out).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: choose another name")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    above = [parent for parent in folder.parents if not parent.exists()]
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        fill(unfinished)
        unfinished.replace(folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):
            for made in above:
                made.rmdir()
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{folder} could not be written ({error.strerror}): free some space, or choose "
                "another name"
            ) from error
        raise


def _check_holds(source: Source, to: Kind) -> None:
    """Refuse a model whose numbers would change silently: the other kind has no place for a field.

    Mesh Transformer JAX and transformers both have GPT-J's own constants in their code.
    """
    fixed: dict[Kind, tuple[str, ...]] = {
        "gptj": (),
        "huggingface": ("rotary_base",),
        "mesh-transformer": ("rotary_base", "layer_norm_eps"),
    }
    for name in fixed.get(to, ()):
        value, theirs = getattr(source.config, name), getattr(PRESETS["gpt-j-6b"], name)
        if value != theirs:
            raise UserError(
                f"{source.place} has {name}={value:g}, and {to} only knows {theirs:g}: it would "
                "compute other numbers; convert it to gptj"
            )
