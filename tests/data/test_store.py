"""Token stores: documents come back exactly, equal text is an equal store, damage is noticed."""

import contextlib
import hashlib
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.data.batches import TrainBatches
from gptj.data.mixture import Mixture
from gptj.data.read import Document
from gptj.data.store import Manifest, ShardRecord, SourceRecord, TokenStore, ids_of
from gptj.data.write import StoreWriter, finish
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()
TRAINED = Tokenizer.train(["the cat sat on the mat, the cat"] * 4, 280)
DOCUMENTS = [("a.txt", "the cat"), ("b.jsonl", "é🙂"), ("b.jsonl", "line\r\n\x00<|endoftext|>")]


def write(path: Path, documents=DOCUMENTS, tokenizer: Tokenizer = BYTES) -> TokenStore:
    with StoreWriter(path, tokenizer) as writer:
        for source, text in documents:
            writer.add(Document(source, text))
    finish(path, tokenizer, [writer.written()])
    return TokenStore.open(path)


def place(store: TokenStore) -> Path:
    return store.folder.on_disk


@pytest.fixture
def store(tmp_path) -> TokenStore:
    return write(tmp_path / "store")


class TestContents:
    @pytest.mark.parametrize("tokenizer", [BYTES, TRAINED], ids=["bytes", "trained"])
    @given(
        texts=st.lists(st.text(min_size=1), min_size=1),
        flush=st.integers(1, 50),
        shard=st.integers(1, 99),
    )
    @settings(deadline=None, max_examples=40)
    def test_documents_come_back_exactly(self, tmp_path_factory, tokenizer, texts, flush, shard):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gptj.data.write._FLUSH_CHARACTERS", flush)
            patch.setattr("gptj.data.write.SHARD_TOKENS", shard)
            patch.setattr("gptj.data.write.CHECKED", 10)
            patch.setattr("gptj.tokenizer._PIECE_CHARACTERS", flush)
            path = tmp_path_factory.mktemp("law") / "store"
            store = write(path, [("a", text) for text in texts], tokenizer)
        assert [store.text(i) for i in range(len(texts))] == texts
        whole = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        assert np.asarray(store.tokens).tolist() == sum(whole[1:], whole[0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gptj.data.store.CHECKED", 10)
            store.verify()
        assert [store.extent(store.document_at(at)) for at in range(len(store))] == [
            store.extent(number) for number in range(len(texts)) for _ in whole[number]
        ]

    def test_each_document_ends_with_end_of_text_and_has_no_other(self, store):
        assert [store.extent(number) for number in range(3)] == [(0, 8), (8, 15), (15, 36)]
        ends = np.flatnonzero(np.asarray(store.tokens) == BYTES.eos_id) + 1
        assert ends.tolist() == [8, 15, 36]

    def test_counts(self, store):
        assert len(store) == len(store.tokens) == 36
        assert store.bytes == sum(len(text.encode()) for _, text in DOCUMENTS)
        assert store.manifest.documents == 3
        assert store.manifest.vocab_size == 257

    def test_sources_say_where_documents_came_from(self, store):
        a, b = store.sources
        assert (a.name, a.first_document, a.documents, a.tokens, a.bytes) == ("a.txt", 0, 1, 8, 7)
        assert (b.name, b.first_document, b.documents, b.tokens) == ("b.jsonl", 1, 2, 28)
        text = DOCUMENTS[1][1] + DOCUMENTS[2][1]
        assert b.sha256 == hashlib.sha256(text.encode()).hexdigest()

    def test_it_carries_its_tokenizer(self, tmp_path):
        store = write(tmp_path / "store", tokenizer=TRAINED)
        assert store.tokenizer.sha256 == TRAINED.sha256
        assert store.manifest.tokenizer == TRAINED.sha256

    @pytest.mark.parametrize(("vocab_size", "dtype"), [(65536, "uint16"), (65537, "uint32")])
    def test_ids_are_as_wide_as_the_vocabulary_needs(self, vocab_size, dtype, tmp_path):
        definition = json.loads(BYTES.to_json())
        last = {**definition["added_tokens"][0], "id": vocab_size - 1, "content": "<last>"}
        definition["model"]["vocab"]["<last>"] = vocab_size - 1
        definition["added_tokens"].append({**last, "special": False})
        store = write(tmp_path / "store", [("a", "x<last>")], Tokenizer(definition))
        assert store.tokens.dtype == dtype
        assert np.asarray(store.tokens).tolist() == [120, vocab_size - 1, 256]

    def test_what_is_only_read_is_stored_as_its_complement(self):
        assert ids_of(np.array([0, -1, 5, -6], np.int32)).tolist() == [0, 0, 5, 5]
        assert ids_of(np.array([0, 65535], np.uint16)).tolist() == [0, 65535]

    def test_there_is_no_document_beyond_the_last(self, store):
        for document in (3, -1):
            with pytest.raises(UserError, match=rf"no document {document} .* 0 to 2"):
                store.text(document)


class TestParts:
    """Of one store by its sources, and of several as one."""

    FILES = (("a", "one"), ("b", "two"), ("b", "three"), ("c", "é"), ("d", "last"))

    @pytest.fixture
    def whole(self, tmp_path) -> TokenStore:
        return write(tmp_path / "whole", self.FILES)

    @pytest.mark.parametrize(("first", "last"), [(0, 4), (0, 1), (1, 2), (1, 3), (3, 4)])
    def test_a_part_is_the_store_of_those_sources_alone(self, whole, tmp_path, first, last):
        names = "abcd"[first:last]
        alone = write(tmp_path / "alone", [each for each in self.FILES if each[0] in names])
        part = whole.part(whole.sources[first:last])
        assert len(part) == len(alone)
        assert part.tokens[:].tolist() == alone.tokens[:].tolist()
        assert part.starts[:].tolist() == alone.starts[:].tolist()
        assert part.sources == alone.sources
        assert (part.bytes, part.manifest.documents) == (alone.bytes, alone.manifest.documents)
        count = part.manifest.documents
        assert [part.text(n) for n in range(count)] == [alone.text(n) for n in range(count)]
        with pytest.raises(UserError, match=f"no document {count} in .* 0 to {count - 1}$"):
            part.text(count)

    def test_chained_they_are_one_after_the_other_in_folders_of_their_names(self, whole, tmp_path):
        other = write(tmp_path / "other", [("a", "x"), ("z", "yz")])
        both = TokenStore.chained({"one": whole, "two": other})
        assert both.tokens[:].tolist() == [*whole.tokens[:], *other.tokens[:]]
        assert [both.text(n) for n in range(7)] == [*(t for _, t in self.FILES), "x", "yz"]
        assert [both.extent(n)[0] for n in range(7)] == both.starts[:].tolist()
        assert both.extent(6)[1] == len(both) == len(whole) + len(other)
        assert both.bytes == whole.bytes + other.bytes
        assert [each.name for each in both.sources] == [
            "one/a", "one/b", "one/c", "one/d", "two/a", "two/z",
        ]  # fmt: skip
        assert [each.first_document for each in both.sources] == [0, 1, 3, 4, 5, 6]
        turned = TokenStore.chained({"two": other, "one": whole})
        assert len({each.fingerprint for each in (both, turned, whole, other)}) == 4
        third = both.part(both.sources[3:5])
        assert [third.text(0), third.text(1)] == ["last", "x"]

    @pytest.mark.parametrize("token", [0, 3, 4, 7, 8, 13, 14, 16, 17, 21])
    def test_a_token_lies_in_the_document_that_holds_it(self, whole, token):
        begin, end = whole.extent(whole.document_at(token))
        assert begin <= token < end


class TestFingerprint:
    def test_equal_text_is_equal_wherever_it_is_written(self, tmp_path, store):
        assert write(tmp_path / "elsewhere").fingerprint == store.fingerprint

    @pytest.mark.parametrize(
        "documents",
        [
            DOCUMENTS[:2],
            [DOCUMENTS[1], DOCUMENTS[0], DOCUMENTS[2]],
            [*DOCUMENTS[:2], ("b.jsonl", "line")],
        ],
    )
    def test_other_text_is_different(self, documents, tmp_path, store):
        assert write(tmp_path / "other", documents).fingerprint != store.fingerprint

    def test_another_tokenizer_is_different(self, tmp_path, store):
        assert write(tmp_path / "other", tokenizer=TRAINED).fingerprint != store.fingerprint

    def test_no_time_and_no_place_is_recorded(self, tmp_path, store):
        write(tmp_path / "elsewhere")
        for file in place(store).iterdir():
            assert file.read_bytes() == (tmp_path / "elsewhere" / file.name).read_bytes()


COUNTS = ("tokens", "documents", "bytes", "vocab_size", "dtype", "sources.first_document",
          "sources.documents", "sources.tokens", "sources.bytes", "shards.tokens")  # fmt: skip


def altered(name: str):
    """Another number of that name in a manifest."""

    def change(manifest: dict) -> dict:
        *within, own = name.split(".")
        at = manifest[within[0]][-1] if within else manifest
        at[own] = "<f4" if own == "dtype" else at[own] + 70_000
        return manifest

    return change


class TestDamage:
    FILES = ("00000-000.tokens", "00000-000.documents", "tokenizer.json")

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file_is_named(self, name, store):
        (place(store) / name).unlink()
        with pytest.raises(UserError, match=rf"{name} is missing: prepare"):
            TokenStore.open(place(store))

    @pytest.mark.parametrize("name", FILES[:2])
    def test_a_file_cut_short_is_named(self, name, store):
        content = (place(store) / name).read_bytes()
        (place(store) / name).write_bytes(content[:-2])
        with pytest.raises(UserError, match=rf"{name} has {len(content) - 2} bytes, not"):
            TokenStore.open(place(store))

    @pytest.mark.parametrize("name", FILES)
    def test_verifying_finds_a_flipped_bit(self, name, store):
        content = bytearray((place(store) / name).read_bytes())
        content[3] ^= 1
        (place(store) / name).write_bytes(content)
        opened = TokenStore.open(place(store))
        with pytest.raises(UserError, match=rf"{name} was altered"):
            opened.verify()

    def test_verifying_a_good_store_is_silent(self, store):
        store.verify()

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (lambda manifest: b"{", "is not a JSON object"),
            (lambda manifest: b"\xff", "is not a JSON object"),
            (lambda manifest: b"7", "is not a JSON object"),
            (lambda manifest: {}, "has format None"),
            (lambda manifest: {**manifest, "format": 1}, "has format 1, this program reads 2"),
            (lambda manifest: {**manifest, "other": 1}, "is not a token store's manifest"),
            (lambda manifest: {**manifest, "shards": [1]}, "is not a token store's manifest"),
            (lambda manifest: {**manifest, "vocab_size": "9"}, "is not a token store's manifest"),
            (lambda manifest: {**manifest, "shards": []}, "was altered"),
            (lambda manifest: {**manifest, "fingerprint": "0"}, "was altered"),
            *((altered(name), "was altered, its counts are not its shards'") for name in COUNTS),
        ],
    )
    def test_a_bad_manifest_is_named(self, change, complaint, store):
        path = place(store) / "manifest.json"
        changed = change(json.loads(path.read_text()))
        path.write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())
        with pytest.raises(UserError, match=rf"manifest\.json {complaint}"):
            TokenStore.open(place(store))

    @pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 99_999, b"{}", b"other"])
    def test_a_bad_tokenizer_is_named(self, text, store):
        other = json.loads(TRAINED.to_json())
        text = json.dumps(other).encode() if text == b"other" else text
        (place(store) / "tokenizer.json").write_bytes(text)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            TokenStore.open(place(store)).text(0)

    def test_a_path_without_a_store_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"no token store at .*nowhere: name the train"):
            TokenStore.open(tmp_path / "nowhere")

    def test_the_folder_around_stores_says_which_to_open(self, store):
        with pytest.raises(UserError, match=rf"no token store at .*: open {place(store)}$"):
            TokenStore.open(place(store).parent)


