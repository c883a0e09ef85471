"""Cleaning: texts mended as the original did, copies found, and a report of what was left out."""

import dataclasses
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.data import clean
from gptj.data.clean import CleanConfig, Drops, detokenized, leave_out_copies
from gptj.data.prepare import PrepareConfig, PrepareReport, prepare
from gptj.data.read import Document
from gptj.data.store import TokenStore
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

WIKITEXT = Path(__file__).parents[2] / "../shared/data/wikitext2/wiki.test.raw.reconstructed"


def run(tmp_path, texts: list[str], **clean) -> tuple[list[str], PrepareReport]:
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = PrepareConfig(
        (str(lines),), tmp_path / "out", "bytes", held_out=0, force=True, clean=CleanConfig(**clean)
    )
    report = prepare(config)
    store = TokenStore.open(tmp_path / "out/train")
    return [store.text(number) for number in range(store.manifest.documents)], report


class TestMending:
    def test_ftfy(self, tmp_path):
        found, _ = run(tmp_path, ["schÃ¶n", "ﬁne"], ftfy=True)
        assert found == ["schön", "fine"]

    def test_wikitext(self, tmp_path):
        texts = ["a @-@ b", "plain"]
        assert run(tmp_path, texts, detokenize=True)[0] == ["a-b", "plain"]
        assert run(tmp_path, texts)[0] == texts

    @given(text=st.text("ab N'\"()[]{}:;.,!?@-=s\n°", max_size=60))
    @settings(deadline=None)
    def test_wikitext_is_detokenized_as_by_the_harness(self, text):
        theirs = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
        assert detokenized(text) == theirs.wikitext_detokenizer({"page": text})

    @pytest.mark.skipif(not WIKITEXT.exists(), reason=f"WikiText is not at {WIKITEXT}")
    def test_real_wikitext(self):
        theirs = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
        text = WIKITEXT.read_text()[:200_000]
        assert detokenized(text) == theirs.wikitext_detokenizer({"page": text})

    def test_the_end_of_text_is_text_unless_it_is_to_end_one(self, tmp_path):
        texts = ["one<|endoftext|>two", "<|endoftext|>three<|endoftext|>"]
        assert run(tmp_path, texts)[0] == texts
        assert run(tmp_path, texts, split_end_of_text=True)[0] == ["one", "two", "three"]

    def test_what_is_split_is_held_out_apart(self, tmp_path):
        (tmp_path / "a.txt").write_text("<|endoftext|>".join(f"text {n}" for n in range(40)))
        clean = CleanConfig(split_end_of_text=True)
        config = PrepareConfig((str(tmp_path / "a.txt"),), tmp_path / "out", "bytes", clean=clean)
        [group] = prepare(config).groups
        assert group.held_out_unit == "document"
        assert group.train.documents + group.held_out.documents == 40


