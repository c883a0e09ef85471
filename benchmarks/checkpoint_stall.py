"""How much training time one save a minute costs, against the same training without, A B A B.

    .venv/bin/python benchmarks/checkpoint_stall.py            some 13 minutes; use a quiet machine

It runs what `gptj train` runs, the step and the saver, with a model of 29 million parameters and
AdamW's moments: 350 MB a checkpoint. A save stalls training in two ways: the call itself, which
copies the state, and the writing and hashing in the background, which take processors from the
steps. What is reported is all of it: the steps done in a stretch of time with saves, over those
done in one without. The call's own seconds stand beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from figures import RESULTS, write

from gptj.checkpoint import KeepPolicy, Saver
from gptj.config import ModelConfig
from gptj.model import count_parameters
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig
from gptj.train.state import TrainState, new_state
from gptj.train.step import train_step

MODEL = ModelConfig(6, 512, 8, 64, 2048, 8192, 8192, context=256)
BATCH, SEQUENCE = 4, 128


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Some minutes of training, with or without saves."""

    saves: bool
    steps: int
    seconds: float
    calls: list[float]
    """Seconds each save's call took."""

    @property
    def rate(self) -> float:
        return self.steps / self.seconds


class Training:
    """A state and the program that steps it."""

    def __init__(self) -> None:
        self.optimizer = OptimizerConfig(warmup_steps=1).for_run(1000)
        self.state: TrainState = new_state(jax.random.key(0), MODEL, self.optimizer)
        self.draw, self.count = np.random.default_rng(0), 0

    def step(self) -> None:
        rows = self.draw.integers(0, MODEL.vocab_size, (1, BATCH, SEQUENCE + 1), np.int32)
        self.state, metrics = train_step(
            self.state, rows, model=MODEL, optimizer=self.optimizer, config=StepConfig()
        )
        float(metrics.loss)
        self.count += 1

    def stretch(self, saver: Saver | None, seconds: float, every: float) -> Stretch:
        """Train for so many seconds, saving in the middle of each `every` of them."""
        calls: list[float] = []
        first, begin = self.count, time.perf_counter()
        due = begin + every / 2
        while (now := time.perf_counter()) - begin < seconds:
            if saver and now >= due:
                saver.save(self.count, self.state)
                calls.append(time.perf_counter() - now)
                due += every
            self.step()
        return Stretch(saver is not None, self.count - first, now - begin, calls)


def measure(folder: Path, seconds: float, every: float, rounds: int) -> tuple[list[Stretch], int]:
    """Stretches without and with saves in turn, and the size of a checkpoint in bytes."""
    training, done = Training(), []
    with Saver(folder, KeepPolicy(1)) as saver:
        for _ in range(3):  # compiles, and touches the memory that saves take
            training.step()
            saver.save(training.count, training.state)
        saver.wait()
        for saves in [False, True] * rounds:
            done.append(training.stretch(saver if saves else None, seconds, every))
            saver.wait()  # not in the time of either
            print(
                f"{'with' if saves else 'without':8} {done[-1].rate:.3f} steps/s "
                f"{[f'{call:.2f} s' for call in done[-1].calls]}",
                flush=True,
            )
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return done, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180, help="of each stretch")
    parser.add_argument("--every", type=float, default=60, help="seconds from save to save")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of stretches")
    parser.add_argument("--out", type=Path, default=RESULTS / "checkpoint_stall.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gptj-stall-", dir=".") as place:
        done, size = measure(Path(place), args.seconds, args.every, args.rounds)
    pairs = list(zip(done[::2], done[1::2], strict=True))
    lost = [1 - saving.rate / plain.rate for plain, saving in pairs]
    calls = [call for stretch in done for call in stretch.calls]
    result = {
        "what": "training time lost to asynchronous checkpoints, fewer steps in the same time",
        "parameters": count_parameters(MODEL),
        "checkpoint_bytes": size,
        "seconds_from_save_to_save": args.every,
        "lost": round(statistics.median(lost), 4),
        "lost_in_each_pair": [round(each, 4) for each in lost],
        "bar": 0.05,
        "call_seconds_median": round(statistics.median(calls), 3) if calls else None,
        "call_seconds_over_time": round(
            sum(calls) / sum(stretch.seconds for stretch in done if stretch.saves), 5
        ),
        "stretches": [dataclasses.asdict(stretch) for stretch in done],
    }
    print(f"lost {100 * result['lost']:.2f}% of the steps")
    write(args.out, result)


if __name__ == "__main__":
    main()
