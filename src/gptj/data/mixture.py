"""What a run trains on: the stores of prepared folders, each at a weight.

OUT/mixture.json: {"format": 1, "parts": [{"path": FOLDER, "weight": W}, ...]}, paths from OUT.
A prepared folder is a mixture of itself alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from gptj.data.appear import PREPARED, all_or_nothing, check_out
from gptj.data.examples import Examples
from gptj.data.store import MANIFEST, TokenStore
from gptj.errors import UserError
from gptj.files import Folder, is_url
from gptj.tokenizer import Tokenizer

FILE = "mixture.json"
FORMAT = 1
ROUND = 1 << 20
"""Rows after which the mixture repeats; a weight is a whole number of these."""


@dataclass(frozen=True)
class MixConfig:
    """Mix folders of prepared text: `gptj train --data OUT` draws rows of each by its weight."""

    parts: tyro.conf.Positional[tuple[str, ...]]
    """FOLDER=WEIGHT of each; the weights are shares of the rows, whatever they sum to. FOLDER
    alone, of all of them, weighs as much as its tokens: each is read as often as the others."""
    out: Path
    """Folder to write; it holds no text, and says where the others are."""
    force: bool = False
    """Replace OUT if it holds a mixture."""


@dataclass(frozen=True, eq=False)
class Part:
    """One store of a mixture."""

    name: str
    """Its folder's."""
    store: TokenStore
    share: int
    """Rows of every `ROUND`."""


@dataclass(frozen=True, eq=False)
class Mixture:
    """What a run learns, and what is kept to measure it."""

    place: str
    parts: tuple[Part, ...]
    held_out: TokenStore | None
    """The held-out text of all parts, one after the other."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Mixture:
        """The mixture or the prepared text in the folder `path`, which may be a URL.

        Raises:
          UserError: there is neither, or parts of it are missing or have different tokenizers.
        """
        folder = Folder(path)
        if not is_data(path):
            raise _lack(folder, f"make it with `gptj prepare TEXT --out {path}`")
        if FILE not in folder:
            return cls.of(_opened(folder, "train"), _held_out(folder))
        named = dict(_listed(folder))
        opened = [(name, each, Folder(place)) for name, (place, each) in named.items()]
        stores = [_opened(each, "train") for _, _, each in opened]
        _check_alike([each for _, _, each in opened], stores)
        shares = _shares([weight for _, weight, _ in opened])
        parts = [
            Part(name, store, share)
            for (name, _, _), store, share in zip(opened, stores, shares, strict=True)
        ]
        kept = {name: held for name, _, each in opened if (held := _held_out(each)) is not None}
        return cls(str(path), tuple(parts), TokenStore.chained(kept) if kept else None)

    @classmethod
    def of(cls, store: TokenStore, held_out: TokenStore | None = None) -> Mixture:
        """One store alone."""
        return cls(str(store), (Part("", store, ROUND),), held_out)

    def __len__(self) -> int:
        """The number of tokens to train on."""
        return sum(len(part.store) for part in self.parts)

    @property
    def is_mixed(self) -> bool:
        """Whether it has parts with weights."""
        return bool(self.parts[0].name)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all parts."""
        return self.parts[0].store.tokenizer

    @property
    def examples(self) -> Examples | None:
        """What the documents show, if they are not texts."""
        return self.parts[0].store.manifest.examples

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 that tells these texts and weights from any others; of one part, the store's."""
        if len(self.parts) == 1:
            return self.parts[0].store.fingerprint
        said = [f"{part.store.fingerprint}:{part.share}" for part in self.parts]
        return hashlib.sha256("\n".join(said).encode()).hexdigest()

    @functools.cached_property
    def order(self) -> Order:
        """Which part each row is of."""
        return Order([part.share for part in self.parts])


def is_data(path: str | os.PathLike[str]) -> bool:
    """Whether there is something to train on in a folder."""
    folder = Folder(path)
    return FILE in folder or PREPARED in folder


