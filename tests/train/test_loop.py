"""A run from its first step to its last: what it skips, tells, samples and traces."""

import dataclasses
import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import pytest

import gptj
from gptj import checkpoint
from gptj.errors import UserError
from gptj.train import loop as loops
from gptj.train.metrics import read_metrics
from gptj.train.rows import read_skips, rows_of


@pytest.fixture
def config(tiny_data, tiny_model, tmp_path):
    return gptj.TrainConfig(
        tiny_data,
        tmp_path / "run",
        model=str(tiny_model),
        steps=12,
        batch=4,
        save_every=4,
        eval_every=6,
        optimizer=gptj.OptimizerConfig(lr=0.01, end_lr=1e-3, warmup_steps=2),
    )


def events(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def poison(monkeypatch):
    """Make the losses of the given updates not finite, as bad rows would."""
    step = loops.train_step

    def on_calls(*bad):
        calls = itertools.count()

        def poisoned(state, rows, **options):
            if next(calls) not in bad:
                return step(state, rows, **options)
            good = jax.tree.map(jnp.copy, state.params)  # the state's own are donated
            bias = good.output_bias + jnp.nan
            broken = dataclasses.replace(state.params, output_bias=bias)
            after, metrics = step(dataclasses.replace(state, params=broken), rows, **options)
            return dataclasses.replace(after, params=good), metrics

        monkeypatch.setattr(loops, "train_step", poisoned)

    return on_calls


def test_every_second_of_a_run_is_in_its_rows(config):
    gptj.train(config)
    rows = read_metrics(config.out)
    kinds = ("compile", "data", "step", "evaluate", "checkpoint", "lost")
    for before, after in itertools.pairwise(rows):
        assert all(after[f"seconds_{kind}"] >= before[f"seconds_{kind}"] for kind in kinds)
    assert rows[-1]["seconds_lost"] == 0
    assert rows[-1]["seconds_compile"] > 0
    assert [event["event"] for event in events(config.out)] == ["start", "end"]
    assert events(config.out)[0]["versions"]["jax"]


def test_prompts_are_written_on_from_at_every_evaluation(config):
    gptj.train(dataclasses.replace(config, prompts=("the cat", "a")))
    lines = (config.out / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [(s["step"], s["prompt"]) for s in samples] == [
        *((6, "the cat"), (6, "a")),
        *((12, "the cat"), (12, "a")),
    ]
    assert all(sample["text"] for sample in samples)


def test_a_profile_is_written(config):
    gptj.train(dataclasses.replace(config, profile="3:5"))
    assert list((config.out / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("value", ["3", "3:", "a:b", "3:3", "-1:4"])
def test_a_profile_that_is_no_range_is_refused(config, value):
    with pytest.raises(UserError, match="is not START:STOP"):
        dataclasses.replace(config, profile=value)


def test_a_spike_is_skipped_counted_and_its_rows_named(config, poison, capsys):
    poison(5)
    gptj.train(config)
    rows = read_metrics(config.out)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row.get("skipped_step", 0) for row in rows] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert rows[-1]["skipped"] == 1
    (skip,) = [event for event in events(config.out) if event["event"] == "skip"]
    assert skip["step"] == 6
    assert f"gptj show-rows {config.out} 6" in skip["text"]
    assert "step 6 skipped: loss nan" in capsys.readouterr().out
    assert {row.id for row in rows_of(config.out, 6)} == set(skip["rows"])


@pytest.mark.parametrize("save_every", [2, 5])
def test_after_too_many_it_goes_back_and_passes_over_the_data(config, poison, save_every):
    config = dataclasses.replace(config, save_every=save_every, rewind_after=3)
    poison(6, 7, 8)
    assert gptj.train(config).step == 12
    good = {2: 4, 5: 5}[save_every]  # not 6, from where nothing good came
    (skip,) = read_skips(config.out)
    assert (skip.step, skip.batches) == (good, 10 - good)
    (rewind,) = [event for event in events(config.out) if event["event"] == "rewind"]
    assert f"going back to step {good} and passing over the data since" in rewind["text"]
    rows = read_metrics(config.out)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["seconds_lost"] > 0
    assert not any("skipped_step" in row for row in rows)
    whole = [checkpoint.step_of(path) for path in checkpoint.complete(config.out / "checkpoints")]
    assert whole[-1] == 12


def test_a_run_that_goes_on_may_go_back_before_where_it_began(config, poison, capsys):
    config = dataclasses.replace(config, rewind_after=3, log_every=1)
    gptj.train(config)
    shutil.rmtree(config.out / "checkpoints/00000012")
    poison(0, 1, 2)
    capsys.readouterr()
    assert gptj.train(config).step == 12
    (skip,) = read_skips(config.out)
    assert skip.step == 4  # not 8, where it began
    assert [row["step"] for row in read_metrics(config.out)] == list(range(1, 13))
    shown = re.findall(r"step +(\d+)/12 .* left (.*)", capsys.readouterr().out)
    assert [int(step) for step, _ in shown][-8:] == list(range(5, 13))
    assert not any("-" in left for _, left in shown)


def test_with_nothing_to_go_back_to_it_says_so_and_stops(config, poison):
    poison(1, 2, 3)
    config = dataclasses.replace(config, rewind_after=3)
    with pytest.raises(UserError, match=r"there is no earlier step to go back to: .* lower lr"):
        gptj.train(config)
    assert events(config.out)[-1]["event"] == "stop"
