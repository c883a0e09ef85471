"""The inputs in portions, each written to shards of its own, so that who writes changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

from gptj.data.appear import DONE, sync
from gptj.data.clean import CleanConfig, Dropped, Drops, FewTokens, kept, mended
from gptj.data.examples import ExampleConfig, ExampleReader, Examples
from gptj.data.find import LINES, TABLES, Inputs, Source
from gptj.data.groups import StoreKey, place_of
from gptj.data.read import TEXT, Document, Reader
from gptj.data.split import Split
from gptj.data.write import StoreWriter, Written, replace_text
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

PORTION_BYTES = 1 << 28
"""Of files as they lie there."""
ATTEMPTS, COMPLETE = "attempts", "new"
"""Folders of what is being written, and of what is written."""


@dataclass(frozen=True)
class ReadConfig:
    """How documents are read; see `PrepareConfig`."""

    text_field: str
    split_by: str | None
    strict: bool
    clean: CleanConfig
    examples: ExampleConfig = ExampleConfig()
    tokenizer: Tokenizer | None = None
    """What files of tokens are of, and examples become tokens by."""
    exclude: tuple[str, ...] = ()

    def check(self, inputs: Inputs) -> None:
        """See that there is something with fields where one is named.

        Raises:
          UserError: there is nothing.
        """
        with_fields = LINES | TABLES | {".tar"}
        if self.text_field != TEXT and all(each.kind not in with_fields for each in inputs.sources):
            raise UserError(
                f"--text-field {self.text_field} is of JSON lines and tables, and the inputs are "
                f"none, as {inputs.sources[0].file.path}: leave it out, or give files whose names "
                "end in .jsonl, .parquet or .arrow"
            )


@dataclass(frozen=True)
class Reading:
    """Documents of some files, each time the same."""

    inputs: Inputs
    config: ReadConfig
    drops: Drops = field(default_factory=Drops)

    def documents(self, reader: Reader | None = None) -> Iterator[Document]:
        """What is kept of them, mended."""
        reader = reader or self.reader()
        read = (each for source in self.inputs.sources for each in reader.documents(source))
        return kept(mended(read, self.config.clean), self.drops)

    def reader(self) -> Reader:
        """A reader, which counts anew."""
        config, tokenizer = self.config, self.config.tokenizer
        eos_id, examples = tokenizer.eos_id if tokenizer else None, None
        if config.examples.examples:
            assert tokenizer is not None
            examples = ExampleReader(config.examples, tokenizer)
        return Reader(
            config.text_field, config.split_by, config.strict, eos_id, config.exclude, examples
        )


def portions(inputs: Inputs) -> list[Inputs]:
    """The inputs, in turns of files that lie one after the other, `PORTION_BYTES` or more each."""
    found: list[Inputs] = []
    begun: list[Source] = []
    for source in inputs.sources:
        begun.append(source)
        if sum(each.file.size for each in begun) >= PORTION_BYTES:
            found.append(Inputs(tuple(begun), 0))
            begun = []
    return [*found, Inputs(tuple(begun), 0)] if begun else found


@dataclass(frozen=True)
class Done:
    """What came of a portion."""

    parts: Mapping[StoreKey, Written]
    replaced: int
    """Pieces of text that were no UTF-8."""
    skipped: int
    """Files in archives that were passed over."""
    dropped: tuple[Dropped, ...]

    def to_json(self) -> str:
        """All of it."""
        parts = [[*side, dataclasses.asdict(part)] for side, part in self.parts.items()]
        dropped = [dataclasses.asdict(each) for each in self.dropped]
        counts = {"replaced": self.replaced, "skipped": self.skipped}
        return json.dumps({"parts": parts, **counts, "dropped": dropped})

    @classmethod
    def of(cls, text: str) -> Done:
        """What `to_json` says."""
        values: dict[str, Any] = json.loads(text)
        parts = {(group, held): Written.of(part) for group, held, part in values["parts"]}
        dropped = (
            Dropped(**{**each, "examples": tuple(each["examples"])}) for each in values["dropped"]
        )
        return cls(parts, values["replaced"], values["skipped"], tuple(dropped))


@dataclass(frozen=True)
class Writing:
    """How portions are written, in whichever process: to `folder`, where they are noted when done.

    Each is written apart and then moved to its place, so that of two processes that write the same
    portion, as when one was thought to be lost, neither disturbs the other.
    """

    folder: Path
    reading: Reading
    portions: tuple[Inputs, ...]
    splits: Mapping[str, Split]
    tokenizer: Tokenizer
    first_shard: int
    """Number of the first portion's shards."""

    def __call__(self, number: int) -> None:
        """Write the portion of this number."""
        place = self.folder / ATTEMPTS / uuid.uuid4().hex
        place.mkdir(parents=True)
        try:
            done = self._write(number, place)
            sync(place)
            for path in sorted(path for path in place.rglob("*") if path.is_file()):
                goal = self.folder / COMPLETE / path.relative_to(place)
                goal.parent.mkdir(parents=True, exist_ok=True)
                path.replace(goal)
            mark = self._mark(number)
            mark.parent.mkdir(exist_ok=True)
            replace_text(mark, done.to_json())
        finally:
            rmtree(place, ignore_errors=True)

    def done(self, number: int) -> Done | None:
        """What came of a portion, if it is written."""
        mark = self._mark(number)
        return Done.of(mark.read_text(encoding="utf-8")) if mark.exists() else None

    @property
    def examples(self) -> Examples | None:
        """What the documents show, if they are examples of something."""
        return self.reading.config.examples.examples

    def _mark(self, number: int) -> Path:
        return self.folder / DONE / f"{number:05}.json"

    def _write(self, number: int, place: Path) -> Done:
        drops, reader = Drops(self.reading.drops.keys), self.reading.reader()
        reading = dataclasses.replace(self.reading, inputs=self.portions[number], drops=drops)
        enough = FewTokens(reading.config.clean.min_unique_tokens, self.tokenizer, drops)
        writers: dict[StoreKey, StoreWriter] = {}
        with contextlib.ExitStack() as stack:
            for document, held in divided(enough(reading.documents(reader)), self.splits):
                side = document.group, held
                if side not in writers:
                    writer = StoreWriter(
                        place_of(*side, place),
                        self.tokenizer,
                        self.first_shard + number,
                        self.examples,
                    )
                    writers[side] = stack.enter_context(writer)
                writers[side].add(document)
        parts = {side: writer.written() for side, writer in writers.items()}
        return Done(parts, reader.replaced, reader.skipped, drops.report())


def divided(
    documents: Iterable[Document], splits: Mapping[str, Split]
) -> Iterator[tuple[Document, bool]]:
    """The documents, or what they are cut into, each with whether it is held out."""
    divisions = {name: split.begin() for name, split in splits.items()}
    for document in documents:
        for held, part in divisions[document.group](document):
            yield part, held
