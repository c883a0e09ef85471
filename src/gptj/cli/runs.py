"""The verbs about a run: `gptj train`, `lr-find`, `plot`, `report`, `show-rows`, `verify`."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import tyro

from gptj.api import train
from gptj.checkpoint import verified
from gptj.cli.evaluate import harness
from gptj.cli.flags import MeshShape, parse
from gptj.errors import UserError
from gptj.hosts import HostsConfig, joined
from gptj.plot import PlotConfig, check_picture, plot, plot_rates
from gptj.report import ReportConfig, report
from gptj.train.config import TrainConfig
from gptj.train.evaluators import Evaluator, of_sources
from gptj.train.lr_find import LrFindConfig, lr_find
from gptj.train.rows import rows_of


@dataclasses.dataclass(frozen=True)
class AlsoMeasured:
    """What else is measured of the model under way; it lands in the same `metrics.jsonl`."""

    eval_sources: bool = False
    """At evaluations, also the held-out loss of each file or folder that was prepared."""
    eval_tasks: tuple[str, ...] = ()
    """Tasks of EleutherAI's harness, as `gptj eval` has them."""
    eval_tasks_every: int = 1000
    """Steps from one time to the next that the tasks are asked; the last step always asks."""
    eval_tasks_limit: int | None = 200
    """Ask only the first so many questions of each task."""
    eval_tasks_local: Path | None = None
    """Take the questions from this folder's files instead of the network."""

    def __post_init__(self) -> None:
        for name in ("eval_tasks_every", "eval_tasks_limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        for name in ("eval_tasks_every", "eval_tasks_limit", "eval_tasks_local"):
            if not self.eval_tasks and getattr(self, name) != getattr(AlsoMeasured, name):
                raise UserError(f"{name} is of tasks, and none is asked: give --eval-tasks too")

    def evaluators(self, config: TrainConfig) -> list[Evaluator]:
        """These, ready to be called.

        Raises:
          UserError: the harness is not installed, or a task's data are not to be had, or there are
            several hosts.
        """
        found = [of_sources(config)] if self.eval_sources else []
        if self.eval_tasks:
            if jax.process_count() > 1:
                raise UserError(
                    "tasks are asked on one host only: leave out eval_tasks, and let `gptj eval "
                    f"{config.out}` on one host ask the newest checkpoint"
                )
            _, tasks = harness()
            asked = tasks.load(self.eval_tasks, self.eval_tasks_local)
            measure = tasks.under_way(asked, self.eval_tasks_limit)
            found.append(Evaluator(self.eval_tasks_every, measure))
        return found


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a GPT-J on a folder of prepared text; run again to go on where a run stopped.

    Ctrl-C or SIGTERM saves and stops; the same command resumes, and the weights it ends with are
    bit for bit those of a run that was never stopped. `gptj train RECIPE.py [FLAGS]` starts from
    what the file's function `recipe()` returns; a flag wins over the recipe, a recipe over the
    defaults.
    """

    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    also: tyro.conf.OmitArgPrefixes[AlsoMeasured] = AlsoMeasured()
    mesh: MeshShape = MeshShape()
    hosts: HostsConfig = HostsConfig()


def run_train(args: Sequence[str]) -> None:
    """Run `gptj train`."""
    default = None
    if args and args[0].endswith(".py"):
        default, args = TrainCommand(load_recipe(Path(args[0]))), args[1:]
    example = "gptj train --data data/mine --model demo --steps 2000 --out runs/mine"
    command = parse(TrainCommand, "train", args, example, default)
    with joined(command.hosts), command.mesh.use():
        train(command.train, evaluators=command.also.evaluators(command.train))


@dataclasses.dataclass(frozen=True)
class LrFindCommand:
    """Find a learning rate: train for some steps while it grows, and see where the loss falls.

    What is suggested is a tenth of the rate at which the loss, smoothed, is lowest. Give the
    options that the run is to have; nothing of the training is kept.
    """

    find: tyro.conf.OmitArgPrefixes[LrFindConfig]
    mesh: MeshShape = MeshShape()


def run_lr_find(args: Sequence[str]) -> None:
    """Run `gptj lr-find`."""
    example = "gptj lr-find --from models/base --data data/mine --lora-rank 16 --out lr.png"
    command = parse(LrFindCommand, "lr-find", args, example)
    if command.find.out:
        check_picture(command.find.out, "out")
    with command.mesh.use():
        found = lr_find(command.find, lambda rate, loss: print(f"lr {rate:.2e}  loss {loss:.4f}"))
    if found.turned:
        print(f"\nlowest at lr {found.lowest:.1e}; begin with --lr {found.suggested:.1e}")
    else:
        end = "--highest" if found.lowest == found.rates[-1] else "--lowest"
        print(f"\nlowest at lr {found.lowest:.1e}, an end of the range: choose another {end}")
    if command.find.out:
        plot_rates(found.rates, found.losses, found.smooth, found.suggested, command.find.out)
        print(f"wrote {command.find.out}")


def load_recipe(path: Path) -> TrainConfig:
    """What the function `recipe` of the Python file at `path` returns.

    Raises:
      UserError: there is no such file, or no such function in it, or it fails, or it returns
        something else.
    """
    if not path.is_file():
        raise UserError(f"no recipe {path}: give a Python file with a function recipe()")
    spec = importlib.util.spec_from_file_location("gptj_recipe", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gptj_recipe"] = module  # where dataclasses defined in the file look themselves up
    try:
        spec.loader.exec_module(module)
        recipe = getattr(module, "recipe", None)
        config = recipe() if callable(recipe) else None
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the recipe {path} fails, --debug shows where: {reason}") from error
    if not isinstance(config, TrainConfig):
        raise UserError(f"{path} must define a function recipe() that returns a gptj.TrainConfig")
    return config


def run_plot(args: Sequence[str]) -> None:
    """Run `gptj plot`."""
    config = parse(PlotConfig, "plot", args, "gptj plot runs/mine runs/other --out curves.png")
    plot(config)
    print(f"wrote {config.out}")


def run_report(args: Sequence[str]) -> None:
    """Run `gptj report`."""
    config = parse(ReportConfig, "report", args, "gptj report runs/mine")
    print(f"wrote {report(config.run, config.out)}")


@dataclasses.dataclass(frozen=True)
class ShowRowsCommand:
    """Print the text that one step of a run trained on, row by row, and where each row came from.

    The rows a step trained on follow from the run's seed and data alone; nothing was stored.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a `gptj train` run."""
    step: tyro.conf.Positional[int]
    """The step, as the metrics and the log count: the first is 1."""
    data: Path | None = None
    """Folder of the run's prepared data. Default: where it was when the run trained."""
    row: int | None = None
    """Print this row of the step alone, by its id."""


def run_show_rows(args: Sequence[str]) -> None:
    """Run `gptj show-rows`."""
    command = parse(ShowRowsCommand, "show-rows", args, "gptj show-rows runs/mine 1200")
    for row in rows_of(command.run, command.step, command.data, command.row):
        print(row)


@dataclasses.dataclass(frozen=True)
class VerifyCommand:
    """Read every file of a run's checkpoints and compare it with the hash that was written.

    Exits with 0 where all are whole, with 2 where one is not.
    """

    places: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs, or of single checkpoints, or their URLs."""
    quiet: bool = False
    """Print only what is damaged."""


def run_verify(args: Sequence[str]) -> int:
    """Run `gptj verify`."""
    command = parse(VerifyCommand, "verify", args, "gptj verify runs/mine")
    if not command.places:
        raise UserError("no checkpoint to verify: give the folder of a run, or of a checkpoint")
    damaged = 0
    for found in (found for place in command.places for found in verified(place)):
        damaged += found.problem is not None
        if found.problem or not command.quiet:
            size = f"{found.bytes / 1e6:,.1f} MB"
            print(f"{found.path}  {size:>12}  {found.problem or 'whole'}", flush=True)
    return 2 if damaged else 0
