"""Mesh Transformer JAX's checkpoints: shards of a flattened Haiku tree, 16 .npz files each.

Every shard holds the same leaves in the order of their names *as strings* (layer_10 before
layer_2), cut into 16 groups. A leaf that no shard splits is stored once per shard: of a norm only
shard 0's copy was ever used, and the copies of a row-parallel bias are summed.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gptj.config import PRESETS, ModelConfig
from gptj.convert import names, npz
from gptj.convert.source import COUNT, MU, NU, SCHEDULE_COUNT, Source
from gptj.convert.tensor import Tensor
from gptj.convert.tokenizers import load_tokenizer, token_count
from gptj.errors import UserError
from gptj.files import Folder
from gptj.model import Block, Params

KIND = "mesh-transformer"

FILES = 16
"""Files that a shard's leaves are cut into."""

SHARDS = (1, 2, 4, 8, 16)

Join = int | Literal["sum", "first"]
"""How the shards' copies of a leaf make the whole: joined along a dim, added, or the first."""


@dataclass(frozen=True)
class Leaf:
    """A leaf of the original's tree."""

    module: str
    name: str
    join: Join
    rest: float = 0.0
    """What the copies that are never used hold, where `join` is `first`."""


_LAYER = "layer_{}/~/"
LEAVES: Params[Leaf] = Params(
    embedding=Leaf("embedding_shard/~/linear", "w", 0),
    embedding_bias=Leaf("embedding_shard/~/linear", "b", "sum"),
    blocks=Block(
        norm_scale=Leaf(_LAYER + "replicated_layer_norm", "scale", "first", 1.0),
        norm_offset=Leaf(_LAYER + "replicated_layer_norm", "offset", "first"),
        query=Leaf(_LAYER + "linear", "w", 1),
        value=Leaf(_LAYER + "linear_1", "w", 1),
        key=Leaf(_LAYER + "linear_2", "w", 1),
        attention_out=Leaf(_LAYER + "linear_3", "w", 0),
        ffn_in=Leaf(_LAYER + "linear_4", "w", 1),
        ffn_in_bias=Leaf(_LAYER + "linear_4", "b", 0),
        ffn_out=Leaf(_LAYER + "linear_5", "w", 0),
        ffn_out_bias=Leaf(_LAYER + "linear_5", "b", "sum"),
    ),
    norm_scale=Leaf("projection_shard/~/replicated_layer_norm", "scale", "first", 1.0),
    norm_offset=Leaf("projection_shard/~/replicated_layer_norm", "offset", "first"),
    output=Leaf("projection_shard/~/linear", "w", 1),
    output_bias=Leaf("projection_shard/~/linear", "b", 0),
)

FIELDS = {
    "layers": "layers",
    "d_model": "d_model",
    "n_heads": "heads",
    "pe_rotary_dims": "rotary_dims",
    "seq": "context",
    "n_vocab": "padded_vocab_size",
}
"""The original's names for what `ModelConfig` holds."""

MUST_BE = {"norm": "layernorm", "pe": "rotary"}
"""Fields that change what the model computes, and the values that are GPT-J's."""


def is_mesh_transformer(folder: Folder) -> bool:
    """Whether `folder` looks like one of the original's."""
    return any(name.startswith("shard_") for name in folder.names())


def ordered(layers: int) -> list[str]:
    """Our names of the tensors in the original's order: its names sorted as strings."""
    leaves = names.by_name(LEAVES, layers)

    def key(name: str) -> tuple[str, str]:
        leaf, layer = leaves[name]
        return leaf.module.format(layer), leaf.name

    return sorted(leaves, key=key)


def scope(layers: int, full: bool) -> list[str]:
    """Every leaf of a checkpoint in order: with the optimizer's moments, if `full`."""
    params = ordered(layers)
    moments = [COUNT, *(MU + n for n in params), *(NU + n for n in params), SCHEDULE_COUNT]
    return [*(moments if full else []), *params, "step"]


def read(folder: Folder, config: ModelConfig | None = None) -> Source:
    """The model in a folder of shards; `config` where no config.json lies beside them.

    Raises:
      UserError: a shard or file is missing or damaged, the shards are of different models, or
        the shape of the model is not known; names the file and the leaf.
    """
    shards = _shards(folder)
    layers, full = _layers(str(folder), len(shards[0]))
    order = scope(layers, full)
    copies = {name: [shard[i] for shard in shards] for i, name in enumerate(order)}
    tokenizer = load_tokenizer(folder) or load_tokenizer(folder.parent)
    given, config = config, _config(folder, layers, copies, config)
    if given is None and (tokens := token_count(tokenizer)):
        config = replace(config, vocab_size=min(tokens, config.padded_vocab_size))
    step = _replicated(str(folder), "step", copies["step"])
    weights = names.tensors(config)
    leaves = names.by_name(LEAVES, layers)

    def joined(name: str, prefix: str = "") -> Tensor:
        leaf = leaves[name][0]
        if prefix and leaf.join == "sum":
            leaf = replace(leaf, join="first")  # the moments of a summed bias are one copy
        shape = names.matrix_shape(weights[name])
        whole = _joined(str(folder), prefix + name, leaf.join, copies[prefix + name], shape)
        return whole.viewed(weights[name].shape)

    optimizer = None
    if full:
        optimizer = {prefix + name: joined(name, prefix) for prefix in (MU, NU) for name in weights}
        for count in (COUNT, SCHEDULE_COUNT):
            _replicated(str(folder), count, copies[count])
            optimizer[count] = copies[count][0]
    return Source(
        KIND,
        str(folder),
        config,
        {name: joined(name) for name in weights},
        lambda: tokenizer,
        step,
        optimizer,
    )


