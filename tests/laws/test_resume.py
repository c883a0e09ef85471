"""The law: a run that was interrupted, however rudely, ends with the weights it would have had."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gptj import checkpoint
from gptj.config import ModelConfig
from gptj.data.prepare import PrepareConfig, prepare
from gptj.errors import UserError
from gptj.sharding import make_mesh
from gptj.train.config import TrainConfig
from gptj.train.loop import train
from gptj.train.metrics import read_metrics
from gptj.train.optimizer import OptimizerConfig
from gptj.train.rows import Skip, read_skips
from gptj.train.step import StepConfig

MODEL = ModelConfig(2, 32, 4, 4, 64, 257, 384, 32)
STEPS = 240


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} and {n * n % 97} make {n + n * n % 97}.\n" for n in range(3000)))
    prepare(PrepareConfig(inputs=(text,), out=folder / "tokens", tokenizer="bytes"))
    MODEL.save(folder / "model.json")
    return folder


def config(data, out, **changes):
    options = {
        "data": data / "tokens",
        "out": out,
        "model": str(data / "model.json"),
        "steps": STEPS,
        "batch": 4,
        "save_every": 10,
        "eval_every": 50,
        "eval_batches": 2,
        "optimizer": OptimizerConfig(lr=3e-3, end_lr=1e-3, warmup_steps=5),
    }
    return TrainConfig(**(options | changes))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return run, train(config(data, run)).params


def assert_same_bits(ours, theirs):
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), ours, theirs
    )


def start(data, run):
    """`gptj train` with the same configuration, in a process of its own."""
    flags = ["--data", data / "tokens", "--out", run, "--model", data / "model.json"]
    flags += ["--steps", STEPS, "--batch", 4, "--save-every", 10, "--eval-every", 50]
    flags += ["--eval-batches", 2, "--lr", 3e-3, "--end-lr", 1e-3, "--warmup-steps", 5]
    command = [sys.executable, "-m", "gptj.cli", "train", *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def newest(run):
    saved = checkpoint.complete(run / "checkpoints")
    return checkpoint.step_of(saved[-1]) if saved else 0


@pytest.mark.slow  # test_kills.py kills as well
def test_killed_twice(data, uninterrupted, tmp_path):
    run = tmp_path / "killed"
    for wanted in (20, 90):  # the step that must be saved before the process dies
        process = start(data, run)
        deadline = time.monotonic() + 120
        while newest(run) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, output
        assert wanted <= newest(run) < STEPS, output
    process = start(data, run)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "going on from step" in output
    final = checkpoint.complete(run / "checkpoints")[-1]
    like = jax.eval_shape(lambda: uninterrupted[1])
    assert_same_bits(checkpoint.restore(final, {"params": like})["params"], uninterrupted[1])
    rows, expected = read_metrics(run), read_metrics(uninterrupted[0])
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm", "lr", "heldout_loss"):
        assert [row.get(name) for row in rows] == [row.get(name) for row in expected], name


class Interruption(Exception):
    """Stands for anything that ends a process between two steps."""


@pytest.mark.parametrize(
    "compute",
    [
        pytest.param(StepConfig(), marks=pytest.mark.slow),
        StepConfig(dtype="bfloat16", remat="block"),
    ],
    ids=str,
)
def test_interrupted_in_an_evaluation_while_a_save_is_under_way(data, tmp_path, compute):
    changes = {
        "steps": 9,
        "save_every": 1,
        "keep": 9,
        "eval_every": 4,
        "compute": compute,
        "accumulate": 2,
    }

    def interrupt(*args, **kwargs):
        raise Interruption

    whole = train(config(data, tmp_path / "whole", **changes))
    with pytest.raises(Interruption):
        train(config(data, tmp_path / "cut", **changes), evaluate=interrupt)
    assert newest(tmp_path / "cut") == 3
    resumed = train(config(data, tmp_path / "cut", **changes))
    assert_same_bits(resumed.params, whole.params)
    # Steps go on while a checkpoint is written: each must hold its own step's weights, unharmed.
    like = {"params": jax.eval_shape(lambda: whole.params)}
    for a, b in zip(
        *(checkpoint.complete(tmp_path / name / "checkpoints") for name in ("cut", "whole")),
        strict=True,
    ):
        assert a.name == b.name
        assert_same_bits(checkpoint.restore(a, like), checkpoint.restore(b, like))


def test_a_run_goes_on_on_another_mesh(data, tmp_path):
    changes = {"steps": 6, "save_every": 3, "keep": 9, "batch": 8}
    whole = train(config(data, tmp_path / "whole", **changes))
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        train(config(data, tmp_path / "moved", **changes))
    final = checkpoint.complete(tmp_path / "moved" / "checkpoints")[-1]
    shutil.rmtree(final)  # as if it had stopped at step 3
    with jax.set_mesh(make_mesh(tensor=4)):
        moved = train(config(data, tmp_path / "moved", **changes))
    assert moved.step == 6
    assert moved.loss == pytest.approx(whole.loss, rel=1e-5)


def test_a_run_that_diverges_stops_and_keeps_its_good_checkpoints(data, tmp_path):
    """Once it goes back to its last good checkpoint; when that is no better, it ends there."""
    wild, run = OptimizerConfig(lr=1e30, end_lr=1e30, warmup_steps=2), tmp_path / "wild"
    changes = {"steps": 20, "save_every": 1, "optimizer": wild, "rewind_after": 3}
    with pytest.raises(UserError, match=r"the last 3 updates up to step 5 .* step 1, .* lower lr"):
        train(config(data, run, **changes))
    assert checkpoint.step_of(checkpoint.complete(run / "checkpoints")[0]) == 1
    assert read_skips(run) == [Skip(step=1, batches=4)]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == [
        *("start", "skip", "skip", "skip", "rewind"),
        *("skip", "skip", "skip", "stop"),
    ]


def test_a_checkpoint_names_every_file_it_needs(uninterrupted):
    final = checkpoint.complete(uninterrupted[0] / "checkpoints")[-1]
    listed = json.loads((final / checkpoint.MANIFEST).read_text())["files"]
    there = {str(file.relative_to(final)) for file in final.rglob("*") if file.is_file()}
    assert set(listed) == there - checkpoint.WRITTEN_AFTER - {checkpoint.MANIFEST}
