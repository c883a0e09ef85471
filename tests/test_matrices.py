"""Weights and vectors in few bits: how near they are, and the same products by every path."""

import contextlib
import dataclasses
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import kernels, model
from gptj.config import ModelConfig
from gptj.convert.load import quantised
from gptj.errors import UserError
from gptj.matrices import einsum
from gptj.quantised import NORMAL, dequantised, int8_rows, is_quantised, quantise
from gptj.sharding import make_mesh, place, reshard

KINDS = ["int8", "int4", "nf4"]

# The model's products: subscripts, the weight's dims, how many are summed over, and logical axes
# of the weight, of the activations, and of the result; and whether that is left unreduced.
PRODUCTS = {
    "re,ehd->rhd": (
        *((256, 4, 32), 1, ("embed", "heads", None)),
        *(("batch", None), ("batch", "heads", None), False),
    ),
    "rhd,hde->re": (
        *((4, 128, 24), 2, ("heads", None, "embed")),
        *(("batch", "heads", None), ("batch", None), True),
    ),
    "re,ef->rf": (
        *((256, 48), 1, ("embed", "ffn")),
        *(("batch", None), ("batch", "ffn"), False),
    ),
    "rf,fe->re": (
        *((512, 40), 1, ("ffn", "embed")),
        *(("batch", "ffn"), ("batch", None), True),
    ),
    "re,ev->rv": (
        *((256, 20), 1, ("embed", "vocab")),
        *(("batch", None), ("batch", "vocab"), False),
    ),
}


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def farthest(weight):
    """How far from what is stored a number may have been: half of the way to the next one."""
    scale = np.asarray(weight.scale)
    if not hasattr(weight, "pairs"):
        return scale / 2
    if not hasattr(weight, "low"):
        scale = scale * np.diff(NORMAL).max()
    return np.repeat(scale, 2 * weight.pairs.shape[0] // len(scale), axis=0) / 2


class TestRounding:
    @pytest.mark.parametrize("kind", KINDS)
    @given(
        shape=st.sampled_from([(2, 1), (6, 5), (64, 3), (128, 7), (200, 16), (384, 33)]),
        seed=st.integers(0, 2**32 - 1),
        size=st.integers(-12, 12),
        offset=st.sampled_from([0.0, 1.0, -30.0]),
    )
    @settings(max_examples=40, deadline=None)
    def test_every_number_is_stored_as_the_nearest(self, kind, shape, seed, size, offset):
        draw = np.random.default_rng(seed)
        columns = 10.0 ** (size + draw.integers(-3, 3, shape[1]))
        weight = ((draw.normal(size=shape) + offset) * columns).astype(np.float32)
        stored = quantise(weight, 1, kind)
        error = np.abs(np.asarray(dequantised(stored), np.float64) - weight)
        rounding = 1e-6 * np.abs(weight).max(axis=0)  # of float32
        assert (error <= farthest(stored) + rounding).all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_numbers_that_are_all_alike_are_exact(self, kind):
        weight = np.zeros((256, 3), np.float32)
        weight[:, 1] = drawn(256)
        if kind == "int4":
            weight[:, 2] = -0.3
        found = np.asarray(dequantised(quantise(weight, 1, kind)))
        np.testing.assert_array_equal(found[:, [0, 2]], weight[:, [0, 2]])

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_is_on_the_grid_is_exact(self, kind):
        whole = np.random.default_rng(0).integers(0, 16, (128, 5))
        whole[:2] = [[0], [15]]
        grid = {"int4": np.arange(16), "int8": np.round(np.arange(16) * 127 / 15), "nf4": NORMAL}
        if kind == "nf4":
            whole[::64] = 15
        weight = np.float32(grid[kind])[whole] * np.float32(0.25)
        np.testing.assert_array_equal(dequantised(quantise(weight, 1, kind)), weight)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_number_that_is_none_is_not_hidden(self, kind):
        weight = drawn((256, 4))
        weight[200, 2] = np.nan
        found = np.asarray(dequantised(quantise(weight, 1, kind)))
        assert np.isnan(found[200, 2])
        assert np.isfinite(np.delete(found, 2, axis=1)).all()

    def test_its_bytes(self):
        weight, ideal = drawn((4096, 64)), 4096 * 64
        size = lambda kind: sum(x.nbytes for x in jax.tree.leaves(quantise(weight, 1, kind)))  # noqa: E731
        assert size("int8") == ideal + 64 * 4
        assert size("int4") == size("nf4") == ideal / 2 + ideal / 128 * 8

    @pytest.mark.parametrize("kind", ["int4", "nf4"])
    def test_an_odd_number_of_rows_is_refused(self, kind):
        with pytest.raises(UserError, match=f"{kind} takes two weights a byte, and 33 are odd"):
            quantise(drawn((33, 4)), 1, kind)

    def test_the_numbers_of_nf4_are_quantiles_of_a_normal(self):
        """The paper's: 8 steps from 0 up and 7 down, evenly in probability, the ends 1 and -1."""
        inverse = statistics.NormalDist().inv_cdf
        last = 1 - (1 / 30 + 1 / 32) / 2
        up, down = ([inverse(0.5 + (last - 0.5) * i / n) for i in range(n + 1)] for n in (8, 7))
        expected = [*(-each for each in reversed(down[1:])), *up]
        np.testing.assert_allclose(NORMAL, np.divide(expected, up[-1]), atol=3e-7)

    @pytest.mark.parametrize("width", [0.02, 3.0])
    def test_of_normal_numbers_nf4_is_nearer_than_int4(self, width):
        weight = width * drawn((4096, 64))
        off = lambda kind: np.square(dequantised(quantise(weight, 1, kind)) - weight).mean()  # noqa: E731
        assert off("int8") < off("nf4") < 0.95 * off("int4")

    @given(seed=st.integers(0, 2**32 - 1), size=st.integers(-20, 20))
    @settings(max_examples=30, deadline=None)
    def test_vectors_are_rounded_each_for_itself(self, seed, size):
        x = (drawn((3, 4, 16), seed) * 10.0**size).astype(np.float32)
        x[1, 2] = 0
        rows = int8_rows(jnp.asarray(x))
        assert rows.shape == x.shape
        assert rows.scale.shape == (3, 4, 1)
        error = np.abs(np.asarray(rows.read()) - x)
        assert (error <= rows.scale * (0.5 + 1e-5)).all()
        alone = int8_rows(jnp.asarray(x[1:2, 3:]))
        np.testing.assert_array_equal(alone.values, rows.values[1:2, 3:])
        assert int8_rows(jnp.asarray(x, jnp.bfloat16)).read().dtype == jnp.bfloat16


@functools.partial(jax.jit, static_argnames=("subscripts", "natively"))
def product(subscripts, x, weight, natively=False):
    *_, axes, unreduced = PRODUCTS[subscripts]
    unreduced = ("tensor",) if unreduced else ()
    with kernels.wanted() if natively else contextlib.nullcontext():
        found = einsum(subscripts, x, weight, *axes, unreduced=unreduced, dtype=jnp.float32)
    return reshard(found, *[None] * found.ndim)


def operands(subscripts, rows=5):
    shape, inner, *_ = PRODUCTS[subscripts]
    return drawn((rows, *shape[:inner])), drawn(shape, 1), inner


class TestProducts:
    @pytest.mark.parametrize("natively", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("subscripts", PRODUCTS)
    def test_it_is_that_of_the_numbers_they_stand_for(self, subscripts, kind, natively):
        x, weight, inner = operands(subscripts)
        stored = quantise(weight, inner, kind)
        dense = np.asarray(dequantised(stored), np.float64).reshape(weight.shape)
        expected = np.einsum(subscripts, x.astype(np.float64), dense)
        found = product(subscripts, jnp.asarray(x), stored, natively)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_bfloat16_activations_it_is_summed_in_float32(self, kind):
        x, weight, inner = operands("re,ef->rf")
        x, stored = jnp.asarray(x, jnp.bfloat16), quantise(weight, inner, kind)
        expected = np.asarray(x, np.float64) @ np.asarray(dequantised(stored), np.float64)
        found = product("re,ef->rf", x, stored)
        # int8's numbers are exact in bfloat16; the others are rounded to it.
        bound = {"int8": 2e-5, "int4": 4e-3, "nf4": 4e-3}[kind]
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())

    @pytest.mark.skipif(not kernels.available(), reason="no g++ to build them with")
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("subscripts", PRODUCTS)
    def test_natively_a_row_is_the_same_bits_in_any_company(self, subscripts, kind):
        x, weight, inner = operands(subscripts, 64)
        stored = quantise(weight, inner, kind)
        together = product(subscripts, jnp.asarray(x), stored, True)
        for rows in (1, 2, 7):
            alone = product(subscripts, jnp.asarray(x[:rows]), stored, True)
            np.testing.assert_array_equal(alone, together[:rows])

    @pytest.mark.parametrize("kind", KINDS)
    def test_stacked_scanned_and_apart_are_the_same(self, kind):
        x, weights = jnp.asarray(drawn((3, 256))), drawn((4, 256, 256), 1) / 16
        layers = [quantise(weight, 1, kind) for weight in weights]
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *layers)
        for n, layer in enumerate(layers):
            cut = jax.tree.map(lambda x, n=n: x[n], stacked)
            jax.tree.map(np.testing.assert_array_equal, cut, layer)
        step = lambda x, weight: (einsum("re,ef->rf", x, weight, "batch", "ffn"), None)  # noqa: E731
        scanned, _ = jax.jit(lambda x: jax.lax.scan(step, x, stacked))(x)
        for layer in layers:
            x, _ = jax.jit(step)(x, layer)
        np.testing.assert_allclose(scanned, x, rtol=1e-5, atol=1e-5)


