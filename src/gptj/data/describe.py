"""What prepared data are, in lines to read: by source, by length, and some documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptj.data.mixture import ROUND, Mixture
from gptj.data.store import SourceRecord, TokenStore, ids_of
from gptj.errors import UserError

MOST_SOURCES = 20
"""With more files they are told by the folders they are in."""
WIDTH = 40
SHOWN = 4096
"""Tokens of a document that are printed."""
READ = 1 << 22
"""Documents whose places are read at a time."""


def counted(count: int, what: str) -> str:
    """So many of something."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def describe(data: Mixture) -> Iterator[str]:
    """Lines about a mixture's parts, or the one store, and about what is held out."""
    for part in data.parts:
        share = f"{part.name}, {100 * part.share / ROUND:.2f} % of the rows: " if part.name else ""
        yield from ("", f"{share}to train on", *describe_store(part.store))
    if data.held_out is not None:
        yield from ("", "held out", *describe_store(data.held_out))


def describe_store(store: TokenStore) -> Iterator[str]:
    """Lines about one store."""
    manifest = store.manifest
    yield (
        f"  {counted(manifest.documents, 'document')}, {manifest.bytes:,} bytes, "
        f"{manifest.tokens:,} tokens "
        f"({manifest.bytes / manifest.tokens:.2f} bytes each) of {manifest.vocab_size:,}"
    )
    if manifest.examples:
        learnt = sum(
            int(np.sum(store.tokens[at : at + READ] >= 0)) for at in range(0, len(store), READ)
        )
        yield f"  {manifest.examples}: {learnt:,} tokens are learnt (⟦⟧ below), others only read"
    yield f"  shards: {len(manifest.shards)}, of {np.dtype(manifest.dtype).name}"
    yield f"  fingerprint {store.fingerprint}"
    yield "  by source:"
    rows = _by_source(store.sources)
    cells = [
        (
            name if name.isprintable() else ascii(name)[1:-1],
            f"{documents:,}",
            f"{tokens:,}",
            f"{size / max(1, tokens):.2f}",
        )
        for name, (documents, size, tokens) in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, documents, tokens, each in cells:
        yield (
            f"    {name:{widths[0]}}  {documents:>{widths[1]}} documents  "
            f"{tokens:>{widths[2]}} tokens  {each} bytes each"
        )
    yield "  tokens in a document:"
    yield from _histogram(lengths(store))


def _by_source(sources: Sequence[SourceRecord]) -> list[tuple[str, tuple[int, int, int]]]:
    """Documents, bytes and tokens of each source, or of each folder of them."""
    by_folder = len({each.name for each in sources}) > MOST_SOURCES
    found: dict[str, NDArray[np.int64]] = {}
    for each in sources:
        name = each.name.split("/")[0] if by_folder else each.name
        counts = np.array([each.documents, each.bytes, each.tokens])
        found[name] = found.get(name, 0) + counts
    largest = sorted(found.items(), key=lambda row: -int(row[1][2]))
    shown, rest = largest[:MOST_SOURCES], largest[MOST_SOURCES:]
    if rest:
        shown.append(
            (counted(len(rest), "other"), sum((counts for _, counts in rest), np.zeros(3, int)))
        )
    return [(name, tuple(counts.tolist())) for name, counts in shown]


def lengths(store: TokenStore) -> NDArray[np.int64]:
    """How many documents have 2**k to 2**(k + 1) - 1 tokens, their end among them, for each k.

    Raises:
      UserError: they do not start one after the other.
    """
    found = np.zeros(1, np.int64)
    count = store.manifest.documents
    for first in range(0, count, READ):
        last = min(count, first + READ)
        starts = store.starts[first : last + 1]
        ends = starts[1:] if last < count else np.append(starts[1:], len(store))
        sizes = ends - starts[: last - first]
        if (sizes < 1).any():
            raise UserError(
                f"{store} says where documents {first} to {last} start in no order: prepare the "
                "data again, or copy the whole folder again"
            )
        bins = np.bincount(np.int64(np.log2(sizes)), minlength=len(found))
        bins[: len(found)] += found
        found = bins
    return found


def _histogram(counts: NDArray[np.int64]) -> Iterator[str]:
    most = int(counts.max())
    inside = np.flatnonzero(counts)
    wide = len(f"{2 ** (int(inside[-1]) + 1):,}")
    for k in range(int(inside[0]), int(inside[-1]) + 1):
        bar = "█" * -(-WIDTH * int(counts[k]) // most)
        count = f"{counts[k]:>{len(f'{most:,}')},}"
        yield f"    {2**k:>{wide},} to {2 ** (k + 1) - 1:>{wide},}  {count}  {bar}".rstrip()


def random_documents(store: TokenStore, count: int, seed: int) -> Iterator[tuple[str, int, str]]:
    """Some documents: the source, the document's number in it, and its text, or the beginning.

    Of an example what is learnt stands between marks.
    """
    draw = np.random.default_rng(seed)
    chosen = draw.choice(store.manifest.documents, min(count, store.manifest.documents), False)
    ends = list(itertools.accumulate(source.documents for source in store.sources))
    for number in sorted(chosen.tolist()):
        source = store.sources[int(np.searchsorted(ends, number, "right"))]
        start, end = store.extent(number)
        cut = min(end, start + SHOWN)
        tokens = store.tokens[start:cut]
        text = _marked(store, tokens) if store.manifest.examples else _plain(store, tokens)
        if cut < end:  # perhaps within a character
            text = text.rstrip("\ufffd") + f"\n[... and {end - cut:,} more tokens]"
        yield source.name, number - source.first_document, text


def _plain(store: TokenStore, tokens: NDArray[Any]) -> str:
    return store.tokenizer.decode(ids_of(tokens).tolist())


def _marked(store: TokenStore, tokens: NDArray[Any]) -> str:
    """An example's text, what is learnt of it, end-of-text among it, between marks."""
    text = ""
    cuts = np.flatnonzero(np.diff(tokens >= 0)) + 1
    for run in np.split(tokens, cuts):
        piece = _plain(store, run)
        text += f"⟦{piece}⟧" if run[0] >= 0 else piece
    return text
