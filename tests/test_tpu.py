"""What a TPU computes by programs of its own, as far as a CPU can tell, by interpretation."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import gptj
from gptj.attention import (
    causal_attention,
    check_backend,
    default_backend,
    document_ends,
    splash_attention,
)
from gptj.errors import UserError
from gptj.kernels import tpu
from gptj.sharding import reshard

EOS = 3
interpreted = functools.partial(splash_attention, interpret=True)


def both_ways(attend):
    """What it makes, and the gradients by query, key and value."""

    def loss(query, key, value, ends):
        made = attend(query, key, value, ends)
        return jnp.sum(jnp.sin(made)), made

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def drawn(rows, length, heads, d_head):
    """Query, key, value, and tokens of which one in twenty ends a document."""
    keys = jax.random.split(jax.random.key(length), 4)
    shape = (rows, length, heads, d_head)
    arrays = [reshard(jax.random.normal(key, shape), "batch", None, "heads", None)
              for key in keys[:3]]  # fmt: skip
    tokens = jax.random.randint(keys[3], shape[:2], 0, 20)
    return arrays, reshard(tokens, "batch", None)


def agree(found, expected):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("length", "d_head", "documents"), [(256, 64, False), (150, 256, True)])
def test_it_is_causal_attention(monkeypatch, length, d_head, documents):
    """Of whole rows and of both kinds of documents, in lengths that are of whole blocks or not."""
    monkeypatch.setattr(tpu, "BLOCK", 128)
    arrays, tokens = drawn(2, length, 1, d_head)
    ours, expected = both_ways(interpreted), both_ways(causal_attention)
    begun = tokens == EOS
    closed = jnp.roll(begun, 1, axis=1).at[:, 0].set(True)  # an end-of-text that ends a document
    kinds = [document_ends(begins) for begins in (begun, closed)]
    for ends in kinds if documents else [None]:
        agree(ours(*arrays, ends), expected(*arrays, ends))


def test_on_a_mesh_each_device_has_its_rows_and_heads():
    with jax.set_mesh(gptj.make_mesh(2, 2, 2)):
        arrays, tokens = drawn(4, 40, 2, 16)
        ends = document_ends(tokens == EOS)
        program = both_ways(interpreted).lower(*arrays, ends).compile()
        found = program(*arrays, ends)
        agree(found, both_ways(causal_attention)(*arrays, ends))
    assert not re.search("all-(gather|to-all)|permute", program.as_text())
    assert {x.sharding.spec for x in jax.tree.leaves(found)} == {arrays[0].sharding.spec}


def test_documents_that_do_not_follow_one_another_are_never_taken_for_others():
    """The second row: its first position is seen until the third, its second until the end."""
    arrays, _ = drawn(2, 4, 1, 16)
    made = jax.jit(interpreted)(*arrays, jnp.array([[2, 2, 4, 4], [3, 4, 3, 4]]))
    assert jnp.isfinite(made[0]).all()
    assert jnp.isnan(made[1]).all()


@pytest.mark.parametrize("length", [1, 127, 128, 512, 513, 640, 1537, 2048, 3000])
def test_blocks_are_equal_and_fill_up_little(length):
    block = tpu.block_size(length)
    filled = -(-length // block) * block
    assert block <= tpu.BLOCK
    assert block % tpu.LANES == 0
    assert filled - length < tpu.LANES * -(-length // tpu.BLOCK)


class TestBackend:
    """Where it can be had, and what is said where not."""

    def test_a_cpu_has_it_not(self):
        with pytest.raises(UserError, match="splash needs a TPU, v4 or later, and this is for cpu"):
            causal_attention(*drawn(1, 8, 2, 16)[0], backend="splash")

    @pytest.mark.parametrize(
        ("kind", "d_head", "can"),
        [("TPU v3", 64, False), ("TPU v4", 256, True), ("TPU v5 lite", 64, True),
         ("TPU v5p", 128, True), ("TPU v6 lite", 256, True), ("TPU v6 lite", 264, False),
         ("NVIDIA H200", 64, False)],
    )  # fmt: skip
    def test_by_the_devices_that_it_is_for_and_the_heads(self, kind, d_head, can):
        device = jax.sharding.AbstractDevice(kind, None, "tpu")
        mesh = AbstractMesh((1,), ("x",), abstract_device=device)
        refused = pytest.raises(UserError, match="splash needs")
        with jax.sharding.use_abstract_mesh(mesh):
            assert default_backend(jnp.bfloat16, d_head) == "xla"
            with contextlib.nullcontext() if can else refused:
                check_backend("splash", jnp.bfloat16, d_head)