def groups_of(path: str | os.PathLike[str]) -> list[str]:
    """The groups of data that `prepare` divided, each of which is data in a folder of its own."""
    folder, names = Folder(path), list[str]()
    if not is_data(path) and MANIFEST not in folder:
        with contextlib.suppress(UserError):  # plain HTTP need not say what there is
            names = [name for name in folder.names() if not name.startswith(".")]
    if not names or f"{names[0]}/{PREPARED}" not in folder:  # asked once: it may be far away
        return []
    return [name for name in names if f"{name}/{PREPARED}" in folder]


class Order:
    """Whose turn it is.

    Of N rows one after the other a part with a share of w has w N, but for (1 + parts w) / 2 at
    most; of every `ROUND` rows exactly its share.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self.shares = np.array(shares)
        # A part of n rows a round has one in the middle of each nth of it.
        places = np.concatenate([(np.arange(share) + 0.5) / share for share in shares])
        owners = np.repeat(np.arange(len(shares)), shares)
        self._owners = owners[np.argsort(places, kind="stable")].astype(np.int16)
        self._before = np.empty(ROUND, np.int32)
        for part in range(len(shares)):
            mine = self._owners == part
            self._before[mine] = np.arange(shares[part])

    def turns(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which part the rows at these positions are of, and how many of it came before."""
        rounds, within = np.divmod(positions, ROUND)
        parts = self._owners[within].astype(np.int64)
        return parts, rounds * self.shares[parts] + self._before[within]

    def counts(self, rows: int) -> NDArray[np.int64]:
        """How many of the first `rows` rows are of each part."""
        rounds, rest = divmod(rows, ROUND)
        return rounds * self.shares + np.bincount(self._owners[:rest], minlength=len(self.shares))


@dataclass(frozen=True)
class MixReport:
    """A part of the mixture that `mix` wrote."""

    name: str
    tokens: int
    share: float
    """Of the rows."""
    epochs: float
    """How often it is read while the mixture's tokens are drawn once."""


def mix(config: MixConfig) -> tuple[MixReport, ...]:
    """Write the mixture that `config` describes.

    Raises:
      UserError: a part is missing, named twice or weighs nothing, or the output cannot be used.
    """
    weights = _weights(config.parts)
    check_out(config.out, config.force, FILE)
    paths = {path: path if is_url(path) else os.path.relpath(path, config.out) for path in weights}
    parts = [{"path": paths[path], "weight": weight} for path, weight in weights.items()]
    with all_or_nothing(config.out, config.force, FILE) as folder:
        written = json.dumps({"format": FORMAT, "parts": parts}, indent=1) + "\n"
        (folder / FILE).write_text(written, encoding="utf-8")
    made = Mixture.open(config.out)
    whole = len(made)
    return tuple(
        MixReport(
            part.name,
            len(part.store),
            part.share / ROUND,
            part.share / ROUND * whole / len(part.store),
        )
        for part in made.parts
    )


def _weights(given: Sequence[str]) -> dict[str, float]:
    """The folders and their weights, as a command names them; all are checked to be there."""
    found: dict[str, float | None] = {}
    for words in given:
        path, equals, weight = words.rpartition("=") if "=" in words else (words, "", "")
        if _same(path) in map(_same, found):
            raise UserError(f"{path} is among the parts twice: name it once")
        try:
            found[path] = float(weight) if equals else None
        except ValueError:
            raise UserError(
                f"{words!r} does not say how much {path} weighs: write FOLDER=WEIGHT"
            ) from None
    if len(found) < 2:
        raise UserError("a mixture has at least two parts: name more, or train on the one itself")
    if None in found.values() and any(found.values()):
        raise UserError("some parts have a weight and others none: write FOLDER=WEIGHT for each")
    folders = {path: Folder(path) for path in found}
    stores = {path: _opened(folder, "train") for path, folder in folders.items()}
    _check_alike(list(folders.values()), list(stores.values()))
    weights = {path: len(stores[path]) if w is None else w for path, w in found.items()}
    for path, each in weights.items():
        if not (math.isfinite(each) and each > 0):
            raise UserError(f"{path}={each:g}: a weight must be a number above 0")
    return weights


