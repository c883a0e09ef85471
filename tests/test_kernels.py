"""The native programs: near a float64 sum, and each row the same bits in any company."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import kernels, model
from gptj.config import ModelConfig

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no g++ to build them with")

DTYPES = [jnp.float32, jnp.bfloat16, jnp.int8]


def drawn(shape, dtype, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(x * 30 if dtype == jnp.int8 else x, dtype)


product, attention = jax.jit(kernels.product), jax.jit(kernels.attention)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 48), (130, 1000), (257, 519), (768, 2048)])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_a_product_is_the_sum(dtype, shape, rows):
    x, w = drawn((rows, shape[0]), jnp.float32), drawn(shape, dtype, 1)
    wide, matrix = np.asarray(x, np.float64), np.asarray(w).astype(np.float64)
    bound = np.abs(wide) @ np.abs(matrix) * 1e-6 + 1e-6
    assert (np.abs(np.asarray(product(x, w)) - wide @ matrix) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_a_product_is_the_same_bits_in_any_company(dtype):
    x, w = drawn((64, 300), jnp.float32), drawn((300, 1111), dtype, 1)
    whole = np.asarray(product(x, w))
    for rows in (1, 2, 3, 8, 63):
        np.testing.assert_array_equal(product(x[:rows], w), whole[:rows])
    np.testing.assert_array_equal(product(x[::-1], w), whole[::-1])


def reference(query, keys, values, last_seen):
    query, keys, values = (np.asarray(x).astype(np.float64) for x in (query, keys, values))
    out = np.zeros(query.shape)
    for row, seen in enumerate(last_seen):
        k, v = keys[row, :, : seen + 1], values[row, :, : seen + 1]
        scores = np.einsum("hd,hkd->hk", query[row], k) / np.sqrt(query.shape[-1])
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out[row] = np.einsum("hk,hkd->hd", p / p.sum(-1, keepdims=True), v)
    return out


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("d_head", [16, 64, 256])
def test_attention_is_the_softmax_over_what_is_seen(dtype, d_head):
    last_seen = np.array([0, 1, 15, 16, 100, 511], np.int32)
    shape = (len(last_seen), 3, 512, d_head)
    query, keys, values = (
        drawn((*shape[:2], d_head), jnp.float32),
        drawn(shape, dtype, 1),
        drawn(shape, dtype, 2),
    )
    unseen = np.arange(512)[:, None] > last_seen[:, None, None, None]
    values = jnp.where(unseen, jnp.nan, values)  # what is not seen is not read
    found = attention(query * 3, keys, values, last_seen)
    expected = reference(query * 3, keys, values, last_seen)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)
    for row in range(len(last_seen)):
        one = slice(row, row + 1)
        alone = attention(query[one] * 3, keys[one], values[one], last_seen[one])
        np.testing.assert_array_equal(alone, found[one])


@pytest.mark.parametrize("count", [1, 3, 256, 500])
@pytest.mark.parametrize("kind", ["normal", "equals", "far", "minus infinity"])
def test_the_largest_fall_and_of_equals_the_first_comes_first(count, kind):
    x = np.random.default_rng(0).normal(size=(5, 500)).astype(np.float32)
    if kind == "equals":
        x = np.round(x)
    if kind == "far":
        x = x * 1e-3 - 50
    if kind == "minus infinity":
        x[:, 100:] = -np.inf
    values, columns = jax.jit(kernels.top_k, static_argnums=1)(x, count)
    expected = np.argsort(-x, axis=-1, kind="stable")[:, :count]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(x, expected, -1))


def test_a_program_traced_with_them_is_not_taken_for_one_that_has_a_gradient():
    config = ModelConfig(1, 32, 2, 8, 64, 64, 64, 16)
    params = model.init(jax.random.key(0), config)
    rows = jnp.ones((2, 9), jnp.int32)

    @jax.jit
    def natively(params):
        with kernels.wanted():
            return model.loss(params, rows, config)

    found, (expected, gradient) = (
        natively(params),
        jax.value_and_grad(model.loss)(params, rows, config),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_scores_far_apart_overflow_nothing():
    query, keys = jnp.full((1, 1, 16), 1e3), jnp.full((1, 1, 32, 16), 1e3)
    keys = keys.at[0, 0, 5].multiply(-1)
    found = attention(query, keys, keys, np.array([31], np.int32))
    np.testing.assert_allclose(found, 1e3, rtol=1e-6)
