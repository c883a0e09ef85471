"""The native causal attention that training uses on a CPU, beside XLA's and beside float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import kernels
from gptj.attention import causal_attention, check_backend, default_backend, document_ends
from gptj.errors import UserError
from gptj.sharding import make_mesh

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no g++ to build them with")

SHAPES = [(1, 1, 1, 16), (2, 77, 3, 16), (1, 64, 2, 64), (2, 300, 1, 80), (1, 130, 2, 256)]


def drawn(shape, dtype="float32"):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]


def documents(shape):
    """Where the documents of rows end, some tokens long each."""
    return document_ends(jnp.asarray(np.random.default_rng(1).random(shape[:2]) < 0.1))


def both_ways(backend):
    """Attention and the gradients of its three."""

    def run(query, key, value, pull, ends=None):
        def attend(*given):
            return causal_attention(*given, ends, backend)

        mixed, back = jax.vjp(attend, query, key, value)
        return mixed, *back(pull)

    return jax.jit(run)


native, xla = both_ways("native"), both_ways("xla")


def in_float64(query, key, value, pull, ends):
    query, key, value, pull = (np.asarray(x).astype(np.float64) for x in (query, key, value, pull))
    at, scale = np.arange(query.shape[1]), query.shape[-1] ** -0.5
    seen = (at[:, None] >= at) & (at[:, None] < np.asarray(ends)[:, None, None, :])
    scores = np.where(seen, np.einsum("bqhd,bkhd->bhqk", query, key) * scale, -np.inf)
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    weights = exp / exp.sum(-1, keepdims=True)
    pulled = np.einsum("bqhd,bkhd->bhqk", pull, value)
    of_scores = weights * (pulled - (weights * pulled).sum(-1, keepdims=True)) * scale
    return (
        np.einsum("bhqk,bkhd->bqhd", weights, value),
        np.einsum("bhqk,bkhd->bqhd", of_scores, key),
        np.einsum("bhqk,bqhd->bkhd", of_scores, query),
        np.einsum("bhqk,bqhd->bkhd", weights, pull),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_and_its_gradients_are_those_of_float64(shape, dtype):
    given, ends = drawn(shape, dtype), documents(shape)
    rounding = 2**-8 if dtype == "bfloat16" else 0
    for found, expected in zip(native(*given, ends), in_float64(*given, ends), strict=True):
        assert found.dtype == dtype
        error = abs(np.asarray(found).astype(np.float64) - expected)
        assert (error <= rounding * abs(expected) + 5e-6 * max(1, abs(expected).max())).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_xla_s(shape):
    given = drawn(shape)
    for ends in (None, documents(shape)):
        for found, expected in zip(native(*given, ends), xla(*given, ends), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-5)


def test_scores_far_apart_overflow_nothing():
    query, key, value, pull = drawn((1, 70, 1, 16))
    found = native(300 * query, 300 * key, value, pull)
    for mine, expected in zip(found, xla(300 * query, 300 * key, value, pull), strict=True):
        assert np.isfinite(mine).all()
        np.testing.assert_allclose(mine, expected, atol=1e-2 * max(1, abs(expected).max()))


def test_a_row_and_its_documents_are_the_same_bits_in_any_company():
    shape = (3, 150, 2, 16)
    given, ends = drawn(shape), documents(shape)
    whole = native(*given, ends)
    for found, expected in zip(native(*(x[1:2] for x in (*given, ends))), whole, strict=True):
        np.testing.assert_array_equal(found, expected[1:2])
    first = int(ends[0, 0])  # what comes after a document says nothing to it
    others = [x.at[0, first:].multiply(3) for x in given]
    for found, expected in zip(native(*others, ends), whole, strict=True):
        np.testing.assert_array_equal(found[0, :first], expected[0, :first])


def test_rows_may_be_mapped():
    query, key, value, _ = drawn((3, 40, 2, 16))

    def of_one(query, key, value):
        return causal_attention(*(x[None] for x in (query, key, value)), backend="native")[0]

    found = jax.vmap(jax.grad(lambda *given: jnp.sum(of_one(*given) ** 2)))(query, key, value)
    for n in range(3):
        alone = jax.grad(lambda *given: jnp.sum(of_one(*given) ** 2))(query[n], key[n], value[n])
        np.testing.assert_array_equal(found[n], alone)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_what_is_no_number_is_not_lost(which):
    given = drawn((1, 90, 1, 16))
    given[which] = given[which].at[0, 40, 0, 3].set(jnp.nan)
    found = native(*given)
    meets_it = found[1:] if which == 3 else found[:3]  # a value's gradient is of no value
    assert not any(np.isfinite(x).all() for x in meets_it)


def test_xla_holds_nothing_for_it_that_grows_faster_than_the_length():
    def room(length):
        program = native.lower(*drawn((1, length, 1, 16))).compile().memory_analysis()
        return program.temp_size_in_bytes

    assert room(4096) <= 4.1 * room(1024)


class TestChoice:
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_one_cpu_has_it(self, dtype):
        assert default_backend(dtype, 64) == "native"

    def test_where_it_cannot_be_it_is_xla_s_and_asking_for_it_says_why(self, monkeypatch):
        def refused(match, dtype=jnp.float32, d_head=64):
            assert default_backend(dtype, d_head) == "xla"
            with pytest.raises(UserError, match=match):
                check_backend("native", dtype, d_head)

        refused("needs numbers in float32 or bfloat16, and these are float16", jnp.float16)
        refused("needs heads of a multiple of 16 dims, and these have 24", d_head=24)
        with jax.set_mesh(make_mesh(data=2)):
            refused("needs one device, and a mesh is set")
        monkeypatch.setattr(kernels, "available", lambda: False)
        refused("needs native programs, and there are none")
