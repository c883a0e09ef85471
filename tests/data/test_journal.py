"""What an append is about to do: found from a store, its group or through a link, or not at all."""

import json

import pytest

from gptj.data.journal import JOURNAL, pending
from gptj.files import Folder


def asked(path) -> str | None:
    return pending(Folder(path))


@pytest.fixture
def out(tmp_path):
    for store in ("train", "heldout", "web/train"):
        (tmp_path / "out" / store).mkdir(parents=True)
    written = {"train": "TRAIN", "web/train": "WEB"}
    (tmp_path / "out" / JOURNAL).write_text(json.dumps(written))
    return tmp_path / "out"


def test_a_store_finds_its_own_manifest_and_no_others(out):
    assert asked(out / "train") == "TRAIN"
    assert asked(out / "web" / "train") == "WEB"
    assert asked(out / "heldout") is None
    assert asked(out) is None


def test_through_a_link_and_any_spelling(out, tmp_path):
    (tmp_path / "link").symlink_to(out / "web" / "train")
    assert asked(tmp_path / "link") == "WEB"
    assert asked(f"{out}/heldout/../train/") == "TRAIN"


def test_the_journal_is_that_of_the_data_or_of_a_group_and_of_no_folder_above(out):
    (out / "web" / "deep" / "train").mkdir(parents=True)
    text = json.dumps({"web/deep/train": "DEEP"})
    (out / JOURNAL).write_text(text)
    assert asked(out / "web" / "deep" / "train") is None


@pytest.mark.parametrize("text", [None, "", "{", b"\xff"])
def test_without_one_that_can_be_read_nothing_is_decided(out, text):
    (out / JOURNAL).unlink()
    if text is not None:
        (out / JOURNAL).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert asked(out / "train") is None


def test_nothing_is_asked_of_what_is_far_away():
    assert asked("memory://journal/out/train") is None
