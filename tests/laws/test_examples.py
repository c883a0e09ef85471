"""Examples that share a row are learnt as if each stood alone, and of each only the answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import model
from gptj.config import ModelConfig
from gptj.data.packing import BEGINS
from gptj.sharding import make_mesh, place
from gptj.train.optimizer import OptimizerConfig
from gptj.train.step import StepConfig, mean_gradient

CONFIG = ModelConfig(2, 64, 4, 16, 128, 100, 128, 64)
EOS, LENGTH = 7, 48
COMPUTE = StepConfig(end_of_text=EOS, examples=True, z_loss=1e-2)
OPTIMIZER = OptimizerConfig().for_run(200)
DRAW = np.random.default_rng(0)


def example() -> tuple[np.ndarray, np.ndarray]:
    """A prompt, and what is learnt after it, its end with it."""
    prompt, answer = (DRAW.integers(8, 100, size) for size in DRAW.integers(1, 9, 2))
    return prompt, np.append(answer, EOS)


EXAMPLES = [example() for _ in range(24)]


def packed() -> np.ndarray:
    """All of them in eight rows, three in each, and padding."""
    rows = np.full((8, LENGTH + 1), ~(EOS | BEGINS), np.int32)
    for number, row in enumerate(rows):
        at = 0
        for prompt, answer in EXAMPLES[3 * number : 3 * number + 3]:
            own = np.concatenate([~prompt, answer])
            own[0] ^= BEGINS
            row[at : at + len(own)] = own
            at += len(own)
    return rows


def alone(params) -> jax.Array:
    """The loss by its definition, each example in a row of its own."""
    rows = np.full((len(EXAMPLES), LENGTH + 1), EOS)
    learnt = np.zeros((len(EXAMPLES), LENGTH))
    for row, mask, (prompt, answer) in zip(rows, learnt, EXAMPLES, strict=True):
        size = len(prompt) + len(answer)
        row[:size] = np.concatenate([prompt, answer])
        mask[len(prompt) - 1 : size - 1] = 1
    logits = model.forward(params, jnp.asarray(rows[:, :-1]), CONFIG)[..., : CONFIG.vocab_size]
    normaliser = jax.nn.logsumexp(logits, -1)
    nll = normaliser - jnp.take_along_axis(logits, rows[:, 1:, None], 2)[..., 0]
    return jnp.sum(learnt * (nll + COMPUTE.z_loss * normaliser**2)) / learnt.sum()


@functools.cache
def expected():
    return jax.jit(jax.value_and_grad(alone))(model.init(jax.random.key(0), CONFIG))


@pytest.mark.parametrize(("mesh", "accumulate"), [(None, 1), (None, 4), ((2, 1, 2), 2)], ids=str)
def test_loss_and_gradient_are_those_of_each_alone(mesh, accumulate):
    loss, direct = expected()
    params = model.init(jax.random.key(0), CONFIG)
    rows = packed().reshape(accumulate, -1, LENGTH + 1)
    program = jax.jit(mean_gradient, static_argnums=(2, 3, 4))
    if mesh is None:
        means, gradient, losses = program(params, jnp.asarray(rows), CONFIG, OPTIMIZER, COMPUTE)
    else:
        with jax.set_mesh(make_mesh(*mesh)):
            params = model.init(jax.random.key(0), CONFIG)
            placed = place(rows, None, "batch", None)
            means, gradient, losses = program(params, placed, CONFIG, OPTIMIZER, COMPUTE)
    assert float(means.loss + means.z_loss) == pytest.approx(float(loss), rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(direct), strict=True):
        scale = np.linalg.norm(theirs)
        assert np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) <= 1e-5 * scale + 1e-8
    counts = (rows[..., 1:] >= 0).sum(-1)
    assert np.sum(counts * losses) / counts.sum() == pytest.approx(float(means.loss), rel=1e-5)
