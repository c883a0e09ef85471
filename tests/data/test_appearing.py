"""How a folder appears: all of it or nothing, and gone on with where that was begun."""

import errno
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from gptj.data.appear import DONE, all_or_nothing, continuing, forget, resumable
from gptj.data.mixture import FILE
from gptj.errors import UserError


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "a" / "b" / "out"


class Stop(Exception):
    """An interruption."""


def stopped(block: AbstractContextManager[Path], *names: str) -> None:
    """A block that makes folders of these names and is interrupted."""
    with block as folder:
        for name in names:
            (folder / name).mkdir(parents=True)
        raise Stop


class TestAtOnce:
    def test_it_appears_with_the_folders_around_it_and_nothing_beside_it(self, out, tmp_path):
        with all_or_nothing(out, False, FILE) as new:
            (new / FILE).write_text("one")
            assert not out.exists()
        assert below(tmp_path) == ["a", "a/b", "a/b/out", f"a/b/out/{FILE}"]
        with all_or_nothing(out, True, FILE) as new:
            (new / FILE).write_text("two")
            assert (out / FILE).read_text() == "one"
        assert below(tmp_path) == ["a", "a/b", "a/b/out", f"a/b/out/{FILE}"]
        assert (out / FILE).read_text() == "two"

    def test_what_comes_to_nothing_leaves_nothing_and_takes_nothing_along(self, out, tmp_path):
        for there in (["a/mine"], [], ["a/b"]):
            for name in there:
                (tmp_path / name).mkdir(parents=True)
            before = below(tmp_path)
            with pytest.raises(Stop):
                stopped(all_or_nothing(out, False), "some")
            assert below(tmp_path) == before

    def test_the_disk_holds_all_of_it_before_its_name_and_then_the_name(self, out, monkeypatch):
        synced = []
        monkeypatch.setattr(
            os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, out.exists()))
        )
        before = len(os.listdir("/dev/fd"))
        with all_or_nothing(out, False, FILE) as new:
            (new / "a").mkdir()
            for name in (FILE, "a/b"):
                (new / name).write_text("x")
        assert len(os.listdir("/dev/fd")) <= before
        held = {(path.stat().st_ino, False) for path in (out, *out.rglob("*"))}
        assert len(held) == 4
        assert set(synced) == {*held, (out.parent.stat().st_ino, True)}

    @pytest.mark.parametrize("old", [True, False])
    def test_where_the_last_step_fails_the_old_is_back(self, old, out, monkeypatch):
        if old:
            out.mkdir(parents=True)
            (out / FILE).write_text("old")
        rename = Path.rename

        def renamed(path, goal):
            if path.name == "new":
                raise OSError(errno.EROFS, "no more writing")
            return rename(path, goal)

        monkeypatch.setattr(Path, "rename", renamed)
        said = r"out cannot be written \(no more writing\) and is left as it was: allow yourself"
        with pytest.raises(UserError, match=said), all_or_nothing(out, True, FILE) as new:
            (new / FILE).write_text("new")
        assert out.exists() == old
        assert not old or (out / FILE).read_text() == "old"


class TestResumable:
    def test_only_what_is_done_in_part_outlives_its_block(self, out, tmp_path):
        (tmp_path / "a").mkdir()
        for made in ([], [DONE], ["other/0"]):
            with pytest.raises(Stop):
                stopped(resumable(out), *made)
            assert below(tmp_path) == ["a"]
        with pytest.raises(Stop):
            stopped(resumable(out), f"{DONE}/0")
        kept = below(tmp_path)
        assert f"a/b/.out.partial/{DONE}/0" in kept
        with pytest.raises(Stop):
            stopped(resumable(out))
        assert below(tmp_path) == kept
        with resumable(out) as scratch:
            assert (scratch / DONE / "0").exists()
        assert below(tmp_path) == ["a", "a/b"]

    def test_that_there_is_nothing_left_to_remove_is_no_mistake(self, out):
        def vanish(stop: bool) -> None:
            with resumable(out) as scratch:
                shutil.rmtree(scratch)
                if stop:
                    raise Stop

        vanish(False)
        with pytest.raises(Stop):
            vanish(True)

    def test_a_second_at_once_is_refused(self, out):
        said = "another process is writing .*out: wait"
        with resumable(out), pytest.raises(UserError, match=said), resumable(out):
            pass


class TestContinuing:
    @pytest.fixture
    def scratch(self, tmp_path) -> Path:
        (tmp_path / DONE).mkdir()
        (tmp_path / DONE / "0").touch()
        (tmp_path / "lock").touch()
        return tmp_path

    def test_another_key_begins_anew_and_its_own_goes_on(self, out, scratch):
        with continuing(out, scratch, "one"):  # by whom it was done nobody says
            assert below(scratch) == ["key", "lock"]
        for folder in (DONE, "complete"):
            (scratch / folder).mkdir()
        everything = below(scratch)
        with continuing(out, scratch, "one"):
            assert below(scratch) == everything
        with continuing(out, scratch, "two"):
            assert below(scratch) == ["key", "lock"]
        assert (scratch / "key").read_text() == "two"

    @pytest.mark.parametrize(
        ("number", "first"), [(errno.ENOSPC, "free space, and give"), (errno.EIO, "give")]
    )
    def test_what_the_system_refuses_is_said_with_what_is_kept(self, number, first, out, scratch):
        (scratch / "key").write_text("one")
        said = rf"is left as it was, what is done is kept in {scratch}: {first} the same command ag"
        with pytest.raises(UserError, match=said), continuing(out, scratch, "one"):
            raise OSError(number, "no")
        other = r"is left as it was: (free space|try again), or choose another --out"
        for forgotten in (scratch / DONE / "0", scratch / DONE):
            forgotten.unlink() if forgotten.is_file() else forgotten.rmdir()
            with pytest.raises(UserError, match=other), continuing(out, scratch, "one"):
                raise OSError(number, "no")

    def test_nothing_is_kept_that_is_to_be_forgotten(self, scratch):
        forget(scratch)
        assert below(scratch) == ["lock"]
        forget(scratch)
