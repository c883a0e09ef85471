"""What is passed over in an archive is what would be in a folder, however names begin."""

import io
import tarfile

import pytest

from gptj.data.archive import members


def packed(*names: str) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    return held.getvalue()


@pytest.mark.parametrize("here", ["", "./", "../", "./../", ".././"])
def test_patterns_are_of_names_and_not_of_where_the_archive_was_made(here):
    kept = [f"{here}{name}" for name in ("a.txt", "b/c.txt", "b./c.txt", "b../c.txt", "b/./d.txt")]
    left = [f"{here}{name}" for name in (".a.txt", ".git/b.txt", "c../.git/d.txt", "e./f", "f/e.")]
    with members("a.tar", iter([packed(*kept, *left)]), (".*", "e.")) as found:
        read = [(name, held.read().decode()) for name, held in found]
    assert read == [(name, name) for name in kept]
