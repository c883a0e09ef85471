"""What `gptj prepare` and `gptj mix` say of what they wrote, to the letter."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from gptj.cli import data
from gptj.cli.data import show_prepared
from gptj.data.clean import Dropped
from gptj.data.prepare import GroupReport, PrepareReport, StoreReport
from gptj.errors import UserError

TRAIN = StoreReport(Path("out/train"), 1200, 2_500_000, 1_000_000)
HELD_OUT = StoreReport(Path("out/heldout"), 1, 300, 200)
WHOLE = GroupReport("", TRAIN, HELD_OUT, "document")
LINES = [
    "  train     1,200 documents, 2,500,000 bytes, 1,000,000 tokens (2.50 bytes each)  out/train",
    "  held out  1 document, 300 bytes, 200 tokens (1.50 bytes each)  out/heldout",
]


def shown(capsys, *groups, **changes) -> list[str]:
    plain = {"vocab_size": 8192, "asked_size": 0, "files": 3, "skipped_files": 0, "replaced": 0}
    report = PrepareReport(groups, **plain | {"dropped": (), "is_more": False} | changes)
    show_prepared(report)
    return capsys.readouterr().out.splitlines()


def test_the_parts(capsys):
    assert shown(capsys, WHOLE) == ["3 files; vocabulary of 8,192 tokens", *LINES]


def test_without_a_held_out_part(capsys):
    assert shown(capsys, GroupReport("", TRAIN, None, "document"))[1:] == LINES[:1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": 1}, "1 file; vocabulary of 8,192 tokens"),
        ({"skipped_files": 1}, "3 files, 1 other skipped; vocabulary of 8,192 tokens"),
        ({"skipped_files": 2}, "3 files, 2 others skipped; vocabulary of 8,192 tokens"),
        ({"asked_size": 8192}, "3 files; vocabulary of 8,192 tokens"),
        (
            {"asked_size": 8193},
            "3 files; vocabulary of 8,192 tokens and not 8,193, as the text has no more to learn",
        ),
        ({"is_more": True}, "3 more files; vocabulary of 8,192 tokens"),
    ],
    ids=str,
)
def test_how_much_was_read(capsys, changes, said):
    assert shown(capsys, WHOLE, **changes)[0] == said


def test_what_was_mended_and_left_out(capsys):
    dropped = (
        Dropped("twice there", 2, 1500, ("a.txt: it\x1b[31m was", "b.txt: it was")),
        Dropped("too short", 1, 7, ("c.txt: no",)),
    )
    assert shown(capsys, WHOLE, replaced=1, dropped=dropped)[1:-2] == [
        "1 piece not of UTF-8 replaced by U+FFFD",
        "left out 2 documents, 1,500 bytes: twice there",
        "    a.txt: it\\x1b[31m was",  # a text tells the terminal nothing
        "    b.txt: it was",
        "left out 1 document, 7 bytes: too short",
        "    c.txt: no",
    ]


def test_what_was_divided_is_told_by_name_and_what_was_there_counts(capsys):
    groups = (
        GroupReport("de", TRAIN, None, "document"),
        GroupReport("en", TRAIN, HELD_OUT, "document"),
    )
    lines = shown(capsys, *groups, is_more=True)
    assert lines[1:] == ["with what was there before:", "de", LINES[0], "en", *LINES]


@pytest.mark.parametrize(("is_more", "new"), [(False, ""), (True, "new ")])
def test_few_documents_are_held_out_by_their_ends(capsys, is_more, new):
    *_, last = shown(capsys, GroupReport("", TRAIN, HELD_OUT, "tail"), is_more=is_more)
    assert (
        last == f"            the end of each {new}document, as they are fewer than {data.ENOUGH}"
    )


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], []),
        (["a", "--out", "b"], ["a", "--out", "b"]),
        (["a", "--ray"], ["a", "--ray", "auto"]),
        (["--ray", "--out", "b"], ["--ray", "auto", "--out", "b"]),
        (["--ray", "host:6379", "a"], ["--ray", "host:6379", "a"]),
        (["a", "--rays"], ["a", "--rays"]),
    ],
    ids=str,
)
def test_a_cluster_without_an_address_is_this_machines(words, meant):
    assert data._with_address(words) == meant


def test_a_mixture_is_told_in_columns(capsys, monkeypatch):
    parts = [
        SimpleNamespace(name="books", tokens=1_500_000, share=0.75, epochs=1.0),
        SimpleNamespace(name="my-code", tokens=500_000, share=0.25, epochs=0.333),
    ]
    monkeypatch.setattr(data, "mix", lambda config: parts)
    data.run_mix(["a=3", "b=1", "--out", "mixed"])
    assert capsys.readouterr().out.splitlines() == [
        "mixed: 2,000,000 tokens to train on",
        "  books          1,500,000 tokens   75.00 % of the rows, read 1.00 times in as many",
        "  my-code          500,000 tokens   25.00 % of the rows, read 0.33 times in as many",
    ]


@pytest.mark.parametrize(("documents", "seed", "name"), [(-1, 0, "documents"), (0, -1, "seed")])
def test_fewer_than_no_documents_cannot_be_shown(tiny_data, documents, seed, name):
    with pytest.raises(UserError, match=f"^{name}=-1 must be 0"):
        data.inspect_data(str(tiny_data), False, documents, seed, None)


def test_a_picture_of_a_kind_that_cannot_be_drawn_is_refused_first(tiny_data, capsys):
    with pytest.raises(UserError, match=r"lengths=x\.txt"):
        data.inspect_data(str(tiny_data), False, 0, 0, Path("x.txt"))
    assert capsys.readouterr().out == ""
