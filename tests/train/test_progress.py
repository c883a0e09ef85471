"""What is shown of a run: plain lines now and then, or one live line on a terminal."""

import io

import pytest
from rich.console import Console

from gptj.train.progress import ProgressDisplay, clock, describe, human


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (0.5, "0.5"),
        (123.4, "123"),
        (999, "999"),
        (999.9, "1k"),
        (1000, "1k"),
        (12345.6, "12.3k"),
        (6_053_381_344, "6.05G"),
        (2.5e12, "2.5T"),
        (1e15, "1P"),
        (3.14e18, "3.14e+03P"),
        (-1500, "-1.5k"),
        (float("nan"), "nanP"),
    ],
)
def test_human(value, text):
    assert human(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0m00s"),
        (59.9, "0m59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (360_000, "100h00m"),
    ],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_describe_says_what_a_row_has_and_no_more():
    assert describe({"step": 1.0}) == ""
    row = {"step": 1, "loss": 2.34567, "lr": 0.0006, "grad_norm": 1.234, "unheard_of": 1}
    assert describe(row) == "loss 2.3457  lr 6.00e-04  grad norm 1.23"
    row = {"tokens_per_second": 12345, "flops_per_second": 3.2e9, "heldout_bits_per_byte": 1.5}
    assert describe(row) == "12.3k tokens/s  3.2GFLOP/s  1.5000 bits/byte"


class TestPlainLines:
    def lines(self, shown, steps=10, start=0, every=3) -> list[str]:
        """What is written where the output is not a terminal."""
        file = io.StringIO()
        with ProgressDisplay(steps, start, every, Console(file=file)) as display:
            for row in shown:
                display.show(row)
        return file.getvalue().splitlines()

    def test_every_so_many_steps_and_the_last(self):
        lines = self.lines({"step": step, "loss": 1.0} for step in range(1, 11))
        assert [line.split()[1] for line in lines] == ["3/10", "6/10", "9/10", "10/10"]
        assert lines[0].startswith("step      3/10  loss 1.0000  left 0m")

    def test_an_evaluation_is_always_shown(self):
        lines = self.lines([{"step": 1, "loss": 1.0}, {"step": 2, "heldout_loss": 2.0}])
        assert len(lines) == 1
        assert "held-out loss 2.0000" in lines[0]

    def test_a_resumed_run_counts_only_its_own_time(self):
        (line,) = self.lines([{"step": 9, "loss": 1.0}], start=8)
        assert line.endswith("left 0m00s")

    def test_no_control_codes_and_no_folding(self):
        file = io.StringIO()
        with ProgressDisplay(1, 0, 1, Console(file=file)) as display:
            display.say("[bold]a path/with [brackets] " + "x" * 300)
        assert file.getvalue() == "[bold]a path/with [brackets] " + "x" * 300 + "\n"


class TestATerminal:
    def console(self, term="xterm") -> Console:
        """A terminal of its own, whatever the one the tests run in."""
        return Console(file=io.StringIO(), force_terminal=True, width=100, _environ={"TERM": term})

    def shown(self, rows, term="xterm") -> str:
        console = self.console(term)
        with ProgressDisplay(10, 0, 1, console) as display:
            display.say("hello")
            for row in rows:
                display.show(row)
        return console.file.getvalue()

    def test_there_is_one_live_line(self):
        text = self.shown({"step": step, "loss": float(step)} for step in range(1, 11))
        assert "10/10" in text
        assert "loss 10.0000" in text
        assert "\x1b[2K" in text  # the line is cleared and drawn again
        assert "step " not in text

    def test_what_is_said_and_evaluations_stay_above_it(self):
        text = self.shown([{"step": 5, "heldout_loss": 2.0}])
        assert "hello" in text
        assert "step      5/10" in text

    def test_the_cursor_comes_back_after_an_error(self):
        console = self.console()
        display = ProgressDisplay(10, 0, 1, console)
        with pytest.raises(ZeroDivisionError), display:
            raise ZeroDivisionError
        assert console.file.getvalue().rstrip("\n\r").endswith("\x1b[?25h")

    def test_a_dumb_one_gets_plain_lines(self):
        text = self.shown(({"step": step, "loss": 1.0} for step in range(1, 11)), term="dumb")
        steps = [line.split()[1] for line in text.splitlines()[1:]]
        assert steps == [f"{step}/10" for step in range(1, 11)]
        assert "\x1b" not in text