class TestOnAMesh:
    @pytest.mark.parametrize("mesh", [{"tensor": 4}, {"fsdp": 2, "tensor": 2}], ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("subscripts", PRODUCTS)
    def test_it_is_rounded_alike_and_multiplied_alike(self, subscripts, kind, mesh):
        _, _, weight_axes, x_axes, _, _ = PRODUCTS[subscripts]
        x, weight, inner = operands(subscripts, 4)
        stored = quantise(weight, inner, kind)
        expected = product(subscripts, jnp.asarray(x), stored)
        with jax.set_mesh(make_mesh(**mesh)):
            whole = place(weight, *weight_axes)
            spread = quantise(whole, inner, kind)
            jax.tree.map(np.testing.assert_array_equal, spread, stored)
            parts = {x.sharding.spec for x in jax.tree.leaves(spread)}
            assert any("tensor" in part for part in parts)
            ready = jax.jit(lambda w: model.gather(w, weight_axes, jnp.float32))(spread)
            found = product(subscripts, place(x, *x_axes), ready)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    def test_groups_are_not_split(self):
        with jax.set_mesh(make_mesh(tensor=4)):
            weight = place(drawn((128, 8)), "ffn", "embed")
            for kind in ("int4", "nf4"):
                with pytest.raises(UserError, match=f"128 weights of a sum 4 ways.* {kind} keeps"):
                    quantise(weight, 1, kind)


CONFIG = ModelConfig(2, 64, 4, 8, 128, 250, 256, 64)


def in_few_bits(kind, dtype=jnp.float32):
    random = lambda w: jnp.asarray(drawn(w.shape) / 8 if w.is_matrix else np.full(w.shape, w.init))  # noqa: E731
    return quantised(jax.tree.map(random, model.weights(CONFIG)), CONFIG, dtype, kind)


class TestAModel:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("mesh", [{}, {"data": 2, "tensor": 1}], ids=str)
    def test_its_loss_is_that_of_the_numbers_its_weights_stand_for(self, kind, mesh):
        rows = np.random.default_rng(0).integers(0, 250, (2, 17)).astype(np.int32)
        stored = in_few_bits(kind)
        assert is_quantised(stored)

        def dense(weight, leaf):
            if not is_quantised(leaf):
                return leaf
            if weight.axes[0] != "layers":
                return dequantised(leaf).reshape(weight.shape)
            each = [jax.tree.map(lambda x, n=n: x[n], leaf) for n in range(CONFIG.layers)]
            return jnp.stack([dequantised(layer) for layer in each]).reshape(weight.shape)

        whole = jax.tree.map(dense, model.weights(CONFIG), stored)
        assert not is_quantised(whole)
        loss = jax.jit(model.loss, static_argnums=2)
        expected = loss(whole, rows, CONFIG)
        with jax.set_mesh(make_mesh(**mesh)) if mesh else contextlib.nullcontext():
            place_all = lambda x: place(np.asarray(x), *[None] * x.ndim)  # noqa: E731
            found = loss(jax.tree.map(place_all, stored), place(rows, "batch", None), CONFIG)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_what_is_in_few_bits(self):
        for kind in KINDS:
            stored = in_few_bits(kind, jnp.bfloat16)
            fields = dataclasses.asdict(jax.tree.map(lambda x: x.dtype.name, stored))
            assert fields["output"]["values"] == "int8"
            assert fields["embedding"] == fields["norm_scale"] == "bfloat16"
            of_block = {name: next(iter(each.values())) for name, each in fields["blocks"].items()
                        if isinstance(each, dict)}  # fmt: skip
            few = {"int8": "int8", "int4": "uint8", "nf4": "uint8"}[kind]
            assert of_block == dict.fromkeys(
                ("query", "key", "value", "attention_out", "ffn_in", "ffn_out"), few
            )
