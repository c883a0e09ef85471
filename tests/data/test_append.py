"""What appending asks of the data that are there, and what it puts among them; by hand."""

from pathlib import Path

import numpy as np
import pytest

from gptj.data.append import Prepared
from gptj.data.journal import JOURNAL
from gptj.data.read import Document
from gptj.data.store import TokenStore
from gptj.data.write import StoreWriter, Written, finish
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

BYTES, KIND = Tokenizer.bytes(), "completions"


def written(folder: Path, text: str, portion: int = 0, kind=None) -> Written:
    with StoreWriter(folder, BYTES, portion, kind) as writer:
        writer.add(Document(f"{text}.txt", ids=np.frombuffer(text.encode(), np.uint8)))
    return writer.written()


def prepared(out: Path, *places: str, kind=None) -> Prepared:
    for number, place in enumerate(places):
        finish(out / place, BYTES, [written(out / place, place, number, kind)], kind)
    return Prepared.open(out)


DIVIDED = ("a/train", "a/heldout", "b/train")


@pytest.mark.parametrize(
    ("places", "kind", "asked", "said"),
    [
        (["train"], None, (None, 0, None), ""),
        (["train"], None, (None, 0.1, None), "holds nothing out: append with --held-out 0$"),
        (["train"], None, ("f", 0, None), "is not divided by a field: leave out --split-by$"),
        (["train"], None, (None, 0, KIND), "holds texts: leave out --examples$"),
        (["train"], KIND, (None, 0, KIND), ""),
        (["train"], KIND, (None, 0, None), f"holds {KIND}: give --examples {KIND}$"),
        (["train"], KIND, (None, 0, "chats"), f"holds {KIND}: give --examples {KIND}$"),
        (["train", "heldout"], None, (None, 0.1, None), ""),
        (["train", "heldout"], None, (None, 0, None), ""),
        (DIVIDED, None, ("f", 0.1, None), ""),
        (DIVIDED, None, ("f", 0, None), ""),
        (DIVIDED, None, (None, 0.1, None), "is divided by a field: name the field with --split-by"),
        (["a/train", "b/train"], None, ("f", 0.1, None), "holds nothing out: append with"),
    ],
)
def test_what_is_asked_must_be_as_what_is_there(places, kind, asked, said, tmp_path):
    data = prepared(tmp_path / "out", *places, kind=kind)
    if not said:
        return data.check(*asked)
    with pytest.raises(UserError, match=f"out {said}"):
        data.check(*asked)


def test_stores_are_found_in_their_order_and_the_next_shard_is_new(tmp_path):
    data = prepared(tmp_path, *DIVIDED)
    assert [path.relative_to(tmp_path).as_posix() for path in data.stores] == sorted(DIVIDED)
    assert data.next_shard == 3
    assert data.fingerprint == "".join(
        TokenStore.open(tmp_path / place).fingerprint for place in sorted(DIVIDED)
    )
    finish(tmp_path / "a/train", BYTES, [written(tmp_path / "a/train", "x", 41)])
    assert Prepared.open(tmp_path).next_shard == 42
    assert prepared(tmp_path / "one", "train").next_shard == 1


def test_its_tokenizer_may_be_named_and_no_other(tmp_path):
    data = prepared(tmp_path / "out", "train")
    other = tmp_path / "other.json"
    Tokenizer.train(["the cat sat on the mat"] * 4, 270).save(other)
    BYTES.save(tmp_path / "same.json")
    for asked in (None, "bytes", str(tmp_path / "same.json"), str(tmp_path / "out/train")):
        assert data.tokenizer(asked).sha256 == BYTES.sha256
    for asked in (str(other), "train:257"):
        with pytest.raises(UserError, match=f"out has another tokenizer than {asked}: leave out"):
            data.tokenizer(asked)


def test_only_what_something_was_written_to_is_changed(tmp_path):
    out = tmp_path / "out"
    data = prepared(out, *DIVIDED)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    data.add(tmp_path / "new", BYTES, {("a", False): [], ("b", False): []})
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    new = tmp_path / "new"
    parts = {
        ("a", False): [],
        ("b", False): [written(new / "b/train", "one", 3), written(new / "b/train", "two", 4)],
        ("b", True): [written(new / "b/heldout", "three", 3)],
    }
    data.add(new, BYTES, parts)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changed = {path.relative_to(out).as_posix() for path in before if before[path] != after[path]}
    assert changed == {"b/train/manifest.json"}
    shards = [
        f"b/{name}.{end}"
        for name in ("heldout/00003-000", "train/00003-000", "train/00004-000")
        for end in ("documents", "tokens")
    ]
    made = [path.relative_to(out).as_posix() for path in sorted(after.keys() - before.keys())]
    assert made == sorted([*shards, "b/heldout/manifest.json", "b/heldout/tokenizer.json"])
    store = TokenStore.open(out / "b/train")
    assert [store.text(n) for n in range(3)] == ["b/train", "one", "two"]
    assert [each.first_document for each in store.sources] == [0, 1, 2]
    assert not (out / JOURNAL).exists()
    store.verify()


def test_of_examples_as_of_texts(tmp_path):
    data = prepared(tmp_path / "out", "train", kind=KIND)
    new = tmp_path / "new"
    data.add(new, BYTES, {("", False): [written(new / "train", "x", 1, KIND)]})
    assert TokenStore.open(tmp_path / "out/train").manifest.examples == KIND
