"""One step: accumulation, clipping, decay and schedule, and that training learns."""

import dataclasses
import math
from typing import get_args

import jax
import numpy as np
import optax
import pytest

from gptj import model
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.sharding import make_mesh, place
from gptj.train.optimizer import Kind, OptimizerConfig, make_optimizer, schedule
from gptj.train.state import abstract_state, new_state
from gptj.train.step import StepConfig, mean_gradient, train_step

MODEL = ModelConfig(2, 32, 4, 4, 64, 250, 256, 64)
TOKENS = np.random.default_rng(0).integers(0, 250, (8, 33), np.int32)
FLOAT32 = StepConfig()
UNTRAINED = math.log(250) + 0.88**2 / 2  # the initial logits have standard deviation 0.88
OPTIMIZER = OptimizerConfig(lr=1e-2, end_lr=1e-3, warmup_steps=2).for_run(20)


def relative(ours, theirs):
    return max(
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


def run(steps, rows=TOKENS[None], config=FLOAT32, optimizer=OPTIMIZER):
    state = new_state(jax.random.key(0), MODEL, optimizer)
    measured = []
    for _ in range(steps):
        tokens = place(rows, None, "batch", None)
        state, metrics = train_step(state, tokens, model=MODEL, optimizer=optimizer, config=config)
        measured.append(metrics)
    return state, measured


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulating_gives_the_gradient_of_the_whole_batch(accumulate):
    params = model.init(jax.random.key(0), MODEL)
    gradient = jax.jit(mean_gradient, static_argnums=(2, 3, 4))
    means, whole, losses = gradient(params, TOKENS[None], MODEL, OPTIMIZER, StepConfig())
    parts = TOKENS.reshape(accumulate, -1, 33)
    accumulated_means, accumulated, row_losses = gradient(
        params, parts, MODEL, OPTIMIZER, StepConfig()
    )
    np.testing.assert_allclose(row_losses.reshape(-1), losses[0], rtol=1e-5)
    for name in ("loss", "last_loss", "z_loss"):
        ours, theirs = getattr(accumulated_means, name), getattr(means, name)
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6, abs=1e-6)
    assert relative(accumulated, whole) < 1e-5


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        *((kind, (2, 2, 2)) for kind in ("adamw", "muon")),
        pytest.param("adamw", (1, 8, 1), marks=pytest.mark.slow),
        *(
            pytest.param(kind, (2, 2, 2), marks=pytest.mark.slow)
            for kind in ("adafactor", "gptj-2021", "lion")
        ),
    ],
    ids=str,
)
def test_five_steps_on_eight_devices_equal_one(kind, shape):
    optimizer = OptimizerConfig(kind, lr=1e-2, end_lr=1e-3, warmup_steps=2).for_run(20)
    rows = TOKENS.reshape(2, 4, -1)
    expected, measured = run(5, rows, optimizer=optimizer)
    with jax.set_mesh(make_mesh(*shape)):
        if shape[0] * shape[1] == 8:
            rows = np.tile(rows, (1, 2, 1))  # one row for each device, and the same mean
        state, ours = run(5, rows, optimizer=optimizer)
        shapes = abstract_state(MODEL, optimizer)
        same = jax.tree.map(
            lambda x, like: x.sharding.is_equivalent_to(like.sharding, x.ndim), state, shapes
        )
    assert jax.tree.all(same)
    for a, b in zip(ours, measured, strict=True):
        assert float(a.loss) == pytest.approx(float(b.loss), rel=1e-5)
        assert float(a.grad_norm) == pytest.approx(float(b.grad_norm), rel=1e-4)
    # Adam divides by the gradient's own size, which blows up its rounding where it is near zero.
    assert relative(state.params, expected.params) < 1e-2


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "adamw"])
def test_every_optimizer_learns_its_rows_by_heart(kind):
    lr = 5e-3 if kind == "lion" else 1e-2
    optimizer = OptimizerConfig(kind, lr=lr, end_lr=lr / 10, warmup_steps=2).for_run(60)
    _, measured = run(60, TOKENS[None, :2], optimizer=optimizer)
    assert float(measured[-1].loss) < 0.5


