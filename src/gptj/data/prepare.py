"""Text to training data: choose what is held out, train or load a tokenizer, write token stores."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from gptj.data.appear import all_or_nothing, check_out
from gptj.data.clean import (
    CleanConfig,
    Dropped,
    Drops,
    FewTokens,
    kept,
    leave_out_copies,
    mended,
)
from gptj.data.find import Inputs, Source, find_sources
from gptj.data.read import Document, Reader
from gptj.data.split import Split, SplitPlan, Unit
from gptj.data.store import TokenStore
from gptj.data.write import StoreWriter, Written, finish
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

_TRAIN = "train:"
UNIT_BYTES = 1 << 28
"""Of files as they lie there."""


@dataclass(frozen=True)
class PrepareConfig:
    """Turn text files into a folder of tokens, `OUT/train` and `OUT/heldout`, to train on."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders to search, patterns (`'books/**/*.txt'`), also behind URLs (`gs://`, `s3://`).
    Text and source code are one document a file; JSON lines (`.jsonl`), Parquet and Arrow tables
    one a row; `.tar` archives hold such files; any of them also compressed (`.gz`, `.zst`, `.xz`).
    Text is UTF-8. Tokens are read from the original's `.tfrecords`, or an `.index` of them, and
    from the `.idx` with `.bin` of Megatron and GPT-NeoX."""
    out: Path
    """Folder to write. It appears when all is well and complete, or not at all."""
    tokenizer: str = "train:4096"
    """`train:VOCAB` learns a byte-level BPE of VOCAB tokens, at least 257, from the training
    text; `bytes` makes every byte a token; otherwise a tokenizer.json, the folder of one, or the
    id of a model on the Hugging Face Hub. A model is fine-tuned with its own tokenizer."""
    held_out: float = 0.05
    """Fraction of the text's bytes, from 0 (nothing) to 0.5, kept from training to measure the
    loss on: whole files where there are 20 or more, else whole documents where there are 20 or
    more, else the end of every document."""
    exclude: tuple[str, ...] = ()
    """Patterns of names, such as `tests` or `*.min.js`: what they match in a folder of the
    inputs, file or folder, is left out."""
    text_field: str = "text"
    """Field of a JSON line, or column of a table, that holds the text; a dot leads into a record
    within."""
    split_by: str | None = None
    """Field by which the data are divided, as `meta.pile_set_name` of The Pile: each of its values
    becomes a folder of OUT with a `train` and a `heldout` of its own."""
    seed: int = 0
    """Chooses which files or documents are held out. The same text and seed, the same choice."""
    strict: bool = False
    """Refuse text that is not UTF-8, where else each piece of it is replaced by U+FFFD and
    counted."""
    force: bool = False
    """Replace OUT if it holds prepared data."""
    clean: tyro.conf.OmitArgPrefixes[CleanConfig] = CleanConfig()


@dataclass(frozen=True)
class StoreReport:
    """What a token store holds. `bytes` are of UTF-8 text; tokens include end-of-text."""

    path: Path
    documents: int
    bytes: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        """How much text a token stands for."""
        return self.bytes / self.tokens


@dataclass(frozen=True)
class GroupReport:
    """What was written of one value of the field that the data were divided by."""

    name: str
    """Empty where they were not divided."""
    train: StoreReport
    held_out: StoreReport | None
    held_out_unit: Unit


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did. `skipped_files` in folders were of no known kind, or empty."""

    groups: tuple[GroupReport, ...]
    vocab_size: int
    files: int
    skipped_files: int
    replaced: int
    """Pieces of text that were no UTF-8, each U+FFFD now."""
    dropped: tuple[Dropped, ...]
    """What `clean` left out, and why."""


def prepare(config: PrepareConfig) -> PrepareReport:
    """Write the token stores `config` describes, all or nothing.

    Raises:
      UserError: an option, an input or the output cannot be used; nothing is written.
    """
    if not 0 <= config.held_out <= 0.5:
        raise UserError(f"held_out={config.held_out} must be a fraction from 0 to 0.5 of the text")
    check_out(config.out, config.force)
    vocab_size = _vocab_to_train(config.tokenizer)
    tokenizer = None if vocab_size else Tokenizer.load(config.tokenizer)
    inputs = find_sources(config.inputs, config.exclude)

    # The inputs are read once per stage and not held: they may be larger than memory.
    reading = Reading(config, inputs, tokenizer.eos_id if tokenizer else None)
    leave_out_copies(reading.documents(), config.clean.copies, reading.drops)
    splits = _plan(reading.documents(), config)
    if tokenizer is None:
        documents = _divided(reading.documents(), splits)
        texts = (document.text for document, held in documents if not held)
        tokenizer = Tokenizer.train(texts, vocab_size)
    reading = dataclasses.replace(reading, eos_id=tokenizer.eos_id)
    with all_or_nothing(config.out, config.force) as folder:
        replaced = _write(folder, reading, splits, tokenizer)
    return PrepareReport(
        groups=tuple(_report(config.out, name, splits[name].unit) for name in sorted(splits)),
        vocab_size=tokenizer.vocab_size,
        files=len(inputs.sources),
        skipped_files=inputs.skipped,
        replaced=replaced,
        dropped=reading.drops.report(),
    )


