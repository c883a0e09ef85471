"""What is said of prepared data: counts that add up, documents that are there."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from gptj.data.describe import (
    SHOWN,
    _by_source,
    describe,
    describe_store,
    lengths,
    random_documents,
)
from gptj.data.mixture import ROUND, MixConfig, Mixture, Part, mix
from gptj.data.prepare import PrepareConfig, prepare
from gptj.data.read import Document
from gptj.data.store import SourceRecord, TokenStore
from gptj.data.write import StoreWriter, finish
from gptj.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("described")
    for number in range(40):
        path = root / f"in/{'ab'[number % 2]}/{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number} " * (number + 1))
    prepare(PrepareConfig((str(root / "in"),), root / "data", "bytes", held_out=0.2))
    return root / "data"


def numbers(line: str) -> list[int]:
    return [int(each.replace(",", "")) for each in re.findall(r"(?<![\w.])[\d,]+(?![\w.])", line)]


class TestStore:
    def test_lengths_are_counted_by_powers_of_two(self, folder, monkeypatch):
        store = TokenStore.open(folder / "train")
        sizes = [end - start for start, end in map(store.extent, range(store.manifest.documents))]
        expected = np.bincount([int(np.log2(size)) for size in sizes])
        assert lengths(store).tolist() == expected.tolist()
        monkeypatch.setattr("gptj.data.describe.READ", 3)
        assert lengths(store).tolist() == expected.tolist()

    def test_sources_add_up(self, folder, monkeypatch):
        store = TokenStore.open(folder / "train")
        for most, count in ((100, store.manifest.documents), (20, 2), (1, 2)):
            monkeypatch.setattr("gptj.data.describe.MOST_SOURCES", most)
            lines = list(describe_store(store))
            rows = [line for line in lines if "documents" in line and line.startswith("    ")]
            assert len(rows) == count
            found = np.array([numbers(row)[-2:] for row in rows])
            assert found.sum(0).tolist() == [store.manifest.documents, len(store)]

    def test_random_documents_are_documents(self, folder):
        store = TokenStore.open(folder / "train")
        found = list(random_documents(store, 5, seed=1))
        assert len({source for source, _, _ in found}) == 5
        for source, number, text in found:
            own = Path(folder.parent / "in" / source).read_text()
            assert (number, text) == (0, own)
        assert found == list(random_documents(store, 5, seed=1))
        assert found != list(random_documents(store, 5, seed=2))
        assert len(list(random_documents(store, 999, seed=1))) == store.manifest.documents

    def test_a_name_of_two_lines_takes_one(self, tmp_path):
        (tmp_path / "a\nb.txt").write_text("x" * 99)
        prepare(PrepareConfig((f"{tmp_path}/a\nb.txt",), tmp_path / "out", "bytes", held_out=0))
        lines = list(describe_store(TokenStore.open(tmp_path / "out/train")))
        assert any(line.startswith("    a\\nb.txt  1 ") for line in lines)

    def test_a_long_document_is_not_printed_whole(self, tmp_path):
        (tmp_path / "a.txt").write_text("x" + "é" * SHOWN)
        prepare(PrepareConfig((str(tmp_path / "a.txt"),), tmp_path / "out", "bytes", held_out=0))
        [(_, _, text)] = random_documents(TokenStore.open(tmp_path / "out/train"), 1, seed=0)
        assert text == "x" + "é" * (SHOWN // 2 - 1) + f"\n[... and {SHOWN + 2:,} more tokens]"


class TestByHand:
    """A store that is small enough to be told by hand."""

    FILES = (("a/x", "k"), ("a/x", "lm"), ("a/y", "n"), ("b", "é" * 100), ("c", "o"), ("d/z", "p"))

    @pytest.fixture
    def store(self, tmp_path) -> TokenStore:
        with StoreWriter(tmp_path, Tokenizer.bytes()) as writer:
            for source, text in self.FILES:
                writer.add(Document(source, text))
        finish(tmp_path, Tokenizer.bytes(), [writer.written()])
        return TokenStore.open(tmp_path)

    def test_all_lines(self, store):
        assert list(describe_store(store)) == [
            "  6 documents, 206 bytes, 212 tokens (0.97 bytes each) of 257",
            "  shards: 1, of uint16",
            f"  fingerprint {store.fingerprint}",
            "  by source:",
            "    b    1 documents  201 tokens  1.00 bytes each",
            "    a/x  2 documents    5 tokens  0.60 bytes each",
            "    a/y  1 documents    2 tokens  0.50 bytes each",
            "    c    1 documents    2 tokens  0.50 bytes each",
            "    d/z  1 documents    2 tokens  0.50 bytes each",
            "  tokens in a document:",
            f"      2 to   3  5  {'█' * 40}",
            *(f"    {2**k:>3} to {2 ** (k + 1) - 1:>3}  0" for k in range(2, 7)),
            f"    128 to 255  1  {'█' * 8}",
        ]

    def test_of_a_mixture_each_part_and_what_is_held_out(self, store):
        own, quarter = list(describe_store(store)), ROUND // 4
        parts = Part("one", store, 3 * quarter), Part("two", store, quarter)
        assert list(describe(Mixture("x", parts, None))) == [
            "", "one, 75.00 % of the rows: to train on", *own,
            "", "two, 25.00 % of the rows: to train on", *own,
        ]  # fmt: skip
        assert list(describe(Mixture.of(store, store))) == [
            "", "to train on", *own, "", "held out", *own
        ]  # fmt: skip

    def test_documents_that_are_nothing_but_their_ends(self, tmp_path):
        with StoreWriter(tmp_path, Tokenizer.bytes()) as writer:
            for _ in range(3):
                writer.add(Document("a", ""))
        finish(tmp_path, Tokenizer.bytes(), [writer.written()])
        store = TokenStore.open(tmp_path)
        assert lengths(store).tolist() == [3]
        assert list(describe_store(store))[-1] == f"    1 to 1  3  {'█' * 40}"

    @pytest.mark.parametrize(
        ("most", "rows"),
        [
            (5, [("b", 1), ("a/x", 2), ("a/y", 1), ("c", 1), ("d/z", 1)]),
            (4, [("b", 1), ("a", 3), ("c", 1), ("d", 1)]),
            (3, [("b", 1), ("a", 3), ("c", 1), ("1 other", 1)]),
            (2, [("b", 1), ("a", 3), ("2 others", 2)]),
        ],
    )
    def test_many_sources_are_told_by_folders_and_the_least_together(
        self, most, rows, store, monkeypatch
    ):
        monkeypatch.setattr("gptj.data.describe.MOST_SOURCES", most)
        found = [line.split() for line in describe_store(store) if "documents  " in line]
        assert [(" ".join(words[:-7]), int(words[-7])) for words in found] == rows

    def test_of_up_to_twenty_files_each_is_told(self):
        found = [
            [name for name, _ in _by_source([SourceRecord(f"{n % 2}/{n}", 1, "", n, 1, 99 - n)
                                             for n in range(count)])]
            for count in (20, 21)
        ]  # fmt: skip
        assert found == [[f"{n % 2}/{n}" for n in range(20)], ["0", "1"]]

    def test_a_document_is_counted_in_its_own_source(self, store):
        found = list(random_documents(store, 6, seed=0))
        assert found == [
            (name, number, text)
            for (name, text), number in zip(self.FILES, (0, 1, 0, 0, 0, 0), strict=True)
        ]
        assert {each for seed in range(40) for each in random_documents(store, 1, seed)} == {*found}
        some = [len(set(random_documents(store, 5, seed))) for seed in range(9)]
        assert some == [5] * 9  # none twice

    def test_of_examples_what_is_learnt(self, tmp_path, monkeypatch):
        monkeypatch.setattr("gptj.data.describe.READ", 3)
        tokenizer, kind = Tokenizer.bytes(), "completions"
        with StoreWriter(tmp_path, tokenizer, examples=kind) as writer:
            for ids in ([0, ~103], [~97, ~0, 0, 98], [~99, 100, ~0, ~101, 102]):
                writer.add(Document("a", ids=np.array(ids)))
        finish(tmp_path, tokenizer, [writer.written()], kind)
        store = TokenStore.open(tmp_path)
        line = "  completions: 8 tokens are learnt (⟦⟧ below), others only read"
        assert list(describe_store(store))[1] == line
        found = [text for _, _, text in random_documents(store, 3, seed=0)]
        assert found == ["⟦\0⟧g⟦⟧", "a\0⟦\0b⟧", "c⟦d⟧\0e⟦f⟧"]


class TestCommand:
    def test_of_a_folder_and_of_a_store(self, gptj, folder, tmp_path):
        picture = tmp_path / "lengths.png"
        code, said, err = gptj("inspect", folder, "--documents", 2, "--lengths", picture)
        assert (code, err) == (0, "")
        assert said.startswith(f"{folder}: data\n")
        assert all(
            word in said for word in ("to train on", "held out", "tokens in a document", "█")
        )
        assert said.count("\n--- ") == 2
        assert said.endswith("all hashes are right\n")
        assert picture.read_bytes().startswith(b"\x89PNG")
        said = gptj("inspect", folder / "train", "--no-hash").out
        assert said.startswith(f"{folder}/train: a token store\n")
        assert "hashes" not in said

    def test_of_a_mixture(self, gptj, folder, tmp_path):
        other = tmp_path / "other"
        prepare(PrepareConfig((str(folder.parent / "in/a"),), other, "bytes"))
        mix(MixConfig((f"{folder}=3", f"{other}=1"), tmp_path / "mixed"))
        said = gptj("inspect", tmp_path / "mixed").out
        assert "mixed: a mixture" in said
        assert "other, 25.00 % of the rows: to train on" in said

    def test_of_data_in_groups(self, gptj, tmp_path):
        rows = [{"text": f"text {n}", "kind": "ab"[n % 2]} for n in range(80)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        out, picture = tmp_path / "out", tmp_path / "lengths.svg"
        prepare(PrepareConfig((tmp_path / "rows.jsonl",), out, "bytes", split_by="kind"))
        code, said, _ = gptj("inspect", out, "--documents", 1, "--lengths", picture)
        assert (code, said.count("\n--- "), picture.exists()) == (0, 2, True)
        assert said.startswith(
            f"{out}: data in 2 groups, each of which is trained on by itself\n\na\n"
        )
        assert said.count("held out") == said.count("to train on") == 2
        assert said.endswith("all hashes are right\n")
        store = out / "b" / "heldout" / "00000-000.tokens"
        store.write_bytes(bytes(store.stat().st_size))
        code, _, err = gptj("inspect", out)
        assert (code, "b/heldout/00000-000.tokens was altered" in err) == (2, True)

    def test_damage_and_what_does_not_fit_are_named(self, gptj, folder, tmp_path, tiny_run):
        store = tmp_path / "store"
        store.mkdir()
        for path in (folder / "train").iterdir():
            (store / path.name).write_bytes(path.read_bytes())
        damaged = bytearray((store / "00000-000.tokens").read_bytes())
        damaged[9] ^= 1
        (store / "00000-000.tokens").write_bytes(damaged)
        code, _, err = gptj("inspect", store)
        assert code == 2
        assert "00000-000.tokens was altered between bytes 0 and" in err
        whole = tmp_path / "whole"
        shutil.copytree(folder, whole)
        (whole / "heldout" / "00000-000.tokens").write_bytes(
            bytes((whole / "heldout" / "00000-000.tokens").stat().st_size)
        )
        code, _, err = gptj("inspect", whole)
        assert (code, "heldout/00000-000.tokens was altered" in err) == (2, True)
        damaged = (store / "00000-000.documents").read_bytes()
        for offsets in (damaged[:8] + damaged[16:24] + damaged[8:16] + damaged[24:],
                        damaged[:-16] + bytes(8) + damaged[-8:],
                        b"\xff" * len(damaged)):  # fmt: skip
            (store / "00000-000.documents").write_bytes(offsets)
            code, _, err = gptj("inspect", store, "--documents", 99)
            assert (code, "store says where documents 0 to" in err) == (2, True)
        for words, said in (
            (("--documents", -1), "documents=-1 must be 0"),
            (("--documents", 1, "--seed", -1), "seed=-1 must be 0 or above"),
            (("--lengths", tmp_path / "x.nope"), "x.nope must end in one of .png, .svg, .pdf"),
        ):
            code, _, err = gptj("inspect", folder, *words)
            assert (code, said in err) == (2, True)
        code, _, err = gptj("inspect", folder, "--config", "125m")
        assert (code, "have no config" in err) == (2, True)
        code, _, err = gptj("inspect", tiny_run, "--documents", 1)
        assert (code, "holds no prepared data" in err) == (2, True)
