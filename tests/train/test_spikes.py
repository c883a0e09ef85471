"""A step far above those before it changes nothing but the count of steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj.config import ModelConfig
from gptj.train import step
from gptj.train.optimizer import OptimizerConfig
from gptj.train.spikes import WINDOW, Recent, is_calm, no_recent, remember
from gptj.train.state import new_state
from gptj.train.step import StepConfig, train_step

DRAW = np.random.default_rng(0)
MODEL = ModelConfig(2, 32, 4, 4, 64, 250, 256, 64)
OPTIMIZER = OptimizerConfig(lr=1e-2, end_lr=1e-3, warmup_steps=0).for_run(20)
TOKENS = DRAW.integers(0, 250, (1, 4, 33), np.int32)


def seen(losses, norms=None) -> Recent:
    recent = no_recent()
    for loss, norm in zip(losses, losses if norms is None else norms, strict=True):
        recent = remember(recent, jnp.float32(loss), jnp.float32(norm), jnp.array(True))
    return recent


def calm(recent, loss, norm, sigma=6.0) -> bool:
    return bool(is_calm(recent, jnp.float32(loss), jnp.float32(norm), sigma))


def test_a_spike_is_known_by_the_window_before_it():
    recent = seen(DRAW.normal(3.0, 0.1, WINDOW), DRAW.normal(1.0, 0.1, WINDOW))
    assert calm(recent, 3.4, 1.4)
    assert calm(recent, 0.0, 0.0)  # a good surprise is none
    assert not calm(recent, 3.8, 1.0)
    assert not calm(recent, 3.0, 1.8)
    assert calm(recent, 3.8, 1.8, sigma=12.0)
    assert calm(recent, 100.0, 100.0, sigma=0.0)


def test_until_the_window_is_full_only_what_is_not_finite_is_one():
    recent = seen(DRAW.normal(3.0, 0.1, WINDOW - 1))
    assert calm(recent, 100.0, 100.0)
    for sigma in (6.0, 0.0):
        assert not calm(recent, np.nan, 1.0, sigma)
        assert not calm(recent, 3.0, np.inf, sigma)


def test_the_window_forgets_what_is_older():
    recent = seen([*[100.0] * 50, *[3.0] * WINDOW])
    assert not calm(recent, 3.3, 3.0)
    assert calm(recent, 3.1, 3.1)  # in a flat window a deviation is a hundredth


def test_a_spike_does_not_enter_the_window_and_is_counted():
    recent = seen([3.0] * 5)
    spiked = remember(recent, jnp.float32(9), jnp.float32(9), jnp.array(False))
    assert int(spiked.streak) == 1
    assert int(spiked.count) == 5
    np.testing.assert_array_equal(spiked.loss, recent.loss)
    assert int(remember(spiked, jnp.float32(3), jnp.float32(3), jnp.array(True)).streak) == 0


@pytest.mark.parametrize("broken", ["not finite", "a spike"])
def test_a_skipped_update_leaves_weights_and_optimizer_as_they_were(broken):
    state = new_state(jax.random.key(0), MODEL, OPTIMIZER)
    if broken == "not finite":
        bias = state.params.output_bias.at[3].set(jnp.nan)
        state = dataclasses.replace(
            state, params=dataclasses.replace(state.params, output_bias=bias)
        )
    else:
        state = dataclasses.replace(state, recent=seen([0.1] * WINDOW))
    before = jax.tree.map(np.array, state)
    after, metrics = train_step(
        state, TOKENS, model=MODEL, optimizer=OPTIMIZER, config=StepConfig()
    )
    assert int(metrics.streak) == 1
    assert int(after.step) == 1
    same = lambda part: jax.tree.map(  # noqa: E731
        np.testing.assert_array_equal, getattr(after, part), getattr(before, part)
    )
    same("params")
    same("opt_state")


class TestBounds:
    """Where a spike begins, in windows whose mean and deviation are known."""

    def halves(self, low, high) -> Recent:
        return seen([low, high] * (WINDOW // 2), [1.0] * WINDOW)

    @pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0])
    def test_so_many_deviations_above_the_mean_are_none(self, sigma):
        recent = self.halves(1.0, 3.0)  # mean 2, deviation 1
        assert calm(recent, 2.0 + sigma, 1.0, sigma)
        assert not calm(recent, 2.001 + sigma, 1.0, sigma)

    def test_a_flat_window_has_a_hundredth_of_its_mean(self):
        recent = self.halves(8.0, 8.0)
        assert calm(recent, 8.0 + 6 * 0.08 - 0.001, 1.0)
        assert not calm(recent, 8.0 + 6 * 0.08 + 0.001, 1.0)
        assert calm(recent, 8.0, 1.059)
        assert not calm(recent, 8.0, 1.061)

    def test_a_new_step_takes_the_place_of_the_oldest(self):
        recent = remember(seen(range(WINDOW)), jnp.float32(500), jnp.float32(7), jnp.array(True))
        assert recent.loss.tolist() == [500, *range(1, WINDOW)]
        assert recent.grad_norm.tolist() == [7, *range(1, WINDOW)]
        assert (int(recent.count), int(recent.streak)) == (WINDOW + 1, 0)

    def test_spikes_in_a_row_add_up_and_a_calm_step_ends_them(self):
        recent, streaks = no_recent(), []
        for good in (False, False, True, False, True, True):
            recent = remember(recent, jnp.float32(1), jnp.float32(1), jnp.array(good))
            streaks.append(int(recent.streak))
        assert streaks == [1, 2, 0, 1, 0, 0]
        assert int(recent.count) == 3


@pytest.mark.parametrize(
    ("kind", "asked", "sigma"),
    [
        ("adamw", None, 6.0), ("gptj-2021", None, 0.0),
        ("adamw", 0.0, 0.0), ("adamw", 3.0, 3.0), ("gptj-2021", 4.0, 4.0),
    ],
)  # fmt: skip
def test_the_original_skips_only_what_is_not_finite_unless_asked(kind, asked, sigma):
    optimizer = OptimizerConfig(kind).for_run(1000)
    assert step._sigma(optimizer, StepConfig(spike_sigma=asked)) == sigma
