"""The law: how a model is spread over devices changes nothing it computes, and one all-reduce a
block each way is all that tensor parallelism costs."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import model
from gptj.config import ModelConfig
from gptj.cross_entropy import ZLoss
from gptj.sharding import make_mesh, place

CONFIG = ModelConfig(2, 32, 8, 4, 128, 250, 256, 192)
MESHES = [mesh for mesh in itertools.product((1, 2, 4, 8), repeat=3) if math.prod(mesh) == 8]
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (8, 150), np.int32)

KEY = jax.random.key(0)
OTHERWISE = {"remat": "offload", "z_loss": ZLoss(1e-3)}
MOST = [(1, 1, 8), (1, 8, 1), (8, 1, 1), (2, 1, 4), (2, 4, 1), (2, 2, 2)]
CASES = [
    *((shape, {}) for shape in MOST),
    *(pytest.param(shape, {}, marks=pytest.mark.slow) for shape in MESHES if shape not in MOST),
    ((2, 2, 2), OTHERWISE),
]


def gradient_program(options):
    def objective(params, tokens):
        return model.loss(params, tokens, CONFIG, **options)

    return jax.jit(jax.value_and_grad(objective))


@functools.cache
def drawn():
    """The weights, as host arrays: drawing them compiles anew for every mesh."""
    return jax.tree.map(np.asarray, jax.jit(model.init, static_argnums=1)(KEY, CONFIG))


def weights():
    """The weights on the mesh that is set."""
    shapes = model.abstract(CONFIG)
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), drawn(), shapes)


def loss_and_gradient(options):
    loss, gradient = gradient_program(options)(weights(), place(TOKENS, "batch", None))
    return float(loss), jax.tree.map(np.asarray, gradient)


@functools.cache
def on_one_device(**options):
    return loss_and_gradient(options)


def assert_close(ours, theirs):
    """Within 1e-5 of each array's scale: single elements may nearly cancel."""
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_every_mesh_gives_the_loss_and_gradient_of_one_device(shape, options):
    with jax.set_mesh(make_mesh(*shape)):
        loss, gradient = loss_and_gradient(options)
    expected_loss, expected_gradient = on_one_device(**options)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    jax.tree.map(assert_close, gradient, expected_gradient)


def test_a_batch_of_one_row_is_split_over_tensor_alone():
    """A dim of 1 carries no sharding through a plain reshape."""
    program, one = gradient_program({}), TOKENS[:1]
    expected, _ = program(weights(), one)
    with jax.set_mesh(make_mesh(tensor=8)):
        loss, _ = program(weights(), place(one, "batch", None))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 1, 4), (2, 2, 2)], ids=str)
def test_every_mesh_gives_the_logits_of_one_device(shape):
    logits = jax.jit(lambda params, tokens: model.forward(params, tokens, CONFIG))
    expected = logits(weights(), TOKENS)
    with jax.set_mesh(make_mesh(*shape)):
        ours = logits(weights(), place(TOKENS, "batch", None))
    assert_close(np.asarray(ours), np.asarray(expected))


def all_reduced_in_loops(text, rows):
    """How many arrays of activations (rows x d_model) loop bodies of a compiled program all-reduce.

    XLA may join several into one operation; each array of it counts.
    """
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    count, computation = 0, ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = header[1]
        found = re.search(r"= (.*?) all-reduce(?:-start)?\(", line)
        if found and computation in bodies:
            count += found[1].count(f"f32[{rows},{CONFIG.d_model}]")
    return count


def compiled(program, shape):
    """The program's text on a mesh, and the rows of tokens that a device has there."""
    with jax.set_mesh(make_mesh(*shape)):
        text = program.lower(weights(), place(TOKENS, "batch", None)).compile().as_text()
    return text, TOKENS.shape[0] // (shape[0] * shape[1]) * (TOKENS.shape[1] - 1)


def forward_program():
    return jax.jit(lambda params, tokens: model.hidden_states(params, tokens[:, :-1], CONFIG))


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 1, 4), (2, 2, 2)], ids=str)
def test_a_block_costs_one_all_reduce_forward_and_one_backward(shape):
    assert all_reduced_in_loops(*compiled(forward_program(), shape)) == 1
    assert all_reduced_in_loops(*compiled(gradient_program({}), shape)) == 2


def test_without_tensor_parallelism_no_activation_travels():
    assert all_reduced_in_loops(*compiled(gradient_program({}), (4, 2, 1))) == 0


def test_the_count_would_notice_a_second_all_reduce(monkeypatch):
    """Reducing each branch by itself is the mistake the law forbids: it must be seen."""
    einsum = model.einsum
    reduced = lambda *args, unreduced=(), **kwargs: einsum(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(model, "einsum", reduced)
    monkeypatch.setattr(model, "reshard", lambda x, *axes, **_: x)
    jax.clear_caches()  # JAX keeps the traces of rematerialised functions
    assert all_reduced_in_loops(*compiled(forward_program(), (1, 1, 8))) == 2
    jax.clear_caches()


def test_weights_are_the_same_on_every_mesh():
    for shape in ((1, 1, 8), (2, 2, 2)):
        with jax.set_mesh(make_mesh(*shape)):
            ours = model.init(KEY, CONFIG)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(ours))
        jax.tree.map(np.testing.assert_array_equal, ours, drawn())
