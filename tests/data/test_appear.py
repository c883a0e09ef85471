"""What may be replaced: prepared data and mixtures, and nothing that lies beside them."""

from pathlib import Path

import pytest

from gptj.data.appear import PREPARED, appear, check_out, saying
from gptj.data.mixture import FILE
from gptj.errors import UserError

NOT, ANOTHER = "is not prepared data", "choose another --out"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def lay(out: Path, *names: str) -> None:
    for name in names:
        path = out / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("x")


MINE = (PREPARED, "heldout/manifest.json", "train/0.tokens", "train/0.documents")


@pytest.mark.parametrize(
    ("names", "mark", "groups"),
    [
        (["./"], PREPARED, False), (["./"], FILE, False), (MINE, PREPARED, False),
        (MINE, PREPARED, True), ([*MINE, ".append.json"], PREPARED, False), ([FILE], FILE, False),
        ([f"a/{PREPARED}"], PREPARED, True), ([f"a/{n}" for n in MINE], PREPARED, True),
        ([f"a/{PREPARED}", f"b/{PREPARED}", ".append.json"], PREPARED, True),
    ],
)  # fmt: skip
def test_what_was_written_so_is_replaced_if_that_is_asked_for(out, names, mark, groups):
    check_out(out, False, mark, groups)  # before there is anything
    lay(out, *names)
    check_out(out, True, mark, groups)
    with pytest.raises(UserError, match=rf"out exists: {ANOTHER}, or replace it with --force$"):
        check_out(out, False, mark, groups)


@pytest.mark.parametrize(
    ("names", "mark", "groups", "why", "remedy"),
    [
        (["notes.txt"], PREPARED, False, NOT, ANOTHER),
        ([FILE], PREPARED, True, NOT, ANOTHER),
        (MINE, FILE, False, "is not a mixture", ANOTHER),
        ([f"a/{PREPARED}"], PREPARED, False, NOT, ANOTHER),
        ([f"a/{PREPARED}", "b/notes.txt"], PREPARED, True, NOT, ANOTHER),
        ([f"a/{PREPARED}", "notes.txt"], PREPARED, True, NOT, ANOTHER),
        ([f"{PREPARED}/x"], PREPARED, False, NOT, ANOTHER),
        ([*MINE, "notes.txt"], PREPARED, True, "also holds notes.txt, which is not prep", "move"),
        ([*MINE, "train/a.txt"], PREPARED, False, "also holds train, which is not prep", "move"),
        ([f"a/{PREPARED}", "a/raw/x"], PREPARED, True, "also holds raw, which is not prep", "move"),
        ([FILE, "notes.txt"], FILE, False, "also holds notes.txt, which is not a mixture", "move"),
    ],
)
def test_anything_else_is_never_deleted(out, names, mark, groups, why, remedy):
    lay(out, *names)
    with pytest.raises(UserError, match=rf"out {why}.*, so --force does not delete it: {remedy}"):
        check_out(out, True, mark, groups)
    with pytest.raises(UserError, match=rf"out exists, and {why}.*: {ANOTHER}$"):
        check_out(out, False, mark, groups)


def test_a_file_is_no_folder(out):
    out.write_text("x")
    with pytest.raises(UserError, match="out is not a mixture, so --force does not"):
        check_out(out, True, FILE)


@pytest.mark.parametrize("mark", [PREPARED, FILE])
def test_of_folders_in_it_nothing_is_deleted_unless_they_may_be_there(mark, out, tmp_path):
    lay(out, f"a/{mark}")
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="so --force does not delete it"):
        check_out(out, True, mark)
    with pytest.raises(UserError, match="so --force does not delete it"):
        appear(tmp_path / "new", out, True, mark)
    assert (out / "a" / mark).exists()


def test_what_is_refused_without_a_number_is_said_too(out):
    said = r"out cannot be written \(odd\) and .*: try again, or"
    with pytest.raises(UserError, match=said), saying(out):
        raise OSError("odd")
