"""Mending texts and leaving some out: what the original offered for fine-tuning data, and copies.

Text is mended as it is read, every time; what is left out is decided once, in a reading of its own,
and the other readings pass over it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptj.data.find import TOKENS, Inputs
from gptj.data.read import Document, Key
from gptj.data.store import ids_of
from gptj.errors import UserError
from gptj.tokenizer import END_OF_TEXT, Tokenizer

Copies = Literal["keep", "exact", "near"]
EXAMPLES, BEGINNING = 3, 80
"""Of each reason so many texts are shown, and so many characters of them."""
ALIKE, SHINGLE, HASHES = 0.8, 5, 128
"""Jaccard similarity of the sets of 5 words in a row from which on texts are copies, as 128 hashes
estimate it: "On the Resemblance and Containment of Documents" (Broder, 1997)."""

AT_ONCE = 4096
"""Runs of words that are hashed at a time."""


@dataclass(frozen=True)
class CleanConfig:
    """What is done to texts before they become tokens."""

    ftfy: bool = False
    """Mend broken encodings and odd characters with ftfy, as `schÃ¶n` for `schön`."""
    detokenize: bool = False
    """Undo the spaces of WikiText's words and signs, as the original did."""
    split_end_of_text: bool = False
    """Where a text has `<|endoftext|>`, one document ends and the next begins; else it is text."""
    min_unique_tokens: int = 0
    """Leave out documents of fewer different tokens."""
    copies: Copies = "keep"
    """Of documents with the same text (`exact`), or of which four fifths or more of the runs of
    five words are the same (`near`), only the first is kept."""

    def __post_init__(self) -> None:
        if self.min_unique_tokens < 0:
            raise UserError(
                f"min_unique_tokens={self.min_unique_tokens} must be 0 (all documents) or above"
            )

    def check(self, inputs: Inputs) -> None:
        """See that there is text to mend.

        Raises:
          UserError: a file holds tokens.
        """
        options = ("ftfy", "detokenize", "split_end_of_text")
        asked = [f"--{name.replace('_', '-')}" for name in options if getattr(self, name)]
        tokens = [source.file.path for source in inputs.sources if source.kind in TOKENS]
        if asked and tokens:
            raise UserError(
                f"{tokens[0]} holds tokens and {asked[0]} mends text: prepare the files of tokens "
                "apart, without it"
            )


@dataclass(frozen=True)
class Dropped:
    """What was left out for one reason."""

    reason: str
    documents: int
    bytes: int
    examples: tuple[str, ...]
    """Where some stood, and how they begin."""


@dataclass
class Drops:
    """Which documents are left out, and why."""

    keys: set[Key] = field(default_factory=set)
    """Of those that every reading is to pass over."""
    _counts: Counter[str] = field(default_factory=Counter)
    _bytes: Counter[str] = field(default_factory=Counter)
    _examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, key: Key, reason: str, size: int, text: str, more: str = "") -> None:
        """Count another one; of its text a beginning may be shown, and what `more` says."""
        self._counts[reason] += 1
        self._bytes[reason] += size
        if len(shown := self._examples[reason]) < EXAMPLES:
            begins = " ".join(text[: 4 * BEGINNING].split())[:BEGINNING]
            where = f"{key[0]}, document {key[1] + 1}" + (f", {more}" if more else "")
            shown.append(f"{where}: {begins}")

    def take(self, others: Iterable[Dropped]) -> None:
        """Count what was left out elsewhere."""
        for each in others:
            self._counts[each.reason] += each.documents
            self._bytes[each.reason] += each.bytes
            shown = self._examples[each.reason]
            shown += each.examples[: EXAMPLES - len(shown)]

    def report(self) -> tuple[Dropped, ...]:
        """Of each reason how many, and some of them."""
        return tuple(
            Dropped(reason, count, self._bytes[reason], tuple(self._examples[reason]))
            for reason, count in self._counts.most_common()
        )


def mended(documents: Iterable[Document], config: CleanConfig) -> Iterator[Document]:
    """The documents as they are to be, numbered in each source; those of tokens untouched."""
    mend, numbers = _mender(config), Counter[str]()
    for document in documents:
        texts = [(mend(document.text), document.continues)]
        if config.split_end_of_text and document.ids is None:
            texts = _split(*texts[0])
        for text, continues in texts:
            number = numbers[document.source]
            yield dataclasses.replace(document, text=text, continues=continues, number=number)
            numbers[document.source] += not continues


def kept(documents: Iterable[Document], drops: Drops) -> Iterator[Document]:
    """The documents without those that are left out."""
    return (each for each in documents if each.key not in drops.keys)


def beginning(document: Document, tokenizer: Tokenizer | None) -> str:
    """What a document begins with; `tokenizer` is that of its tokens, if it is of tokens."""
    if document.ids is None or tokenizer is None:
        return document.text[: 4 * BEGINNING]
    return tokenizer.decode(ids_of(document.ids[: 4 * BEGINNING]).tolist())


def leave_out_copies(
    documents: Iterable[Document], how: Copies, drops: Drops, tokenizer: Tokenizer | None = None
) -> None:
    """Note which documents are copies of others that came before."""
    if how == "keep":
        return
    seen = _Near() if how == "near" else _Exact()
    first, size = None, 0
    for document in documents:
        first = first or document
        size += len(document.content)
        seen.read(document)
        if document.continues:
            continue
        if (original := seen.original(document.key)) is not None:
            reason = "same text" if how == "exact" else "nearly the same text"
            drops.keys.add(document.key)
            begins = beginning(first, tokenizer)
            more = f"as in {original[0]}, document {original[1] + 1}"
            drops.note(document.key, f"{reason} as another", size, begins, more)
        first, size = None, 0