@pytest.mark.parametrize("kind", ["adamw", "muon", pytest.param("lion", marks=pytest.mark.slow)])
def test_bfloat16_moments_halve_the_optimizers_state_and_learn_as_well(kind):
    lr = 5e-3 if kind == "lion" else 1e-2
    wide = OptimizerConfig(kind, lr=lr, end_lr=lr / 10, warmup_steps=2).for_run(60)
    narrow = dataclasses.replace(wide, moments="bfloat16")
    size = lambda config: sum(  # noqa: E731
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract_state(MODEL, config).opt_state)
        if leaf.size > 100
    )
    # Muon's Adam keeps its second moment, of the embedding and the output, in float32.
    assert size(narrow) <= (0.75 if kind == "muon" else 0.5) * size(wide)
    _, measured = run(60, TOKENS[None, :2], optimizer=narrow)
    assert float(measured[-1].loss) < 0.5


@pytest.mark.parametrize("config", [StepConfig(z_loss=0.0), StepConfig(dtype="bfloat16")], ids=str)
def test_it_learns_its_rows_by_heart(config):
    _, measured = run(60, TOKENS[None, :2], config, dataclasses.replace(OPTIMIZER, anneal_steps=60))
    assert float(measured[0].loss) == pytest.approx(UNTRAINED, rel=0.05)
    assert float(measured[-1].loss) < 0.5


def test_the_first_update_has_learning_rate_zero():
    start = model.init(jax.random.key(0), MODEL)
    state, (metrics,) = run(1)
    assert float(metrics.lr) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, start)
    assert int(state.step) == 1


def test_the_schedule_is_linear_then_cosine_then_flat():
    config = OptimizerConfig(lr=2.0, end_lr=0.5, warmup_steps=10, anneal_steps=20)
    rate = [float(schedule(config)(step)) for step in range(41)]
    assert rate[0] == 0
    assert rate[5] == pytest.approx(1.0)
    assert rate[10] == pytest.approx(2.0)
    assert rate[20] == pytest.approx(1.25)
    assert rate[30:] == pytest.approx([0.5] * 11)
    original = [
        min(step, 10) / 10 * 2.0
        - 1.5 * (1 - math.cos(math.pi * min(max(step - 10, 0), 20) / 20)) / 2
        for step in range(41)
    ]
    assert rate == pytest.approx(original, abs=1e-6)


def test_one_update_is_adam_on_the_clipped_gradient_plus_decay_of_matrices():
    config = OptimizerConfig(
        lr=0.1, end_lr=0.1, warmup_steps=0, weight_decay=0.5, clip=0.01
    ).for_run(9)
    params = model.init(jax.random.key(0), MODEL)
    gradient = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), params)
    optimizer = make_optimizer(config, MODEL)
    state = jax.jit(optimizer.init)(params)
    updates, _ = jax.jit(optimizer.update)(gradient, state, params)
    norm = optax.tree.norm(gradient)
    clipped = jax.tree.map(lambda g: np.asarray(g) * 0.01 / norm, gradient)

    def check(weight, update, g, p):
        adam = g / (np.abs(g) + 1e-8)  # both moments corrected at the first step
        decay = 0.5 * np.asarray(p) if weight.is_matrix else 0
        np.testing.assert_allclose(update, -0.1 * (adam + decay), atol=2e-4)

    jax.tree.map(check, model.weights(MODEL), updates, clipped, params)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"end_lr": 1.0}, "end_lr=1.0 between 0 and lr"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"anneal_steps": 0}, "anneal_steps=0"),
        ({"clip": 0.0}, "clip=0.0 must be above 0"),
        ({"eps": -1.0}, "eps=-1.0 must be above 0"),
        ({"b2": 1.5}, "b2=1.5 must be at least 0 and below 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be at least 0"),
        ({"kind": "adafactor", "b2": 0.9}, "optimizer=adafactor has no b1 and b2"),
        ({"kind": "adafactor", "moments": "bfloat16"}, "optimizer=adafactor has no moments"),
        ({"moments": "bfloat16", "b2": 0.999}, "bfloat16 cannot follow b2=0.999"),
        ({"original_shards": 8}, "original_shards=8 is for optimizer=gptj-2021"),
        ({"kind": "gptj-2021", "original_shards": 0}, "original_shards=0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        OptimizerConfig(**changes)
