"""Preferences: loss and gradient are those of the definition, the reference is the model before."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import adapters, model
from gptj.adapters import LoRAConfig, joined
from gptj.config import ModelConfig
from gptj.sharding import make_mesh, place
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig
from gptj.train.step import mean_gradient

CONFIG = ModelConfig(2, 64, 4, 16, 128, 100, 128, 64)
EOS, LENGTH, PAIRS = 7, 20, 8
LORA = LoRAConfig(4, alpha=8.0)
COMPUTE = StepConfig(end_of_text=EOS, examples=True, pairs=True, dpo_beta=0.3, lora=LORA)
OPTIMIZER = OptimizerConfig().for_run(200)
DRAW = np.random.default_rng(0)


def pairs() -> np.ndarray:
    """Two answers of different lengths to one prompt, the rows side by side."""
    found = np.full((PAIRS, 2, LENGTH + 1), ~EOS, np.int32)
    for both in found:
        prompt = DRAW.integers(8, 100, DRAW.integers(1, 6))
        for row in both:
            answer = np.append(DRAW.integers(8, 100, DRAW.integers(1, 10)), EOS)
            row[: len(prompt) + len(answer)] = np.concatenate([~prompt, answer])
    return found.reshape(PAIRS, -1)


ROWS = pairs()


def drawn():
    """A model, and adapters that do something."""
    base = model.init(jax.random.key(0), CONFIG)
    leaves, tree = jax.tree.flatten(adapters.table(CONFIG, LORA))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    wide = (dataclasses.replace(weight, init=0.1) for weight in leaves)
    return base, jax.tree.unflatten(tree, list(map(model.draw, keys, wide)))


def by_definition(beside, base):
    """Equation 7 of arXiv:2305.18290, by logits."""
    rows = jnp.asarray(ROWS.reshape(2 * PAIRS, -1))
    ids, learnt = jnp.where(rows < 0, ~rows, rows), rows[:, 1:] >= 0

    def likelihood(params):
        logits = model.forward(params, ids[:, :-1], CONFIG)[..., : CONFIG.vocab_size]
        log = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], 2)[..., 0]
        return jnp.sum(learnt * log, axis=1)

    gain = likelihood(joined(base, beside, CONFIG, LORA)) - likelihood(base)
    margin = 0.3 * (gain[::2] - gain[1::2])
    return -jnp.mean(jax.nn.log_sigmoid(margin)), margin


@functools.cache
def expected():
    base, beside = drawn()
    return jax.jit(jax.value_and_grad(by_definition, has_aux=True))(beside, base)


@pytest.mark.parametrize(("mesh", "accumulate"), [(None, 1), (None, 2), ((2, 1, 2), 2)], ids=str)
def test_loss_and_gradient_are_those_of_the_definition(mesh, accumulate):
    (loss, margin), direct = expected()
    rows = ROWS.reshape(accumulate, PAIRS // accumulate, -1)
    program = jax.jit(mean_gradient, static_argnums=(2, 3, 4))
    if mesh is None:
        base, beside = drawn()
        means, gradient, losses = program(
            beside, jnp.asarray(rows), CONFIG, OPTIMIZER, COMPUTE, base
        )
    else:
        with jax.set_mesh(make_mesh(*mesh)):
            base, beside = drawn()
            placed = place(rows, None, "batch", None)
            means, gradient, losses = program(beside, placed, CONFIG, OPTIMIZER, COMPUTE, base)
    assert float(means.loss) == pytest.approx(float(loss), rel=1e-5)
    assert float(means.margin) == pytest.approx(float(jnp.mean(margin)), rel=1e-3)
    assert float(means.accuracy) == pytest.approx(float(jnp.mean(margin > 0)))
    np.testing.assert_allclose(losses.reshape(-1), -jax.nn.log_sigmoid(margin), rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(direct), strict=True):
        scale = np.linalg.norm(theirs)
        assert np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) <= 1e-4 * scale


def test_adapters_that_change_nothing_make_no_difference_between_answers():
    base, _ = drawn()
    beside = adapters.init(jax.random.key(1), CONFIG, LORA)
    program = jax.jit(mean_gradient, static_argnums=(2, 3, 4))
    means, gradient, _ = program(beside, jnp.asarray(ROWS)[None], CONFIG, OPTIMIZER, COMPUTE, base)
    assert float(means.margin) == pytest.approx(0, abs=1e-4)
    assert float(means.loss) == pytest.approx(np.log(2), rel=1e-4)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
