"""Whatever someone calls a model, as a source: the kind is seen from the files."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from gptj import checkpoint
from gptj.adapters import LoRAConfig, table
from gptj.config import PRESETS, ModelConfig
from gptj.convert import archive, huggingface, mesh_transformer, own, peft
from gptj.convert.adapted import MARKED, Adapter, Halves, with_adapter
from gptj.convert.source import Source, from_params
from gptj.convert.tensor import Tensor
from gptj.errors import UserError
from gptj.files import Folder, is_url
from gptj.hub import download, is_hub_id
from gptj.model import Params, abstract, abstract_table
from gptj.tokenizer import Tokenizer

HUB_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model")

KINDS = (
    "a `gptj train` run or a folder written by Model.save or `gptj convert`; a Hugging Face "
    "folder or Hub id; or the original's folder of shards, or an archive of it"
)


def open_source(
    place: str | os.PathLike[str],
    *,
    config: ModelConfig | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
) -> Source:
    """The model at a path, a URL or a Hub id; its weights are not read yet.

    Adapters are read as one model with that which they belong to.

    Args:
      config: the shape, for shards of the original's that no config.json lies beside.
      base: the model that adapters belong to, where it is not where they say.
      tokenizer: what `Tokenizer.load` takes, where none or another one lies with the model.

    Raises:
      UserError: there is no model there, or its files contradict each other.
    """
    folder = _located(str(place))
    adapter = adapter_of(folder)
    if adapter is not None:
        whole = base_of(adapter, base)
        if peft.is_peft(folder):
            peft.check(adapter, folder, whole.config)
        source = with_adapter(whole, adapter)
        source = replace(source, tokenizer=_tokenizer_beside(folder, source.tokenizer))
    elif base is not None:
        raise UserError(f"{place} is a model of its own and no adapters: leave out the base")
    else:
        source = _opened(folder, config)
    if config is not None and source.kind != mesh_transformer.KIND:
        raise UserError(f"{place} has its own config: leave out the one you give")
    if tokenizer is not None:
        return replace(source, tokenizer=functools.cache(lambda: Tokenizer.load(tokenizer)))
    return replace(source, tokenizer=functools.cache(source.tokenizer))


def config_named(name: str | None) -> ModelConfig | None:
    """A preset, or the JSON file of a config, ours or the original's; `None` for no name."""
    if name is None:
        return None
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no config {name!r}: give a JSON file or one of {', '.join(PRESETS)}")
    try:
        text = path.read_text()
        if "n_heads" in text:
            return mesh_transformer.read_config(text, name)
        return ModelConfig.load(path)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not JSON text: it must hold a model's config") from None


def adapter_at(place: str) -> Adapter | None:
    """The adapters at a path, if that is what is there."""
    return adapter_of(_located(place))


def adapter_for(place: str, config: ModelConfig) -> Adapter:
    """The adapters at a path, which are to be of a model of that shape.

    Raises:
      UserError: there are none, or they are of another shape.
    """
    folder = _located(place)
    adapter = adapter_of(folder)
    if adapter is None:
        raise UserError(
            f"{place} holds no adapters: give a run of `gptj train --lora-rank`, or a folder of "
            "PEFT's"
        )
    if peft.is_peft(folder):
        peft.check(adapter, folder, config)
    elif (layers := own.read_config(folder).layers) != config.layers:
        raise UserError(
            f"the adapters of {place} are of {layers} layers and the model has {config.layers}: "
            "they are of another model"
        )
    return adapter


def adapter_of(folder: Folder) -> Adapter | None:
    """The adapters in a folder of PEFT's, or of a run that trained some."""
    if peft.is_peft(folder):
        return peft.read(folder)
    if not is_run(folder) or checkpoint.COURSE not in folder:
        return None
    config, newest = own.read_config(folder), _saved(folder)[-1]
    found = _recorded(folder, config)
    if found is None:
        return None
    lora, base, mark = found

    @functools.cache
    def restored() -> Any:
        like = abstract_table(table(config, lora))
        return checkpoint.restore(newest, {"params": like}, asdict(config))["params"]

    def halves(field: str, layer: int) -> Halves:
        pair = restored()[field]
        return np.asarray(pair.down[layer]), np.asarray(pair.up[layer])

    return Adapter(str(folder), lora, halves, base, mark)