class FewTokens:
    """Leaves out documents of few different tokens, those that are not too long to be that."""

    def __init__(self, least: int, tokenizer: Tokenizer, drops: Drops) -> None:
        self._least, self._tokenizer, self._drops = least, tokenizer, drops

    def __call__(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The others."""
        if not self._least:
            yield from documents
            return
        begun = False
        for document in documents:
            if begun or document.continues or not self._is_poor(document):
                yield document
            else:
                reason = f"fewer than {self._least} different tokens"
                text = beginning(document, self._tokenizer)
                self._drops.note(document.key, reason, len(document.content), text)
            begun = document.continues

    def _is_poor(self, document: Document) -> bool:
        if document.ids is not None:
            return len(set(ids_of(document.ids).tolist())) < self._least
        found: set[int] = set()
        for piece in self._tokenizer.pieces(document.text):
            found.update(np.unique(self._tokenizer.encode_pieces([piece])[0]).tolist())
            if len(found) >= self._least:
                return False
        return True


class _Exact:
    """Texts that came before, by their hashes."""

    def __init__(self) -> None:
        self._keys: dict[bytes, Key] = {}
        self._hash = hashlib.sha256()

    def read(self, document: Document) -> None:
        self._hash.update(document.content)

    def original(self, key: Key) -> Key | None:
        """The document that the one read is a copy of, if it is one."""
        digest, self._hash = self._hash.digest()[:16], hashlib.sha256()
        found = self._keys.setdefault(digest, key)
        return None if found == key else found


class _Near:
    """Texts that came before, by their MinHashes."""

    def __init__(self) -> None:
        try:
            import datasketch
        except ImportError as error:
            raise UserError("copies=near needs datasketch: pip install 'gptj-jax[data]'") from error
        self._new: Callable[[], Any] = lambda: datasketch.MinHash(HASHES)
        self._index = datasketch.MinHashLSH(ALIKE, HASHES)
        self._hashes: dict[Key, NDArray[np.uint32]] = {}
        self._hash = self._new()
        self._words: list[str] = []

    def read(self, document: Document) -> None:
        ids = document.ids
        self._words += document.text.lower().split() if ids is None else map(str, ids.tolist())
        runs = range(max(1, len(self._words) - SHINGLE + 1))
        for begin in range(0, len(runs), AT_ONCE):  # each takes an array of `HASHES`
            some = runs[begin : begin + AT_ONCE]
            self._hash.update_batch([" ".join(self._words[i : i + SHINGLE]).encode() for i in some])
        self._words = self._words[-SHINGLE + 1 :] if document.continues else []

    def original(self, key: Key) -> Key | None:
        """The first document that is alike; of those that the index thinks so, some are not."""
        own, self._hash = self._hash, self._new()
        hashes = own.hashvalues.astype(np.uint32)  # they are no larger
        for each in sorted(self._index.query(own)):
            if np.mean(self._hashes[each] == hashes) >= ALIKE:
                return each
        self._index.insert(key, own)
        self._hashes[key] = hashes
        return None


def _split(text: str, continues: bool) -> list[tuple[str, bool]]:
    """A text, or a part of one, in documents, and of each whether it goes on."""
    *before, last = text.split(END_OF_TEXT)
    ended = [(each, False) for each in before if each]
    return [*ended, (last, continues)] if last or continues else ended


def _mender(config: CleanConfig) -> Callable[[str], str]:
    steps: list[Callable[[str], str]] = []
    if config.ftfy:
        steps.append(by_ftfy("--ftfy", "data"))
    if config.detokenize:
        steps.append(detokenized)

    def mend(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return mend


def by_ftfy(option: str, extra: str) -> Callable[[str], str]:
    """What mends a text as the original did, for an option; `extra` brings the library.

    Raises:
      UserError: it is not installed.
    """
    try:
        import ftfy
    except ImportError:
        raise UserError(f"{option} needs ftfy: pip install 'gptj-jax[{extra}]'") from None
    return lambda text: str(ftfy.fix_text(text, normalization="NFKC"))


_SIGNS = {
    "s '": "s'",
    **{f" @{sign}@ ": sign for sign in "-,."},
    **{f" {sign} ": f"{sign} " for sign in ":;.!?,"},
}
_HEADINGS = {"= = = =": "====", "= = =": "===", "= =": "=="}
_REST = {
    " \N{DEGREE SIGN} ": "\N{DEGREE SIGN}",
    " \n": "\n",
    "\n ": "\n",
    " N ": " 1 ",
    " 's": "'s",
}
_PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"), ('"', '"'), ("'", "'"))


def detokenized(text: str) -> str:
    """WikiText without the spaces around its words and signs.

    As `wikitext_detokenize` of the original's `create_finetune_tfrecords.py`, in its order.
    """
    for spaced, sign in _SIGNS.items():
        text = text.replace(spaced, sign)
    for begin, end in _PAIRS:
        inside = f"[^{end}]*?"
        text = re.sub(
            rf"{begin}\s*({inside})\s*{end}",
            lambda found: f"{found[0][0]}{found[1]}{found[0][-1]}",
            text,
        )
    for spaced, sign in (_HEADINGS | _REST).items():
        text = text.replace(spaced, sign)
    return text
