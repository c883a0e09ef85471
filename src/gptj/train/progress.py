"""What a person sees while a run trains: one live line on a terminal that can, else plain lines."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as Remaining

from gptj.train.sinks import Row


def human(value: float) -> str:
    """A large number in four characters or so: 12345.6 -> '12.3k'."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:  # what is above is 1000 in three digits
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}P"


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def describe(row: Row) -> str:
    """A metrics row in words; only what it has."""
    parts = {
        "loss": "loss {:.4f}",
        "accuracy": "right {:.0%}",
        "lr": "lr {:.2e}",
        "grad_norm": "grad norm {:.2f}",
        "tokens_per_second": "{} tokens/s",
        "flops_per_second": "{}FLOP/s",
        "heldout_loss": "held-out loss {:.4f}",
        "heldout_accuracy": "right {:.1%}",
        "heldout_perplexity": "perplexity {:.2f}",
        "heldout_bits_per_byte": "{:.4f} bits/byte",
    }
    rates = ("tokens_per_second", "flops_per_second")
    return "  ".join(
        text.format(human(row[name]) if name in rates else row[name])
        for name, text in parts.items()
        if name in row
    )


class ProgressDisplay:
    """Shows rows of metrics of a run of `steps` steps, starting after step `start`."""

    def __init__(
        self, steps: int, start: int, every: int = 1, console: Console | None = None
    ) -> None:
        """`every`: steps between lines where there is no live one."""
        self.steps, self.every = steps, every
        self.go_on(start)
        self.console = console or Console()
        self._bar: Progress | None = None
        # What calls itself a dumb terminal cannot draw a line anew; rich then shows only the last.
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("train"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                Remaining(elapsed_when_finished=True),
                TextColumn("{task.description}"),
                console=self.console,
            )
            self._task = self._bar.add_task("compiling", total=steps, completed=start)

    def __enter__(self) -> ProgressDisplay:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def go_on(self, start: int) -> None:
        """Count time from now on, after step `start`: a run may go back."""
        self.start, self.begin = start, time.monotonic()

    def show(self, row: Row) -> None:
        """A step's metrics: on the live line, or now and then as a line that stays."""
        step = int(row["step"])
        if self._bar:
            self._bar.update(self._task, completed=step, description=describe(row))
        evaluated = "heldout_loss" in row
        due = not self._bar and (step % self.every == 0 or step == self.steps)
        if evaluated or due:
            left = (time.monotonic() - self.begin) / (step - self.start) * (self.steps - step)
            self.say(f"step {step:>6}/{self.steps}  {describe(row)}  left {clock(left)}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