@dataclass(frozen=True)
class Reading:
    """How the inputs are read, each time the same."""

    config: PrepareConfig
    inputs: Inputs
    eos_id: int | None
    drops: Drops = field(default_factory=Drops)

    def documents(self, reader: Reader | None = None) -> Iterator[Document]:
        """What is kept of them, mended."""
        reader = reader or self.reader()
        read = (each for source in self.inputs.sources for each in reader.documents(source))
        return kept(mended(read, self.config.clean), self.drops)

    def reader(self) -> Reader:
        """A reader, which counts anew."""
        config = self.config
        return Reader(config.text_field, config.split_by, config.strict, self.eos_id)


def _plan(documents: Iterable[Document], config: PrepareConfig) -> dict[str, Split]:
    """What is held out of each group.

    Raises:
      UserError: two groups would have one folder.
    """
    if not config.held_out and not config.split_by:
        return {"": Split("nothing", 0, config.seed)}
    plans: dict[str, SplitPlan] = {}
    folders: dict[str, str] = {}
    for document in documents:
        if document.group not in plans:
            plans[document.group] = SplitPlan(config.held_out, config.seed)
            other = folders.setdefault(folder_of(document.group), document.group)
            if other != document.group:
                raise UserError(
                    f"{config.split_by} is {other!r} and {document.group!r}, which would be one "
                    "folder: rename one of them, or leave out --split-by"
                )
        plans[document.group].add(document)
    return {name: plan.made() for name, plan in plans.items()}


def folder_of(group: str) -> str:
    """A name for a group's folder, of characters that every system takes."""
    return re.sub(r"[^\w.()-]+", "-", group).strip("-.") or ("-" if group else "")


def _divided(
    documents: Iterable[Document], splits: dict[str, Split]
) -> Iterator[tuple[Document, bool]]:
    """The documents, or what they are cut into, each with whether it is held out."""
    divisions = {name: split.begin() for name, split in splits.items()}
    for document in documents:
        for held, part in divisions[document.group](document):
            yield part, held


def _vocab_to_train(spec: str) -> int:
    """The VOCAB of `train:VOCAB`, or 0 where `spec` names a tokenizer that exists."""
    if not spec.startswith(_TRAIN):
        return 0
    size = spec.removeprefix(_TRAIN)
    if not size.isdecimal() or int(size) < 257:
        raise UserError(
            f"tokenizer {spec!r} does not say how many tokens to learn: "
            "write train:VOCAB with a number from 257, such as train:4096"
        )
    return int(size)


Parts = dict[tuple[str, bool], Written]
"""What was written of each group, to train on and held out."""


def units(inputs: Inputs) -> Iterator[Inputs]:
    """The inputs in portions of files that lie one after the other, `UNIT_BYTES` or more each.

    Each is written to shards of its own: so who writes which changes nothing.
    """
    begun: list[Source] = []
    for source in inputs.sources:
        begun.append(source)
        if sum(each.file.size for each in begun) >= UNIT_BYTES:
            yield Inputs(tuple(begun), 0)
            begun = []
    if begun:
        yield Inputs(tuple(begun), 0)


def _write(folder: Path, reading: Reading, splits: dict[str, Split], tokenizer: Tokenizer) -> int:
    """Write the stores; returns how much text was replaced on the way."""
    reader = reading.reader()
    enough = FewTokens(reading.config.clean.min_unique_tokens, tokenizer, reading.drops)
    for name, split in splits.items():
        for held in (False, True) if split.unit != "nothing" else (False,):
            (folder / _place(name, held)).mkdir(parents=True)
    parts = [
        write_unit(
            folder,
            number,
            enough(dataclasses.replace(reading, inputs=unit).documents(reader)),
            splits,
            tokenizer,
        )
        for number, unit in enumerate(units(reading.inputs))
    ]
    for name, split in splits.items():
        for held in (False, True) if split.unit != "nothing" else (False,):
            mine = [part[name, held] for part in parts if (name, held) in part]
            if not any(each.documents for each in mine):
                raise UserError(
                    f"the inputs are too short, no text {f'of {name} ' if name else ''}is left for "
                    f"{'heldout' if held else 'train'}: give more text, or --held-out 0 to train "
                    "on all of it"
                )
            finish(folder / _place(name, held), tokenizer, mine)
    return reader.replaced


def write_unit(
    folder: Path,
    number: int,
    documents: Iterable[Document],
    splits: dict[str, Split],
    tokenizer: Tokenizer,
) -> Parts:
    """The shards of one portion of the inputs, in the folders of the groups it has text of."""
    writers: dict[tuple[str, bool], StoreWriter] = {}
    with contextlib.ExitStack() as stack:
        for document, held in _divided(documents, splits):
            key = document.group, held
            if key not in writers:
                writer = StoreWriter(folder / _place(*key), tokenizer, number)
                writers[key] = stack.enter_context(writer)
            writers[key].add(document)
    return {key: writer.written() for key, writer in writers.items()}


def _place(group: str, held: bool) -> Path:
    return Path(folder_of(group)) / ("heldout" if held else "train")


def _report(out: Path, group: str, unit: Unit) -> GroupReport:
    folder = out / folder_of(group)
    held = None if unit == "nothing" else _store_report(folder / "heldout")
    return GroupReport(group, _store_report(folder / "train"), held, unit)


def _store_report(path: Path) -> StoreReport:
    manifest = TokenStore.open(path).manifest
    return StoreReport(path, manifest.documents, manifest.bytes, manifest.tokens)
