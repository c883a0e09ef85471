"""Text that comes again when data are appended to: what measures is never what is trained on."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Made
from tokenizers import decoders, models, pre_tokenizers

from gptj.data import known, portions
from gptj.data.clean import Drops
from gptj.data.examples import ExampleConfig
from gptj.data.find import Source, find_sources
from gptj.data.known import all_there, leave_out_trained
from gptj.data.prepare import PrepareConfig, PrepareReport, prepare
from gptj.data.read import Document, Reader
from gptj.data.split import Split
from gptj.data.store import TokenStore
from gptj.data.write import StoreWriter, finish
from gptj.files import file_at
from gptj.tokenizer import Tokenizer

OLD = [f"old text {n}: {'é' * (n % 7)} of some words\n" * (1 + n % 3) for n in range(30)]
NEW = [f"new text {n} of other words\n" for n in range(40)]
TOKENIZER = Tokenizer.train(["é🙂 some words and some more words"] * 9, 300)
COMPOSED = Tokenizer({**json.loads(Tokenizer.bytes().to_json()), "normalizer": {"type": "NFC"}})
"""Which may join the end of one part of a text with the beginning of the next."""
PARTS = [["e", "\u0301 one", " two one"], [" three"], ["two", " one"], [""], ["e\u0301"]]
HELD, TRAINED = "held out before", "to be held out, and trained on before"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Whatever is read in parts is read in several."""
    monkeypatch.setattr(portions, "PORTION_BYTES", 1)
    monkeypatch.setattr(known, "_TOKENS", 7)
    monkeypatch.setattr(known, "_DOCUMENTS", 3)


@pytest.fixture(params=["bytes", "train:300", "uncut"])
def tokenizer(request, tmp_path) -> str:
    """Three kinds; the last changes texts, so that ids do not spell what was given."""
    if request.param != "uncut":
        return request.param
    definition = json.loads(Tokenizer.bytes().to_json())
    path = tmp_path / "uncut.json"
    path.write_text(json.dumps({**definition, "normalizer": {"type": "Lowercase"}}))
    return str(path)


