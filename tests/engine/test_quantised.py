"""The engine in few bits: the laws as ever, for the numbers that weights and cache stand for."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import kernels, model
from gptj.config import ModelConfig
from gptj.convert.load import quantised
from gptj.engine.cache import new_cache
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.forward import forward
from gptj.engine.request import Request, SamplingParams
from gptj.quantised import Int8Rows
from gptj.sharding import make_mesh, place
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 64, 4, 8, 128, 257, 384, 300)
BYTES = Tokenizer.bytes()
TOKENS = np.random.default_rng(0).integers(0, 257, (3, 40)).astype(np.int32)

whole = jax.jit(model.forward, static_argnums=2)
logits = jax.jit(model.logits, static_argnums=2)


@functools.cache
def params(kind, config=CONFIG):
    """Weights about as large as trained ones: with those that training begins with, all layers
    together change the logits by little."""
    drawn = model.init(jax.random.key(0), config)
    larger = lambda w, x: 3 * x if w.inner == 2 or w.axes[1:2] == ("ffn",) else x  # noqa: E731
    drawn = jax.tree.map(larger, model.weights(config), drawn)
    return quantised(drawn, config, jnp.float32, kind) if kind else drawn


@functools.partial(jax.jit, static_argnames=("config", "natively"))
def read(params, cache, tokens, start, config, natively=False):
    with kernels.wanted() if natively else contextlib.nullcontext():
        return forward(params, cache, tokens, start, config)


def in_pieces(params, sizes, *, config=CONFIG, int8_cache=False, natively=False):
    """The logits of `TOKENS`, read into a cache in pieces of those sizes; and the cache."""
    cache = new_cache(config, len(TOKENS), jnp.float32, 300, int8_cache)
    found, begin = [], 0
    for size in sizes:
        start = np.full(len(TOKENS), begin, np.int32)
        piece = TOKENS[:, begin : begin + size]
        hidden, cache = read(params, cache, piece, start, config, natively)
        found.append(np.asarray(logits(params, hidden, config)))
        begin += size
    return np.concatenate(found, axis=1), cache


class TestDecodeEqualsForward:
    @pytest.mark.parametrize("natively", [False, True])
    @pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
    def test_with_weights_in_few_bits(self, kind, natively):
        stored = params(kind)
        expected = whole(stored, TOKENS, CONFIG)
        for sizes in [(40,), (30, *[1] * 10)]:
            found, _ = in_pieces(stored, sizes, natively=natively)
            np.testing.assert_allclose(found, expected, atol=1e-4)

    @pytest.mark.parametrize("natively", [False, True])
    def test_with_the_cache_in_int8_a_piece_is_as_good_as_its_tokens(self, natively):
        expected, _ = in_pieces(params(None), (40,), int8_cache=True)
        found, _ = in_pieces(params(None), (7, 20, *[1] * 13), int8_cache=True, natively=natively)
        # A key that differs in its last bit may be rounded to its other neighbour.
        np.testing.assert_allclose(found, expected, atol=5e-3)
        assert np.abs(found - expected).mean() < 1e-4


class TestTheCache:
    def test_int8_is_near_what_is_written(self):
        expected, plain = in_pieces(params(None), (40,))
        found, few_bits = in_pieces(params(None), (40,), int8_cache=True)
        first, own = few_bits[0], plain[0]  # of later layers the input differs a little
        for rows, numbers in ((first.keys, own.keys), (first.values, own.values)):
            assert isinstance(rows, Int8Rows)
            assert (np.abs(rows.read() - numbers) <= rows.scale * (0.5 + 1e-4) + 1e-6).all()
            assert not np.asarray(rows.values)[:, :, 40:].any()
        assert 1e-5 < np.abs(found - expected).max() < 0.2

    def test_it_takes_a_byte_a_number_and_four_a_vector(self):
        size = lambda cache: sum(x.nbytes for x in jax.tree.leaves(cache))  # noqa: E731
        plain = size(new_cache(CONFIG, 3, jnp.float32, 300))
        assert size(new_cache(CONFIG, 3, jnp.float32, 300, quantised=True)) == plain / 4 * (
            1 + 4 / 16
        )

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
    def test_it_is_read_as_what_was_written(self, dtype):
        cache = new_cache(CONFIG, 1, dtype, 300, quantised=True)
        assert cache[0].keys.read().dtype == dtype


REQUESTS = [
    Request(prompt, SamplingParams(max_tokens=10, logprobs=2, seed=seed, **more))
    for seed, (prompt, more) in enumerate(
        [
            ("once upon a time", {}),
            ("", {"temperature": 0}),
            ("x" * 150, {"prompt_logprobs": 1}),
            ("once upon", {"top_p": 0.8, "n": 2}),
            ("y" * 295, {"overflow": "slide", "ignore_eos": True}),
        ]
    )
]


class TestAloneAndInCompany:
    """On slots of four; with and without the native programs."""

    @pytest.mark.parametrize(
        ("kind", "cache", "natively"),
        [
            ("int8", "model", False),
            ("int4", "int8", True),
            ("nf4", "model", True),
            pytest.param("int8", "model", True, marks=pytest.mark.slow),
            pytest.param("int4", "int8", False, marks=pytest.mark.slow),
        ],
    )
    def test_a_request_gives_the_same_bits(self, kind, cache, natively, monkeypatch):
        if not natively:
            monkeypatch.setattr(kernels, "available", lambda: False)
        # Traced by no other: JAX would not know that the programs differ.
        context = 300 + natively + 2 * (cache == "int8")
        config = dataclasses.replace(CONFIG, context=context)
        options = EngineConfig(4, chunk=64, burst=4, kv_cache=cache)
        engine = Engine(params(kind), config, BYTES, options)
        together = engine.run(REQUESTS)
        for request, completions in zip(REQUESTS, together, strict=True):
            engine.prefix.clear()
            assert engine.run([request]) == [completions]


LARGE = ModelConfig(2, 512, 4, 32, 512, 257, 384, 300)
"""Whose groups can be split over four devices."""


@pytest.mark.parametrize(
    "kind", ["int8", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("int4", "nf4"))]
)
def test_a_mesh_gives_what_one_device_gives(kind):
    one = params(kind, LARGE)
    expected, _ = in_pieces(one, (35, 5), config=LARGE)
    with jax.set_mesh(make_mesh(tensor=4)):
        drawn = jax.tree.map(
            lambda x, w: place(np.asarray(x), *w.axes), params(None, LARGE), model.weights(LARGE)
        )
        spread = quantised(drawn, LARGE, jnp.float32, kind)
        jax.tree.map(np.testing.assert_array_equal, spread, one)
        shards = jax.tree.leaves(spread.blocks.ffn_in)
        assert all(x.addressable_shards[0].data.size == x.size // 4 for x in shards)
        found, _ = in_pieces(spread, (35, 5), config=LARGE)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_mesh_with_the_cache_in_int8_writes_what_one_device_writes():
    greedy = SamplingParams(max_tokens=8, temperature=0)
    options = EngineConfig(4, chunk=64, kv_cache="int8")
    asked = [Request(prompt, greedy) for prompt in ("", "once upon a time", "x" * 100)]
    expected = Engine(params(None), CONFIG, BYTES, options).run(asked)
    with jax.set_mesh(make_mesh(data=2, tensor=2)):
        drawn = jax.tree.map(
            lambda x, w: place(np.asarray(x), *w.axes), params(None), model.weights(CONFIG)
        )
        found = Engine(drawn, CONFIG, BYTES, options).run(asked)
    assert [one.text for (one,) in found] == [one.text for (one,) in expected]
