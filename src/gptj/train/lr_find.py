"""The learning-rate range test: the rate grows with every step until the loss says it is too high.

From "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from gptj.errors import UserError
from gptj.train.config import ModelChoice, TrainConfig
from gptj.train.feed import Feed
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig
from gptj.train.setup import Setup
from gptj.train.step import train_step

SMOOTH = 0.9
"""Weight of what came before in the running mean of the loss."""
TOO_HIGH = 1.5
"""The test ends where the mean is so many times its lowest."""
BELOW = 10
"""What is suggested is so many times below where the mean is lowest, where it is about to rise."""


@dataclasses.dataclass(frozen=True)
class LrFindConfig:
    """Find a learning rate: train for some steps while it grows, and see where the loss falls.

    Nothing is saved of the training. Give the options that the run is to have.
    """

    data: Path
    """Folder written by `gptj prepare` or `gptj mix`."""
    model: ModelChoice = "demo"
    """A preset's name, or a JSON file with a model's shape."""
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="MODEL")] = None
    """A model of any kind to start from."""
    lowest: float = 1e-7
    """Learning rate of the first step."""
    highest: float = 1.0
    """Learning rate of the last, unless the loss rises before."""
    steps: int = 100
    """Steps from the one to the other."""
    seq: int | None = None
    """Tokens in a row. Default: the model's context."""
    batch: int = 16
    """Rows in a step."""
    accumulate: int = 1
    """Parts a step's batch is computed in, one after the other, to save memory."""
    seed: int = 0
    """Decides the first weights and the order of the data."""
    out: Path | None = None
    """A picture of the losses to draw: .png, .svg or .pdf."""
    optimizer: tyro.conf.OmitArgPrefixes[OptimizerConfig] = OptimizerConfig()
    compute: tyro.conf.OmitArgPrefixes[StepConfig] = StepConfig()

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest:
            raise UserError(
                f"lowest={self.lowest} must be above 0 and below highest={self.highest}"
            )
        if self.steps < 10:
            raise UserError(f"steps={self.steps} must be at least 10")
        default, optimizer = OptimizerConfig(), self.optimizer
        for name in ("lr", "end_lr", "warmup_steps", "anneal_steps"):
            if getattr(optimizer, name) != getattr(default, name):
                raise UserError(f"{name} is what is to be found: leave it out")
        if self.compute.spike_sigma is not None:
            raise UserError("spike_sigma skips what is looked for: leave it out")


@dataclasses.dataclass(frozen=True)
class LrFound:
    """What each learning rate did."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Training loss before the update of that rate, in nats."""
    smooth: tuple[float, ...]
    """Its running mean."""

    @property
    def lowest(self) -> float:
        """The rate at which the mean was lowest."""
        return self.rates[min(range(len(self.smooth)), key=self.smooth.__getitem__)]

    @property
    def turned(self) -> bool:
        """Whether the mean fell, and rose again."""
        return self.rates[0] < self.lowest < self.rates[-1]

    @property
    def suggested(self) -> float:
        """What to begin with: a tenth of that, to two digits."""
        return float(f"{self.lowest / BELOW:.1e}")


def lr_find(
    config: LrFindConfig, show: Callable[[float, float], None] = lambda rate, loss: None
) -> LrFound:
    """Train as `config` says, on the mesh that is set or on one device.

    Args:
      show: told each step's rate and loss.

    Raises:
      UserError: what `config` names does not exist or does not fit together.
    """
    optimizer = dataclasses.replace(
        config.optimizer,
        lr=config.highest,
        end_lr=config.highest,
        warmup_steps=0,
        grows_from=config.lowest,
    )
    names = ("data", "model", "from_", "steps", "seq", "batch", "accumulate", "seed")
    given = {name: getattr(config, name) for name in names}
    compute = dataclasses.replace(config.compute, spike_sigma=0.0)  # a spike is what is looked for
    with tempfile.TemporaryDirectory() as folder:
        fresh = config.from_ is not None and compute.lora.rank is None
        out = Path(folder) / "run"
        run = TrainConfig(out=out, optimizer=optimizer, compute=compute, fresh_opt=fresh, **given)
        return _sweep(Setup(run), show)


def _sweep(setup: Setup, show: Callable[[float, float], None]) -> LrFound:
    config, state = setup.config, setup.starting_state()
    rates: list[float] = []
    losses: list[float] = []
    smooth: list[float] = []
    running = 0.0
    with contextlib.closing(Feed(setup.batches, config.batch, config.accumulate, [])) as feed:
        for step in range(config.steps):
            state, metrics = train_step(
                state,
                feed.rows(step),
                base=setup.base,
                model=setup.model,
                optimizer=setup.optimizer,
                config=setup.compute,
            )
            rate, loss = float(metrics.lr), float(metrics.loss)
            if not math.isfinite(loss):
                break
            show(rate, loss)
            running = SMOOTH * running + (1 - SMOOTH) * loss
            rates.append(rate)
            losses.append(loss)
            smooth.append(running / (1 - SMOOTH ** (step + 1)))
            if smooth[-1] > TOO_HIGH * min(smooth):
                break
    if not rates:
        raise UserError("the loss of the first step is not finite: start from another model")
    return LrFound(tuple(rates), tuple(losses), tuple(smooth))