class TestLeavingOut:
    WORDS = np.random.default_rng(0).integers(0, 500, (40, 200)).astype(str)
    LONG = tuple(" ".join(row) for row in WORDS)

    def test_copies_to_the_byte(self, tmp_path):
        found, report = run(tmp_path, ["a", "b", "a", "c", "b", "a"], copies="exact")
        assert found == ["a", "b", "c"]
        [dropped] = report.dropped
        assert (dropped.documents, dropped.bytes) == (3, 3)
        assert dropped.reason == "same text as another"
        assert dropped.examples[0] == "lines.jsonl, document 3, as in lines.jsonl, document 1: a"

    def test_near_copies(self, tmp_path):
        texts = list(self.LONG)
        texts.insert(20, texts[3].replace(texts[3].split()[100], "other", 1))
        texts.append(texts[7].upper())
        texts.append(" ".join([*texts[9].split()[:100], *texts[10].split()[:100]]))
        found, report = run(tmp_path, texts, copies="near")
        assert found == [*self.LONG, texts[-1]]
        [dropped] = report.dropped
        assert dropped.documents == 2

    def test_near_copies_are_alike_and_not_only_taken_for_it(self):
        """The index of MinHashes gives candidates, of which some are less alike than it asks."""
        datasketch = pytest.importorskip("datasketch")

        def hashed(words):
            found = datasketch.MinHash(clean.HASHES)
            found.update_batch([" ".join(words[i : i + 5]).encode() for i in range(196)])
            return found

        draw = np.random.default_rng(1)
        rows = draw.integers(0, 500, (150, 200)).astype(str)
        pairs = [(row, [*row[:165], *draw.integers(0, 500, 35).astype(str)]) for row in rows]
        index = datasketch.MinHashLSH(clean.ALIKE, clean.HASHES)
        alike, taken = set(), set()
        for number, (first, second) in enumerate(pairs):
            own, other = hashed(first), hashed(second)
            index.insert(number, own)
            alike |= {number} if own.jaccard(other) >= clean.ALIKE else set()
            taken |= {number} if index.query(other) else set()
        assert taken - alike
        texts = [Document("a", " ".join(words)) for pair in pairs for words in pair]
        drops = Drops()
        leave_out_copies(
            (dataclasses.replace(text, number=n) for n, text in enumerate(texts)), "near", drops
        )
        assert drops.keys == {("a", 2 * number + 1) for number in alike & taken}

    def test_copies_of_long_texts(self, tmp_path, monkeypatch):
        monkeypatch.setattr("gptj.data.read.PART_CHARACTERS", 100)
        monkeypatch.setattr("gptj.data.unpack.CHUNK_BYTES", 64)
        for number, text in enumerate([self.LONG[0], self.LONG[1], self.LONG[0]]):
            (tmp_path / f"{number}.txt").write_text(text)
        for copies in ("exact", "near"):
            clean = CleanConfig(copies=copies)
            config = PrepareConfig(
                (str(tmp_path / "*.txt"),), tmp_path / "out", "bytes", held_out=0, force=True,
                clean=clean,
            )  # fmt: skip
            [dropped] = prepare(config).dropped
            store = TokenStore.open(tmp_path / "out/train")
            assert [store.text(n) for n in range(2)] == list(self.LONG[:2])
            assert (store.manifest.documents, dropped.bytes) == (2, len(self.LONG[0].encode()))

    def test_texts_of_few_tokens(self, tmp_path):
        texts = ["abab" * 50, "abcdefghij", "aaaaaaaaaaaaaaaaaaab", "klmnopqrst"]
        found, report = run(tmp_path, texts, min_unique_tokens=5)
        assert found == [texts[1], texts[3]]
        [dropped] = report.dropped
        assert dropped.documents == 2
        assert dropped.reason == "fewer than 5 different tokens"

    def test_long_texts_after_those_left_out_are_held_out_all_the_same(self, tmp_path, monkeypatch):
        """The plan is of all documents, of which some are left out only when they are written."""
        texts = ["aa", *(f"the words of text {n} " * 9 for n in range(30))]
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for number, text in enumerate(texts):
                member = tarfile.TarInfo(f"{number:02}.txt")
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))

        def sides(place: str) -> list[list[str]]:
            config = PrepareConfig(
                (str(tmp_path / "a.tar"),), tmp_path / place, "bytes", 0.3,
                clean=CleanConfig(min_unique_tokens=3),
            )  # fmt: skip
            assert prepare(config).dropped[0].documents == 1
            stores = [TokenStore.open(tmp_path / place / side) for side in ("train", "heldout")]
            return [[s.text(n) for n in range(s.manifest.documents)] for s in stores]

        whole = sides("whole")
        monkeypatch.setattr("gptj.data.read.PART_CHARACTERS", 40)
        monkeypatch.setattr("gptj.data.unpack.CHUNK_BYTES", 16)
        assert sides("parts") == whole
        assert sorted(whole[0] + whole[1]) == sorted(texts[1:])

    def test_all_reasons_are_told_apart(self, tmp_path):
        texts = ["abcdef", "abcdef", "aa"]
        found, report = run(tmp_path, texts, copies="exact", min_unique_tokens=3)
        assert found == ["abcdef"]
        assert {each.reason for each in report.dropped} == {
            "same text as another", "fewer than 3 different tokens",
        }  # fmt: skip

    def test_what_is_left_out_is_never_held_out(self, tmp_path):
        texts = [f"text {n % 30}" for n in range(90)]
        lines = tmp_path / "lines.jsonl"
        lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        clean = CleanConfig(copies="exact")
        [group] = prepare(
            PrepareConfig((str(lines),), tmp_path / "out", "train:300", 0.2, clean=clean)
        ).groups
        assert group.train.documents + group.held_out.documents == 30

    @pytest.mark.parametrize("in_tokens", [False, True])
    def test_as_many_different_tokens_as_asked_for_are_enough(self, in_tokens):
        def document(text: str) -> Document:
            ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
            return Document("a", ids=ids) if in_tokens else Document("a", text)

        drops, tokenizer = Drops(), Tokenizer.bytes()
        documents = [document(text) for text in ("aabb", "aabbcc", "abcd")]
        assert list(clean.FewTokens(3, tokenizer, drops)(documents)) == documents[1:]
        assert list(clean.FewTokens(0, tokenizer, drops)([document("")])) != []
        [dropped] = drops.report()
        assert (dropped.documents, dropped.bytes) == (1, 16 if in_tokens else 4)
        assert dropped.examples == ("a, document 1: aabb",)

    def test_of_each_reason_three_are_shown_and_eighty_characters(self):
        drops, others = Drops(), Drops()
        for number in range(5):
            drops.note(("a", number), "why", 1, "word" + " " * 6 if number else "")
        drops.note(("b", 0), "long", 7, "one\n two  " * 40, "as said")
        drops.note(("b", 1), "wide", 1, ("x" + " " * 9) * 40)  # of four times as many, 32 words
        why, long, wide = drops.report()
        assert (why.documents, why.bytes) == (5, 5)
        assert why.examples == ("a, document 1: ", "a, document 2: word", "a, document 3: word")
        assert long.examples == ("b, document 1, as said: " + "one two " * 10,)
        assert wide.examples == ("b, document 2: " + "x " * 31 + "x",)
        for each in (0, 1):
            others.note(("c", each), "why", 2, "other")
        others.take([why, long])
        first, second = others.report()
        assert first.examples == ("c, document 1: other", "c, document 2: other", "a, document 1: ")
        assert (first.documents, first.bytes, second) == (7, 9, long)

    def test_what_are_near_copies_stays_so(self):
        assert (clean.ALIKE, clean.SHINGLE, clean.HASHES) == (0.8, 5, 128)

    def test_a_number_below_zero(self):
        with pytest.raises(UserError, match="min_unique_tokens=-1 must be 0"):
            CleanConfig(min_unique_tokens=-1)