def lines(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def files(folder: Path, texts: list[str]) -> Path:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{folder.name}{number:02}.txt").write_text(text)
    return folder


def sides(out: Path) -> tuple[list[str], list[str]]:
    stores = [TokenStore.open(out / side) for side in ("train", "heldout")]
    for store in stores:
        store.verify()
    train, held = ([s.text(n) for n in range(s.manifest.documents)] for s in stores)
    return train, held


def dropped(report: PrepareReport) -> dict[str, int]:
    return {each.reason: each.documents for each in report.dropped}


def append(path: Path, out: Path, **options) -> PrepareReport:
    return prepare(PrepareConfig((path,), out, append=True, **{"held_out": 0.3, **options}))


@given(ids=st.lists(st.integers(0, 299)))
@settings(deadline=None)
def test_many_ids_are_spelt_as_one_by_one(ids):
    ids = [id for id in ids if id < TOKENIZER.vocab_size]
    assert known._Spelling(TOKENIZER)(np.array(ids, "<u2")) == TOKENIZER.spelled(ids)


def words() -> Tokenizer:
    """One in SentencePiece's manner: a space before a text's first word stands for nothing."""
    letters = ("</s>", "▁", *sorted({each for parts in PARTS for text in parts for each in text}))
    made = Made(models.BPE({each: n for n, each in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    return Tokenizer(json.loads(made.to_str()))


def documents(source: str) -> list[Document]:
    """Of `PARTS`."""
    return [
        Document(source, text, continues=place < len(parts), number=number)
        for number, parts in enumerate(PARTS)
        for place, text in enumerate(parts, 1)
    ]


def stored(path: Path, tokenizer: Tokenizer) -> TokenStore:
    """The same, each of them whole."""
    with StoreWriter(path, tokenizer) as writer:
        for parts in PARTS:
            writer.add(Document("old", "".join(parts)))
    finish(path, tokenizer, [writer.written()])
    return TokenStore.open(path)


@pytest.mark.parametrize("own", [TOKENIZER, COMPOSED, words()], ids=["cut", "composed", "words"])
class TestInParts:
    def test_a_document_in_parts_has_the_digest_of_what_is_stored_of_it(self, own, tmp_path):
        digests = [digest for _, digest in known._digests(documents("new"), own) if digest]
        assert list(known._stored([stored(tmp_path, own)], known._Spelling(own))) == digests
        assert len(set(digests)) == len(PARTS)

    def test_a_document_in_parts_is_found_where_it_is_trained_on_and_nowhere_else(
        self, own, tmp_path
    ):
        store = stored(tmp_path, own)
        new = [*documents("new"), Document("new", "one", number=len(PARTS))]
        for place, found in (("train", len(PARTS)), ("heldout", 0)):
            split, drops = Split("file", 0.5, 0, frozenset({"new"})), Drops()
            leave_out_trained(new, {"": split}, {Path(place): store}, drops)
            assert drops.keys == {("new", number) for number in range(found)}


def test_documents_lie_between_ends_of_text(tmp_path):
    out, texts = tmp_path / "out", ["x" * size for size in (3, 1, 4, 1, 5, 9, 2)]
    prepare(PrepareConfig((lines(tmp_path / "a.jsonl", texts),), out, "bytes", 0))
    store = TokenStore.open(out / "train")
    ends = np.flatnonzero(store.tokens[:] == store.tokenizer.eos_id).tolist()
    places = list(zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True))
    assert list(known._extents(store)) == places
    assert [end - begin for begin, end in places] == [3, 1, 4, 1, 5, 9, 2]
    few = known._extents(store, np.array([1, 2, 9, 100]))
    assert list(few) == [(a, b) for a, b in places if b - a in (1, 2, 9)]


class TestAllThere:
    """Whether a file is prepared already, by the name that it has."""

    @pytest.mark.parametrize("kind", ["files", "lines"])
    @pytest.mark.parametrize("held_out", [0, 0.3])
    def test_it_is_where_all_of_its_text_is(self, kind, held_out, tokenizer, tmp_path):
        texts = ["".join(f"{name} verse {n}\n" for n in range(30)) for name in ("one", "two")]
        out, folder = tmp_path / "out", tmp_path / "in"
        if kind == "lines":
            folder.mkdir()
            lines(folder / "in00.jsonl", OLD)
            lines(folder / "in01.jsonl", ["all else"])
        else:
            files(folder, texts)
        prepare(PrepareConfig((folder,), out, tokenizer, held_out))
        stores = {path: TokenStore.open(path) for path in out.iterdir() if path.is_dir()}
        first, second = find_sources([folder]).sources

        def there(source: Source) -> bool:
            return all_there(Reader().documents(source), stores)

        assert there(first)
        assert there(second)
        own = Path(first.file.path)
        text = own.read_text()
        for other in (text + text[:40] if kind == "files" else text + '{"text": "more"}', text):
            own.write_text(other)
            assert there(Source(file_at(str(own)), first.name)) == (other == text)
        assert not there(Source(second.file, first.name))
        assert not there(Source(first.file, "another"))
        if kind == "lines":  # some of its lines are there
            own.write_text("".join(text.splitlines(keepends=True)[3:9]))
            assert there(Source(file_at(str(own)), first.name))


class TestAppending:
    @pytest.mark.parametrize("old", ["lines", "files"])
    @pytest.mark.parametrize("new", ["lines", "files"])
    def test_no_text_is_on_both_sides(self, old, new, tokenizer, tmp_path):
        shape = {"lines": lambda name, texts: lines(tmp_path / f"{name}.jsonl", texts),
                 "files": lambda name, texts: files(tmp_path / name, texts)}  # fmt: skip
        out = tmp_path / "out"
        prepare(PrepareConfig((shape[old]("old", OLD),), out, tokenizer, 0.3))
        train, held = sides(out)
        found = dropped(append(shape[new]("new", [*OLD, *NEW]), out, seed=5))
        assert found[HELD] == len(held)
        assert 0 < found[TRAINED] < len(train)
        own = Tokenizer.load(tokenizer) if tokenizer.endswith(".json") else None
        everything = [own.decode(own.encode(each)) if own else each for each in [*OLD, *NEW]]
        for before, after in zip((train, held), sides(out), strict=True):
            assert after[: len(before)] == before
        train, held = sides(out)
        assert not set(train) & set(held)
        assert set(train) | set(held) == set(everything)
        assert max(Counter(held).values()) == 1

    @pytest.mark.parametrize("parts", [False, True])
    def test_an_end_that_was_held_out_does_not_come_back_with_its_beginning(
        self, parts, tokenizer, tmp_path, monkeypatch
    ):
        if parts:
            monkeypatch.setattr("gptj.data.read.PART_CHARACTERS", 40)
            monkeypatch.setattr("gptj.data.unpack.CHUNK_BYTES", 16)
        texts = ["".join(f"{name} verse {n}\n" for n in range(30)) for name in ("one", "two")]
        out = tmp_path / "out"
        prepare(PrepareConfig((files(tmp_path / "old", texts),), out, tokenizer, 0.3))
        before = sides(out)
        assert dropped(append(files(tmp_path / "again", texts), out)) == {HELD: 2}
        assert sides(out) == before
        assert dropped(append(files(tmp_path / "more", [*texts, *NEW]), out))[HELD] == 2
        train, held = sides(out)
        assert sorted(train + held) == sorted([*before[0], *before[1], *NEW])

    def test_what_is_trained_on_whole_has_no_end_that_is_held_out(self, tmp_path):
        out = tmp_path / "out"
        prepare(PrepareConfig((lines(tmp_path / "a.jsonl", OLD),), out, "bytes", 0.3))
        train, _ = sides(out)
        report = append(files(tmp_path / "few", [*train[:2], "x" * 100]), out)
        assert report.groups[0].held_out_unit == "tail"
        assert dropped(report) == {TRAINED: 2}
        assert sides(out)[1][-1] == "x" * 30

    @pytest.mark.parametrize("parts", [False, True])
    def test_it_is_told_how_much_is_left_out_and_how_it_begins(self, parts, tmp_path, monkeypatch):
        out = tmp_path / "out"
        prepare(PrepareConfig((files(tmp_path / "old", OLD),), out, "bytes", 0.3))
        train, held = sides(out)
        if parts:
            monkeypatch.setattr("gptj.data.read.PART_CHARACTERS", 40)
            monkeypatch.setattr("gptj.data.unpack.CHUNK_BYTES", 16)
        report = append(files(tmp_path / "new", [*held, *train, *NEW]), out, seed=5)
        again, _ = sides(out)
        left = {HELD: held, TRAINED: set(train) - set(again[len(train) :])}
        assert {each.reason for each in report.dropped} == {*left}
        for each in report.dropped:
            texts = left[each.reason]
            assert (each.documents, each.bytes) == (len(texts), sum(len(t.encode()) for t in texts))
            begins = {" ".join(text.split())[:80] for text in texts}
            shown = {example.partition(": ")[2] for example in each.examples}
            assert len(shown) == 3
            assert all(any(full.startswith(some) for full in begins) for some in shown)

    def test_it_holds_across_groups(self, tmp_path):
        def grouped(name: str, kind: str, texts: list[str]) -> Path:
            rows = [{"text": text, "kind": kind} for text in texts]
            (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
            return tmp_path / name

        out = tmp_path / "out"
        prepare(PrepareConfig((grouped("a.jsonl", "a", OLD),), out, "bytes", 0.3, split_by="kind"))
        _, held = sides(out / "a")
        append(grouped("b.jsonl", "b", [*OLD, *NEW]), out, split_by="kind", held_out=0.1)
        train, _ = sides(out / "b")
        assert not set(train) & set(held)

    def test_of_tokens_too(self, tfrecords, tmp_path):
        own = Tokenizer.bytes()
        ids = [id for text in OLD for id in (*own.encode(text), own.eos_id)]
        out = tmp_path / "out"
        prepare(PrepareConfig((lines(tmp_path / "a.jsonl", OLD),), out, "bytes", 0.3))
        train, held = sides(out)
        found = dropped(append(tfrecords(tmp_path / "b.tfrecords", [ids]), out, held_out=0))
        assert found == {HELD: len(held)}
        assert sides(out) == (train * 2, held)

    def test_of_examples_too(self, tmp_path):
        def pairs(name: str, texts: list[str]) -> Path:
            rows = ({"prompt": f"say {text}", "completion": text} for text in texts)
            (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
            return tmp_path / name

        out, kind = tmp_path / "out", ExampleConfig("completions")
        prepare(PrepareConfig((pairs("a.jsonl", OLD),), out, "bytes", 0.3, examples=kind))
        _, held = sides(out)
        report = append(pairs("b.jsonl", [*OLD, *NEW]), out, seed=5, examples=kind)
        shown = [each for reason in report.dropped for each in reason.examples]
        assert shown
        assert all(": say " in each for each in shown)
        found = dropped(report)
        assert (found[HELD], found[TRAINED] > 0) == (len(held), True)
        train, held = sides(out)
        assert not set(train) & set(held)
        assert len(set(train) | set(held)) == len(OLD) + len(NEW)