def _recorded(folder: Folder, config: ModelConfig) -> tuple[LoRAConfig, str, str] | None:
    """The adapters of a run by its own record, where it trained some: their base, and its mark.

    Raises:
      UserError: the record is damaged, or its mark is of a kind that is no longer made.
    """
    name = checkpoint.COURSE
    try:
        course = json.loads(folder.file(name).text())
        known = course.get("compute", {}).get("lora") or {}
        if known.get("rank") is None:
            return None
        lora = LoRAConfig.of(known)
        table(config, lora)  # that it knows the matrices
        base, mark = course["from"], course["base"]
        if checkpoint.DATA in folder:
            name = checkpoint.DATA
            base = json.loads(folder.file(name).text()).get("from") or base
        if not (isinstance(base, str) and isinstance(mark, str)):
            raise TypeError("the base is no text")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{folder}/{name} is damaged, so what the run trained and beside what is not known: "
            "copy the run's folder again"
        ) from error
    if not mark.startswith(MARKED):
        raise UserError(
            f"{folder}/{checkpoint.COURSE} marks the base as an earlier version did, which told "
            "other models apart: train the adapters again, or merge them with that version"
        )
    return lora, base, mark


def base_of(adapter: Adapter, named: str | None = None) -> Source:
    """The model that adapters belong to: the one that is named, or as they say."""
    place = named or adapter.base
    if not place:
        raise UserError(
            f"the adapters of {adapter.place} do not say which model they belong to: name it with "
            "--base MODEL"
        )
    try:
        return open_source(place)
    except UserError as error:
        raise UserError(
            f"{error}; the adapters of {adapter.place} belong to it: name it with --base MODEL"
        ) from error


def _tokenizer_beside(
    folder: Folder, otherwise: Callable[[], Tokenizer | None]
) -> Callable[[], Tokenizer | None]:
    if own.TOKENIZER not in folder:
        return otherwise
    return lambda: Tokenizer.load(folder.on_disk / own.TOKENIZER)


def _opened(folder: Folder, config: ModelConfig | None) -> Source:
    if own.is_own(folder):
        return own.read(folder)
    if is_run(folder):
        return _run(folder)
    if mesh_transformer.is_mesh_transformer(folder):
        return mesh_transformer.read(folder, config)
    if huggingface.is_huggingface(folder):
        return huggingface.read(folder)
    if own.CONFIG in folder and is_url(str(folder)):
        raise UserError(
            f"{folder} is a run, which cannot be read from afar: copy it to this machine"
        )
    if own.CONFIG in folder:
        raise UserError(
            f"the run {folder} has no complete checkpoint yet: train on until its first save"
        )
    raise UserError(f"no model at {folder}: give {KINDS}")


def _located(place: str) -> Folder:
    """The folder of a model: as named, unpacked, or downloaded."""
    if is_url(place):
        return _inner(Folder(place))
    path = Path(place)
    if path.is_file() and archive.is_archive(path.name):
        return _inner(Folder(path, _unpacked(path)))
    if not path.exists() and place.count("/") == 1 and is_hub_id(place):
        return Folder(download(place, "model", HUB_FILES))
    if not path.is_dir():
        raise UserError(f"no model at {place}: give {KINDS}")
    return _inner(Folder(path))


def _inner(folder: Folder) -> Folder:
    """The one folder in `folder`, where that is all it holds, as in an unpacked archive."""
    names = folder.names()
    if len(names) == 1 and not names[0].startswith("shard_") and names[0] not in folder:
        return _inner(folder.folder(names[0]))
    return folder


def _unpacked(path: Path) -> Path:
    """An archive's content, beside it on its disk until this program ends."""
    try:
        kept = tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be unpacked beside itself ({error.strerror}): copy it where you "
            "may write"
        ) from None
    remove = functools.partial(shutil.rmtree, kept, ignore_errors=True)
    atexit.register(remove)
    try:
        archive.unpack(path, Path(kept) / "content")
    except BaseException:
        remove()
        raise
    return Path(kept) / "content"


def is_run(folder: Folder) -> bool:
    """Whether `folder` is that of a training run with a checkpoint to read."""
    return own.CONFIG in folder and not is_url(str(folder)) and bool(_saved(folder))


def _saved(folder: Folder) -> list[Path]:
    return checkpoint.complete(checkpoint.of_run(folder.on_disk))


def _run(folder: Folder) -> Source:
    """A run as a source. The first tensor read restores all of them."""
    config, newest = own.read_config(folder), _saved(folder)[-1]

    def restore(dtype: np.dtype[Any]) -> Params[Array]:
        like = jax.tree.map(lambda leaf: leaf.update(dtype=dtype), abstract(config))
        saved = checkpoint.restore(newest, {"params": like}, asdict(config))
        params: Params[Array] = saved["params"]
        return params

    @functools.cache
    def restored() -> dict[str, Tensor]:
        return from_params(config, restore(np.dtype("float32")), None).weights

    def read(name: str) -> np.ndarray:
        return restored()[name].read()

    lazy = from_params(config, abstract(config), None).weights
    weights = {n: replace(t, read=functools.partial(read, n)) for n, t in lazy.items()}
    tokenizer = lambda: Tokenizer.load(folder.on_disk / own.TOKENIZER)  # noqa: E731
    step = checkpoint.step_of(newest)
    return Source("run", str(folder), config, weights, tokenizer, step, None, restore)