def test_the_command_says_what_was_left_out(gptj, tmp_path):
    one = '{"text": "one\\u001b"}\n'  # what commands a terminal is shown
    (tmp_path / "a.jsonl").write_text(f'{one}{one}{{"text": "two"}}\n')
    words = ("--tokenizer", "bytes", "--held-out", 0, "--copies", "exact")
    code, said, _ = gptj("prepare", tmp_path / "a.jsonl", "--out", tmp_path / "out", *words)
    assert code == 0
    assert "left out 1 document, 4 bytes: same text as another" in said
    assert "a.jsonl, document 2, as in a.jsonl, document 1: one\\x1b\n" in said


def test_documents_of_tokens_are_copies_by_their_tokens():
    draw, drops = np.random.default_rng(0), Drops()
    ids = [draw.integers(0, 999, 400) for _ in range(4)]
    near = ids[0].copy()
    near[7] = 1000
    documents = [Document("a", ids=each, number=n) for n, each in enumerate((*ids, near))]
    leave_out_copies(documents, "near", drops)
    assert drops.keys == {("a", 4)}


def test_a_long_text_is_hashed_a_part_at_a_time(monkeypatch):
    text = " ".join(map(str, range(1000)))
    found = []
    for size in (7, 4096):
        monkeypatch.setattr(clean, "AT_ONCE", size)
        near = clean._Near()
        near.read(Document("a", text))
        found.append(near._hash)
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [1, 4, 5, 6, 30])
@pytest.mark.parametrize("size", [5, 7])
def test_runs_are_of_five_words_whole_and_in_parts(count, size):
    datasketch = pytest.importorskip("datasketch")
    words, expected = [str(n) for n in range(count)], datasketch.MinHash(128)
    runs = [words[at : at + 5] for at in range(max(1, count - 4))]
    expected.update_batch([" ".join(run).encode() for run in runs])
    near = clean._Near()
    near.read(Document("a", " ".join(words).upper()))
    assert near._hash == expected
    near = clean._Near()
    for at in range(0, count, size):
        part = " ".join(words[at : at + size])
        near.read(Document("a", part, continues=at + size < count))
    assert near._hash == expected
    near._hash = near._new()
    near.read(Document("a", " ".join(words)))
    assert near._hash == expected  # nothing is left of the one before


@pytest.mark.parametrize(
    ("library", "options", "said"),
    [
        ("datasketch", {"copies": "near"}, "copies=near needs datasketch: pip install"),
        ("ftfy", {"ftfy": True}, "--ftfy needs ftfy: pip install"),
    ],
)
def test_a_library_that_is_not_there_is_named(library, options, said, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=said):
        run(tmp_path, ["a"], **options)
