"""Attention and rotary positions beside float64 written out, at the ends of blocks and of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import attention, kernels
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
from gptj.kernels import gpu
from gptj.quantised import int8_rows

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
        by_product = "dot_general" in str(jax.make_jaxpr(turn)(x, positions))
        assert by_product == (target == "cpu" and dims > 0)  # the bits are the same
        expected = self.by_hand(x, positions, dims, base)
        np.testing.assert_allclose(found, expected, atol=2e-4)
        np.testing.assert_array_equal(found[..., dims:], x[..., dims:])
        row = turn(x[:1], positions[1])
        np.testing.assert_allclose(row, self.by_hand(x[:1], positions[1:], dims, base), atol=2e-4)

    @pytest.mark.skipif(not kernels.available(), reason="no g++ to build them with")
    @pytest.mark.parametrize(
        ("dims", "native"), [(0, False), (6, False), (16, True), (24, False), (32, True)]
    )
    def test_natively_too_where_the_pairs_fill_lanes(self, dims, native):
        x, positions = normal(3, 4, 2, 48), np.array([[0, 1, 2, 3], [9, 8, 7, 6], [5, 90, 0, 2047]])
        with kernels.wanted():
            for places in (positions, positions[1]):
                turn = jax.jit(lambda x, places: rotary(x, places, dims, 1e4))
                assert ("gptj_rotary" in turn.lower(x, places).as_text()) == native
                expected = self.by_hand(x, np.atleast_2d(places), dims, 1e4)
                np.testing.assert_allclose(turn(x, places), expected, atol=2e-4)


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

    def whole(self, d_head, int8=False):
        """Keys and values of three slots as a cache has them, and the blocks of `slots` of it."""
        kept = tuple(jnp.asarray(normal(3, 2, self.KEPT, d_head)) for _ in range(2))
        kept = tuple(map(int8_rows, kept)) if int8 else kept
        wide = [x.read() if int8 else x for x in kept]

        def block(slots):
            return lambda i: tuple(
                jax.lax.dynamic_slice_in_dim(x[slots], i * KEYS, KEYS, 2) for x in wide
            )

        return kept, block

    @pytest.mark.skipif(not kernels.available(), reason="no g++ to build them with")
    @pytest.mark.parametrize("int8", [False, True])
    @pytest.mark.parametrize(("d_head", "native"), [(16, True), (24, False)])
    def test_natively_the_same_of_any_slots(self, d_head, native, int8):
        kept, block = self.whole(d_head, int8)
        query, last = normal(2, 2, 2, d_head), np.array([[5, 6], [KEYS, 3 * KEYS - 1]], np.int32)
        slots = np.array([2, 0], np.int32)

        def attend(query, whole):
            return cached_attention(query, last, block(slots), whole, jnp.asarray(slots))

        with kernels.wanted():
            natively = jax.jit(attend)
            assert ("gptj_attention" in natively.lower(query, kept).as_text()) == native
            assert "gptj_attention" not in jax.jit(attend).lower(query, None).as_text()
            found = natively(query, kept)
        assert found.dtype == query.dtype
        np.testing.assert_allclose(found, attend(query, None), atol=1e-5)

    @pytest.mark.parametrize(
        ("in_use", "d_head", "whole", "called"),
        [(True, 16, True, 1), (True, 24, True, 0), (True, 16, False, 0), (False, 16, True, 0)],
    )
    def test_by_a_gpu_of_a_whole_cache_and_heads_that_fit(
        self, monkeypatch, in_use, d_head, whole, called
    ):
        kept, block = self.whole(d_head)
        query, last, calls = normal(3, 1, 2, d_head), np.array([[0], [7], [KEYS]]), []

        def program(query, keys, values, *_):
            calls.append((keys, values))
            return jnp.zeros_like(query)

        monkeypatch.setattr(gpu, "in_use", lambda dtype: in_use)
        monkeypatch.setattr(gpu, "attention", program)
        cached_attention(query, last, block(np.arange(3)), kept if whole else None)
        assert len(calls) == called
        assert all(keys is kept[0] and values is kept[1] for keys, values in calls)


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

    @pytest.mark.parametrize("backend", ["cudnn", "splash"])
    def test_it_is_the_one_that_is_asked_for(self, backend, monkeypatch):
        for name, its in (("fused", "cudnn"), ("splash", "splash")):
            monkeypatch.setattr(attention, f"{name}_attention", lambda *_, its=its: its)
        monkeypatch.setattr(attention, "_missing", lambda *_: None)
        assert causal_attention(*[jnp.zeros((1, 1, 1, 16))] * 3, backend=backend) == backend

    def test_xla_computes_all_and_nothing_asked_is_nothing_refused(self):
        check_backend("xla", jnp.float16, 7)
        check_backend(None, jnp.float16, 7)
        assert default_backend(jnp.float16, 7) == "xla"
