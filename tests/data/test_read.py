"""Reading inputs: every kind of file gives its documents exactly; every bad one is named."""

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from gptj.data.read import Source, find_sources, read_documents
from gptj.errors import UserError


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zst}
packed = pytest.mark.parametrize("suffix", list(PACKERS))


def jsonl(*texts: str, field: str = "text") -> bytes:
    return b"".join(json.dumps({field: text}).encode() + b"\n" for text in texts)


def save(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def texts(path: Path, **options: str) -> list[str]:
    return [document.text for document in read_documents(Source(path, "name"), **options)]


def names(*inputs: Path) -> list[str]:
    return [source.name for source in find_sources(inputs).sources]


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
        [document] = read_documents(Source(path, "books/a.txt"))
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
        for suffix in (".gz", ".zst"):
            pack = PACKERS[suffix]
            path = save(tmp_path / f"a.txt{suffix}", pack(b"one ") + pack(b"two"))
            assert texts(path) == ["one two"]

    def test_lines_are_whole_whatever_the_chunks(self, tmp_path, monkeypatch):
        monkeypatch.setattr("gptj.data.read._CHUNK_BYTES", 3)
        for suffix, pack in PACKERS.items():
            path = save(tmp_path / f"a.jsonl{suffix}", pack(jsonl("one", "é🙂", "two")))
            assert texts(path) == ["one", "é🙂", "two"]

    def test_a_long_file_of_lines_is_never_held_whole(self, tmp_path):
        path = save(tmp_path / "a.jsonl.gz", gzip.compress(jsonl("x" * 1000) * 30_000))
        tracemalloc.start()
        count = sum(1 for _ in read_documents(Source(path, "a")))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 30_000
        assert peak < 10e6  # of 30 MB


class TestFinding:
    def test_a_folder_is_searched_in_sorted_order(self, tmp_path):
        for name in ("b.txt", "a/z.md", "a/b/c.py", "a.jsonl.zst"):
            save(tmp_path / name, b"x")
        assert names(tmp_path) == ["a.jsonl.zst", "a/b/c.py", "a/z.md", "b.txt"]

    def test_hidden_files_are_ignored_and_others_counted(self, tmp_path):
        for name in ("a.txt", ".hidden.txt", ".git/b.txt", "photo.jpg", "data.bin"):
            save(tmp_path / name, b"x")
        save(tmp_path / "__init__.py", b"")
        found = find_sources([tmp_path])
        assert [source.name for source in found.sources] == ["a.txt"]
        assert found.skipped == 3

    def test_a_hidden_parent_hides_nothing(self, tmp_path):
        save(tmp_path / ".cache" / "a.txt", b"x")
        assert names(tmp_path / ".cache") == ["a.txt"]

    def test_named_files_keep_the_order_given(self, tmp_path):
        b, a = save(tmp_path / "b.txt", b"x"), save(tmp_path / "a.txt", b"x")
        assert names(b, a) == ["b.txt", "a.txt"]

    def test_names_are_unique_and_the_same_wherever_the_data_lies(self, tmp_path):
        for place in ("here", "there/deep"):
            root = tmp_path / place
            inputs = save(root / "en/a.txt", b"x").parent, save(root / "fr/a.txt", b"x")
            assert names(*inputs) == ["en/a.txt", "fr/a.txt"]

    def test_relative_paths_give_the_same_names(self, tmp_path, monkeypatch):
        save(tmp_path / "books/a.txt", b"x")
        monkeypatch.chdir(tmp_path)
        assert names(Path("books")) == names(tmp_path / "books") == ["a.txt"]
        assert names(Path("books/a.txt")) == ["a.txt"]


class TestMistakes:
    def refused(self, path: Path, complaint: str) -> None:
        with pytest.raises(UserError, match=complaint) as error:
            texts(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)

    def test_no_input(self):
        with pytest.raises(UserError, match="no input given"):
            find_sources([])

    def test_a_missing_path(self, tmp_path):
        with pytest.raises(UserError, match=r"no input .*absent\.txt: give"):
            find_sources([tmp_path / "absent.txt"])

    def test_a_folder_without_text(self, tmp_path):
        save(tmp_path / "photos/a.jpg", b"x")
        with pytest.raises(UserError, match=r"no text file in the folder .*photos: give"):
            find_sources([tmp_path / "photos"])

    def test_a_file_given_twice(self, tmp_path):
        path = save(tmp_path / "a.txt", b"x")
        with pytest.raises(UserError, match=r"a\.txt is among the inputs twice"):
            find_sources([path, tmp_path])

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
        self.refused(save(tmp_path / "a.txt", b"caf\xe9 noir"), r"at byte 3\).*iconv")
        self.refused(save(tmp_path / "a.jsonl", jsonl("a") + b'{"text": "\xe9"}'), ":2 is not UTF")

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_a_corrupt_archive(self, suffix, tmp_path):
        good = PACKERS[suffix](b"".join(b"%d" % (i * i) for i in range(9999)))
        damaged = bytearray(good)
        damaged[len(good) // 2] ^= 0xFF
        damaged[-1] ^= 0xFF
        for name, content in [("cut", good[:-9]), ("bad", bytes(damaged)), ("not", b"plain text")]:
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
            (b'["text"]', "has no text in a field 'text'.*no object"),
            (b'{"body": "x"}', "has no text in a field 'text'.*'body'.*--text-field"),
            (b'{"text": 7}', "has no text in a field 'text'"),
            (b'{"text": "\\ud83d"}', "holds half of a surrogate pair"),
        ],
    )
    def test_a_bad_line_is_named_by_its_number(self, line, complaint, tmp_path):
        path = save(tmp_path / "a.jsonl", jsonl("fine", "fine") + b"\n" + line + b"\n")
        self.refused(path, rf":4 {complaint}")

    def test_a_file_that_may_not_be_read(self, tmp_path, monkeypatch):
        path = save(tmp_path / "a.txt", b"x")

        def deny(self, mode):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", deny)
        self.refused(path, r"cannot be read \(Permission denied\)")


def test_links_in_folders_are_passed_over(tmp_path):
    """A folder may link to its own files, as some systems' standard library does."""
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "b.py").symlink_to(tmp_path / "a.py")
    assert [source.name for source in find_sources([tmp_path]).sources] == ["a.py"]
