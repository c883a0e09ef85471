"""What appending asks of the data that are there, and what it puts among them; by hand."""

from pathlib import Path

import numpy as np
import pytest

from gptj.data.append import Prepared
from gptj.data.clean import CleanConfig
from gptj.data.find import Inputs, Source
from gptj.data.journal import JOURNAL
from gptj.data.portions import ReadConfig, Reading
from gptj.data.prepare import PrepareConfig, prepare
from gptj.data.read import Document
from gptj.data.store import TokenStore
from gptj.data.write import StoreWriter, Written, finish
from gptj.errors import UserError
from gptj.files import File
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
        ("c", False): [written(new / "c/train", "four", 5)],
    }
    data.add(new, BYTES, parts)
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    changed = {path.relative_to(out).as_posix() for path in before if before[path] != after[path]}
    assert changed == {"b/train/manifest.json"}
    shards = [
        f"{place}/{number:05}-000.{end}"
        for place, numbers in (("b/heldout", [3]), ("b/train", [3, 4]), ("c/train", [5]))
        for number in numbers
        for end in ("documents", "tokens")
    ]
    made = [path.relative_to(out).as_posix() for path in sorted(after.keys() - before.keys())]
    begun = (f"{name}/{file}.json" for name in ("b/heldout", "c/train")
             for file in ("manifest", "tokenizer"))  # fmt: skip
    assert made == sorted([*shards, *begun])
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


def test_where_there_are_none_it_is_said_where_they_are(tmp_path):
    prepared(tmp_path / "out", "train")
    none = "holds no prepared data to append to: leave out --append, or let --out be"
    for place, said in (
        ("absent", none),
        ("out/train/manifest.json", none),
        ("out/train", f"is one store of prepared data: append to {tmp_path}/out around it"),
    ):
        with pytest.raises(UserError, match=f"^{tmp_path / place} {said}"):
            Prepared.open(tmp_path / place)


def test_a_new_file_is_neither_there_nor_called_like_one_that_is(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, text in (("a", "one"), ("b", "two"), ("c", "three"), ("d", "three")):
        (folder / f"{name}.txt").write_text(text)
    out = tmp_path / "out"
    prepare(PrepareConfig((folder / "a.txt",), out, "bytes", held_out=0))
    prepare(PrepareConfig((folder / "b.txt",), out, held_out=0, append=True))
    data = Prepared.open(out)

    def check(*names: str) -> None:
        paths = [(folder / f"{name}.txt", f"{as_}.txt") for name, as_ in names]
        files = (Source(File(str(path), path.stat().st_size), as_) for path, as_ in paths)
        how = ReadConfig("text", None, False, CleanConfig())
        data.check_new(Reading(Inputs(tuple(files), 0), how))

    check("cc", "dd")
    for names in (["bb"], ["cc", "aa"]):
        with pytest.raises(UserError, match=r"^[ab]\.txt is in .*out already: leave it out"):
            check(*names)
    for names in (["ca"], ["dd", "cb"]):
        with pytest.raises(UserError, match=r"out has other text that is called [ab]\.txt: rename"):
            check(*names)
