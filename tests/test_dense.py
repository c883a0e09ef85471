"""Products of bfloat16 on a CPU: the sums and gradients of JAX's own, of bfloat16 factors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import dense
from gptj.sharding import make_mesh

SHAPES = [(1, 1, 1), (3, 5, 7), (64, 48, 130), (257, 96, 64)]


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


def plainly(x, weight):
    return jnp.dot(x, weight, preferred_element_type=jnp.float32)


def with_gradients(product):
    """A product rounded to bfloat16, and the gradients of its factors."""

    def both(x, weight, pull):
        made, back = jax.vjp(lambda *given: product(*given).astype(jnp.bfloat16), x, weight)
        return made, *back(pull)

    return jax.jit(both)


def given(rows, inner, outer):
    return drawn(rows, inner), drawn(inner, outer, seed=1), drawn(rows, outer, seed=2)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_and_its_gradients_are_the_sums(shape):
    """To half a place of bfloat16, of float32 sums: the gradient's factors lose nothing."""
    x, weight, pull = given(*shape)
    wide = [np.asarray(each).astype(np.float64) for each in (x, weight, pull)]
    expected = wide[0] @ wide[1], wide[2] @ wide[1].T, wide[0].T @ wide[2]
    sizes = [abs(each) for each in wide]
    most = sizes[0] @ sizes[1], sizes[2] @ sizes[1].T, sizes[0].T @ sizes[2]
    for found, exact, bound in zip(
        with_gradients(dense.product)(x, weight, pull), expected, most, strict=True
    ):
        assert found.dtype == jnp.bfloat16
        error = abs(np.asarray(found).astype(np.float64) - exact)
        assert (error <= 2**-8 * abs(exact) + 1e-6 * bound).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_it_differs_from_jax_s_own_by_the_order_of_sums_alone(shape):
    ours, own = with_gradients(dense.product), with_gradients(plainly)
    for found, expected in zip(ours(*given(*shape)), own(*given(*shape)), strict=True):
        found, expected = (np.asarray(each, np.float32) for each in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=2**-7, atol=1e-5)


def test_all_its_factors_are_of_16_bits():
    def factors(product):
        text = with_gradients(product).lower(*given(64, 48, 130)).as_text()
        return re.findall(r"dot_general.*: \(tensor<\w+x(\w+)>, tensor<\w+x(\w+)>\)", text)

    assert factors(dense.product) == [("bf16", "bf16")] * 3
    assert factors(plainly) != [("bf16", "bf16")] * 3  # else nothing of this is needed


def test_it_is_for_one_cpu_and_bfloat16():
    assert dense.in_halves(jnp.bfloat16)
    assert not dense.in_halves(jnp.float32)
    with jax.set_mesh(make_mesh(data=2)):
        assert not dense.in_halves(jnp.bfloat16)


class TestOnAGpu:
    """Sums and repeats are plain there; by products with ones, elsewhere. Both are the same."""

    @pytest.fixture
    def target(self, monkeypatch):
        return lambda name: monkeypatch.setattr(dense.kernels, "target", lambda: name)

    @staticmethod
    def says(word, function, *arguments):
        """Whether the function does that, traced anew."""
        return word in str(jax.make_jaxpr(lambda *given: function(*given))(*arguments))

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_a_sum_of_a_row(self, target, dtype):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 50)), dtype)
        found = {}
        for name, product in (("cpu", True), ("gpu", False)):
            target(name)
            found[name] = dense.sum_last(x, "batch", None)
            assert found[name].shape == (2, 3, 1)
            assert found[name].dtype == jnp.float32
            assert self.says("dot_general", dense.sum_last, x) is product
        exact = np.asarray(x).astype(np.float64).sum(-1, keepdims=True)
        for each in found.values():
            np.testing.assert_allclose(each, exact, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_a_vector_for_every_row_and_its_gradient(self, target, dtype):
        """In bfloat16 the gradient is summed in float32: 300 ones are not 256."""
        vector, like = jnp.asarray([1.0, 1 / 3, -7.0]), jnp.ones((300, 3), dtype)
        for name, product in (("cpu", True), ("gpu", False)):
            target(name)
            made, back = jax.vjp(lambda v: dense.spread(v, like), vector)
            assert (made.shape, made.dtype) == (like.shape, dtype)
            np.testing.assert_array_equal(made, np.tile(vector.astype(dtype), (300, 1)))
            assert self.says("dot_general", dense.spread, vector, like) is product
            (pulled,) = back(jnp.ones_like(like))
            np.testing.assert_array_equal(pulled, [300.0] * 3)

    @pytest.mark.parametrize("name", ["cpu", "gpu"])
    @pytest.mark.parametrize("wanted", [True, False])
    def test_what_a_product_reads_is_made_before_it(self, target, monkeypatch, name, wanted):
        target(name)
        monkeypatch.setattr(dense.kernels, "is_wanted", lambda: wanted)
        x = jnp.arange(3.0)
        assert dense.settled(x).tolist() == x.tolist()
        is_held = self.says("optimization_barrier", dense.settled, x)
        assert is_held is (wanted and name == "gpu")


def test_it_is_not_for_gpus_and_every_factor_counts(monkeypatch):
    assert dense.in_halves(jnp.bfloat16, "bfloat16")
    assert not dense.in_halves(jnp.bfloat16, jnp.float32)
    monkeypatch.setattr(dense.kernels, "target", lambda: "gpu")
    assert not dense.in_halves(jnp.bfloat16)
