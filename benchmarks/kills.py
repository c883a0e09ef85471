"""Kill a training run at random moments, go on, and compare its weights with a run left alone.

    .venv/bin/python benchmarks/kills.py                fifty kills, some ten minutes on two cores

`gptj train` saves every second step and is ended by `kill -9`: at any moment of its life, a few
milliseconds after it begins to write a checkpoint, or a few after it has one more. After each
death every complete checkpoint is read and compared with its hashes; the next process must go on
from the newest; and the last one must end with the weights, and have logged the losses, of a run
that nobody killed, bit for bit. Nothing here restarts or repairs anything but `gptj train`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from figures import RESULTS, write

from gptj import checkpoint
from gptj.config import ModelConfig
from gptj.convert.inspect import diff
from gptj.convert.open import open_source
from gptj.data.prepare import PrepareConfig, prepare
from gptj.train.metrics import read_metrics

MODEL = ModelConfig(2, 32, 4, 4, 64, 257, 384, context=64)
MOMENTS = ("any", "writing", "written")
PATIENCE = 300
"""Seconds without a sign of life after which a process is taken to hang."""


@dataclasses.dataclass(frozen=True)
class Life:
    """What one process did between its start and its death."""

    moment: str
    """How its end was chosen: one of `MOMENTS`."""
    delay: float
    """Seconds from that moment to the kill."""
    newest_before: int
    """The newest complete checkpoint it found; 0 for none."""
    resumed: int | None
    """The step it said to go on from; `None` where it died before it could say so."""
    newest: int
    """The newest complete checkpoint it left."""
    cut_save: bool
    """Whether it died in the middle of writing a checkpoint."""
    cut_deletion: bool
    """Whether it died in the middle of deleting one."""


class Arena:
    """A folder with data and a tiny model, and the command that trains on them."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        lines = (f"{n} and {n * n % 97} make {n + n * n % 97}.\n" for n in range(2000))
        (folder / "text.txt").write_text("".join(lines))
        prepare(PrepareConfig((str(folder / "text.txt"),), folder / "tokens", "bytes"))
        MODEL.save(folder / "model.json")

    def words(self, run: Path) -> list[str]:
        flags = {
            **{"data": self.folder / "tokens", "out": run, "model": self.folder / "model.json"},
            **{"steps": self.steps, "batch": 4, "save-every": 2, "eval-every": 25},
            **{"eval-batches": 2, "lr": 3e-3, "end-lr": 1e-3, "warmup-steps": 5},
        }
        return ["train", *(word for k, v in flags.items() for word in (f"--{k}", str(v)))]

    def environment(self) -> dict[str, str]:
        """One device, and compiled programs kept: what is killed is training, not compiling."""
        return {
            **os.environ,
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    @contextlib.contextmanager
    def started(self, run: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """`gptj train` in a process of its own, and the file that holds what it says."""
        said = run.with_name(run.name + ".log")
        command = [sys.executable, "-u", "-m", "gptj.cli", *self.words(run)]
        with (
            said.open("wb") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env=self.environment()) as process,
        ):
            try:
                yield process, said
            finally:
                process.kill()

    def finish(self, run: Path) -> int | None:
        """Train to the end. Returns the step it went on from."""
        with self.started(run) as (process, said):
            code = process.wait()
        if code:
            raise SystemExit(f"gptj train ended with {code}:\n{said.read_text()}")
        return resumed_from(said)

    def kill_once(self, run: Path, draw: random.Random, moment: str, lifetime: float) -> Life:
        """Start the run's command and kill it at a random moment of the kind `moment`."""
        before, nth = newest(run), draw.randint(1, 3)
        delay = draw.uniform(0, lifetime if moment == "any" else 0.03)
        with self.started(run) as (process, said):
            if moment != "any":
                look = unfinished if moment == "writing" else finished
                await_new(look, run, nth, process, said)
            time.sleep(delay)
            if process.poll() is not None:
                raise SystemExit(f"the run ended before its kill:\n{said.read_text()}")
            process.kill()
            process.wait()
        resumed = resumed_from(said)  # by then it has removed what the one before it left
        began = resumed is not None
        return Life(
            *(moment, delay, before, resumed, newest(run)),
            cut_save=began and bool(unfinished(run)),
            cut_deletion=began and bool(half_deleted(run)),
        )


def complete(run: Path) -> list[Path]:
    return checkpoint.complete(run / "checkpoints")


def newest(run: Path) -> int:
    found = complete(run)
    return checkpoint.step_of(found[-1]) if found else 0


def finished(run: Path) -> set[str]:
    return {path.name for path in complete(run)}


def unfinished(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("*.orbax-checkpoint-tmp*")}


def half_deleted(run: Path) -> set[str]:
    named = {path.name for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdigit()}
    return named - finished(run)


def await_new(
    look: Callable[[Path], set[str]],
    run: Path,
    nth: int,
    process: subprocess.Popen[bytes],
    said: Path,
) -> None:
    """Return as soon as `look` has seen `nth` names that were not there when the process began."""
    seen, deadline = look(run), time.monotonic() + PATIENCE
    while nth and process.poll() is None and time.monotonic() < deadline:
        new = look(run) - seen
        seen |= new
        nth -= min(nth, len(new))
        time.sleep(0.0005)
    if time.monotonic() >= deadline:
        raise SystemExit(f"no checkpoint within {PATIENCE} s:\n{said.read_text()}")


def resumed_from(said: Path) -> int | None:
    """The step a process said to start from: 0 for a new run, `None` if it said nothing yet."""
    text = said.read_text()
    found = re.search(r"going on from step\s+(\d+)|nothing to do: the run is at step (\d+)", text)
    return int(found[1] or found[2]) if found else 0 if "new run in" in text else None


def check(run: Path, life: Life) -> int:
    """Hold a life to its promises. Returns how many checkpoints were read and are whole."""
    if life.resumed not in (None, life.newest_before):
        raise SystemExit(f"went on from {life.resumed}, not {life.newest_before}: {life}")
    if life.newest < life.newest_before:
        raise SystemExit(f"checkpoint {life.newest_before} is lost: {life}")
    found = complete(run)
    for path in found:
        checkpoint.verify(path)
    return len(found)


def kill_often(
    arena: Arena,
    run: Path,
    kills: int,
    seed: int,
    lifetime: float = 0.0,
    moments: Sequence[str] = MOMENTS,
) -> list[Life]:
    """Kill the run so many times, each kind of moment in turn, and check it after each.

    Args:
      lifetime: seconds from a process's start in which the moment called any lies.
    """
    draw, lives = random.Random(seed), []
    for number in range(kills):
        life = arena.kill_once(run, draw, moments[number % len(moments)], lifetime)
        whole = check(run, life)
        lives.append(life)
        cut = "a save" if life.cut_save else "a deletion" if life.cut_deletion else "nothing"
        print(
            f"kill {number + 1:2}: {life.moment:8} +{1e3 * life.delay:6.1f} ms, cut {cut:10} "
            f"began at {'?' if life.resumed is None else life.resumed:>4}, newest now "
            f"{life.newest:4}, {whole} checkpoints whole",
            flush=True,
        )
    return lives


def compare(run: Path, whole: Path) -> None:
    """Refuse another ending than that of the run left alone: weights and losses, bit for bit."""
    found = diff(open_source(str(run)), open_source(str(whole)))
    if isinstance(found, str) or not found.same_bits:
        raise SystemExit(f"the weights differ: {found}")
    for name in ("step", "loss", "grad_norm", "lr", "heldout_loss"):
        ours, theirs = ([row.get(name) for row in read_metrics(each)] for each in (run, whole))
        if ours != theirs:
            raise SystemExit(f"the logged {name} differs")


def report(lives: list[Life], args: argparse.Namespace, seconds: float) -> None:
    result = {
        "what": "kill -9 of `gptj train` with a save every 2 steps, at random moments",
        "seed": args.seed,
        "steps": args.steps,
        "kills": len(lives),
        "kills_by_moment": dict(Counter(life.moment for life in lives)),
        "died_in_a_save": sum(life.cut_save for life in lives),
        "died_in_a_deletion": sum(life.cut_deletion for life in lives),
        "died_before_resuming": sum(life.resumed is None for life in lives),
        "resumed_from_the_newest_complete_checkpoint": True,
        "every_complete_checkpoint_verified_after_each_kill": True,
        "final_weights_and_losses_bit_equal_to_the_uninterrupted_run": True,
        "seconds": round(seconds),
        "lives": [{**dataclasses.asdict(life), "delay": round(life.delay, 4)} for life in lives],
    }
    write(args.out, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lifetime", type=float, default=8.0, help="seconds it lives at most")
    parser.add_argument("--out", type=Path, default=RESULTS / "kills.json")
    args = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gptj-kills-") as place:
        arena, run, whole = Arena(Path(place), args.steps), Path(place) / "run", Path(place) / "all"
        arena.finish(whole)
        print(f"a run left alone: {time.perf_counter() - begin:.1f} s", flush=True)
        lives = kill_often(arena, run, args.kills, args.seed, args.lifetime)
        if arena.finish(run) != lives[-1].newest:
            raise SystemExit("the last process did not go on from the newest checkpoint")
        compare(run, whole)
        print(f"{args.kills} kills; the weights and losses are those of the run left alone")
        report(lives, args, time.perf_counter() - begin)


if __name__ == "__main__":
    main()
