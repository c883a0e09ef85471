"""The training loop: rows in, steps, and now and then an evaluation and a checkpoint.

Running the same command again goes on where the last checkpoint stands, and the weights it ends
with are the same, bit for bit, as those of a run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from gptj import checkpoint, hosts
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer
from gptj.train import run as runs
from gptj.train.config import TrainConfig
from gptj.train.evaluators import Evaluator
from gptj.train.feed import Feed
from gptj.train.heldout import HeldOut, held_out
from gptj.train.meter import Meter
from gptj.train.progress import ProgressDisplay, describe
from gptj.train.record import Event, Record, surroundings
from gptj.train.rows import Skip, read_skips
from gptj.train.setup import Setup
from gptj.train.signals import StopOnSignal
from gptj.train.sinks import Row
from gptj.train.state import TrainState
from gptj.train.step import StepMetrics, train_step

WORST = 8
"""Rows of a skipped step that the log names, those of the highest loss."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run stands when `train` returns."""

    run: Path
    step: int
    """Updates done; below `TrainConfig.steps` when a signal stopped the run."""
    params: Any
    loss: float | None
    """The last step's training loss in nats; `None` when there was nothing left to do."""
    held_out: HeldOut | None
    """The evaluation after the last step, on all of the held-out text, if there is any."""
    tokens_per_second: float | None
    """Training tokens a second of stepping, without compilation, evaluation and saving."""


Evaluate = Callable[..., HeldOut]

WriteOn = Callable[[Any, ModelConfig, Tokenizer, Sequence[str]], list[str]]
"""Weights, their shape, a tokenizer and prompts to the text that follows each prompt."""


def train(
    config: TrainConfig,
    *,
    evaluate: Evaluate = held_out,
    evaluators: Sequence[Evaluator] = (),
    write_on: WriteOn | None = None,
    console: Console | None = None,
) -> TrainResult:
    """Train as `config` says, on the mesh that is set or on one device.

    Args:
      evaluators: what else is measured now and then; it lands in the same metrics.

    Raises:
      UserError: what `config` names does not exist or does not fit together, or the run diverged.
      gptj.checkpoint.CheckpointError: a checkpoint could not be written or read.
    """
    assert write_on or not config.prompts, "prompts need `write_on`"
    if not hosts.is_leader():
        console = Console(quiet=True)
    setup = Setup(config, evaluators)
    keep = checkpoint.KeepPolicy(config.keep, config.keep_every, config.keep_best)
    with (
        runs.exclusive(config.out),
        checkpoint.Saver(checkpoint.of_run(config.out), keep) as saver,
    ):
        state = setup.starting_state()
        start = int(state.step)
        with (
            ProgressDisplay(config.steps, start, config.log_every, console) as display,
            StopOnSignal(display.say) as stop,
            contextlib.closing(Record(config.out, start, config.log_to)) as record,
            contextlib.closing(Loop(setup, saver, display, record, stop)) as loop,
        ):
            loop.evaluate, loop.write_on, loop.evaluators = evaluate, write_on, evaluators
            return loop.run(state)


