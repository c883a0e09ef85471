"""Attention and rotary positions beside float64 written out, at the ends of blocks and of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import kernels
from gptj.attention import (
    KEYS,
    cached_attention,
    causal_attention,
    check_backend,
    default_backend,
    document_ends,
    rotary,
)
from gptj.errors import UserError

DRAW = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return DRAW.normal(size=shape).astype(np.float32)


def attended(query, key, value, seen) -> np.ndarray:
    """Each query's mean of the values, by the softmax of its scores of what it sees, in float64."""
    q, k, v = (x.astype(np.float64).transpose(0, 2, 1, 3) for x in (query, key, value))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[3])
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


class TestRotary:
    def by_hand(self, x, positions, dims, base):
        """Pairs as complex numbers, turned."""
        pairs = x[..., :dims:2].astype(np.complex128) + 1j * x[..., 1:dims:2]
        angles = positions[..., None] * base ** (-2.0 * np.arange(dims // 2) / dims)
        turned = pairs * np.exp(1j * angles)[..., None, :]
        found = x.astype(np.float64).copy()
        found[..., 0:dims:2], found[..., 1:dims:2] = turned.real, turned.imag
        return found

    @pytest.mark.parametrize("target", ["cpu", "tpu"])
    @pytest.mark.parametrize(("dims", "base"), [(0, 1e4), (6, 10.0), (32, 1e4)])
    def test_turns_pairs_by_their_positions(self, target, dims, base, monkeypatch):
        monkeypatch.setattr(kernels, "target", lambda: target)
        x, positions = normal(2, 3, 2, 32), np.array([[0, 1, 2], [7, 100, 2047]])
        turn = jax.jit(lambda *given: rotary(*given, dims, base))
        found = turn(x, positions)
        expected = self.by_hand(x, positions, dims, base)
        np.testing.assert_allclose(found, expected, atol=2e-4)
        np.testing.assert_array_equal(found[..., dims:], x[..., dims:])
        row = turn(x[:1], positions[1])
        np.testing.assert_allclose(row, self.by_hand(x[:1], positions[1:], dims, base), atol=2e-4)


class TestCausal:
    @pytest.mark.parametrize("length", [1, 128, 129])  # blocks are of 128 queries
    def test_each_sees_itself_and_those_before(self, length):
        q, k, v = (normal(2, length, 2, 4) for _ in range(3))
        seen = np.tril(np.ones((2, length, length), bool))
        found = jax.jit(functools.partial(causal_attention, backend="xla"))(q, k, v)
        np.testing.assert_allclose(found, attended(q, k, v, seen), atol=1e-5)

    @pytest.mark.parametrize(
        ("length", "blocks"), [(1, 1), (128, 1), (129, 2), (1024, 8), (1025, 8), (4096, 8)]
    )
    def test_queries_go_in_at_most_eight_blocks_of_128_or_more(self, length, blocks):
        each = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)
        attend = functools.partial(causal_attention, backend="xla")
        softmaxes = str(jax.make_jaxpr(attend)(each, each, each)).count("reduce_max[")
        assert softmaxes == blocks

    @pytest.mark.parametrize("backend", ["xla", "native"])
    @pytest.mark.parametrize("begun", [(5,), (0, 127, 128, 129), (139,)])
    def test_and_within_a_document_no_more_than_that(self, backend, begun):
        length = 140
        q, k, v = (normal(2, length, 2, 16) for _ in range(3))
        begins = np.zeros((2, length), bool)
        begins[0, list(begun)] = True
        document = np.cumsum(begins, axis=1)
        seen = np.tril(document[:, :, None] == document[:, None, :])
        ends = document_ends(jnp.asarray(begins))
        found = jax.jit(functools.partial(causal_attention, backend=backend))(q, k, v, ends)
        np.testing.assert_allclose(found, attended(q, k, v, seen), atol=1e-5)

    @pytest.mark.parametrize("backend", ["xla", "native"])
    def test_what_is_large_is_no_more_than_large(self, backend):
        q, k, v = (normal(1, 3, 1, 16) for _ in range(3))
        seen = np.tril(np.ones((1, 3, 3), bool))
        found = causal_attention(*map(jnp.asarray, (100 * q, 100 * k, v)), backend=backend)
        np.testing.assert_allclose(found, attended(100 * q, 100 * k, v, seen), atol=1e-4)


@given(begins=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3))
@settings(deadline=None, max_examples=25)
def test_a_document_ends_where_the_next_begins_or_the_row_ends(begins):
    expected = [
        [next((at for at in range(place + 1, 6) if row[at]), 6) for place in range(6)]
        for row in begins
    ]
    assert document_ends(jnp.array(begins)).tolist() == expected


class TestCached:
    KEPT = 3 * KEYS

    @pytest.mark.parametrize(
        "last",
        [
            [[0], [0], [0]], [[KEYS - 1], [KEYS], [3 * KEYS - 1]],
            [[5, 6], [0, KEYS], [KEYS - 1, KEYS]],
        ],
        ids=str,
    )  # fmt: skip
    def test_each_query_sees_as_far_as_it_is_told(self, last):
        keys, values = normal(3, self.KEPT, 2, 4), normal(3, self.KEPT, 2, 4)
        last = np.array(last)
        query = normal(3, last.shape[1], 2, 4)

        def block(index):
            part = jnp.arange(KEYS) + index * KEYS
            return tuple(jnp.take(x.transpose(0, 2, 1, 3), part, axis=2) for x in (keys, values))

        found = jax.jit(lambda *given: cached_attention(*given, block))(query, last)
        seen = np.arange(self.KEPT) <= last[:, :, None]
        np.testing.assert_allclose(found, attended(query, keys, values, seen), atol=1e-5)


class TestWhatComputesIt:
    def test_native_programs_refuse_what_they_are_not_for(self, monkeypatch):
        monkeypatch.setattr(kernels, "target", lambda: "gpu")
        with pytest.raises(UserError, match=r"^attention=native needs a CPU, and this is for"):
            check_backend("native", jnp.float32, 64)

    def test_others_say_which_device_they_need(self):
        with pytest.raises(UserError, match=r"^attention=cudnn needs an NVIDIA GPU, Ampere or la"):
            check_backend("cudnn", jnp.bfloat16, 64)
        with pytest.raises(UserError, match=r"^attention=splash needs a TPU, v4 or later, .*: lea"):
            check_backend("splash", jnp.bfloat16, 64)

    def test_xla_computes_all_and_nothing_asked_is_nothing_refused(self):
        check_backend("xla", jnp.float16, 7)
        check_backend(None, jnp.float16, 7)
        assert default_backend(jnp.float16, 7) == "xla"
