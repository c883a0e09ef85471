"""What went wrong, in one line; and nothing of it printed beside the error."""

import logging
import sys
import types

import pytest

from gptj.checkpoint import handler


def caused(*said):
    """An error with the last of these at its root."""
    first = above = OSError(said[0])
    for words in said[1:]:
        above.__cause__ = above = ValueError(words)
    return first


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (["disk full"], "disk full"),
        (["outer", "middle", "no space"], "no space"),
        (["a  b\n\tc "], "a b c"),
        (["failed [tensorstore_spec='{...}']"], "failed"),
        ([""], "OSError"),
        (["outer", " \n"], "ValueError"),
        ([" [tensorstore_spec=x"], "OSError"),
        (["x" * 200], "x" * 200),
        (["y" + "x" * 200], "..." + "x" * 200),
        (["a" * 300 + " No space left"], "..." + "a" * 186 + " No space left"),
    ],
)
def test_the_innermost_cause_on_a_line(said, line):
    assert handler.reason(caused(*said)) == line


LEFT = [
    "Event loop is closed",
    "coroutine 'Handler.async_serialize' was never awaited",
    "coroutine 'cancellable_sleep' was never awaited",
]


class TestWhatIsNotPrinted:
    """A failed save is raised; what its threads leave behind is said nowhere else."""

    @pytest.fixture
    def seen(self, monkeypatch):
        """What the hook there was before was given."""
        seen = []
        monkeypatch.setattr(sys, "unraisablehook", seen.append)
        monkeypatch.setattr(handler, "_before", [])
        handler._hush()
        return seen

    def test_a_hook_that_was_there_sees_the_rest(self, seen):
        left = [types.SimpleNamespace(exc_value=RuntimeError(each)) for each in LEFT]
        others = [
            types.SimpleNamespace(exc_value=each)
            for each in (
                None,
                RuntimeError("something else"),
                RuntimeError("a coroutine 'serialize'"),
                RuntimeError("coroutine 'train' was never awaited"),
            )
        ]
        for failure in [*left, *others]:
            sys.unraisablehook(failure)
        assert seen == others

    def test_it_is_put_there_once(self, seen):
        for _ in range(3):
            handler._hush()
        assert handler._before == [seen.append]

    def test_asyncio_says_nothing_of_orbax_and_all_else(self):
        words = ("Task exception: orbax/checkpoint.py", "Task exception: train.py")
        records = [logging.makeLogRecord({"msg": each}) for each in words]
        assert [handler._is_not_orbax(each) for each in records] == [False, True]
