"""More text into a folder of prepared data: new shards, then new manifests, all of them or none."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptj.data.appear import sync_entry
from gptj.data.examples import Examples
from gptj.data.find import Inputs
from gptj.data.groups import StoreKey, place_of
from gptj.data.journal import JOURNAL
from gptj.data.known import all_there
from gptj.data.portions import Reading
from gptj.data.store import MANIFEST, TOKENIZER, TokenStore
from gptj.data.write import Written, grown, replace_text
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """Prepared data, to which more is to be appended."""

    out: Path
    stores: Mapping[Path, TokenStore]
    """By the folder of each."""

    @classmethod
    def open(cls, out: Path) -> Prepared:
        """What is in a folder, after completing what was interrupted there.

        Raises:
          UserError: it holds no prepared data, or several that are not of one kind.
        """
        places = places_of(out)
        _complete(out)
        stores = {path: TokenStore.open(path) for path in places}
        first, *others = stores
        for other in others:
            if stores[other].manifest.tokenizer != stores[first].manifest.tokenizer:
                raise UserError(
                    f"{other} has another tokenizer than {first}: append to the folder of each"
                )
        return cls(out, stores)

    @property
    def fingerprint(self) -> str:
        """Of all of it."""
        return "".join(store.fingerprint for store in self.stores.values())

    @property
    def next_shard(self) -> int:
        """A number that no shard begins with."""
        shards = (shard for store in self.stores.values() for shard in store.manifest.shards)
        return 1 + max(int(shard.name.partition("-")[0]) for shard in shards)

    def tokenizer(self, asked: str | None) -> Tokenizer:
        """The one that made the ids.

        Raises:
          UserError: another one is asked for.
        """
        own = next(iter(self.stores.values())).tokenizer
        if asked is not None and (
            asked.startswith("train:") or Tokenizer.load(asked).sha256 != own.sha256
        ):
            raise UserError(f"{self.out} has another tokenizer than {asked}: leave out --tokenizer")
        return own

    def check(self, split_by: str | None, held_out: float, kind: Examples | None) -> None:
        """See that the inputs are of the kind of the others, and to be divided as those were.

        Raises:
          UserError: they are not.
        """
        is_divided = self.out / "train" not in self.stores
        if is_divided != (split_by is not None):
            remedy = "name the field with --split-by" if is_divided else "leave out --split-by"
            whether = "is" if is_divided else "is not"
            raise UserError(f"{self.out} {whether} divided by a field: {remedy}")
        if held_out and not any(path.name == "heldout" for path in self.stores):
            raise UserError(f"{self.out} holds nothing out: append with --held-out 0")
        if (own := next(iter(self.stores.values())).manifest.examples) != kind:
            remedy = f"give --examples {own}" if own else "leave out --examples"
            raise UserError(f"{self.out} holds {own or 'texts'}: {remedy}")

    def check_new(self, reading: Reading) -> None:
        """See that no input has the name of one that is there.

        Raises:
          UserError: one has.
        """
        known = {source.name for store in self.stores.values() for source in store.sources}
        for source in reading.inputs.sources:
            if source.name in known:
                alone = Reading(Inputs((source,), 0), reading.config)
                if all_there(alone.documents(), self.stores):
                    raise UserError(f"{source.name} is in {self.out} already: leave it out")
                raise UserError(
                    f"{self.out} has other text that is called {source.name}: rename the new file, "
                    "or its folder"
                )

    def add(
        self, new: Path, tokenizer: Tokenizer, parts: Mapping[StoreKey, Sequence[Written]]
    ) -> None:
        """Append what was written in the folder `new`, as `parts` say."""
        manifests: dict[str, str] = {}
        for side, written in parts.items():
            place, goal = place_of(*side, new), place_of(*side, self.out)
            if not written:
                continue
            goal.mkdir(parents=True, exist_ok=True)
            for path in sorted(place.iterdir()):
                shutil.move(path, goal / path.name)  # which may lie on another disk
                sync_entry(goal / path.name)
            store = self.stores.get(goal)
            if store is None:
                tokenizer.save(goal / TOKENIZER)
                sync_entry(goal / TOKENIZER)
            sync_entry(goal)
            sync_entry(goal.parent)
            kind = next(iter(self.stores.values())).manifest.examples
            manifest = grown(store.manifest if store else None, tokenizer, written, kind)
            manifests[goal.relative_to(self.out).as_posix()] = manifest.to_json()
        sync_entry(self.out)
        if manifests:
            replace_text(self.out / JOURNAL, json.dumps(manifests))
            _complete(self.out)


def places_of(out: Path) -> list[Path]:
    """The folders of the stores of prepared data.

    Raises:
      UserError: there are none.
    """
    for within in ("", "*/"):
        found = [path.parent for path in sorted(out.glob(f"{within}train/{MANIFEST}"))]
        if found:
            held = [path.with_name("heldout") for path in found]
            return sorted([*found, *(path for path in held if (path / MANIFEST).exists())])
    if (out / MANIFEST).is_file():
        raise UserError(f"{out} is one store of prepared data: append to {out.parent} around it")
    raise UserError(
        f"{out} holds no prepared data to append to: leave out --append, or let --out be the "
        "folder that `gptj prepare` wrote"
    )


def _complete(out: Path) -> None:
    """Put the manifests in place that a journal names, if there is one."""
    journal = out / JOURNAL
    sync_entry(out)
    with contextlib.suppress(FileNotFoundError):
        for place, manifest in json.loads(journal.read_text(encoding="utf-8")).items():
            replace_text(out / place / MANIFEST, manifest)
            sync_entry(out / place)
        journal.unlink()
