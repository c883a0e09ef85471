"""Files read in parts, and folders, wherever they lie: the same answers, and one sentence each."""

import errno
import functools
import http.server
import os
import pickle
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj import files
from gptj.errors import UserError
from gptj.files import BLOCK, DIRECT_READS, File, Folder, Scratch, alone, file_at, matching

LENGTH = 2 * DIRECT_READS + 5 * BLOCK + 17
BYTES = np.random.default_rng(0).integers(0, 256, LENGTH, np.uint8).tobytes()


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> File:
    """A file that ends within a block."""
    path = tmp_path_factory.mktemp("files") / "large"
    path.write_bytes(BYTES)
    return File(str(path), LENGTH)


@pytest.fixture
def memory():
    """A file system that is far away, and emptied afterwards."""
    made = fsspec.filesystem("memory")
    yield made
    made.rm("/", recursive=True)


def far(memory, data: bytes) -> File:
    memory.pipe("/held", data)
    return File("memory://what/it/is/called", len(data), memory, "/held")


RANGES = st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted)


class TestReading:
    @given(RANGES, st.booleans())
    def test_a_range_is_its_bytes_read_plainly_or_past_the_system_s_cache(
        self, large, ends, blocks
    ):
        start, stop = ends
        for scratch in (None, Scratch()):
            if blocks:
                part = large._read_direct(large._descriptor, start, stop, scratch)
            else:
                part = large.read(start, stop, scratch)
            assert part.tobytes() == BYTES[start:stop]

    def test_past_the_cache_whole_blocks_are_read_into_memory_that_begins_as_they_do(
        self, large, monkeypatch
    ):
        asked, read = [], os.preadv

        def preadv(descriptor, buffers, offset):
            (into,) = buffers
            asked.append((offset, len(into), np.frombuffer(into, np.uint8).ctypes.data % BLOCK))
            return read(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
        large._read_direct(large._descriptor, BLOCK + 1, 3 * BLOCK + 1, None)
        large._read_direct(large._descriptor, 2 * BLOCK, 3 * BLOCK, Scratch())
        assert asked == [(BLOCK, 3 * BLOCK, 0), (2 * BLOCK, BLOCK, 0)]

    @pytest.mark.parametrize(
        ("share", "length", "is_direct"),
        [(8, DIRECT_READS, True), (8, DIRECT_READS - 1, False), (9, DIRECT_READS, False)],
    )
    def test_only_long_reads_of_a_file_of_an_eighth_of_the_memory_go_past_it(
        self, large, monkeypatch, share, length, is_direct
    ):
        direct = []
        sizes = {"SC_PHYS_PAGES": LENGTH, "SC_PAGE_SIZE": share}
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
        monkeypatch.setattr(
            File, "_read_direct", lambda self, *asked: direct.append(asked) or np.empty(0)
        )
        monkeypatch.setattr(os, "O_DIRECT", 0, raising=False)  # so that no file system refuses it
        File(large.path, LENGTH).read(0, length)
        assert bool(direct) == is_direct

    def test_where_the_system_opens_so_and_then_cannot_read_it_is_read_plainly(
        self, large, monkeypatch
    ):
        def fail(*_):
            raise OSError(errno.EINVAL, "no")

        monkeypatch.setattr(os, "sysconf", lambda name: 1)
        monkeypatch.setattr(File, "_read_direct", fail)
        assert File(large.path, LENGTH).read(7).tobytes() == BYTES[7:]

    def test_it_is_asked_for_again_until_all_is_there(self, large, monkeypatch):
        read = os.preadv
        monkeypatch.setattr(files, "READ_AT_ONCE", 1000)
        monkeypatch.setattr(
            os, "preadv", lambda fd, to, at: read(fd, [memoryview(to[0])[:300]], at)
        )
        assert large.read(5, 5005).tobytes() == BYTES[5:5005]

    @pytest.mark.parametrize(("start", "stop"), [(0, LENGTH + 1), (-1, 5), (6, 5)])
    def test_what_is_not_there_is_refused(self, large, start, stop):
        said = f"{large.path} has {LENGTH} bytes and should have {stop}: it is cut short"
        with pytest.raises(UserError, match=said):
            large.read(start, stop)

    def test_a_file_that_becomes_shorter_is_refused(self, tmp_path):
        (tmp_path / "x").write_bytes(b"12345")
        file = File(str(tmp_path / "x"), 9)
        with pytest.raises(UserError, match="became shorter while it was read: try again"):
            file.read()

    def test_one_that_is_gone_is_named_as_messages_call_it(self, tmp_path):
        file = File("a/name", 9, held_at=str(tmp_path / "gone"))
        for read in (file.read, file.open):
            with pytest.raises(UserError, match=r"^a/name cannot be read \(No such file"):
                read()

    def test_from_another_place_the_same(self, memory):
        file = far(memory, b"0123456789")
        assert [file.read(2, 5).tobytes(), file.read().tobytes()] == [b"234", b"0123456789"]
        assert file.read(4, 4).tobytes() == b""
        file.read()[0] = 7  # the reader's own
        with file.open() as opened:
            assert opened.read() == b"0123456789"

    @pytest.mark.parametrize(
        ("sent", "said"),
        [(b"0123", "is sent whole or not at all: copy it"), (b"01", "became shorter while")],
    )
    def test_a_place_that_sends_more_or_less_than_asked_is_refused(self, memory, sent, said):
        file = far(memory, b"0123456789")
        file.remote.cat_file = lambda *_, **__: sent
        try:
            with pytest.raises(UserError, match=f"^memory://what/it/is/called {said}"):
                file.read(0, 3)
        finally:
            del file.remote.cat_file

    def test_another_process_gets_the_file_and_nothing_that_is_open(self, large):
        large.read(0, 1)
        again = pickle.loads(pickle.dumps(large))
        assert again == large
        assert "_descriptor" not in vars(again)
        assert again.read(3, 9).tobytes() == BYTES[3:9]

    def test_what_was_opened_is_closed_with_it(self, large):
        own = File(large.path, LENGTH)
        own.read(0, 1)
        descriptor = own._descriptor
        assert os.fstat(descriptor).st_size == LENGTH
        del own
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

    def test_text_is_utf_8_or_refused(self, tmp_path):
        for data, text in ((b"\xc3\xa9", "é"), (b"", "")):
            (tmp_path / "x").write_bytes(data)
            assert File(str(tmp_path / "x"), len(data)).text() == text
        (tmp_path / "x").write_bytes(b"\xff")
        with pytest.raises(UserError, match=r"x is not UTF-8 text \(invalid start byte\)"):
            File(str(tmp_path / "x"), 1).text()


class TestScratch:
    def test_it_grows_and_is_taken_again(self):
        scratch = Scratch()
        first = scratch.take(100)
        assert scratch.take(50).ctypes.data == first.ctypes.data
        assert scratch.take(100).ctypes.data == first.ctypes.data
        assert len(scratch.take(101)) == 101
        assert len(scratch.take(0)) == 0

    @pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1])
    @pytest.mark.parametrize("to", [BLOCK, files.HUGE_PAGE])
    def test_memory_begins_where_it_is_asked_to(self, size, to):
        made = files._aligned(size, to)
        assert (len(made), made.ctypes.data % to) == (size, 0)


