"""How far an evaluation is, by a clock that goes when it is told."""

import io

import pytest
from rich.console import Console

from gptj.evaluate import progress
from gptj.evaluate.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def said(clock, seconds, total, done=0):
    """What is said of a part whose requests take so many seconds each."""
    file = io.StringIO()
    with Progress(Console(file=file, width=80)).of("asked", total, done) as part:
        for each in seconds:
            clock[0] += each
            part.advance()
    return file.getvalue().splitlines()


def test_a_line_comes_no_sooner_than_ten_seconds_after_another(clock):
    assert said(clock, [1.0] * 9, 100) == []
    assert len(said(clock, [1.0] * 31, 100)) == 3
    assert len(said(clock, [25.0] * 4, 100)) == 3


def test_what_is_left_is_told_by_all_but_the_first(clock):
    """Which was mostly compiling."""
    lines = said(clock, [60.0, 4.0, 8.0], 13)
    assert lines == ["asked 3/13  left 1m00s"]


def test_what_was_known_before_takes_no_time(clock):
    lines = said(clock, [60.0, 4.0, 8.0], 1013, 1000)
    assert lines == [
        "1,000 of 1,013 requests were asked before: going on from there",
        "asked 1,003/1,013  left 1m00s",
    ]


def test_the_last_one_is_not_said(clock):
    assert said(clock, [60.0, 20.0], 2) == []


def test_nothing_is_said_nowhere(clock, capsys):
    with Progress(None).of("asked", 3, 2) as part:
        clock[0] += 60
        part.advance()
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_a_bar_goes_with_it_and_leaves_nothing():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, legacy_windows=False)
    with Progress(console).of("asked", 4, 1) as part:
        part.advance()
        assert part._bars is not None
        part._bars.refresh()
        assert "2/4" in file.getvalue()
        part.advance()
        part._bars.refresh()
    assert "3/4" in file.getvalue()
    assert "left" not in file.getvalue()