def _shards(folder: Folder) -> list[list[Tensor]]:
    """The leaves of every shard, in their order."""
    there = {name for name in folder.names() if name.startswith("shard_")}
    expected = [f"shard_{number}" for number in range(len(there))]
    if there != set(expected) or len(there) not in SHARDS:
        lost = sorted(set(expected) - there)
        raise UserError(
            f"{folder} holds {len(there)} shards{f', but not {lost[0]}' if lost else ''}: a whole "
            f"checkpoint has {', '.join(map(str, SHARDS))} of them, numbered from 0"
        )
    shards: list[list[Tensor]] = []
    for name in expected:
        groups = [npz.arrays(folder.folder(name).file(f"{i}.npz")) for i in range(FILES)]
        leaves = [leaf for group in groups for leaf in group]
        if [len(group) for group in groups] != _group_sizes(len(leaves)):
            raise UserError(f"{folder}/{name}: its {FILES} files are not of one checkpoint")
        if shards and [leaf.shape for leaf in leaves] != [leaf.shape for leaf in shards[0]]:
            raise UserError(f"{folder}: shard_0 and {name} are of different models")
        shards.append(leaves)
    return shards


def _group_sizes(leaves: int) -> list[int]:
    """How many leaves each of a shard's files holds."""
    least, more = divmod(leaves, FILES)
    return [least + (number < more) for number in range(FILES)]


def _layers(where: str, leaves: int) -> tuple[int, bool]:
    """How many layers a checkpoint of so many leaves has, and whether it has an optimizer."""
    per_layer, rest = len(ordered(1)) - len(ordered(0)), len(scope(0, False))
    for full in (False, True):
        own = leaves - len(scope(0, full))
        each = per_layer * (3 if full else 1)
        if own > 0 and own % each == 0:
            return own // each, full
    raise UserError(
        f"{where} has {leaves} leaves a shard, which no GPT-J has ({rest} and {per_layer} a layer, "
        "thrice with an optimizer)"
    )


def _config(
    folder: Folder, layers: int, copies: dict[str, list[Tensor]], given: ModelConfig | None
) -> ModelConfig:
    """The model's shape, as given or as config.json says, checked against the shards."""
    shards = len(copies["step"])
    matrices = {name: copies[name][0].shape for name in ("embedding", "blocks.0.ffn_in")}
    for name, shape in matrices.items():
        if len(shape) != 2:
            raise UserError(
                f"{folder}: {name} has shape {shape}, not that of a matrix: it is damaged"
            )
    rows, d_model = matrices["embedding"]
    seen = {
        "layers": layers,
        "d_model": d_model,
        "d_ff": matrices["blocks.0.ffn_in"][1] * shards,
        "padded_vocab_size": rows * shards,
    }
    config = given or _beside(folder, seen)
    for field, value in seen.items():
        if getattr(config, field) != value:
            raise UserError(
                f"{folder}: its {shards} shards make {field}={value}, the config says "
                f"{getattr(config, field)}: a shard is missing, or the config is another model's"
            )
    return replace(config, embedding_bias=True)


def _beside(folder: Folder, seen: dict[str, int]) -> ModelConfig:
    """The shape by the config.json in the folder or its parent, or that of the released GPT-J."""
    for place in (folder, folder.parent):
        if "config.json" in place:
            return read_config(place.file("config.json").text(), f"{place}/config.json", seen)
    released = PRESETS["gpt-j-6b"]
    if all(getattr(released, field) == value for field, value in seen.items()):
        return released
    raise UserError(
        f"{folder} does not say how many heads, rotary dims and positions its model has: put the "
        "config it was trained with there as config.json, or name it to `gptj convert` as --config"
    )


