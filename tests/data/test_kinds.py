"""What a folder holds: data, data in groups, one store of them, or none of these."""

from pathlib import Path

import pytest

from gptj.data.mixture import Mixture, groups_of, is_data
from gptj.data.store import is_store
from gptj.errors import UserError

A, B = (f"{name}/train/manifest.json" for name in "ab")
STORE = ("manifest.json", "tokenizer.json")


@pytest.mark.parametrize(
    ("names", "data", "store", "groups"),
    [
        ([], False, False, []),
        (["notes.txt"], False, False, []),
        (["train/manifest.json", "heldout/manifest.json"], True, False, []),
        (["mixture.json"], True, False, []),
        (STORE, False, True, []),
        (["manifest.json"], False, False, []),
        (["tokenizer.json"], False, False, []),
        ([A], False, False, ["a"]),
        ([A, B, "a/heldout/manifest.json"], False, False, ["a", "b"]),
        ([A, B, ".c/train/manifest.json", "d/notes.txt", "e.txt"], False, False, ["a", "b"]),
        ([".0/notes.txt", A], False, False, ["a"]),
        (["0.txt", A], False, False, []),  # of many only the first is asked of
        (["train/manifest.json", A], True, False, []),  # what lies in data is none of its groups
        (["mixture.json", A], True, False, []),
        ([*STORE, A], False, True, []),
    ],
)
def test_a_folder_is_what_it_holds(names, data, store, groups, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert (is_data(tmp_path), is_store(tmp_path), groups_of(tmp_path)) == (data, store, groups)


def refused(place: Path) -> str:
    with pytest.raises(UserError) as error:
        Mixture.open(place)
    return str(error.value)


def test_what_holds_no_data_itself_says_where_they_are(tmp_path):
    assert refused(tmp_path) == (
        f"{tmp_path} holds no prepared data: make it with `gptj prepare TEXT --out {tmp_path}`"
    )
    (tmp_path / A).parent.mkdir(parents=True)
    (tmp_path / A).touch()
    around = f"{tmp_path / 'a'} around it"
    said = f"{tmp_path / 'a/train'} is one store of prepared data: name {around}"
    assert refused(tmp_path / "a/train") == said
    assert refused(tmp_path) == (
        f"{tmp_path} holds no prepared data itself, but in folders of it: name one, such as "
        f"{tmp_path}/a, or weigh several with `gptj mix`"
    )