def _same(path: str) -> str:
    """One spelling of a path."""
    return path.rstrip("/") if is_url(path) else os.path.realpath(path)


def _shares(weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers of `ROUND` rows, each at least one.

    Raises:
      UserError: there are more parts than that.
    """
    exact = np.array(weights) / sum(weights) * ROUND
    found = np.maximum(1, np.floor(exact).astype(np.int64))
    left = ROUND - int(found.sum())
    by_rest = np.argsort(found - exact, kind="stable")
    if left > 0:
        found[by_rest[:left]] += 1
    while left < 0:  # tiny ones were made one
        found[np.argmax(found)] -= 1
        left += 1
    return [int(share) for share in found]


def _listed(folder: Folder) -> Iterator[tuple[str, tuple[str, float]]]:
    file = folder.file(FILE)
    try:
        values: dict[str, Any] = json.loads(file.text())
        if values["format"] != FORMAT:
            raise UserError(f"{file.path} has format {values['format']}, not {FORMAT}: mix again")
        parts = [(str(each["path"]), float(each["weight"])) for each in values["parts"]]
    except UserError:  # a ValueError too
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file.path} is not a mixture: write it with `gptj mix`") from error
    places = [path if is_url(path) else os.path.normpath(f"{folder}/{path}") for path, _ in parts]
    for place, (_, weight) in zip(places, parts, strict=True):
        yield _name(place, places), (place, weight)


def _name(place: str, places: Sequence[str]) -> str:
    """The shortest end of a path that no other has."""
    words = place.strip("/").split("/")
    for count in range(1, len(words)):
        end = "/".join(words[-count:])
        if sum(f"/{each.strip('/')}".endswith(f"/{end}") for each in places) == 1:
            return end.replace("/", "-")
    return place


def _lack(folder: Folder, remedy: str) -> UserError:
    """A sentence about a folder that is none of prepared data."""
    if groups := groups_of(str(folder)):
        return UserError(
            f"{folder} holds no prepared data itself, but in folders of it: name one, such as "
            f"{folder}/{groups[0]}, or weigh several with `gptj mix`"
        )
    if MANIFEST in folder:
        return UserError(f"{folder} is one store of prepared data: name {folder.parent} around it")
    return UserError(f"{folder} holds no prepared data: {remedy}")


def _opened(folder: Folder, name: str) -> TokenStore:
    if FILE in folder:
        raise UserError(f"{folder} is a mixture itself: name its parts")
    if f"{name}/{MANIFEST}" not in folder:
        raise _lack(folder, "give a folder that `gptj prepare` wrote")
    return TokenStore.open(f"{str(folder).rstrip('/')}/{name}")


def held_out_beside(train: TokenStore) -> TokenStore | None:
    """What was held out of the data that a store is for training of."""
    return _held_out(train.folder.parent)


def _held_out(folder: Folder) -> TokenStore | None:
    return _opened(folder, "heldout") if f"heldout/{MANIFEST}" in folder else None


def _check_alike(folders: Sequence[Folder], stores: Sequence[TokenStore]) -> None:
    first = stores[0].manifest.tokenizer
    for folder, store in zip(folders, stores, strict=True):
        if store.manifest.tokenizer != first:
            raise UserError(
                f"{folder} has another tokenizer than {folders[0]}: prepare it again with "
                f"--tokenizer {folders[0]}/train"
            )
        kinds = [each.manifest.examples or "texts" for each in (stores[0], store)]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"{folders[0]} holds {kinds[0]} and {folder} {kinds[1]}: mix what is of one kind"
            )


def weights_of(parts: Mapping[str, float]) -> tuple[str, ...]:
    """The parts of a `MixConfig`."""
    return tuple(f"{path}={weight!r}" for path, weight in parts.items())