def read_config(text: str, where: str, seen: dict[str, int] | None = None) -> ModelConfig:
    """The shape that one of the original's configs describes, alone or under the key `model`."""
    try:
        raw = json.loads(text)
        raw = raw.get("model", raw)
        for name, value in MUST_BE.items():
            if raw.get(name, value) != value:
                raise UserError(f"{where}: {name}={raw[name]!r} is not supported, only {value!r}")
        if missing := [theirs for theirs in FIELDS if theirs not in raw]:
            raise UserError(
                f"{where} is not a config of the original's, it lacks {', '.join(missing)}"
            )
        fields = {ours: raw[theirs] for theirs, ours in FIELDS.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{where} is not a config of the original's, a JSON object with {', '.join(FIELDS)}"
        ) from None
    rows = fields["padded_vocab_size"]
    tokens = PRESETS["gpt-j-6b"].vocab_size
    whole = rows == PRESETS["gpt-j-6b"].padded_vocab_size
    try:
        d_ff = (seen or {}).get("d_ff", 4 * fields["d_model"])
        return ModelConfig(**fields, vocab_size=tokens if whole else rows, d_ff=d_ff)
    except (UserError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None


def _joined(
    where: str, name: str, join: Join, copies: list[Tensor], shape: tuple[int, ...]
) -> Tensor:
    """The whole tensor that the shards' copies make."""
    own = list(shape)
    if isinstance(join, int):
        own[join] //= len(copies)
    names.check_shape(where, name, copies[0].shape, tuple(own))
    names.check_float(where, name, copies[0].dtype)
    if any(copy.dtype != copies[0].dtype for copy in copies):
        raise UserError(f"{where}: the shards hold {name} in different types")

    def read() -> np.ndarray:
        if join == "first" or len(copies) == 1:
            return copies[0].read()
        parts = [copy.read() for copy in copies]
        return np.concatenate(parts, join) if join != "sum" else _added(where, name, parts)

    return Tensor(shape, copies[0].dtype, read)


def _added(where: str, name: str, parts: list[np.ndarray]) -> np.ndarray:
    """The sum of a bias's copies, which training keeps equal."""
    wide = [part.astype(np.float32) for part in parts]
    largest = np.abs(wide[0]).max(initial=0)
    if any(np.abs(part - wide[0]).max(initial=0) > 0.01 * largest for part in wide):
        raise UserError(f"{where}: {name} differs between the shards: they are of different models")
    total = np.sum(wide, axis=0, dtype=np.float64)  # exact, where float32 rounds three times one
    return total.astype(parts[0].dtype)


def _replicated(where: str, name: str, copies: list[Tensor]) -> int:
    """A counter that all shards must agree on."""
    if any(copy.shape or copy.dtype != np.int32 for copy in copies):
        raise UserError(f"{where}: {name} is not a counter but {copies[0].shape}")
    values = sorted({int(copy.read()) for copy in copies})
    if len(values) > 1:
        raise UserError(f"{where}: the shards are of different checkpoints, {name} is {values}")
    return values[0]


def write(source: Source, folder: Path, shards: int) -> None:
    """Write `source` as the original does, cut into `shards` shards.

    Raises:
      UserError: the shards do not divide the model.
    """
    config = source.config
    if shards not in SHARDS:
        raise UserError(f"shards={shards} must be one of {', '.join(map(str, SHARDS))}")
    for dim in ("heads", "d_ff", "padded_vocab_size"):
        if getattr(config, dim) % shards:
            raise UserError(
                f"{shards} shards do not divide the model's {dim}={getattr(config, dim)}: choose "
                "a divisor of it with --shards"
            )
    for shard in range(shards):
        (folder / f"shard_{shard}").mkdir()
    order = iter(scope(config.layers, source.optimizer is not None))
    for number, size in enumerate(_group_sizes(len(scope(config.layers, bool(source.optimizer))))):
        with contextlib.ExitStack() as stack:
            paths = [folder / f"shard_{shard}" / f"{number}.npz" for shard in range(shards)]
            archives = [stack.enter_context(zipfile.ZipFile(path, "x")) for path in paths]
            for place in range(size):
                for archive, part in zip(
                    archives, _parts(source, next(order), shards), strict=True
                ):
                    npz.add(archive, place, part)
    fields = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
    text = json.dumps({**fields, **MUST_BE, "cores_per_replica": shards}, indent=2)
    (folder / "config.json").write_text(text + "\n")
    if tokenizer := source.tokenizer():
        tokenizer.save(folder / "tokenizer.json")


def _parts(source: Source, name: str, shards: int) -> Iterator[np.ndarray]:
    """What each shard holds of a leaf."""
    if name in ("step", COUNT, SCHEDULE_COUNT):
        counters = {"step": source.step or 0}
        array = np.asarray(
            counters[name] if name in counters else (source.optimizer or {})[name].read(), np.int32
        )
        yield from [array] * shards
        return
    own = name.removeprefix(MU).removeprefix(NU)
    moment = own != name
    leaf = names.by_name(LEAVES, source.config.layers)[own][0]
    array = _whole(source, name, own).reshape(
        names.matrix_shape(names.tensors(replace(source.config, embedding_bias=True))[own])
    )
    if isinstance(leaf.join, int):
        yield from np.split(array, shards, leaf.join)
    elif leaf.join == "sum":
        part = array if moment else (array.astype(np.float32) / shards).astype(array.dtype)
        yield from [part] * shards
    else:
        yield array
        yield from [np.full_like(array, 0 if moment else leaf.rest)] * (shards - 1)


def _whole(source: Source, name: str, own: str) -> Any:
    held = source.weights if name == own else source.optimizer or {}
    if name in held:
        return held[name].read()
    beside = held[name.replace("embedding_bias", "embedding")].dtype
    return np.zeros(source.config.d_model, beside)  # an embedding's bias that is not there
