"""Restoring a checkpoint onto whatever mesh is set, after making sure of what it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gptj.checkpoint import manifest as manifests
from gptj.checkpoint.handler import Handler, Restore, reason
from gptj.checkpoint.manifest import CheckpointError
from gptj.checkpoint.storage import at

PARTS = {"params": "model", "opt_state": "optimizer"}
"""What it is of when a part of the tree is another."""

IN_FLIGHT = 2 << 30
"""Bytes that may be on their way from the disk to the devices, beside the largest shard."""


def restore(path: Path, like: Any, model: Mapping[str, Any] | None = None) -> Any:
    """The tree saved at `path`, each array with the dtype and sharding of its leaf in `like`.

    `like` holds `jax.ShapeDtypeStruct`s and may be a part of what was saved: some of the fields
    at its top, each of them whole. Where there are several processes, all of them call this.

    Args:
      model: the config of the model wanted, to name the field that differs where the checkpoint
        has another one's in its metadata, as `model`.

    Raises:
      CheckpointError: a file is missing or damaged, or the tree is of another shape.
    """
    manifest = manifests.read(path)
    check_model(path, manifest["metadata"].get("model"), model)
    _verify_together(path, manifest)
    try:
        with ocp.Checkpointer(Handler()) as reader:
            found = reader.metadata(at(path)).item_metadata.tree
        check_shapes(path, found, like)
        placed = _placed(like)
        limit = (_largest_reading(found, placed) + IN_FLIGHT) / 1e9
        arguments = ocp.checkpoint_utils.construct_restore_args(placed)
        with ocp.Checkpointer(Handler(restore_concurrent_gb=limit)) as reader:
            return reader.restore(
                at(path),
                args=Restore(like, restore_args=arguments, partial_restore=True),
            )
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:  # not what a lack of memory or our own bug raises
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason(error)}") from error


def check_model(
    path: Path, there: Mapping[str, Any] | None, here: Mapping[str, Any] | None
) -> None:
    """Refuse a checkpoint of a model with another config, naming the first field that differs."""
    there, here = there or {}, here or {}
    for name in (name for name in here if name in there):
        if there[name] != here[name]:
            raise CheckpointError(
                f"checkpoint {path} is of another model: {name} is {there[name]!r} there and "
                f"{here[name]!r} here. Use the config it was trained with"
            )


def check_shapes(path: Path, found: Any, like: Any) -> None:
    """Refuse a saved tree whose arrays are not those of `like`, naming the first that differs."""
    there, here = (
        {name: tuple(leaf.shape) for name, leaf in _by_name(tree).items()} for tree in (found, like)
    )
    fields = jax.tree_util.tree_leaves_with_path(like, is_leaf=lambda part: part is not like)
    wanted = {_name(key)[0] for key, _ in fields}  # also one that holds no array here
    for name in [*here, *(name for name in there if name[0] in wanted)]:
        if there.get(name) != here.get(name):
            part = PARTS.get(name[0], "tree")
            raise CheckpointError(
                f"checkpoint {path} is of another {part}: {'.'.join(name)} is "
                f"{there.get(name, 'missing')} there and {here.get(name, 'missing')} here. "
                f"Use the {part}'s config that it was saved with"
            )


def _verify_together(path: Path, manifest: dict[str, Any]) -> None:
    """Compare every file with its hash, each process some of them, and refuse it on all or none."""
    files, problem = manifest["files"], None
    names = sorted(files, key=lambda name: files[name]["bytes"])
    try:
        manifests.check_sizes(path, manifest)
        name = manifests.changed(path, manifest, names[jax.process_index() :: jax.process_count()])
        problem = name and manifests.not_what_was_written(path, name)
    except CheckpointError as error:
        problem = str(error)
    if jax.process_count() > 1:
        found = multihost_utils.process_allgather(np.asarray(bool(problem)))
        if not problem and found.any():
            at = int(found.argmax())
            problem = f"checkpoint {path} is damaged: process {at} says which of its files is"
    if problem:
        raise CheckpointError(problem)


def _by_name(tree: Any) -> dict[tuple[str, ...], Any]:
    """Each leaf by its name, the same for dataclasses, tuples and the dicts Orbax returns."""
    return {_name(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(key: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(
        str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", ""))))
        for entry in key
    )


def _largest_reading(found: Any, placed: Any) -> int:
    """The most bytes that one shard can take to read: all of every chunk that it touches."""
    there = _by_name(found)
    most = 0
    for name, leaf in _by_name(placed).items():
        whole, shard = leaf.shape, leaf.sharding.shard_shape(leaf.shape)
        storage = there[name].storage
        chunks = storage.chunk_shape if storage and storage.chunk_shape else whole
        touched = (
            min(-(-part // chunk) + 1, -(-size // chunk)) * chunk
            for size, part, chunk in zip(whole, shard, chunks, strict=True)
        )
        most = max(most, math.prod(touched) * np.dtype(there[name].dtype).itemsize)
    return most


def _placed(like: Any) -> Any:
    """`like` with every leaf placed: on the first device where it names no sharding."""
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or single
        ),
        like,
    )
