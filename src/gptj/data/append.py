"""More text into a folder of prepared data: new shards, then new manifests, all of them or none."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptj.data.examples import Examples
from gptj.data.find import Inputs
from gptj.data.portions import Side, place_of
from gptj.data.store import MANIFEST, TOKENIZER, TokenStore
from gptj.data.write import Written, grown, replace_text
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

JOURNAL = ".append.json"
"""The manifests that are to be. Once it is there they are put in place, if not now then later."""


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
          UserError: it holds no prepared data.
        """
        _complete(out)
        places = [path.parent for path in sorted(out.glob(f"**/{MANIFEST}"))]
        stores = {path: TokenStore.open(path) for path in places}
        if not any(path.name == "train" for path in stores):
            raise UserError(f"{out} holds no prepared data to append to: leave out --append")
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

    def check(
        self, inputs: Inputs, split_by: str | None, held_out: float, kind: Examples | None
    ) -> None:
        """See that the inputs are new, and are to be divided as the others were.

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
        known = {source.name for store in self.stores.values() for source in store.sources}
        for source in inputs.sources:
            if source.name in known:
                raise UserError(
                    f"{source.name} is in {self.out} already: leave it out, or rename it if it is "
                    "another text"
                )

    def add(self, new: Path, tokenizer: Tokenizer, parts: Mapping[Side, Sequence[Written]]) -> None:
        """Append what was written in the folder `new`, as `parts` say."""
        manifests: dict[str, str] = {}
        for side, written in parts.items():
            place, goal = place_of(*side, new), place_of(*side, self.out)
            if not written:
                continue
            goal.mkdir(parents=True, exist_ok=True)
            for path in sorted(place.iterdir()):
                path.replace(goal / path.name)
            store = self.stores.get(goal)
            if store is None:
                tokenizer.save(goal / TOKENIZER)
            kind = next(iter(self.stores.values())).manifest.examples
            manifest = grown(store.manifest if store else None, tokenizer, written, kind)
            manifests[os.fspath(goal.relative_to(self.out))] = manifest.to_json()
        replace_text(self.out / JOURNAL, json.dumps(manifests))
        _complete(self.out)


def _complete(out: Path) -> None:
    """Put the manifests in place that a journal names, if there is one."""
    journal = out / JOURNAL
    with contextlib.suppress(FileNotFoundError):
        for place, manifest in json.loads(journal.read_text(encoding="utf-8")).items():
            replace_text(out / place / MANIFEST, manifest)
        journal.unlink()
