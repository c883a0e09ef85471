"""Zip archives as zipfile writes them: what lies where, sums of parts, and what is refused."""

import functools
import io
import itertools
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.convert.zipped import Entry, _joined, _Stream, array, entries, short
from gptj.errors import UserError
from gptj.files import File, Scratch


def saved(path, files: dict[str, bytes], comment: bytes = b"", **options) -> File:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.comment = comment
    return File(str(path), path.stat().st_size)


@given(parts=st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_sums_of_parts_join_to_that_of_the_whole(parts):
    sums = [(len(part), zlib.crc32(part)) for part in parts]
    whole = b"".join(parts)
    assert functools.reduce(_joined, sums) == (len(whole), zlib.crc32(whole))


def test_of_parts_that_are_long_too():
    one, other = bytes(range(256)) * 300, b"\xff" * 70_001
    sums = [(len(part), zlib.crc32(part)) for part in (one, other)]
    assert _joined(*sums) == (len(one + other), zlib.crc32(one + other))


class TestEntries:
    def test_each_lies_where_it_says_and_is_read_as_it_is(self, tmp_path):
        files = {"a": b"first", "b/c": b"", "long" * 40: bytes(range(256))}
        found = entries(saved(tmp_path / "file.zip", files, b"a comment"))
        assert {name: each.content(256) for name, each in found.items()} == files
        raw = (tmp_path / "file.zip").read_bytes()
        for name, each in found.items():
            assert raw[each.start : each.start + each.size] == files[name]
            assert (each.name, each.crc) == (name, zlib.crc32(files[name]))

    def test_no_more_is_taken_than_is_plenty(self, tmp_path):
        (one,) = entries(saved(tmp_path / "file.zip", {"a": b"12345"})).values()
        assert one.content(5) == b"12345"
        with pytest.raises(UserError, match="'a' has 5 bytes, and 4 are plenty"):
            one.content(4)

    def test_a_changed_byte_is_noticed_where_there_is_a_sum(self, tmp_path):
        path = tmp_path / "file.zip"
        (one,) = entries(saved(path, {"a": b"12345"})).values()
        path.write_bytes(path.read_bytes().replace(b"12345", b"12346"))
        with pytest.raises(UserError, match=r"file\.zip is damaged .*the checksum of 'a' does not"):
            one.content(5)
        assert Entry(one.file, "a", one.header, 5, 0).content(5) == b"12346"  # torch may leave it

    @pytest.mark.parametrize("option", [{"compression": zipfile.ZIP_DEFLATED}])
    def test_compressed_is_refused_with_what_to_do(self, option, tmp_path):
        with pytest.raises(UserError, match=r"'a' compressed .*: save it again uncompressed"):
            entries(saved(tmp_path / "file.zip", {"a": b"1" * 99}, **option))

    def test_one_name_twice_is_refused(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "file.zip", "w") as archive:
            archive.writestr("a", b"1")
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("a", b"2")
        file = File(str(tmp_path / "file.zip"), (tmp_path / "file.zip").stat().st_size)
        with pytest.raises(UserError, match="it holds 'a' twice"):
            entries(file)

    @pytest.mark.parametrize(
        ("at", "value", "said"),
        [
            (8, 1, "'a' compressed or encrypted"),  # a flag: encrypted
            (20, 4, "the record of 'a' contradicts itself"),  # the size as it lies there
            (42, 10**6, "'a' should have 5 bytes, and the file has"),  # where it lies
        ],
    )
    def test_a_record_that_cannot_be_is_refused(self, at, value, said, tmp_path):
        path = tmp_path / "file.zip"
        saved(path, {"a": b"12345"})
        raw = bytearray(path.read_bytes())
        record = raw.index(b"PK\x01\x02")
        size = 2 if at == 8 else 4
        raw[record + at : record + at + size] = value.to_bytes(size, "little")
        path.write_bytes(raw)
        with pytest.raises(UserError, match=said):
            entries(File(str(path), len(raw)))

    @pytest.mark.parametrize(("at", "by"), [(0, b"QK"), (26, struct.pack("<H", 9999))])
    def test_so_is_a_header_of_its_own(self, at, by, tmp_path):
        path = tmp_path / "file.zip"
        file = saved(path, {"a": b"12345"})
        raw = bytearray(path.read_bytes())
        raw[at : at + len(by)] = by
        path.write_bytes(raw)
        with pytest.raises(UserError, match="the header of 'a' is not one"):
            entries(file)["a"].content(5)

    def test_data_may_reach_to_the_very_end_and_not_beyond(self, tmp_path):
        path = tmp_path / "raw"
        header = b"PK\x03\x04" + bytes(22) + struct.pack("<HH", 1, 2) + b"aXX"
        path.write_bytes(header + b"12345")
        file = File(str(path), len(header) + 5)
        assert Entry(file, "a", 0, 5, 0).start == len(header) == 33
        with pytest.raises(UserError, match="the header of 'a' is not one"):
            _ = Entry(file, "a", 0, 6, 0).start

    @pytest.mark.parametrize("content", [b"", b"PK", b"not a zip archive at all" * 9])
    def test_what_is_no_archive(self, content, tmp_path):
        (tmp_path / "file.zip").write_bytes(content)
        with pytest.raises(UserError, match=r"file\.zip is damaged or not what its name says"):
            entries(File(str(tmp_path / "file.zip"), len(content)))

    def test_what_is_wrong_with_reading_it_is_said_as_it_is(self, tmp_path, monkeypatch):
        def gone(*_):
            raise UserError("the connection is gone")

        file = saved(tmp_path / "file.zip", {"a": b"first"})
        monkeypatch.setattr(File, "read", gone)
        with pytest.raises(UserError, match=r"^the connection is gone$"):
            entries(file)


class TestArrays:
    HEAD = b"head"

    @pytest.fixture
    def held(self, tmp_path):
        """An entry of a head and numbers, and the numbers."""
        numbers = np.arange(35, dtype="<f4").reshape(7, 5)
        files = {"x": b"before", "a": self.HEAD + numbers.tobytes(), "y": b"after"}
        entry = entries(saved(tmp_path / "file.zip", files))["a"]
        return entry, numbers

    def tensor(self, entry):
        return array(entry, (7, 5), np.dtype("<f4"), np.frombuffer(self.HEAD, np.uint8))

    def test_read_whole_or_in_parts_in_any_order_it_is_the_same(self, held):
        entry, numbers = held
        tensor = self.tensor(entry)
        np.testing.assert_array_equal(tensor.read(), numbers)
        for cuts in ([0, 7], [0, 3, 7], [0, 1, 2, 6, 7]):
            parts = list(itertools.pairwise(cuts))
            for order in (parts, parts[::-1]):  # and again: it may be read more than once
                for begin, end in order:
                    found = tensor.matrix.rows(begin, end, Scratch())
                    np.testing.assert_array_equal(found, numbers[begin:end])

    @pytest.mark.parametrize("order", [[(0, 3), (3, 7)], [(3, 7), (0, 3)]])
    @pytest.mark.parametrize("row", [0, 6])
    def test_a_changed_number_is_refused_with_the_last_part(self, held, order, row, tmp_path):
        entry, numbers = held
        changed = numbers.copy()
        changed[row, 2] += 1
        path = tmp_path / "file.zip"
        path.write_bytes(path.read_bytes().replace(numbers.tobytes(), changed.tobytes()))
        tensor = self.tensor(entry)
        with pytest.raises(UserError, match="the checksum of 'a' does not match"):
            tensor.read()
        tensor.matrix.rows(*order[0], Scratch())
        with pytest.raises(UserError, match="the checksum of 'a' does not match"):
            tensor.matrix.rows(*order[1], Scratch())

    @pytest.mark.parametrize("shape", [(35,), (7, 5, 1)])
    def test_only_a_matrix_is_read_in_parts(self, held, shape):
        head = np.frombuffer(self.HEAD, np.uint8)
        tensor = array(held[0], shape, np.dtype("<f4"), head)
        assert tensor.matrix is None
        assert tensor.read().shape == shape


class TestStream:
    """As Python's own file of the same bytes."""

    @given(
        doings=st.lists(
            st.tuples(
                st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END]), st.integers(-12, 14),
                st.integers(0, 14),
            ),
            max_size=8,
        )
    )  # fmt: skip
    def test_is_sought_and_read_alike(self, doings):
        content = bytes(range(10))

        class Held:
            size = len(content)

            def read(self, start, stop):
                assert 0 <= start < stop <= self.size
                return np.frombuffer(content[start:stop], np.uint8)

        ours, theirs = _Stream(Held()), io.BytesIO(content)
        assert ours.seekable()
        assert ours.readable()
        for whence, offset, count in doings:
            origin = {io.SEEK_SET: 0, io.SEEK_CUR: theirs.tell(), io.SEEK_END: 10}[whence]
            if origin + offset < 0:
                with pytest.raises(OSError, match="before the start"):
                    ours.seek(offset, whence)
                continue
            assert ours.seek(offset, whence) == theirs.seek(offset, whence)
            assert ours.read(count) == theirs.read(count)
            assert ours.tell() == theirs.tell()


@pytest.mark.parametrize(
    ("name", "said"),
    [("a", "'a'"), (7, "'7'"), ("x" * 101, repr("x" * 100)), ("a\nb", r"'a\nb'"), ([1], "'list'")],
)
def test_a_name_out_of_a_file_is_one_short_line(name, said):
    assert short(name) == said