class TestWriter:
    def test_leaving_with_an_exception_leaves_no_manifest(self, tmp_path):
        def broken() -> Iterator[tuple[str, str]]:
            yield DOCUMENTS[0]
            raise RuntimeError

        with pytest.raises(RuntimeError):
            write(tmp_path / "store", broken())
        with pytest.raises(UserError, match="no token store"):
            TokenStore.open(tmp_path / "store")

    def test_many_are_written_at_once_with_few_open_files(self, tmp_path):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 9, hard))
        try:
            with contextlib.ExitStack() as stack:
                writers = [
                    stack.enter_context(StoreWriter(tmp_path / str(n), BYTES)) for n in range(40)
                ]
                for writer in writers * 3:
                    writer.add(Document("a", ids=np.arange(200)))
            for number, writer in enumerate(writers):
                finish(tmp_path / str(number), BYTES, [writer.written()])
                store = TokenStore.open(tmp_path / str(number))
                store.verify()
                assert np.asarray(store.tokens).tolist() == [*range(200), 256] * 3
                del store
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def test_a_manifest_is_read_as_it_was_written(self, store):
        text = (place(store) / "manifest.json").read_bytes()
        assert Manifest.load("there", text) == store.manifest
        assert text.decode() == store.manifest.to_json()

    def test_a_source_can_be_named_in_any_script(self, tmp_path):
        assert write(tmp_path / "store", [("本.txt", "x")]).sources[0].name == "本.txt"


