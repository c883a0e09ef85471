"""The training loop: rows in, steps, and now and then an evaluation and a checkpoint.

Running the same command again goes on where the last checkpoint stands, and the weights it ends
with are the same, bit for bit, as those of a run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from gptj import checkpoint
from gptj.config import ModelConfig, resolve
from gptj.convert.open import open_source
from gptj.convert.source import Source
from gptj.data.batches import TrainBatches
from gptj.data.store import TokenStore
from gptj.errors import UserError
from gptj.model import count_parameters, flops_per_token
from gptj.sharding import check_batch, check_mesh, place
from gptj.train import run as runs
from gptj.train.heldout import HeldOut, held_out
from gptj.train.metrics import MetricsLog, Row
from gptj.train.optimizer import OptimizerConfig
from gptj.train.progress import ProgressDisplay, describe, human
from gptj.train.signals import StopOnSignal
from gptj.train.start import check_tokenizer, state_of
from gptj.train.state import TrainState, abstract_state, new_state
from gptj.train.step import StepConfig, StepMetrics, train_step

ModelChoice = Annotated[
    ModelConfig | str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PRESET|FILE",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, ModelConfig | str),
        str_from_instance=lambda value: [value if isinstance(value, str) else "the recipe's"],
    ),
]
"""A model's shape, or on a command line the name of one."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a GPT-J on a folder of prepared text."""

    data: Path
    """Folder written by `gptj prepare`: its `train` part is learnt, its `heldout` part measured."""
    out: Path
    """Folder of the run: checkpoints, metrics, tokenizer. Where it holds this run already, the
    run goes on from its last checkpoint."""
    model: ModelChoice = "demo"
    """A preset's name, or a JSON file with a model's shape. A preset's vocabulary is fitted to
    the data's tokenizer."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="MODEL")] = None
    """A model of any kind to start from, instead of random weights of `model`'s shape: a run, a
    Hugging Face folder or Hub id, the original's shards. The original's with its optimizer's
    state goes on where it stopped, and `steps` counts from its beginning. Of a run only the
    weights are taken: to go on with a run, repeat its own command."""
    steps: int = 1000
    """Updates in all."""
    seq: int | None = None
    """Tokens in a row. Default: the model's context."""
    batch: int = 16
    """Rows in a step."""
    accumulate: int = 1
    """Parts a step's batch is computed in, one after the other, to save memory."""
    seed: int = 0
    """Decides the first weights and the order of the data."""
    eval_every: int = 250
    """Steps between evaluations on the held-out text; the last step always evaluates, on all."""
    eval_batches: int | None = 20
    """Batches of held-out rows an evaluation reads before the last one, which reads all."""
    save_every: int = 250
    """Steps between checkpoints; the last step always saves."""
    keep: int = 3
    """Newest checkpoints kept."""
    log_every: int = 10
    """Steps between lines of progress where the output is not a terminal."""
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig] = OptimizerConfig()
    compute: tyro.conf.OmitArgPrefixes[StepConfig] = StepConfig()

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "accumulate", "eval_every", "save_every", "keep", "log_every")
        for name in (*counts, "seq", "eval_batches"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be from 0 to 4294967295")
        if self.batch % self.accumulate:
            raise UserError(
                f"batch={self.batch} rows cannot be computed in accumulate={self.accumulate} "
                "equal parts: choose a divisor of the batch"
            )


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


def train(
    config: TrainConfig, *, evaluate: Evaluate = held_out, console: Console | None = None
) -> TrainResult:
    """Train as `config` says, on the mesh that is set or on one device.

    Raises:
      UserError: what `config` names does not exist or does not fit together.
      gptj.checkpoint.CheckpointError: a checkpoint could not be written or read.
    """
    trainer = Trainer(config, evaluate)
    checkpoints = config.out / runs.CHECKPOINTS
    with runs.exclusive(config.out), checkpoint.Saver(checkpoints, config.keep) as saver:
        state = trainer.starting_state()
        start = int(state.step)
        with (
            ProgressDisplay(config.steps, start, config.log_every, console) as display,
            StopOnSignal(display.say) as stop,
            contextlib.closing(MetricsLog(config.out, start)) as log,
        ):
            trainer.introduce(display, start)
            return trainer.run(state, saver, display, log, stop)


class Trainer:
    """What a run needs beside its state: data, programs and a clock."""

    def __init__(self, config: TrainConfig, evaluate: Evaluate) -> None:
        self.config, self.evaluate = config, evaluate
        if not (config.data / "train").is_dir():
            raise UserError(
                f"{config.data} holds no prepared data: make it with "
                f"`gptj prepare TEXT --out {config.data}`"
            )
        self.store = TokenStore.open(config.data / "train")
        heldout = config.data / "heldout"
        self.heldout = TokenStore.open(heldout) if heldout.exists() else None
        self.source: Source | None = None
        self.model = resolve(self.shape(), self.store.tokenizer.vocab_size)
        if self.source is not None:
            check_tokenizer(self.source, self.store.tokenizer)
        self.seq = self.model.context if config.seq is None else config.seq
        if self.seq > self.model.context:
            raise UserError(
                f"seq={self.seq} is longer than the model's context of {self.model.context} "
                "tokens: lower seq, or raise the model's context"
            )
        check_mesh(self.model)
        check_batch(config.batch // config.accumulate)
        self.batches = TrainBatches(self.store, self.seq, config.batch, config.seed)
        self.optimizer = config.optimizer.for_run(config.steps)
        runs.begin(config.out, self.model, self.store.tokenizer, self.course())

    def shape(self) -> ModelConfig | str:
        """The model asked for. What it starts from is opened only until the run has its own."""
        config = self.config
        if config.from_ is None:
            return config.model
        if config.model != TrainConfig.model:
            raise UserError(f"the model's shape is that of from={config.from_}: leave out model")
        if checkpoint.complete(config.out / runs.CHECKPOINTS):
            return ModelConfig.load(config.out / runs.MODEL)
        self.source = open_source(config.from_)
        return self.source.config

    def course(self) -> dict[str, Any]:
        """All that decides which weights the run ends with."""
        config = self.config
        return {
            "data": self.store.fingerprint,
            "from": config.from_,
            "seq": self.seq,
            "batch": config.batch,
            "accumulate": config.accumulate,
            "seed": config.seed,
            "optimizer": dataclasses.asdict(self.optimizer),
            "compute": dataclasses.asdict(config.compute),
        }

    def starting_state(self) -> TrainState:
        """The state of the newest checkpoint, or a new one."""
        saved = checkpoint.complete(self.config.out / runs.CHECKPOINTS)
        if not saved and self.source is not None:
            return state_of(self.source, self.optimizer)
        if not saved:
            return new_state(jax.random.key(self.config.seed), self.model, self.optimizer)
        like = abstract_state(self.model, self.optimizer)
        state: TrainState = checkpoint.restore(saved[-1], like)
        return state

    def introduce(self, display: ProgressDisplay, start: int) -> None:
        """Say what is about to happen."""
        tokens = self.config.batch * self.seq
        mesh = dict(jax.sharding.get_abstract_mesh().shape) or "one device"
        display.say(
            f"{human(count_parameters(self.model))} parameters on {jax.devices()[0].device_kind} "
            f"({mesh}); {human(len(self.store))} tokens of text, {human(tokens)} a step; "
            f"{'new run' if start == 0 else f'going on from step {start}'} in {self.config.out}"
            + (f", from {self.config.from_}" if self.config.from_ else "")
        )

    def run(
        self,
        state: TrainState,
        saver: checkpoint.Saver,
        display: ProgressDisplay,
        log: MetricsLog,
        stop: StopOnSignal,
    ) -> TrainResult:
        """Step from `state` to the last step or the first signal."""
        config, clock, last, scored = self.config, StepClock(), None, None
        step = int(state.step)
        while step < config.steps and not stop.requested:
            state, metrics = self.step(state, step)
            step += 1
            last = self.row(step, metrics, clock)
            self.check_finite(last)
            final = step == config.steps
            if final or (step % config.eval_every == 0 and not stop.requested):
                scored = self.score(state, None if final else config.eval_batches)
                last |= scored.row() if scored else {}
                clock.pause()
            log.write(last)
            display.show(last)
            if final or step % config.save_every == 0:
                saver.save(step, state)
                clock.pause()
        if step < config.steps:
            if last is not None:
                saver.save(step, state)
            saved = ", saved" if step else ""
            display.say(f"stopped at step {step}{saved}; the same command goes on from there")
            scored = None
        elif last is None:
            scored = self.score(state, None)
            found = describe(scored.row()) if scored else ""
            display.say(f"nothing to do: the run is at step {step} of {config.steps}  {found}")
        loss = None if last is None else last["loss"]
        rate = clock.rate(config.batch * self.seq)
        return TrainResult(config.out, step, state.params, loss, scored, rate)

    def step(self, state: TrainState, step: int) -> tuple[TrainState, StepMetrics]:
        """Update number `step`, counted from 0, dispatched to the devices."""
        config = self.config
        rows = self.batches.batch(step).reshape(config.accumulate, -1, self.seq + 1)
        return train_step(
            state,
            place(rows, None, "batch", None),
            model=self.model,
            optimizer=self.optimizer,
            config=config.compute,
        )

    def row(self, step: int, metrics: StepMetrics, clock: StepClock) -> Row:
        """The step's metrics, once it has run."""
        row = {"step": step, **{k: float(v) for k, v in dataclasses.asdict(metrics).items()}}
        seconds = clock.lap()
        if seconds is not None:
            tokens = self.config.batch * self.seq
            row["step_seconds"] = seconds
            row["tokens_per_second"] = tokens / seconds
            row["flops_per_second"] = tokens * flops_per_token(self.model, self.seq) / seconds
        return row

    def check_finite(self, row: Row) -> None:
        """Stop a run that has diverged before its weights replace a good checkpoint's."""
        if not math.isfinite(row["loss"] + row["grad_norm"]):
            saved = checkpoint.complete(self.config.out / runs.CHECKPOINTS)
            raise UserError(
                f"the loss is {row['loss']} and the gradient's norm {row['grad_norm']} at step "
                f"{int(row['step'])}: train in another folder with a lower lr or a longer warm-up; "
                f"the last good checkpoint is {saved[-1] if saved else 'none yet'}"
            )

    def score(self, state: TrainState, batches: int | None) -> HeldOut | None:
        """Evaluate on `batches` batches of held-out rows; `None` where nothing was held out."""
        if self.heldout is None:
            return None
        rows = self.config.batch // self.config.accumulate
        return self.evaluate(
            state.params,
            self.heldout,
            self.model,
            seq=self.seq,
            batch=rows,
            dtype=self.config.compute.dtype,
            batches=batches,
        )


class StepClock:
    """Times steps, leaving out the first, which compiles, and whatever `pause` is called after."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._laps: list[float] = []

    def lap(self) -> float | None:
        """Seconds since the last lap, if nothing but a step happened in between."""
        now = time.perf_counter()
        seconds = None if self._since is None else now - self._since
        if seconds is not None:
            self._laps.append(seconds)
        self._since = now
        return seconds

    def pause(self) -> None:
        """Something other than a step took time: the next lap starts now."""
        self._since = time.perf_counter() if self._since is not None else None

    def rate(self, amount: float) -> float | None:
        """`amount` a lap, as an amount a second over all laps."""
        return amount * len(self._laps) / sum(self._laps) if self._laps else None
