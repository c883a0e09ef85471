"""Where files and stores are cut: of one text there is one store, today and tomorrow."""

import numpy as np
import pytest

from gptj.data import portions, store, write
from gptj.data.find import Inputs, Source
from gptj.data.read import Document
from gptj.files import File
from gptj.tokenizer import Tokenizer


def test_what_a_store_is_cut_by_is_the_same_for_ever():
    # Change one of these and a store that is there cannot be verified, or the same text is another.
    assert store.CHECKED == 16 * 1024**2
    assert write.SHARD_TOKENS == 512 * 1024**2
    assert write._FLUSH_CHARACTERS == 1024**2
    assert portions.PORTION_BYTES == 256 * 1024**2


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ([], []), ([1], [[1]]), ([7], [[7]]), ([3, 4], [[3, 4]]),
        ([3, 3, 8, 9, 1, 6, 2], [[3, 3, 8], [9], [1, 6], [2]]),
    ],
)  # fmt: skip
def test_a_portion_ends_with_the_file_that_fills_it(sizes, cut, monkeypatch):
    monkeypatch.setattr(portions, "PORTION_BYTES", 7)
    sources = tuple(Source(File(str(n), size), str(n)) for n, size in enumerate(sizes))
    found = portions.portions(Inputs(sources, 5))
    assert [[each.file.size for each in part.sources] for part in found] == cut
    assert sum((part.sources for part in found), ()) == sources
    assert not any(part.skipped for part in found)  # which is counted once, of all inputs


def test_a_shard_ends_with_the_document_that_fills_it_once_enough_is_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_TOKENS", 5)
    monkeypatch.setattr(write, "_FLUSH_CHARACTERS", 4)
    tokenizer = Tokenizer.bytes()
    with write.StoreWriter(tmp_path, tokenizer, 7) as writer:
        for text in ("abcd", "efg", "h", "i", "jk", "lm", "no", "p"):
            writer.add(Document("a", text))
        for ids in ([1, 2, 3], [0], [4], [256]):  # which are at hand at once
            writer.add(Document("b", ids=np.array(ids)))
    shards = [(each.name, each.tokens, each.documents) for each in writer.written().shards]
    sizes = ((5, 1), (6, 2), (8, 3), (5, 2), (6, 2), (4, 2))
    assert shards == [(f"00007-{n:03}", *size) for n, size in enumerate(sizes)]
