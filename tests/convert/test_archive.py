"""Archives: unpacked exactly, and whatever is wrong with one, nothing of it stays."""

import contextlib
import errno
import gzip
import io
import lzma
import random
import tarfile
from collections import namedtuple
from pathlib import Path

import pytest
import zstandard

from gptj.convert import archive
from gptj.convert.archive import is_archive, unpack
from gptj.errors import UserError

FILES = {
    "step_1/meta.json": b"{}",
    "step_1/shard_0/0.npz": random.Random(0).randbytes(30_000),
    "step_1/shard_0/empty": b"",
}
COMPRESSIONS = {
    ".tar": lambda content: content,
    ".tar.gz": gzip.compress,
    ".tar.xz": lzma.compress,
    ".tar.zst": zstandard.ZstdCompressor().compress,
    ".tar.zstd": zstandard.ZstdCompressor().compress,
}


def member(name: str, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def tar(files: dict[str, bytes], *others: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar archive of `files`, and of `others`, which have no content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for name, content in files.items():
            made.addfile(member(name, size=len(content)), io.BytesIO(content))
        for other in others:
            made.addfile(other)
    return out.getvalue()


def unpacked(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def place(tmp_path):
    """Writes the bytes of an archive, and says where it is."""

    def write(content: bytes, name: str = "slim.tar") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def refuse(tmp_path):
    """An archive that must be refused with all of `said`, and leave nothing."""

    def check(path: Path, *said: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError) as caught:
            unpack(path, tmp_path / "out")
        message = str(caught.value)
        missing = [word for word in (str(path), *said) if word not in message]
        assert not missing, f"{missing} not in {message}"
        assert "\n" not in message
        assert str(tmp_path / "out") not in message  # a hidden folder, where it is read in place
        assert sorted(tmp_path.rglob("*")) == before

    return check


class TestWhole:
    @pytest.mark.parametrize("suffix", COMPRESSIONS)
    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_every_kind(self, place, tmp_path, suffix, form):
        folder = member("step_1/nothing/", type=tarfile.DIRTYPE, mode=0)
        content = tar(FILES | {f"step_1/{'long' * 22}/x": b"x"}, folder, form=form)
        unpack(place(COMPRESSIONS[suffix](content), f"slim{suffix}"), tmp_path / "new" / "out")
        found = unpacked(tmp_path / "new" / "out")
        assert found == FILES | {f"step_1/{'long' * 22}/x": b"x"}
        assert (tmp_path / "new" / "out" / "step_1" / "nothing").is_dir()

    @pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".tar.zst"])
    def test_compressed_in_several_frames(self, place, tmp_path, suffix):
        content, compress = tar(FILES), COMPRESSIONS[suffix]
        parts = compress(content[:10_000]) + compress(content[10_000:])
        unpack(place(parts, f"slim{suffix}"), tmp_path / "out")
        assert unpacked(tmp_path / "out") == FILES

    def test_nothing_that_follows_but_zeros_is_read_to_its_end(self, place, refuse, tmp_path):
        whole = gzip.compress(tar(FILES) + bytes(3 << 20), 1)
        refuse(place(whole[:-5] + b"wrong", "slim.tar.gz"), "slim.tar.gz")
        unpack(place(whole, "slim.tar.gz"), tmp_path / "out")
        assert unpacked(tmp_path / "out") == FILES

    def test_names_from_the_current_folder(self, place, tmp_path):
        here = member("./", type=tarfile.DIRTYPE)
        unpack(place(tar({"./a": b"a"}, here)), tmp_path / "out")
        assert unpacked(tmp_path / "out") == {"a": b"a"}

    def test_no_permissions_are_taken_over(self, place, tmp_path):
        unpack(place(tar({}, member("run", mode=0o6777, size=0))), tmp_path / "out")
        assert not (tmp_path / "out" / "run").stat().st_mode & 0o7111

    def test_an_archive_of_nothing(self, place, tmp_path):
        unpack(place(tar({})), tmp_path / "out")
        assert unpacked(tmp_path / "out") == {}

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("step_383500_slim.tar.zstd", True),
            ("/a/b.TAR.GZ", True),
            *((f"a{suffix}", True) for suffix in COMPRESSIONS),
            ("a.zip", False),
            ("a.gz", False),
            ("a.tar.bz2", False),
            ("a.tar/b", False),
            ("", False),
        ],
    )
    def test_is_archive(self, name, expected):
        assert is_archive(name) is expected


