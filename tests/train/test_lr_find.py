"""The learning-rate range test."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gptj.adapters import LoRAConfig
from gptj.errors import UserError
from gptj.train import lr_find as finding
from gptj.train.lr_find import LrFindConfig, LrFound, lr_find
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def found(tiny_data, tiny_model) -> LrFound:
    usual = {"steps": 60, "seq": 32, "batch": 4, "lowest": 1e-5, "highest": 10.0}
    return lr_find(LrFindConfig(tiny_data, str(tiny_model), **usual))


def test_the_rate_grows_by_one_factor_until_the_loss_rises(found):
    factors = np.divide(found.rates[1:], found.rates[:-1])
    np.testing.assert_allclose(factors, 1e6 ** (1 / 59), rtol=1e-4)
    assert found.rates[0] == pytest.approx(1e-5)
    assert len(found.rates) < 60
    assert found.smooth[-1] > 1.5 * min(found.smooth)


def test_what_is_suggested_learns(found):
    assert found.suggested == pytest.approx(found.lowest / 10, rel=0.05)
    assert 1e-4 < found.suggested < 0.1
    assert min(found.smooth) < found.losses[0] - 0.3
    assert found.turned


def test_it_goes_to_the_end_where_nothing_rises(tiny_data, tiny_model):
    config = LrFindConfig(
        tiny_data, str(tiny_model), lowest=1e-9, highest=1e-8, steps=10, seq=16, batch=2
    )
    found = lr_find(config)
    assert len(found.rates) == 10
    assert found.rates[-1] == pytest.approx(1e-8)
    assert max(found.losses) - min(found.losses) < 0.5
    assert not LrFound(found.rates, found.losses, tuple(range(10, 0, -1))).turned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 1.0}, r"lowest=1\.0 must be above 0 and below highest=1\.0"),
        ({"steps": 5}, "steps=5 must be at least 10"),
        ({"optimizer": OptimizerConfig(lr=1e-3)}, "lr is what is to be found: leave it out"),
        ({"compute": StepConfig(spike_sigma=3.0)}, "spike_sigma skips what is looked for"),
    ],
)
def test_what_makes_no_test_is_refused(tiny_data, options, message):
    with pytest.raises(UserError, match=message):
        lr_find(LrFindConfig(tiny_data, **options))


RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)


def swept(monkeypatch, losses, steps=10):
    """What is found of losses that are known, and what was shown."""
    left = iter(zip(RATES, losses, strict=False))

    def train_step(state, rows, **_):
        rate, loss = next(left)
        return state + rows, SimpleNamespace(lr=rate, loss=loss)

    feed = lambda *_: SimpleNamespace(rows=lambda step: 1, close=lambda: None)  # noqa: E731
    monkeypatch.setattr(finding, "Feed", feed)
    monkeypatch.setattr(finding, "train_step", train_step)
    config = SimpleNamespace(steps=steps, batch=4, accumulate=1)
    parts = dict.fromkeys(("batches", "base", "model", "optimizer", "compute"))
    setup, shown = SimpleNamespace(config=config, starting_state=lambda: 0, **parts), []
    return finding._sweep(setup, lambda rate, loss: shown.append((rate, loss))), shown


def test_the_mean_is_of_the_steps_so_far(monkeypatch):
    found, shown = swept(monkeypatch, [4.0, 2.0, 2.0], steps=3)
    # Weights 1; then 0.9 and 1; then 0.81, 0.9 and 1.
    assert found.smooth == pytest.approx((4, (3.6 + 2) / 1.9, (3.24 + 1.8 + 2) / 2.71))
    assert (found.rates, found.losses) == (RATES[:3], (4, 2, 2))
    assert shown == [*zip(RATES, (4, 2, 2), strict=False)]


@pytest.mark.parametrize(
    ("losses", "last"),
    [
        ([1.0, 1.9, 9.0, 1.0], 3),  # the mean after two is 1.47
        ([1.0, 2.0, 9.0, 1.0], 2),  # 1.526, which is the last that a picture shows
        ([1.0, 1.0, math.nan, 1.0], 2),
        ([1.0, math.inf, 1.0], 1),
    ],
)
def test_it_ends_where_the_loss_is_far_above_its_lowest_or_no_number(monkeypatch, losses, last):
    found, shown = swept(monkeypatch, losses)
    assert len(found.rates) == len(found.losses) == len(found.smooth) == len(shown) == last


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_first_loss_that_is_no_number(monkeypatch, loss):
    with pytest.raises(UserError, match="the first step is not finite: start from another model"):
        swept(monkeypatch, [loss])


@pytest.mark.parametrize(
    ("smooth", "lowest", "suggested", "turned"),
    [
        ((3, 2, 1, 2), 1e-3, 1e-4, True),
        ((3, 1, 1, 2), 3e-4, 3e-5, True),  # the first of equals
        ((1, 2, 3, 4), 1e-4, 1e-5, False),
        ((4, 3, 2, 1), 3e-3, 3e-4, False),
    ],
)
def test_what_is_suggested_is_a_tenth_of_the_lowest(smooth, lowest, suggested, turned):
    found = LrFound(RATES[:4], smooth, smooth)
    assert (found.lowest, found.suggested, found.turned) == (lowest, suggested, turned)


def test_the_suggestion_has_two_digits():
    assert LrFound((1.2345e-3,), (1.0,), (1.0,)).suggested == 1.2e-4


@pytest.mark.parametrize(
    ("from_", "rank", "fresh"), [(None, None, False), ("base", None, True), ("base", 4, False)]
)
def test_it_trains_as_the_run_would_but_for_the_rate_and_spikes(monkeypatch, from_, rank, fresh):
    monkeypatch.setattr(finding, "Setup", lambda run: run)
    monkeypatch.setattr(finding, "_sweep", lambda run, show: run)
    optimizer = OptimizerConfig("lion", weight_decay=0.3)
    options = {"steps": 20, "seq": 8, "batch": 6, "accumulate": 2, "seed": 5, "from_": from_}
    compute = StepConfig(dtype="bfloat16", lora=LoRAConfig(rank))
    asked = LrFindConfig(
        Path("data"), lowest=1e-6, highest=0.5, optimizer=optimizer, compute=compute, **options
    )
    run = lr_find(asked)
    assert {name: getattr(run, name) for name in options} == options
    assert (run.data, run.model, run.fresh_opt) == (Path("data"), "demo", fresh)
    changed = {"lr": 0.5, "end_lr": 0.5, "warmup_steps": 0, "grows_from": 1e-6}
    assert run.optimizer == dataclasses.replace(optimizer, **changed)
    assert run.compute == dataclasses.replace(compute, spike_sigma=0.0)
    assert not run.out.parent.exists()  # nothing is kept


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lowest": 0.0}, r"lowest=0\.0 must be above 0 and below highest=1\.0"),
        ({"highest": 1e-7}, r"lowest=1e-07 must be above 0 and below highest=1e-07"),
        ({"steps": 9}, "steps=9 must be at least 10"),
        *(
            ({"optimizer": OptimizerConfig(**{name: value})}, f"^{name} is what is to be found:")
            for name, value in (("end_lr", 1e-5), ("warmup_steps", 0), ("anneal_steps", 5))
        ),
        ({"compute": StepConfig(spike_sigma=0.0)}, "spike_sigma skips what is looked for: leave"),
    ],
)
def test_each_option_that_makes_no_test(options, said):
    with pytest.raises(UserError, match=said):
        LrFindConfig(Path("data"), **options)
    assert LrFindConfig(Path("data"), steps=10).steps == 10