class TestPlaces:
    def test_that_do_not_say_what_they_hold_are_read_all_the_same(self, store, monkeypatch):
        remote = fsspec.filesystem("memory")
        for path in place(store).iterdir():
            remote.pipe(f"/silent/store/{path.name}", path.read_bytes())

        def silent(*_, **__):
            raise OSError("no listing here")

        for name in ("ls", "find", "walk"):
            monkeypatch.setattr(type(remote), name, silent)
        there = TokenStore.open("memory://silent/store")
        assert there.tokens[:10].tolist() == store.tokens[:10].tolist()
        there.verify()

    def test_behind_a_url_no_more_is_read_than_is_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr("gptj.data.write.SHARD_TOKENS", 4000)
        monkeypatch.setattr("gptj.data.write._FLUSH_CHARACTERS", 1000)
        store = write(tmp_path / "store", [("a", f"document {n} " * 50) for n in range(40)])
        assert len(store.manifest.shards) > 3
        remote = fsspec.filesystem("memory")
        for path in place(store).iterdir():
            remote.pipe(f"/bucket/store/{path.name}", path.read_bytes())
        asked, is_file = [], type(remote).isfile
        monkeypatch.setattr(
            type(remote), "isfile", lambda self, path: asked.append(path) or is_file(self, path)
        )
        there = TokenStore.open("memory://bucket/store")
        assert all(path.endswith("manifest.json") for path in asked)  # not of each shard in turn
        read = []
        cat = type(remote).cat_file

        def counted(self, path, start=None, end=None, **options):
            found = cat(self, path, start=start, end=end, **options)
            read.append(len(found))
            return found

        monkeypatch.setattr(type(remote), "cat_file", counted)
        border = store.manifest.shards[0].tokens - 5
        for start in (0, border, len(store) - 10):
            assert (
                there.tokens[start : start + 10].tolist()
                == store.tokens[start : start + 10].tolist()
            )
        starts = np.array([[3, border], [0, len(store) - 10]])
        rows = there.tokens.windows(starts, 10)
        assert rows.tolist() == store.tokens.windows(starts, 10).tolist()
        assert rows.tolist() == [
            [np.asarray(store.tokens)[at : at + 10].tolist() for at in row]
            for row in starts.tolist()
        ]
        assert sum(read) == 7 * 10 * 2
        assert there.text(39) == store.text(39)
        there.verify()
        assert there.fingerprint == store.fingerprint

    def test_a_billion_tokens_open_at_once(self, tmp_path):
        """Sparse on the disk, so that reading all of it would take long and much."""
        count = 10**9
        shard = ShardRecord("00000-000", count, 1, ("",), "")
        source = SourceRecord("zeros", count, "", 0, 1, count)
        BYTES.save(tmp_path / "tokenizer.json")
        for name, size in shard.files("<u2").items():
            (tmp_path / name).touch()
            os.truncate(tmp_path / name, size)
        manifest = Manifest.of(BYTES, [shard], [source])
        (tmp_path / "manifest.json").write_text(manifest.to_json())
        with (tmp_path / "00000-000.tokens").open("r+b") as file:
            file.seek(2 * 777_777_777)
            file.write(np.arange(5, dtype="<u2").tobytes())
        took = []
        for _ in range(3):  # a machine at work may be late once
            begin = time.perf_counter()
            store = TokenStore.open(tmp_path)
            batches = TrainBatches(Mixture.of(store), seq=2048, batch=64)
            batches.batch(10**6)
            assert store.tokens[777_777_777:777_777_782].tolist() == [0, 1, 2, 3, 4]
            took.append(time.perf_counter() - begin)
        assert min(took) < 1
