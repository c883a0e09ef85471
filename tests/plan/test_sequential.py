"""GPT-3's block: two halves, each of which the parallel block is where the other adds nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import model
from gptj.config import ModelConfig
from gptj.plan import sequential
from gptj.sharding import make_mesh

CONFIG = ModelConfig(1, 32, 4, 4, 64, 250, 256, 16)


@pytest.fixture
def given():
    """A stream of 2 x 5 positions, and one layer's weights, no bias of which is zero."""
    draw = np.random.default_rng(0)
    layer = jax.tree.map(
        lambda each: jnp.asarray(draw.normal(size=each.shape[1:]) / 4, jnp.float32),
        model.weights(CONFIG).blocks,
    )
    return jnp.asarray(draw.normal(size=(2, 5, 32)), jnp.float32), layer


def made(block, x, layer):
    return jax.jit(lambda x, layer: block(x, layer, CONFIG, jnp.arange(5)))(x, layer)


def test_it_is_attention_and_then_feed_forward_of_what_that_made(given):
    x, layer = given
    none = jnp.zeros_like
    attends = dataclasses.replace(
        layer, ffn_out=none(layer.ffn_out), ffn_out_bias=none(layer.ffn_out_bias)
    )
    feeds = dataclasses.replace(layer, attention_out=none(layer.attention_out))
    halves = made(model.block, made(model.block, x, attends), feeds)
    found = made(sequential.block, x, layer)
    np.testing.assert_allclose(found, halves, rtol=1e-5, atol=1e-5)
    assert np.abs(found - made(model.block, x, layer)).max() > 0.1  # another model


def test_a_mesh_changes_nothing_of_it(given):
    x, layer = given
    whole = made(sequential.block, x, layer)
    with jax.set_mesh(make_mesh(data=2, tensor=2)):
        placed = jax.tree.map(
            lambda weight, array: jax.device_put(
                array,
                jax.P(*("tensor" if a in ("heads", "ffn") else None for a in weight.axes[1:])),
            ),
            model.weights(CONFIG).blocks,
            layer,
        )
        split = made(sequential.block, jax.device_put(x, jax.P(("data", "fsdp"))), placed)
        np.testing.assert_allclose(np.asarray(split), whole, rtol=1e-4, atol=1e-5)


def test_models_have_it_only_within_the_context():
    parallel = model.block
    with sequential.blocks():
        assert model.block is sequential.block
    assert model.block is parallel
    with pytest.raises(RuntimeError), sequential.blocks():
        raise RuntimeError
    assert model.block is parallel
