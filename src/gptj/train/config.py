"""What a training run is asked to do, each field a flag of `gptj train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig
from gptj.train.sinks import Sink

_COUNTS = (
    *("steps", "seq", "batch", "accumulate", "eval_every", "eval_batches", "save_every"),
    *("keep", "keep_every", "rewind_after", "log_every"),
)

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
    """Folder written by `gptj prepare`, whose `train` part is learnt and `heldout` part measured,
    or by `gptj mix`."""
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
    fresh_opt: bool = False
    """Leave behind the optimizer's state that `from` comes with: the moments are empty, the step
    is 0 and the schedule begins anew."""
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
    prompts: tuple[str, ...] = ()
    """Texts to write on from at every evaluation; `gptj report` shows what became of them."""
    eval_every: int = 250
    """Steps between evaluations on the held-out text; the last step always evaluates, on all."""
    eval_batches: int | None = 20
    """Batches of held-out rows an evaluation reads before the last one, which reads all."""
    save_every: int = 250
    """Steps between checkpoints; the last step always saves."""
    keep: int = 3
    """Newest checkpoints kept."""
    keep_every: int | None = None
    """Checkpoints whose step is a multiple of this are kept for good. Default: none are."""
    keep_best: int = 0
    """Checkpoints kept for having the lowest loss on the held-out text, of those saved at a step
    that also evaluates."""
    checkpoints: str | None = None
    """Where the checkpoints lie: another folder, or a URL as gs://bucket/my-run; the rest of the
    run stays in `out`, which remembers it. Default: `checkpoints` in `out`."""
    rewind_after: int = 8
    """Updates skipped in a row as spikes after which the run goes back to its last good
    checkpoint and passes over the data since. See `spike_sigma`."""
    allow_data_change: bool = False
    """Go on with a run although its data are not what they were."""
    log_every: int = 10
    """Steps between lines of progress where the output is not a terminal."""
    log_to: tuple[Sink, ...] = ("tensorboard",)
    """What draws the curves, beside the run's own `metrics.jsonl`."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="START:STOP")] = None
    """Trace the steps from START up to but not STOP, as the metrics count them, to RUN/profile,
    which xprof opens."""
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig] = OptimizerConfig()
    compute: tyro.conf.OmitArgPrefixes[StepConfig] = StepConfig()

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.fresh_opt and self.from_ is None:
            raise UserError("fresh_opt is of a model to start from: name it with --from MODEL")
        if self.fresh_opt and self.compute.lora.rank is not None:
            raise UserError("fresh_opt is of all weights, adapters always begin so: leave it out")
        self._check_best()
        self.traced()
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be from 0 to 4294967295")
        if self.batch % self.accumulate:
            raise UserError(
                f"batch={self.batch} rows cannot be computed in accumulate={self.accumulate} "
                "equal parts: choose a divisor of the batch"
            )

    def _check_best(self) -> None:
        if self.keep_best < 0:
            raise UserError(f"keep_best={self.keep_best} must be at least 0")
        longer, shorter = sorted((self.save_every, self.eval_every), reverse=True)
        if self.keep_best and longer % shorter:
            raise UserError(
                f"keep_best={self.keep_best} needs checkpoints that are evaluated: make one of "
                f"save_every={self.save_every} and eval_every={self.eval_every} a multiple of the "
                "other"
            )

    def traced(self) -> range:
        """The steps that `profile` asks to trace; the first of a run is 1."""
        if self.profile is None:
            return range(0)
        start, _, stop = self.profile.partition(":")
        if not (start.isdecimal() and stop.isdecimal() and 0 < int(start) < int(stop)):
            raise UserError(
                f"profile={self.profile} is not START:STOP, two steps from 1 on as in 10:13"
            )
        return range(int(start), int(stop))
