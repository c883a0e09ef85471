"""What a GPU computes by programs of its own, as far as a CPU can tell: see benchmarks/gpu.py."""

import contextlib
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import gptj
from gptj import kernels
from gptj.adapters import with_room
from gptj.attention import (
    cached_attention,
    causal_attention,
    check_backend,
    default_backend,
    document_ends,
    fused_attention,
)
from gptj.convert.load import quantised
from gptj.engine import cache as caching
from gptj.engine.cache import new_cache
from gptj.engine.device import _fits_twice, _unstacked
from gptj.engine.forward import forward, layers_of
from gptj.errors import UserError
from gptj.kernels import gpu
from gptj.matrices import LowRanks
from gptj.model import init, loss
from gptj.quantised import int8_rows
from gptj.sharding import reshard

BF16 = jnp.bfloat16


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Pallas programs run on this CPU; the list grows by the name of each that is traced."""
    names, call = [], gpu.pl.pallas_call

    def pallas_call(program, **options):
        names.append(getattr(program, "func", program).__name__)
        return call(program, **options, interpret=True)

    monkeypatch.setattr(gpu.pl, "pallas_call", pallas_call)
    return names


def normal(*shape, seed=0, dtype=BF16):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


class TestCachedAttention:
    @pytest.mark.parametrize("queries", [1, 5, 100])
    @pytest.mark.parametrize("int8", [False, True])
    def test_it_is_the_other_one(self, queries, int8):
        query, keys, values = (normal(3, queries, 2, 16), normal(3, 2, 768, 16, seed=1),
                               normal(3, 2, 768, 16, seed=2))  # fmt: skip
        last = jax.random.randint(jax.random.key(3), (3, queries), 0, 768)
        last = last.at[0, 0].set(0).at[1, 0].set(767)
        scales = None
        if int8:
            kept = [int8_rows(x) for x in (keys, values)]
            keys, values = (x.values for x in kept)
            scales = tuple(x.scale for x in kept)
        ours = gpu.attention(query, keys, values, last, scales)
        wide = [x.astype(jnp.float32) for x in (keys, values)]
        if scales:
            wide = [x * scale for x, scale in zip(wide, scales, strict=True)]

        def read(index):
            return tuple(jax.lax.dynamic_slice_in_dim(x, index * 256, 256, 2) for x in wide)

        expected = cached_attention(query.astype(jnp.float32), last, read)
        np.testing.assert_allclose(ours, expected, atol=4e-3)

    @pytest.mark.parametrize("queries", [1, 20])
    def test_a_row_is_the_same_whatever_the_others_are(self, queries):
        query, keys, values = (normal(2, queries, 1, 16), normal(2, 1, 256, 16, seed=1),
                               normal(2, 1, 256, 16, seed=2))  # fmt: skip
        last = jnp.full((2, queries), 100)
        once = gpu.attention(query, keys, values, last)
        others = [x.at[1].multiply(3) for x in (query, keys, values)]
        again = gpu.attention(*others, last.at[1].set(255))
        assert (once[0] == again[0]).all()
        assert (once[1] != again[1]).any()

    @pytest.mark.parametrize("queries", [1, 20])
    @pytest.mark.parametrize("int8", [False, True])
    def test_a_row_may_be_of_any_slot(self, queries, int8):
        query, keys, values = (normal(3, queries, 1, 16), normal(3, 1, 256, 16, seed=1),
                               normal(3, 1, 256, 16, seed=2))  # fmt: skip
        last, scales, own = jnp.full((3, queries), 100), None, None
        if int8:
            kept = [int8_rows(x) for x in (keys, values)]
            keys, values = (x.values for x in kept)
            scales = tuple(x.scale for x in kept)
            own = tuple(x[2:] for x in scales)
        found = gpu.attention(query[2:], keys, values, last[2:], scales, jnp.array([2]))
        alone = gpu.attention(query[2:], keys[2:], values[2:], last[2:], own)
        np.testing.assert_array_equal(found, alone)


class TestProducts:
    @pytest.mark.parametrize("dtype", [BF16, jnp.int8])
    def test_one_row_times_several_matrices(self, dtype):
        x = normal(1, 1024)
        columns = (128, 256, 384)
        weights = [(20 * normal(1024, n, seed=n)).astype(dtype) for n in columns]
        assert gpu.can_multiply(x, *weights)
        for made, weight in zip(gpu.products(x, weights), weights, strict=True):
            wide = np.asarray(x, np.float64) @ np.asarray(weight, np.float64)
            np.testing.assert_allclose(made, wide, atol=2e-3, rtol=1e-4)

    def test_what_does_not_fit_is_left_to_xla(self):
        x = normal(1, 128)
        assert not gpu.can_multiply(normal(2, 128), normal(128, 128))
        assert not gpu.can_multiply(x, normal(128, 100))
        assert not gpu.can_multiply(x, normal(128, 128, dtype=jnp.float32))

    def test_weights_of_one_product_are_of_one_kind(self):
        x = normal(1, 128)
        assert not gpu.can_multiply(x, normal(128, 128), normal(128, 128).astype(jnp.int8))


@pytest.mark.parametrize("ends", [False, True])
def test_a_mask_is_never_of_an_odd_length(monkeypatch, ends):
    """Which cuDNN refuses."""
    tokens = jax.random.randint(jax.random.key(9), (2, 9), 0, 4)
    q, k, v = (normal(2, 9, 2, 16, seed=n, dtype=jnp.float32) for n in range(3))
    where, lengths, own = (
        document_ends(tokens == 3) if ends else None,
        [],
        jax.nn.dot_product_attention,
    )

    def attend(query, *others, mask, **options):
        lengths.append(query.shape[1])
        return own(query, *others, mask=mask, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    ours = fused_attention(q, k, v, where, implementation="xla")
    assert lengths == [10 if ends else 9]
    np.testing.assert_allclose(ours, causal_attention(q, k, v, where), atol=1e-5)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_fused_attention_is_causal_attention(ends, mesh):
    """With JAX's own implementation in the place of cuDNN's: on each device its part."""
    tokens = jax.random.randint(jax.random.key(9), (4, 64), 0, 9)
    with jax.set_mesh(gptj.make_mesh(*mesh)) if mesh else contextlib.nullcontext():
        layout = ("batch", None, "heads", None)
        q, k, v = (
            reshard(normal(4, 64, 2, 16, seed=n, dtype=jnp.float32), *layout) for n in range(3)
        )
        tokens = reshard(tokens, "batch", None)
        where = document_ends(tokens == 3) if ends else None

        def both(attend):
            return jax.value_and_grad(lambda *x: jnp.sum(attend(*x, where) ** 2), (0, 1, 2))

        def fused(q, k, v, where):
            return fused_attention(q, k, v, where, implementation="xla")

        ours, expected = (jax.jit(both(f))(q, k, v) for f in (fused, causal_attention))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


class TestBackend:
    """Which program computes causal attention, and what is said where it cannot be chosen."""

    @pytest.fixture
    def on(self, monkeypatch):
        def on(capability, kind="NVIDIA H200"):
            device = types.SimpleNamespace(
                platform="gpu", device_kind=kind, compute_capability=capability
            )
            monkeypatch.setattr(jax, "local_devices", lambda: [device])
            monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

        return on

    def test_a_cpu_has_none(self):
        assert default_backend(BF16, 64) != "cudnn"
        with pytest.raises(UserError, match="cudnn needs an NVIDIA GPU, Ampere or later, and this"):
            check_backend("cudnn", BF16, 64)
        with pytest.raises(UserError, match="leave it out, or choose xla"):
            causal_attention(*[normal(1, 8, 2, 16)] * 3, backend="cudnn")

    @pytest.mark.parametrize(
        ("capability", "d_head", "dtype", "expected"),
        [
            ("9.0", 256, BF16, "cudnn"),
            ("9.0", 64, jnp.float16, "cudnn"),
            ("8.0", 128, BF16, "cudnn"),
            ("8.0", 256, BF16, "xla"),
            ("9.0", 257, BF16, "xla"),
            ("9.0", 64, jnp.float32, "xla"),
            ("7.5", 64, BF16, "xla"),
        ],
    )
    def test_by_the_gpu_the_heads_and_the_numbers(self, on, capability, d_head, dtype, expected):
        on(capability)
        assert default_backend(dtype, d_head) == expected

    def test_what_is_missing_is_said(self, on):
        for capability, d_head, dtype, said in (
            ("7.5", 64, BF16, "Ampere or later, and this is for NVIDIA H200"),
            ("gfx90a", 64, BF16, "an NVIDIA GPU"),
            ("8.9", 256, BF16, "heads of up to 128 dims and a multiple of 8 on NVIDIA H200"),
            ("9.0", 256, jnp.float32, "numbers of 16 bits, and these are float32"),
        ):
            on(capability)
            with pytest.raises(UserError, match=said):
                check_backend("cudnn", dtype, d_head)

    def test_pallas_by_the_gpu_and_the_numbers(self, on, monkeypatch):
        assert not gpu.in_use(BF16)
        for capability, dtype, expected in (
            ("9.0", BF16, True), ("8.6", BF16, True), ("7.5", BF16, False),
            ("gfx90a", BF16, False), ("9.0", jnp.float32, False),
        ):  # fmt: skip
            on(capability)
            assert gpu.in_use(dtype) == expected
        on("9.0")
        monkeypatch.setenv("GPTJ_NATIVE", "0")
        assert not gpu.in_use(BF16)

    def test_not_for_a_mesh_of_others(self, on):
        on("9.0")
        for platform, expected in (("tpu", "xla"), ("gpu", "cudnn")):
            kind = {"tpu": "TPU v5", "gpu": "NVIDIA H200"}[platform]
            device = jax.sharding.AbstractDevice(kind, None, platform)
            with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
                assert default_backend(BF16, 64) == expected
                assert kernels.target() == platform


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-5), (BF16, 2e-2)])
def test_said_for_a_gpu_it_is_the_same_loss(monkeypatch, dtype, bound):
    """Sums as sums, and products that come out in what they are wanted in."""
    config = gptj.preset("demo")
    params = init(jax.random.key(0), config)
    tokens = jax.random.randint(jax.random.key(1), (2, 33), 0, config.vocab_size)

    def both():
        found = jax.value_and_grad(lambda params: loss(params, tokens, config, dtype=dtype))
        return jax.jit(found)(params)

    here, gradient = both()
    monkeypatch.setattr(kernels, "target", lambda: "gpu")
    there, other = both()
    assert abs(here - there) < bound
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(other), strict=True):
        assert jnp.linalg.norm((a - b).ravel()) < bound * jnp.linalg.norm(a.ravel())


class TestForward:
    """The engine's forward pass as a GPU's, by interpretation: what is called, and that it fits."""

    CONFIG = gptj.ModelConfig(2, 128, 4, 16, 256, 100, 128, 256)

    def states(self, params, quantised_cache):
        """Of a prompt in chunks, and of a token after it."""
        config = self.CONFIG
        cache = new_cache(config, 1, BF16, 256, quantised_cache)
        tokens = jax.random.randint(jax.random.key(5), (1, 21), 0, 100)
        at, first = jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
        room = isinstance(params.blocks[0].query, LowRanks)
        adapter = jnp.ones(1, jnp.int32) if room else None
        with kernels.wanted():
            read, cache = forward(params, cache, tokens[:, :20], at, config, slot=first,
                                  adapter=adapter)  # fmt: skip
            drawn, _ = forward(params, cache, tokens[:, 20:], at + 20, config, adapter=adapter)
        return np.asarray(jnp.concatenate([read, drawn], axis=1), np.float32)

    @pytest.mark.parametrize(
        ("kind", "quantised_cache"),
        [(None, False), ("int8", True), ("int4", False), ("adapters", True)],
    )
    def test_it_is_the_same(self, monkeypatch, interpreted, kind, quantised_cache):
        monkeypatch.setattr(kernels, "in_use", lambda: False)
        params = jax.tree.map(lambda x: x.astype(BF16), init(jax.random.key(0), self.CONFIG))
        if kind and kind != "adapters":
            params = quantised(params, self.CONFIG, BF16, kind)
        if kind == "adapters":
            params = with_room(params, self.CONFIG, 2, 4)
        params = dataclasses.replace(params, blocks=layers_of(params))
        monkeypatch.setattr(caching, "_on_cpu", lambda: False)
        expected = self.states(params, quantised_cache)
        assert not interpreted
        monkeypatch.setattr(gpu, "in_use", lambda dtype: jnp.dtype(dtype).itemsize == 2)
        monkeypatch.setattr(kernels, "target", lambda: "gpu")
        found = self.states(params, quantised_cache)
        assert {"_attend", "_attend_one"} <= set(interpreted)
        assert ("_multiply" in interpreted) == (kind != "int4")
        np.testing.assert_allclose(found, expected, atol=0.06)

    def test_out_of_a_stack_nothing_is_copied_for_them(self, monkeypatch, interpreted):
        monkeypatch.setattr(kernels, "in_use", lambda: False)
        params = jax.tree.map(lambda x: x.astype(BF16), init(jax.random.key(0), self.CONFIG))
        monkeypatch.setattr(gpu, "in_use", lambda dtype: True)
        monkeypatch.setattr(kernels, "target", lambda: "gpu")
        monkeypatch.setattr(caching, "_on_cpu", lambda: False)
        cache, none = new_cache(self.CONFIG, 1, BF16, 256), jnp.zeros(1, jnp.int32)
        with kernels.wanted():
            forward(params, cache, none[None], none, self.CONFIG)
        assert set(interpreted) == {"_attend_one"}


def test_layers_stay_stacked_where_there_is_no_room_for_both():
    def device(limit, platform="gpu"):
        stats = {"bytes_limit": limit, "bytes_in_use": 1000}
        return types.SimpleNamespace(memory_stats=lambda: stats, platform=platform)

    blocks = {"query": np.zeros(100, np.float32)}
    assert _fits_twice(blocks, device(1600))
    assert not _fits_twice(blocks, device(1599))
    assert not _fits_twice(blocks, device(1600, "tpu"))


def test_layers_taken_apart_by_a_program_are_the_layers():
    stacked = normal(3, 4, 5)
    for row, expected in zip(_unstacked(stacked), stacked, strict=True):
        assert (row == expected).all()