@pytest.fixture(params=["on disk", "far"])
def folder(request, tmp_path, memory) -> Folder:
    """A folder with two files and one below, on this machine or not."""
    names = ("b.txt", "a.txt", "deep/c.txt", "deep/.git/d")
    if request.param == "far":
        for name in names:
            memory.pipe(f"/top/{name}", name.encode())
        return Folder("memory://top")
    for name in names:
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).write_text(name)
    return Folder(tmp_path / "top")


class TestFolders:
    def test_its_files_are_there_by_name_and_others_are_not(self, folder):
        assert "a.txt" in folder
        assert "deep/c.txt" in folder
        assert not any(name in folder for name in ("deep", "c.txt", "deep/x"))
        file = folder.file("deep/c.txt")
        assert (file.text(), file.size) == ("deep/c.txt", 10)
        assert file.path == f"{folder}/deep/c.txt"
        with pytest.raises(UserError, match=r"/x\.txt is missing: download or copy the whole of"):
            folder.file("x.txt")

    @pytest.mark.parametrize("name", ["../a", "deep/../../a", "/etc/passwd", "", "a\\b", "."])
    def test_a_name_that_points_out_of_it_is_not_followed(self, folder, name):
        with pytest.raises(UserError, match=r"names a file outside itself, .*: it is not to be tr"):
            folder.file(name)

    def test_what_is_in_it_is_listed_sorted(self, folder):
        assert folder.names() == ["a.txt", "b.txt", "deep"]
        assert folder.folder("deep").names() == [".git", "c.txt"]
        assert folder.folder("none").names() == folder.folder("a.txt").names() == []

    def test_all_below_it_is_walked_sorted_but_for_what_is_passed_over(self, folder):
        found = {name: file.size for name, file in folder.walk((".git", "b.*"))}
        assert found == {"a.txt": 5, "deep/c.txt": 10}
        assert [*found] == sorted(found)
        everything = dict(folder.walk())
        assert {*everything} == {"a.txt", "b.txt", "deep/.git/d", "deep/c.txt"}
        assert everything["deep/c.txt"].path == f"{folder}/deep/c.txt"
        assert everything["deep/c.txt"].text() == "deep/c.txt"

    def test_it_knows_whether_it_is_there_and_what_it_lies_in(self, folder):
        deep = folder.folder("deep")
        assert (folder.is_there, deep.is_there, folder.folder("x").is_there) == (True, True, False)
        assert str(deep.parent) == str(folder)
        assert deep.parent.file("a.txt").text() == "a.txt"

    def test_a_file_may_be_named_by_its_whole_place(self, folder):
        assert file_at(f"{folder}/a.txt").text() == "a.txt"
        assert [file_at(f"{folder}/{name}") for name in ("deep", "x", "")] == [None] * 3

    def test_patterns_mean_sorted_places(self, folder):
        assert [place.rpartition("top/")[2] for place in matching(f"{folder}/*.txt")] == [
            "a.txt", "b.txt"
        ]  # fmt: skip
        found = [file_at(place).text() for place in matching(f"{folder}/**/c.txt")]
        assert found == ["deep/c.txt"]
        assert matching(f"{folder}/*.md") == []

    def test_a_web_server_s_page_about_one_is_no_file(self, tmp_path):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep/a.txt").write_text("a.txt")
        own = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), own) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            deep = f"http://127.0.0.1:{server.server_port}/deep"
            assert file_at(deep) is None
            assert [file.text() for _, file in Folder(deep).walk()] == ["a.txt"]
            assert file_at(f"{deep}/a.txt").text() == "a.txt"
            server.shutdown()


