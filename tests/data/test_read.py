"""Reading inputs: every kind of file gives its documents exactly; every bad one is named."""

import gzip
import io
import itertools
import json
import lzma
import tarfile
import tracemalloc
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.data.find import Source, find_sources
from gptj.data.read import Reader, joined
from gptj.errors import UserError
from gptj.files import file_at


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zst, ".xz": lzma.compress}
packed = pytest.mark.parametrize("suffix", list(PACKERS))


def jsonl(*texts: str, field: str = "text") -> bytes:
    return b"".join(json.dumps({field: text}).encode() + b"\n" for text in texts)


def save(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def source(path: Path, name: str = "name") -> Source:
    return Source(file_at(str(path)), name)


def texts(path: Path, **options) -> list[str]:
    return [document.text for document in Reader(**options).documents(source(path))]


class TestDocuments:
    @packed
    def test_a_text_file_is_one_document_to_the_byte(self, suffix, tmp_path):
        text = "line\r\n\n\ttab é 🙂 \u2028 end without newline"
        path = save(tmp_path / f"a.txt{suffix}", PACKERS[suffix](text.encode()))
        assert texts(path) == [text]

    @packed
    def test_each_json_line_is_a_document(self, suffix, tmp_path):
        data = jsonl("one\ntwo", "é\u2028", "three") + b"\n  \r\n"
        path = save(tmp_path / f"a.jsonl{suffix}", PACKERS[suffix](data))
        assert texts(path) == ["one\ntwo", "é\u2028", "three"]

    def test_the_last_json_line_needs_no_newline(self, tmp_path):
        assert texts(save(tmp_path / "a.jsonl", jsonl("a", "b").rstrip())) == ["a", "b"]

    def test_the_field_can_be_named(self, tmp_path):
        path = save(tmp_path / "a.jsonl", jsonl("x", field="body"))
        assert texts(path, text_field="body") == ["x"]

    def test_documents_carry_their_sources_name(self, tmp_path):
        path = save(tmp_path / "a.txt", b"x")
        [document] = Reader().documents(source(path, "books/a.txt"))
        assert document.source == "books/a.txt"

    def test_documents_without_text_are_left_out(self, tmp_path):
        assert texts(save(tmp_path / "a.jsonl", jsonl("", "a", ""))) == ["a"]

    def test_a_byte_order_mark_is_not_text(self, tmp_path):
        mark = "\ufeff".encode()
        assert texts(save(tmp_path / "a.txt", mark + b"x")) == ["x"]
        assert texts(save(tmp_path / "a.jsonl", mark + jsonl("x"))) == ["x"]

    @pytest.mark.parametrize("name", ["notes", "data.json", "a.log", "notes.gz"])
    def test_a_named_file_of_any_suffix_is_text(self, name, tmp_path):
        content = gzip.compress(b"x") if name.endswith(".gz") else b"x"
        assert texts(save(tmp_path / name, content)) == ["x"]

    def test_capitals_in_a_suffix_mean_nothing(self, tmp_path):
        assert texts(save(tmp_path / "A.JSONL.GZ", gzip.compress(jsonl("x", "y")))) == ["x", "y"]

    def test_compressed_files_joined_end_to_end_are_read_whole(self, tmp_path):
        for suffix in (".gz", ".zst", ".xz"):
            pack = PACKERS[suffix]
            path = save(tmp_path / f"a.txt{suffix}", pack(b"one ") + pack(b"two"))
            assert texts(path) == ["one two"]
        path.write_bytes(lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two") + bytes(4))
        assert texts(path) == ["one two"]  # zeros between streams are part of the format

    def test_lines_are_whole_whatever_the_chunks(self, tmp_path, monkeypatch):
        monkeypatch.setattr("gptj.data.unpack.CHUNK_BYTES", 3)
        for suffix, pack in PACKERS.items():
            path = save(tmp_path / f"a.jsonl{suffix}", pack(jsonl("one", "é🙂", "two")))
            assert texts(path) == ["one", "é🙂", "two"]

    def test_a_long_file_of_lines_is_never_held_whole(self, tmp_path):
        path = save(tmp_path / "a.jsonl.gz", gzip.compress(jsonl("x" * 1000) * 30_000))
        tracemalloc.start()
        count = sum(1 for _ in Reader().documents(source(path)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 30_000
        assert peak < 10e6  # of 30 MB


class TestLongTexts:
    """Those that come in parts, of which no token crosses the border."""

    @given(text=st.text(" \nab.é🙂", min_size=1, max_size=200), size=st.integers(1, 20))
    @settings(deadline=None)
    def test_the_parts_joined_are_the_text(self, tmp_path_factory, text, size):
        path = save(tmp_path_factory.mktemp("long") / "a.txt", text.encode())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gptj.data.read.PART_CHARACTERS", size)
            patch.setattr("gptj.data.unpack.CHUNK_BYTES", 7)
            found = list(Reader().documents(source(path)))
        assert [each.continues for each in found] == [True] * (len(found) - 1) + [False]
        assert [each.text for each in joined(found)] == [text]
        for before, after in itertools.pairwise(found):
            assert not before.text[-1].isspace()
            assert after.text[0] in " \n"

    def test_a_long_text_is_never_held_whole(self, tmp_path, monkeypatch):
        monkeypatch.setattr("gptj.data.read.PART_CHARACTERS", 1 << 20)
        path = save(tmp_path / "a.txt", b"some words " * 3_000_000)
        tracemalloc.start()
        count = sum(len(each.text) for each in Reader().documents(source(path)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 33_000_000
        assert peak < 10e6


class TestMending:
    """What is no text is replaced and counted, unless that is forbidden."""

    @given(data=st.binary(max_size=60), chunk=st.integers(1, 9))
    @settings(deadline=None)
    def test_as_python_replaces_it_whatever_the_chunks(self, tmp_path_factory, data, chunk):
        data = data.replace(b"\0", b"\xff") + "\ufffd end".encode()
        path = save(tmp_path_factory.mktemp("bad") / "a.txt", data)
        reader = Reader()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gptj.data.unpack.CHUNK_BYTES", chunk)
            [document] = reader.documents(source(path))
        expected = data.decode("utf-8-sig", "replace")
        assert document.text == expected
        assert reader.replaced == expected.count("\ufffd") - data.count("\ufffd".encode())

    def test_half_a_character_in_a_line(self, tmp_path):
        path, reader = save(tmp_path / "a.jsonl", b'{"text": "a\\ud83db"}'), Reader()
        assert [each.text for each in reader.documents(source(path))] == ["a\ufffdb"]
        assert reader.replaced == 1


class TestFields:
    RECORDS = ({"text": "one", "meta": {"from": "A"}}, {"text": "two", "meta": {"from": "B"}})

    def read(self, path: Path, **options) -> list[tuple[str, str]]:
        return [(each.text, each.group) for each in Reader(**options).documents(source(path))]

    def saved(self, path: Path) -> Path:
        table = pa.Table.from_pylist(list(self.RECORDS))
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        elif path.suffix == ".arrow":
            with pa.ipc.new_stream(path, table.schema) as writer:
                writer.write_table(table)
        elif path.suffix == ".feather":
            with pa.ipc.new_file(path.with_suffix(".arrow"), table.schema) as writer:
                writer.write_table(table)
            return path.with_suffix(".arrow")
        else:
            lines = [json.dumps(each) for each in self.RECORDS]
            save(path, "\n".join(lines).encode())
        return path

    @pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".arrow", ".feather"])
    def test_of_lines_and_tables_are_the_same(self, kind, tmp_path):
        path = self.saved(tmp_path / f"a{kind}")
        assert self.read(path) == [("one", ""), ("two", "")]
        assert self.read(path, group_field="meta.from") == [("one", "A"), ("two", "B")]
        assert self.read(path, text_field="meta.from") == [("A", ""), ("B", "")]
        for options in ({"text_field": "body"}, {"group_field": "meta.to"}):
            with pytest.raises(UserError, match=r"(field|column) '(body|meta\.to)'"):
                self.read(path, **options)

    @pytest.mark.parametrize("kind", [".parquet", ".arrow"])
    def test_a_table_cut_short_is_named(self, kind, tmp_path):
        path = self.saved(tmp_path / f"a{kind}")
        content = path.read_bytes()
        for size in (10, len(content) // 2, len(content) - 100):
            path.write_bytes(content[:size])
            with pytest.raises(UserError, match=rf"a{kind} is no .* table, or cut short"):
                self.read(path)

    def test_a_stream_cut_anywhere_or_followed_by_more(self, tmp_path):
        table, path = pa.table({"text": ["some words"] * 30}), tmp_path / "a.arrow"
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=10)
        whole = path.read_bytes()
        assert len(self.read(path)) == 30
        for content in (*(whole[:size] for size in range(8, len(whole), 8)), 2 * whole):
            path.write_bytes(content)
            with pytest.raises(UserError, match=r"a\.arrow is no arrow table, or cut short"):
                self.read(path)

    def test_a_column_may_have_a_dot_in_its_name(self, tmp_path):
        table = pa.table({"meta.from": ["A", "B"], "meta": ["x", "y"]})
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(
            UserError, match=r"no column 'text' \(it has 'meta.from', 'meta'\): name"
        ):
            self.read(tmp_path / "a.parquet")
        nested = pa.table({"n": [1], "meta": [{"body": "x", "at": {"day": 1}}]})
        pq.write_table(nested, tmp_path / "b.parquet")
        with pytest.raises(UserError, match=r"has 'n', 'meta.body', 'meta.at.day'.* --text-field"):
            self.read(tmp_path / "b.parquet")
        assert self.read(tmp_path / "a.parquet", text_field="meta.from") == [("A", ""), ("B", "")]

    def test_a_table_whose_text_is_not_utf8_or_that_is_packed(self, tmp_path):
        path = tmp_path / "a.parquet"
        offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
        strings = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"x\xff"))
        pq.write_table(pa.table({"text": strings}), path)
        with pytest.raises(UserError, match=r"a\.parquet, in one of .* holds text that is not UTF"):
            self.read(path)
        path = save(tmp_path / "b.parquet.gz", gzip.compress(path.read_bytes()))
        with pytest.raises(UserError, match=r"b\.parquet\.gz is read where it lies, .*: unpack it"):
            self.read(path)

    def test_plain_text_cannot_be_divided(self, tmp_path):
        with pytest.raises(UserError, match=r"a\.txt has no field 'meta' to divide it by"):
            self.read(save(tmp_path / "a.txt", b"x"), group_field="meta")

    def test_a_folder_that_datasets_wrote(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(list(self.RECORDS)).save_to_disk(tmp_path / "saved")
        [found] = find_sources([tmp_path / "saved"]).sources
        assert [each.text for each in Reader().documents(found)] == ["one", "two"]


class TestArchives:
    FILES: ClassVar = {
        "b.txt": b"plain",
        "a/lines.jsonl.gz": gzip.compress(jsonl("one", "two")),
        "photo.jpg": b"\xff",
        "empty.txt": b"",
        "a/._lines.jsonl": b"\0",
        "./.git/notes.txt": b"x",
        "drafts/c.txt": b"x",
    }

    def archive(self, files: dict[str, bytes]) -> bytes:
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo("link.txt")
            link.type, link.linkname = tarfile.SYMTYPE, "b.txt"
            archive.addfile(link)
        return held.getvalue()

    NAMES = ("a.tar", "a.tar.gz", "a.tgz", "a.tar.zst", "a.tar.xz")

    def packed(self, path: Path, content: bytes) -> Path:
        suffix = {".tgz": ".gz", ".tar": ""}.get(path.suffix, path.suffix)
        return save(path, PACKERS[suffix](content))

    @pytest.mark.parametrize("name", NAMES)
    def test_hold_what_a_folder_would(self, name, tmp_path):
        reader = Reader(exclude=("drafts",))
        path = self.packed(tmp_path / name, self.archive(self.FILES))
        found = [each.text for each in reader.documents(source(path))]
        assert (found, reader.skipped) == (["plain", "one", "two"], 3)
        for name, content in {**self.FILES, "link.txt": b""}.items():
            save(tmp_path / "in" / name, content)
        folder = find_sources([tmp_path / "in"], ("drafts",))
        assert folder.skipped == reader.skipped
        assert {each.name for each in folder.sources} == {"b.txt", "a/lines.jsonl.gz"}

    @pytest.mark.parametrize("name", NAMES)
    def test_cut_or_damaged_at_any_header_is_said(self, name, tmp_path):
        """Where `tarfile` takes the rest for no part of the archive."""
        whole = self.archive({"b.txt": b"one", "c.txt": b"two"})
        flipped = bytearray(whole)
        flipped[1024 + 5] ^= 1
        cases = {
            r" after b\.txt \(bad checksum\)": bytes(flipped),
            r" after b\.txt \(empty header\)": whole[:1024],
            r" after b\.txt \(truncated header\)": whole[:1100],
            r" after link\.txt \(empty header\)": whole[: 5 * 512],
            r" after link\.txt \(more follows its end\)": whole + self.archive({"d.txt": b"x"}),
            r" \(unexpected end of data\)": whole[:514],
            r" \(invalid header\)": b"no archive" * 100,
        }
        for said, content in cases.items():
            path = self.packed(tmp_path / name, content)
            with pytest.raises(UserError, match=rf"{name} is no whole tar archive{said}: fetch"):
                texts(path)

    @pytest.mark.parametrize("name", ["t.parquet", "t.idx", "t.tar.gz"])
    def test_what_cannot_be_read_within_is_refused(self, name, tmp_path):
        path = save(tmp_path / "a.tar", self.archive({"b.txt": b"x", name: b"y"}))
        with pytest.raises(UserError, match=rf"a\.tar/{name} can be read beside the archive and"):
            texts(path)
        assert texts(path, exclude=("t.*",)) == ["x"]

    def test_a_long_one_is_never_held(self, tmp_path):
        path = save(tmp_path / "a.tar", self.archive({f"{n}.txt": b"x" for n in range(5000)}))
        tracemalloc.start()
        assert len(texts(path)) == 5000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3e6  # of 8 MB


class TestMistakes:
    def refused(self, path: Path, complaint: str, **options) -> None:
        with pytest.raises(UserError, match=complaint) as error:
            texts(path, **options)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    @packed
    @pytest.mark.parametrize("kind", [".txt", ".jsonl"])
    def test_an_empty_file(self, kind, suffix, tmp_path):
        path = save(tmp_path / f"a{kind}{suffix}", PACKERS[suffix](b""))
        self.refused(path, "is empty: leave it out")

    def test_json_lines_without_any_text(self, tmp_path):
        self.refused(save(tmp_path / "a.jsonl", b"\n\n" + jsonl("")), "is empty: leave it out")

    @packed
    def test_nul_bytes(self, suffix, tmp_path):
        path = save(tmp_path / f"a.txt{suffix}", PACKERS[suffix](b"MZ\0\0"))
        self.refused(path, "is binary.*leave it out")

    def test_text_that_is_not_utf8(self, tmp_path):
        text, line = b"caf\xe9 noir", jsonl("a") + b'{"text": "\xe9"}'
        self.refused(save(tmp_path / "a.txt", text), r"at byte 3\).*iconv", strict=True)
        self.refused(save(tmp_path / "a.jsonl", line), r":2 is not UTF.* at byte 10\)", strict=True)

    @pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz"])
    def test_a_corrupt_archive(self, suffix, tmp_path):
        good = PACKERS[suffix](b"".join(b"%d" % (i * i) for i in range(9999)))
        damaged = bytearray(good)
        damaged[len(good) // 2] ^= 0xFF
        damaged[-1] ^= 0xFF
        bad = {"cut": good[:-9], "bad": bytes(damaged), "not": b"plain text", "more": good + b"x"}
        for name, content in bad.items():
            path = save(tmp_path / f"{name}.txt{suffix}", content)
            self.refused(path, "corrupt or cut short")

    def test_zstandard_cut_between_blocks(self, tmp_path):
        packed = io.BytesIO()
        writer = zstandard.ZstdCompressor().stream_writer(packed, closefd=False)
        writer.write(jsonl("one"))
        writer.flush()  # a whole block, but the frame goes on
        path = save(tmp_path / "a.jsonl.zst", packed.getvalue())
        self.refused(path, "corrupt or cut short")

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            (b'{"text": ', "is not JSON"),
            (b"plain words", "is not JSON"),
            (b'["text"]', "is no JSON object"),
            (b"[" * 99_999, "is not JSON"),
            (b'{"body": "x"}', "has no text in a field 'text'.*'body'.*--text-field"),
            (b'{"text": 7}', "has no text in a field 'text' but 7"),
            (b'{"text": null}', "has no text .* but null .*, or mend or remove the record"),
            (b'{"text": {"en": "x", "n": 1}}', "has no text .* but a record .*'text.en', 'text.n'"),
            (b'{"text": "x"', "is not JSON .*, at character 13"),
            (b'{"text": "x"}\xc3', r"is not JSON \(Extra data, at character 14\)"),
            (b'{"text": "x', r"is not JSON \(Unterminated string starting, at character 10\)"),
        ],
    )
    def test_a_bad_line_is_named_by_its_number(self, line, complaint, tmp_path):
        path = save(tmp_path / "a.jsonl", jsonl("fine", "fine") + b"\n" + line + b"\n")
        self.refused(path, rf":4 {complaint}")

    def test_half_a_character_in_a_line(self, tmp_path):
        path = save(tmp_path / "a.jsonl", b'{"text": "\\ud83d"}')
        self.refused(path, ":1 holds half of a surrogate pair", strict=True)

    def test_a_connection_that_breaks(self, monkeypatch):
        memory = fsspec.filesystem("memory")
        memory.pipe("/far/a.jsonl.gz", gzip.compress(jsonl("a") * 9))
        (found,) = find_sources(["memory://far/a.jsonl.gz"]).sources

        def breaks(*_, **__):
            raise RuntimeError("reset by peer")

        monkeypatch.setattr("gptj.data.unpack.unpacked_as", breaks)
        with pytest.raises(
            UserError, match=r"a\.jsonl\.gz cannot be read \(reset by peer\): check"
        ):
            list(Reader().documents(found))

    def test_a_file_that_may_not_be_read(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.txt", b"x")

        def deny(*given):
            raise PermissionError(13, "Permission denied")

        for what in ("builtins.open", "gptj.files.File.open"):
            with monkeypatch.context() as patch:
                patch.setattr(what, deny)
                self.refused(path, r"cannot be read \(Permission denied\): allow yourself to read")
