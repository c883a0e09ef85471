"""Text to training data: choose what is held out, train or load a tokenizer, write token stores."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from gptj import cluster
from gptj.data.appear import appear, check_out, continuing, forget, resumable
from gptj.data.append import Prepared, places_of
from gptj.data.clean import CleanConfig, Dropped, leave_out_copies
from gptj.data.examples import ExampleConfig
from gptj.data.find import find_sources
from gptj.data.groups import StoreKey, place_of, plan_groups
from gptj.data.known import leave_out_held, leave_out_trained
from gptj.data.portions import (
    COMPLETE,
    Done,
    ReadConfig,
    Reading,
    Writing,
    divided,
    portions,
)
from gptj.data.read import TEXT
from gptj.data.split import Split, Unit
from gptj.data.store import FORMAT, TokenStore
from gptj.data.tokenized import check_listed
from gptj.data.write import Written, finish
from gptj.errors import UserError
from gptj.files import is_url
from gptj.tokenizer import Tokenizer

_TRAIN, _DEFAULT = "train:", "train:4096"


@dataclass(frozen=True)
class PrepareConfig:
    """Turn text files into a folder of tokens, `OUT/train` and `OUT/heldout`, to train on."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders to search, patterns (`'books/**/*.txt'`), also behind URLs (`gs://`, `s3://`).
    Text and source code are one document a file, JSON lines (`.jsonl`) one a line, `.tar` archives
    hold such files, all also compressed (`.gz`, `.zst`, `.xz`); Parquet and Arrow tables are one a
    row. Text is UTF-8. Tokens are read from the original's `.tfrecords`, or an `.index` of them,
    and from the `.idx` with `.bin` of Megatron and GPT-NeoX."""
    out: Path
    """Folder to write. It appears when all is well and complete, or not at all."""
    tokenizer: str | None = None
    """`train:VOCAB` learns a byte-level BPE of VOCAB tokens, at least 257, from the training
    text; `bytes` makes every byte a token; otherwise a tokenizer.json, a folder with one (or with
    GPT-2's `encoder.json` and `vocab.bpe`), or the id of a model on the Hugging Face Hub. A model
    is fine-tuned with its own tokenizer. Default: `train:4096`, with --append that of the data."""
    held_out: float = 0.05
    """Fraction of the text's bytes, from 0 (nothing) to 0.5, kept from training to measure the
    loss on: whole files where there are 20 or more, else whole documents where there are 20 or
    more, else the end of every document."""
    exclude: tuple[str, ...] = ()
    """Patterns of names, such as `tests` or `*.min.js`: what they match in a folder or an archive
    of the inputs, file or folder, or of what a pattern among them meets, is left out."""
    text_field: str = TEXT
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
    append: bool = False
    """Add to the prepared data in OUT, which stay as they are, with their own tokenizer."""
    ray: str | None = None
    """Write on a Ray cluster: `--ray` alone on that of this machine or, where there is none, on a
    new one, `--ray HEAD:PORT` on another. Its nodes see the inputs and OUT by the same paths."""
    clean: tyro.conf.OmitArgPrefixes[CleanConfig] = CleanConfig()
    examples: tyro.conf.OmitArgPrefixes[ExampleConfig] = ExampleConfig()

    def __post_init__(self) -> None:
        for option, field in (("text-field", self.text_field), ("split-by", self.split_by)):
            if field == "":
                raise UserError(f"--{option} '' names no field: name one, or leave it out")
        for pattern in self.exclude:
            if not pattern or "/" in pattern:
                raise UserError(
                    f"--exclude {pattern!r} is no pattern of names: give that of a file or of one "
                    "folder, without a slash"
                )
        kind, clean = self.examples.examples, self.clean
        if kind is None:
            return
        texts = {
            "ftfy": clean.ftfy,
            "detokenize": clean.detokenize,
            "split-end-of-text": clean.split_end_of_text,
            "text-field": self.text_field != TEXT,
        }
        for option, is_given in texts.items():
            if is_given:
                raise UserError(f"--{option} is for texts, not for --examples {kind}: leave it out")
        if not self.append and (self.tokenizer is None or self.tokenizer.startswith(_TRAIN)):
            raise UserError(
                f"--examples {kind} needs a tokenizer that is there already: give that of the "
                "model to fine-tune with --tokenizer, or `bytes` for a new one"
            )


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
    """What `prepare` did."""

    groups: tuple[GroupReport, ...]
    vocab_size: int
    asked_size: int
    """Tokens that were to be learnt; a text may not have as many. 0 where none were."""
    files: int
    skipped_files: int
    """In folders and archives: links, and files that are empty or of no known kind."""
    replaced: int
    """Pieces of text that were no UTF-8, each U+FFFD now."""
    dropped: tuple[Dropped, ...]
    """What `clean` left out, and why."""
    is_more: bool
    """Whether the files came to what was there before; `groups` say what is there now."""


def prepare(config: PrepareConfig) -> PrepareReport:
    """Write the token stores `config` describes, all or nothing.

    Raises:
      UserError: an option, an input or the output cannot be used; nothing is written.
    """
    if not 0 <= config.held_out <= 0.5:
        raise UserError(f"held_out={config.held_out} must be a fraction from 0 to 0.5 of the text")
    if config.out.parts[:1] and config.out.parts[0].endswith(":"):  # gs://x, as a path spells it
        raise UserError(
            f"out={config.out} must be a folder here: prepare into one, and copy it there"
        )
    if config.append and config.force:
        raise UserError("--append keeps what is in OUT and --force replaces it: give one of them")
    if config.tokenizer == "":
        raise UserError("tokenizer='' names none: leave it out, or give one such as train:4096")
    if config.ray is not None:
        cluster.check_address(config.ray)
    # What a link leads to is written, and locked, whoever calls it by which name.
    named, config = config.out, dataclasses.replace(config, out=Path(os.path.realpath(config.out)))
    if config.append:
        places_of(config.out)
    else:
        check_out(config.out, config.force, groups=config.split_by is not None)
    spec = _DEFAULT if config.tokenizer is None else config.tokenizer
    vocab_size = 0 if config.append else _vocab_to_train(spec)
    with resumable(config.out) as scratch:
        before = Prepared.open(config.out) if config.append else None
        tokenizer = before.tokenizer(config.tokenizer) if before else None
        if not tokenizer and not vocab_size:
            tokenizer = Tokenizer.load(spec)
        return _prepare(config, scratch, before, tokenizer or vocab_size, named)


def _prepare(
    config: PrepareConfig,
    scratch: Path,
    before: Prepared | None,
    given: Tokenizer | int,
    named: Path,
) -> PrepareReport:
    """Prepare with the tokenizer that is given, or one of so many tokens that is to be learnt."""
    inputs = find_sources(_everywhere(config), config.exclude)
    config.clean.check(inputs)
    check_listed(inputs.sources)
    # The inputs are read once per stage and not held: they may be larger than memory.
    how = _how(config, given if isinstance(given, Tokenizer) else None)
    how.check(inputs)
    reading = Reading(inputs, how)
    if before:
        before.check(config.split_by, config.held_out, config.examples.examples)
        before.check_new(reading)
        leave_out_held(reading.documents(), before.stores, reading.drops)
    leave_out_copies(reading.documents(), config.clean.copies, reading.drops, how.tokenizer)
    whole = config.examples.examples is not None
    splits = plan_groups(reading.documents(), config.held_out, config.seed, config.split_by, whole)
    if before and config.held_out:
        leave_out_trained(reading.documents(), splits, before.stores, reading.drops)
    if isinstance(given, Tokenizer):
        tokenizer = given
    else:
        learnt = divided(reading.documents(), splits)
        tokenizer = Tokenizer.train((document.text for document, held in learnt if not held), given)
        how = dataclasses.replace(how, tokenizer=tokenizer)
    parts = tuple(portions(inputs))
    reading = dataclasses.replace(reading, config=how)
    shard = before.next_shard if before else 0
    writing = Writing(scratch, reading, parts, splits, tokenizer, shard)
    with continuing(config.out, scratch, _key(config, writing, before)):
        done = _write(writing, config.ray)
        try:
            written = _sides(done, splits, before, config.clean.min_unique_tokens)
        except UserError:  # another command is needed
            forget(scratch)
            raise
        if before:
            before.add(scratch / COMPLETE, tokenizer, written)
        else:
            _appear(config, scratch / COMPLETE, tokenizer, written)
    for portion in done:
        reading.drops.take(portion.dropped)
    return PrepareReport(
        groups=tuple(
            _report(config.out, name, splits[name].unit, named) for name in sorted(splits)
        ),
        vocab_size=tokenizer.vocab_size,
        asked_size=0 if isinstance(given, Tokenizer) else given,
        files=len(inputs.sources),
        skipped_files=inputs.skipped + sum(portion.skipped for portion in done),
        replaced=sum(portion.replaced for portion in done),
        dropped=reading.drops.report(),
        is_more=before is not None,
    )


def _how(config: PrepareConfig, tokenizer: Tokenizer | None) -> ReadConfig:
    """How the inputs are read."""
    return ReadConfig(
        config.text_field,
        config.split_by,
        config.strict,
        config.clean,
        config.examples,
        tokenizer,
        config.exclude,
    )


def _appear(
    config: PrepareConfig, made: Path, tokenizer: Tokenizer, written: dict[StoreKey, list[Written]]
) -> None:
    """Complete the stores that were made, and let them be seen where they were asked for."""
    for side, each in written.items():
        finish(place_of(*side, made), tokenizer, each, config.examples.examples)
    appear(made, config.out, config.force, groups=config.split_by is not None)


def _everywhere(config: PrepareConfig) -> list[str]:
    """The inputs, for a cluster by paths that are right in every process."""
    places = [os.fspath(each) for each in config.inputs]
    if config.ray is None:
        return places
    return [place if is_url(place) else os.path.abspath(place) for place in places]


def _key(config: PrepareConfig, writing: Writing, before: Prepared | None) -> str:
    """What tells this preparation from others, so that only its own is gone on with.

    How paths are spelt is no part of it, nor who writes.
    """
    options = dataclasses.asdict(config)
    for name in ("inputs", "out", "tokenizer", "ray", "force"):
        del options[name]
    template = config.examples.chat_template
    options["examples"]["chat_template"] = template and template.read_text(encoding="utf-8")
    files = [
        (source.name, source.file.size, _changed(source.file.path))
        for portion in writing.portions
        for source in portion.sources
    ]
    found = [FORMAT, options, files, writing.tokenizer.sha256, before and before.fingerprint]
    return hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()


def _changed(path: str) -> list[int]:
    """When a file, and that of an index, changed last, in nanoseconds; behind a URL nobody says."""
    beside = path.removesuffix(".idx") + ".bin"
    files = [] if is_url(path) else [path, *([beside] if os.path.exists(beside) else [])]
    return [os.stat(file).st_mtime_ns for file in files]


def _write(writing: Writing, ray: str | None) -> list[Done]:
    """Write every portion that is not written yet, here or on a cluster."""
    numbers = range(len(writing.portions))
    missing = [number for number in numbers if writing.done(number) is None]
    if ray is None:
        for number in missing:
            writing(number)
    elif missing:
        cluster.each(ray, writing, missing)
    done = [portion for number in numbers if (portion := writing.done(number))]
    if len(done) < len(numbers):
        raise UserError(
            f"a node of the cluster wrote to a {writing.folder.parent} that is not this machine's: "
            "give an --out in a folder that all of them share"
        )
    return done


def _sides(
    done: Sequence[Done], splits: dict[str, Split], before: Prepared | None, least: int
) -> dict[StoreKey, list[Written]]:
    """What was written to each store, in order.

    Raises:
      UserError: a store would be empty.
    """
    found: dict[StoreKey, list[Written]] = {}
    for name, split in splits.items():
        for held in (False, True) if split.unit != "nothing" else (False,):
            side = name, held
            found[side] = [each.parts[side] for each in done if side in each.parts]
            is_there = before and place_of(*side, before.out) in before.stores
            if not is_there and not any(each.documents for each in found[side]):
                lack = f"no text {f'of {name} ' if name else ''}is left for "
                lack += "heldout" if held else "train"
                if any(each.dropped for each in done):
                    raise UserError(
                        f"{lack} without the documents of fewer than {least} different tokens: "
                        "give more text, or a lower --min-unique-tokens"
                    )
                raise UserError(
                    f"the inputs are too short, {lack}: give more text, or --held-out 0 to train "
                    "on all of it"
                )
    return found


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


def _report(out: Path, group: str, unit: Unit, named: Path) -> GroupReport:
    """What there is of a group in the folder `out`, which was `named` so."""

    def store(held: bool) -> StoreReport:
        manifest = TokenStore.open(place_of(group, held, out)).manifest
        path = place_of(group, held, named)
        return StoreReport(path, manifest.documents, manifest.bytes, manifest.tokens)

    return GroupReport(group, store(False), None if unit == "nothing" else store(True), unit)