class TestNotToBeTrusted:
    @pytest.mark.parametrize(
        "name", ["../x", "a/../../x", "/etc/x", "//x", "a/..", "..", "..\\x", "C:\\x"]
    )
    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
    def test_names_that_leave_the_folder(self, place, refuse, name, kind):
        content = tar({"fine": b"fine"}, member(name, type=kind))
        refuse(place(content), repr(name), "outside its folder")

    @pytest.mark.parametrize(
        "kind",
        [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
    )
    def test_links_and_devices(self, place, refuse, kind):
        other = member("door", type=kind, linkname="fine")
        refuse(place(tar({"fine": b"fine"}, other)), "'door'", "link or a device")

    def test_a_negative_size(self, place, refuse):
        content = bytearray(tar({"a": b"a"}))
        content[124:136] = b"\xff" * 12
        content[148:156] = b"%06o\0 " % (sum(content[:512]) - sum(content[148:156]) + 8 * 32)
        refuse(place(bytes(content)), "'a'", "damaged")

    def test_a_file_for_a_folder(self, place, refuse):
        refuse(place(tar({"a": b"a", "a/b": b"b"})))


class TestDamaged:
    @pytest.mark.parametrize("suffix", COMPRESSIONS)
    @pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.9])
    def test_cut_short(self, place, refuse, suffix, part):
        content = COMPRESSIONS[suffix](tar(FILES).rstrip(b"\0") + bytes(1024))
        refuse(place(content[: int(part * len(content))], f"slim{suffix}"), "download or copy")

    def test_cut_between_two_members(self, place, refuse):
        content = tar({"a": b"a", "b": b"b"})
        for suffix, compress in COMPRESSIONS.items():
            refuse(place(compress(content[:1024]), f"slim{suffix}"), "cut short")

    @pytest.mark.parametrize("size", [511, 512, 2048])
    def test_cut_after_a_file_that_ends_in_zeros(self, place, refuse, tmp_path, size):
        content = tar({"a": b"a" * 512 + bytes(size), "b": b"b"})
        end = 512 + 512 + -(-size // 512) * 512
        refuse(place(content[:end]), "cut short")
        unpack(place(content[:end] + bytes(512)), tmp_path / "out")  # as some programs end one
        assert unpacked(tmp_path / "out") == {"a": b"a" * 512 + bytes(size)}

    @pytest.mark.parametrize("suffix", COMPRESSIONS)
    def test_another_kind_of_file(self, place, refuse, suffix):
        for content in (b"", b"<html>not found</html>", bytes(100), b"x" * 5000):
            refuse(place(content, f"slim{suffix}"), "download or copy")

    @pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz"])
    def test_a_wrong_checksum_at_the_end(self, place, refuse, suffix):
        content = bytearray(COMPRESSIONS[suffix](tar(FILES)))
        content[-6 if suffix == ".tar.gz" else -20] ^= 1
        refuse(place(bytes(content), f"slim{suffix}"), "damaged")

    @pytest.mark.parametrize("suffix", COMPRESSIONS)
    def test_any_byte_changed_is_refused_or_harmless(self, place, tmp_path, suffix):
        draw, small = random.Random(0), tar({"a/b": b"b" * 600, "c": b"c"}, member("d" * 120))
        content = COMPRESSIONS[suffix](small)
        for turn in range(150):
            changed, out = bytearray(content), tmp_path / f"out{turn}"
            changed[draw.randrange(min(len(changed), 3000))] = draw.randrange(256)
            with contextlib.suppress(UserError):
                unpack(place(bytes(changed), f"slim{suffix}"), out)
                continue
            assert not out.exists()


class TestTheDisk:
    def test_too_little_space_is_noticed_before_writing(self, place, refuse, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(archive.shutil, "disk_usage", lambda path: usage(10**9, 0, 30_000))
        refuse(place(tar(FILES)), "0.npz", "needs 30,000 bytes", "free some space")

    def test_a_disk_that_fills_up(self, place, refuse, monkeypatch):
        def full(*args, **options):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(archive.tarfile.TarFile, "makefile", full)
        refuse(place(tar(FILES)), "No space left on device", "free some space")

    def test_a_stop_by_the_user_leaves_nothing(self, place, tmp_path, monkeypatch):
        def stop(*args, **options):
            raise KeyboardInterrupt

        monkeypatch.setattr(archive, "_expect_space", stop)
        with pytest.raises(KeyboardInterrupt):
            unpack(place(tar(FILES)), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_folder_that_exists_is_left_alone(self, place, tmp_path):
        mine = tmp_path / "out" / "mine"
        mine.parent.mkdir()
        mine.write_text("mine")
        with pytest.raises(UserError, match="exists already"):
            unpack(place(tar(FILES)), tmp_path / "out")
        assert mine.read_text() == "mine"

    def test_a_folder_that_cannot_be_made(self, place, tmp_path):
        path = place(tar(FILES))
        with pytest.raises(UserError, match="cannot be made"):
            unpack(path, path / "out")

    def test_no_archive(self, refuse, tmp_path):
        refuse(tmp_path / "absent.tar", "cannot be opened")
        refuse(tmp_path / "a.zip", ".tar.zst")
        (tmp_path / "folder.tar").mkdir()
        refuse(tmp_path / "folder.tar", "cannot be opened")