class Loop:
    """A run under way."""

    evaluate: Evaluate
    evaluators: Sequence[Evaluator] = ()
    write_on: WriteOn | None

    def __init__(
        self,
        setup: Setup,
        saver: checkpoint.Saver,
        display: ProgressDisplay,
        record: Record,
        stop: StopOnSignal,
    ) -> None:
        self.setup, self.config = setup, setup.config
        self.saver, self.display, self.record, self.stop = saver, display, record, stop
        config, out = setup.config, setup.config.out
        self.feed = Feed(setup.batches, config.batch, config.accumulate, read_skips(out))
        self.meter = self.new_meter()
        self.read, self.streak = 0, 0
        """The last step whose metrics were read, and updates skipped in a row up to it."""
        self.tracing = False

    def new_meter(self) -> Meter:
        """A meter that goes on after the record's last row."""
        setup, config = self.setup, self.config
        return Meter(
            setup.model,
            setup.compute,
            setup.seq,
            config.batch,
            config.accumulate,
            self.record.last,
            self.record.lost,
        )

    def close(self) -> None:
        """End the thread that reads."""
        self.feed.close()

    def run(self, state: TrainState) -> TrainResult:
        """Step from `state` to the last step or the first signal."""
        config, step = self.config, int(state.step)
        self.introduce(step)
        first = step
        unread: tuple[int, StepMetrics] | None = None  # of the step that the devices are at
        row: Row | None = None
        scored: HeldOut | None = None
        stopping = hosts.agree(self.stop.requested)
        while step < config.steps and not stopping:
            state, metrics = self.step(state, step, compiles=step == first)
            step += 1
            if unread:
                row = self.log(self.row(*unread))
            unread = step, metrics
            stopping = hosts.agree(self.stop.requested)
            if self.streak < config.rewind_after and (stopping or self.due(step)):
                row, unread = self.row(*unread), None
                scored = self.score(state, step) if self.evaluates(step, stopping) else None
                row |= scored.row() if scored else {}
                try:
                    if not stopping or step == config.steps:
                        row |= self.measure(state, step)
                finally:  # an evaluator that fails costs no step
                    row = self.log(row)
                    if stopping or step == config.steps or not self.streak:
                        self.save(state, step, scored, stopping)
            if self.streak >= config.rewind_after:
                state, unread = self.rewind(step), None
                step = first = int(state.step)
        self.trace(state, None)
        return self.end(state, step, row, scored)

    def step(
        self, state: TrainState, step: int, *, compiles: bool
    ) -> tuple[TrainState, StepMetrics]:
        """Update number `step`, counted from 0, dispatched to the devices."""
        self.trace(state, step + 1)
        with self.meter.watch.on("data"):
            rows = self.feed.rows(step)
        setup = self.setup
        with self.meter.watch.on("compile" if compiles else "step"):
            return train_step(
                state,
                rows,
                base=setup.base,
                model=setup.model,
                optimizer=setup.optimizer,
                config=setup.compute,
            )

    def row(self, step: int, metrics: StepMetrics) -> Row:
        """The metrics of the step that made the updates `step`, once it has run."""
        row = self.meter.row(step, metrics)
        self.read, self.streak = step, int(metrics.streak)
        if self.streak:
            losses = np.nan_to_num(np.asarray(metrics.row_losses).reshape(-1), nan=math.inf)
            worst = self.feed.ids(step - 1).reshape(-1)[np.argsort(-losses)][:WORST].tolist()
            text = (
                f"step {step} skipped: loss {row['loss']:.4g}, gradient norm "
                f"{row['grad_norm']:.4g}; rows of the highest loss {', '.join(map(str, worst))} "
                f"(gptj show-rows {self.config.out} {step})"
            )
            self.display.say(text)
            more = {"loss": str(row["loss"]), "grad_norm": str(row["grad_norm"])}
            self.record.tell("skip", step, text, rows=worst, **more)
        return row

    def log(self, row: Row) -> Row:
        """Write the row down and show it."""
        self.record.write(row)
        self.display.show(row)
        return row

    def due(self, step: int) -> bool:
        """Whether something other than a step comes after `step` updates."""
        config = self.config
        often = config.eval_every, config.save_every, *(each.every for each in self.evaluators)
        return step == config.steps or any(step % every == 0 for every in often)

    def evaluates(self, step: int, stopping: bool) -> bool:
        """Whether the state after `step` updates is scored: always at the end."""
        at_end = step == self.config.steps
        return at_end or (step % self.config.eval_every == 0 and not stopping)

    def score(self, state: TrainState, step: int) -> HeldOut | None:
        """Evaluate on held-out rows, after the last step on all, and write on from the prompts."""
        setup, config = self.setup, self.config
        params = setup.whole(state.params)
        with self.meter.watch.on("evaluate"):
            if config.prompts and self.write_on:
                texts = self.write_on(params, setup.model, setup.data.tokenizer, config.prompts)
                for prompt, text in zip(config.prompts, texts, strict=True):
                    self.record.sample(step, prompt, text)
            scored = (
                None
                if setup.data.held_out is None
                else self.evaluate(
                    params,
                    setup.data.held_out,
                    setup.model,
                    seq=setup.seq,
                    batch=config.batch // config.accumulate,
                    compute=setup.compute,
                    batches=None if step == config.steps else config.eval_batches,
                    **({"reference": setup.base} if setup.compute.pairs else {}),
                )
            )
        self.meter.laps.pause()
        return scored

    def measure(self, state: TrainState, step: int) -> Row:
        """What the evaluators find that are due, said at once."""
        row: Row = {}
        at_end = step == self.config.steps
        due = [each for each in self.evaluators if at_end or step % each.every == 0]
        params = self.setup.whole(state.params)
        with self.meter.watch.on("evaluate"):
            for each in due:
                found = each.measure(params, self.setup.model, self.setup.data.tokenizer)
                self.display.say("  ".join(f"{name} {value:.4g}" for name, value in found.items()))
                row |= found
        if due:
            self.meter.laps.pause()
        return row

    def save(self, state: TrainState, step: int, scored: HeldOut | None, stopping: bool) -> None:
        """Begin to save, if now is the time."""
        config = self.config
        final = step == config.steps
        if not (final or stopping or step % config.save_every == 0):
            return
        # The last score is of all of the text, not to be compared with one of a part.
        like_others = scored is not None and (not final or config.eval_batches is None)
        score = {checkpoint.SCORE: scored.loss} if scored and like_others else {}
        with self.meter.watch.on("checkpoint"):
            notes = {"model": dataclasses.asdict(self.setup.model), **score}
            self.saver.save(step, state, notes)
        self.meter.laps.pause()

    def rewind(self, step: int) -> TrainState:
        """The last good state, the data since then passed over.

        The state that the first skipped update started from gave no good step, so it is not good.

        Raises:
          UserError: there is none, or the run went back to it before.
        """
        config, since = self.config, self.read - self.streak
        with self.meter.watch.on("checkpoint"):
            self.saver.wait()
        saved = map(checkpoint.step_of, checkpoint.complete(checkpoint.of_run(config.out)))
        skipped = f"the last {self.streak} updates up to step {self.read} were skipped as spikes"
        good = hosts.told(max((step for step in saved if step < since), default=None))
        again = any(skip.step == good for skip in self.feed.skips)
        if good is None or again:
            why = f"step {good}, where it went back to already" if again else "no earlier step"
            text = (
                f"{skipped}, and there is {why} to go back to: train in another folder with a "
                f"lower lr or a longer warm-up; `gptj show-rows {config.out} {self.read}` prints "
                "the rows"
            )
            self.record.tell("stop", self.read, text)
            raise UserError(text)
        text = f"{skipped}: going back to step {good} and passing over the data since"
        self.display.say(text)
        self.saver.forget(after=good)
        self.feed.skips.append(Skip(good, step - good))
        self.feed.forget()
        self.record.tell("rewind", self.read, text)
        self.record.rewind(good, self.feed.skips)
        self.display.go_on(good)
        self.meter, self.streak = self.new_meter(), 0
        return self.setup.state_at(good)

    def trace(self, state: TrainState, step: int | None) -> None:
        """Begin or end the profile before step number `step`; there is none after the last."""
        due = step in self.config.traced()
        if due and not self.tracing:
            jax.profiler.start_trace(str(self.config.out / "profile"))
            self.tracing = True
        elif self.tracing and not due:
            jax.block_until_ready(state.step)  # the last one may be under way
            jax.profiler.stop_trace()
            self.tracing = False

    def introduce(self, start: int) -> None:
        """Say and record what is about to happen."""
        text = self.setup.introduction(start)
        self.display.say(text)
        event: Event = "resume" if start else "start"
        self.record.tell(event, start, text, steps=self.config.steps, **surroundings())

    def end(
        self, state: TrainState, step: int, row: Row | None, scored: HeldOut | None
    ) -> TrainResult:
        """Say and return how the run stands."""
        config = self.config
        if step < config.steps:
            saved = ", saved" if step else ""
            text = f"stopped at step {step}{saved}; the same command goes on from there"
            self.display.say(text)
            self.record.tell("stop", step, text)
            scored = None
        elif row is None:
            scored = self.score(state, step)
            found = describe(scored.row()) if scored else ""
            self.display.say(f"nothing to do: the run is at step {step} of {config.steps}  {found}")
        else:
            self.record.tell("end", step, f"reached the last step, {step}")
        loss = None if row is None else row["loss"]
        rate = self.meter.laps.rate(self.meter.tokens)
        return TrainResult(config.out, step, state.params, loss, scored, rate)
