"""Text to training data: choose what is held out, train or load a tokenizer, write token stores."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from gptj.data.read import Document, Inputs, find_sources, read_documents
from gptj.data.store import StoreWriter, TokenStore
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

_ENOUGH_UNITS = 20
_TRAIN = "train:"


@dataclass(frozen=True)
class PrepareConfig:
    """Turn text files into a folder of tokens, `OUT/train` and `OUT/heldout`, to train on."""

    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Files, and folders to search. Text and source code are one document a file, JSON
    lines (`.jsonl`) one document a line, either of them also compressed (`.gz`, `.zst`). Text is
    UTF-8."""
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
    """Field of a JSON line that holds the text."""
    seed: int = 0
    """Chooses which files or documents are held out. The same text and seed, the same choice."""
    force: bool = False
    """Replace OUT if it holds prepared data."""


Unit = Literal["nothing", "file", "document", "tail"]
"""What is held out whole."""


@dataclass(frozen=True)
class SplitReport:
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
class PrepareReport:
    """What `prepare` did. `skipped_files` in folders were of no known kind, or empty."""

    train: SplitReport
    held_out: SplitReport | None
    held_out_unit: Unit
    vocab_size: int
    files: int
    skipped_files: int


def prepare(config: PrepareConfig) -> PrepareReport:
    """Write the token stores `config` describes, all or nothing.

    Raises:
      UserError: an option, an input or the output cannot be used; nothing is written.
    """
    if not 0 <= config.held_out <= 0.5:
        raise UserError(f"held_out={config.held_out} must be a fraction from 0 to 0.5 of the text")
    _check_out(config.out, config.force)
    vocab_size = _vocab_to_train(config.tokenizer)
    tokenizer = None if vocab_size else Tokenizer.load(config.tokenizer)
    inputs = find_sources(config.inputs, config.exclude)

    # The inputs are read once per stage and not held: they may be larger than memory.
    split = plan_split(_documents(inputs, config), config.held_out, config.seed)
    if tokenizer is None:
        texts = (split.divide(document)[0] for document in _documents(inputs, config))
        tokenizer = Tokenizer.train(texts, vocab_size)
    with _all_or_nothing(config.out, config.force) as folder:
        _write(folder, _documents(inputs, config), split, tokenizer)
    return PrepareReport(
        train=_report(config.out / "train"),
        held_out=None if split.unit == "nothing" else _report(config.out / "heldout"),
        held_out_unit=split.unit,
        vocab_size=tokenizer.vocab_size,
        files=len(inputs.sources),
        skipped_files=inputs.skipped,
    )


@dataclass(frozen=True)
class Split:
    """Which text is held out: `held` names the files, or the digests of the documents."""

    unit: Unit
    fraction: float
    seed: int
    held: frozenset[str] = frozenset()

    def divide(self, document: Document) -> tuple[str, str]:
        """The text to train on and the text held out; together, the document's."""
        text = document.text
        match self.unit:
            case "nothing":
                return text, ""
            case "tail":
                return _divide_tail(text, self.fraction)
            case "file":
                held = document.source in self.held
            case "document":
                held = _digest(text, self.seed) in self.held
        return ("", text) if held else (text, "")


def plan_split(documents: Iterable[Document], fraction: float, seed: int) -> Split:
    """Decide what to hold out: about `fraction` of the bytes, in the largest units there are.

    The choice depends on nothing but the texts and the seed. Files, or documents, with the same
    text count as one unit, so that what is held out is never trained on under another name.
    """
    if not fraction:
        return Split("nothing", fraction, seed)
    texts: Counter[str] = Counter()  # bytes of each distinct document, by its digest
    sizes: Counter[str] = Counter()  # bytes of each file, by its name
    digests: defaultdict[str, str] = defaultdict(str)  # of each file, by its name
    for document in documents:
        digest, size = _digest(document.text, seed), len(document.text.encode())
        texts[digest] += size
        sizes[document.source] += size
        digests[document.source] = _digest(digests[document.source] + digest, seed)

    files: Counter[str] = Counter()
    for name, digest in digests.items():
        files[digest] += sizes[name]
    if len(files) >= _ENOUGH_UNITS:
        chosen = _choose(files, fraction)
        names = frozenset(name for name, digest in digests.items() if digest in chosen)
        return Split("file", fraction, seed, names)
    if len(texts) >= _ENOUGH_UNITS:
        return Split("document", fraction, seed, _choose(texts, fraction))
    return Split("tail", fraction, seed)


def _choose(sizes: Mapping[str, int], fraction: float) -> frozenset[str]:
    """Units in the order of their digests, each taken if that brings the sum nearer its target."""
    target = fraction * sum(sizes.values())
    held, total = set(), 0
    for digest, size in sorted(sizes.items()):
        if total + size / 2 < target:
            held.add(digest)
            total += size
    smallest = min(sizes, key=lambda digest: (sizes[digest], digest))
    return frozenset(held or {smallest})


def _divide_tail(text: str, fraction: float) -> tuple[str, str]:
    length = round(len(text) * fraction)
    cut = len(text) - length
    # A line's start near the cut reads better, but the share matters more.
    line_start = text.rfind("\n", cut - length // 2, cut) + 1
    cut = line_start or cut
    return text[:cut], text[cut:]


def _digest(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()[:32]


def _documents(inputs: Inputs, config: PrepareConfig) -> Iterator[Document]:
    for source in inputs.sources:
        yield from read_documents(source, config.text_field)


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


def _write(folder: Path, documents: Iterable[Document], split: Split, tokenizer: Tokenizer) -> None:
    names = ("train",) if split.unit == "nothing" else ("train", "heldout")
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(StoreWriter(folder / name, tokenizer)) for name in names]
        for document in documents:
            for writer, text in zip(writers, split.divide(document), strict=False):
                if text:
                    writer.add(document.source, text)
        for name, writer in zip(names, writers, strict=True):
            if not writer.documents:
                raise UserError(
                    f"the inputs are too short, no text is left for {name}: "
                    "give more text, or --held-out 0 to train on all of it"
                )


def _report(path: Path) -> SplitReport:
    manifest = TokenStore.open(path).manifest
    return SplitReport(path, manifest.documents, manifest.bytes, manifest.tokens)


def _check_out(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise UserError(f"{out} exists: choose another --out, or replace it with --force")
    prepared = (out / "train" / "manifest.json").is_file()
    if not prepared and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out} is not prepared data, so --force does not delete it: choose another --out"
        )


@contextlib.contextmanager
def _all_or_nothing(out: Path, force: bool) -> Iterator[Path]:
    """A new folder, which becomes `out` in one rename if the block succeeds, and else vanishes."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True
        ) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            yield new
            _sync(new)
            _check_out(out, force)
            if out.exists():
                out.rename(old)
            try:
                new.rename(out)
            except OSError:
                if old.exists():
                    old.rename(out)
                raise
            _sync_entry(out.parent)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}) and is left as it was: "
            "free space, or choose another --out"
        ) from error


def _sync(folder: Path) -> None:
    """Have the disk hold everything in `folder` before its name appears."""
    for path in sorted(folder.rglob("*")):
        _sync_entry(path)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