class TestOnDisk:
    def test_links_are_named_and_not_followed(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "x").write_text("x")
        for link, to in (("file", "real/x"), ("folder", "real"), ("broken", "nowhere")):
            (tmp_path / link).symlink_to(tmp_path / to)
        os.mkfifo(tmp_path / "pipe")
        found = {name: file and file.size for name, file in Folder(tmp_path).walk()}
        assert found == {"real/x": 1, "file": None, "folder": None, "broken": None, "pipe": None}

    def test_however_deep_and_many_they_are_sorted(self, tmp_path):
        deep = tmp_path / "b" / "c" / "d"
        deep.mkdir(parents=True)
        for n in range(30):
            (deep / f"{7 * n % 30}.txt").touch()
        expected = sorted(f"b/c/d/{n}.txt" for n in range(30))
        assert [name for name, _ in Folder(tmp_path).walk()] == expected
        assert matching(f"{tmp_path}/**/*.txt") == [f"{tmp_path}/{name}" for name in expected]

    def test_what_an_archive_held_is_called_by_its_name(self, tmp_path):
        (tmp_path / "out" / "deep").mkdir(parents=True)
        (tmp_path / "out" / "deep" / "x").write_text("x")
        folder = Folder("model.tar", tmp_path / "out")
        deep = folder.folder("deep")
        assert (str(deep), deep.on_disk) == ("model.tar/deep", tmp_path / "out" / "deep")
        assert deep.file("x").path == "model.tar/deep/x"
        assert (str(deep.parent), deep.parent.on_disk) == ("model.tar", tmp_path / "out")

    def test_of_a_relative_folder_the_one_above_is_known(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert Folder(".").parent.on_disk == tmp_path.parent
        assert str(Folder("memory://bucket/a/").parent) == "memory://bucket"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        *((errno.EACCES, "allow yourself"), (errno.EPERM, "allow yourself to read it, or leave")),
        *((errno.EMFILE, r"allow more open files \(ulimit -n\)"), (errno.ENFILE, "allow more op")),
        (errno.EIO, "check it$"),
    ],
)
def test_why_a_file_cannot_be_read_decides_what_to_do(number, remedy):
    error = OSError(number, os.strerror(number))
    with pytest.raises(UserError, match=rf"^x cannot be read \({os.strerror(number)}\): {remedy}"):
        raise files.unreadable("x", error)


class TestReaching:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (RuntimeError("no\n  such   key"), "no such key"),
            (KeyError(), "KeyError"),
            (RuntimeError("x" * 500), "x" * 200),
        ],
    )
    def test_whatever_goes_wrong_is_one_sentence(self, error, reason):
        with pytest.raises(UserError) as refusal, files.reaching("gs://b/x"):
            raise error
        assert str(refusal.value) == (
            f"gs://b/x cannot be read ({reason}): check the address, the network and your "
            "credentials"
        )

    def test_what_it_is_told_to_let_through_it_does(self):
        for error, but in ((UserError("own"), {}), (KeyError("k"), {"but": (KeyError,)})):
            with pytest.raises(type(error), match=str(error)), files.reaching("x", **but):
                raise error

    @pytest.mark.parametrize(
        ("url", "error", "remedy"),
        [
            ("gs://b/x", ImportError("gcsfs"), r"\(gcsfs\): pip install 'gptj-jax\[cloud\]'"),
            ("hdfs://b/x", ImportError("pyarrow"), r"\(pyarrow\): install that package"),
            ("odd://b/x", ValueError("unknown"), r"\(unknown\): check the address"),
        ],
    )
    def test_an_address_that_leads_nowhere_says_what_to_do(self, monkeypatch, url, error, remedy):
        def fail(_):
            raise error

        monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
        with pytest.raises(UserError, match=f"^{url} cannot be opened {remedy}$"):
            Folder(url)


def test_who_holds_a_file_holds_it_alone_and_lets_go(tmp_path: Path):
    lock = tmp_path / "lock"
    with (
        alone(lock, "another writes here"),
        pytest.raises(UserError, match=r"^another writes here: wait for it to end, or stop it$"),
        alone(lock, "another writes here"),
    ):
        pytest.fail("two hold it")
    with alone(lock, "another writes here"):
        pass


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "none")

    monkeypatch.setattr(files.fcntl, "flock", fail)
    with alone(tmp_path / "lock", "x"):
        pass
