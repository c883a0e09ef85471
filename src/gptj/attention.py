"""Rotary positions and causal attention: one function each, for training and for decoding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gptj import kernels
from gptj.dense import sum_last
from gptj.errors import UserError
from gptj.kernels import gpu, tpu
from gptj.quantised import Int8Rows
from gptj.sharding import spec

KEYS = 256
"""Cached keys that attention reads at a time."""

KeysValues = tuple[
    Float[Array, "batch heads keys d_head"],
    Float[Array, "batch heads keys d_head"],
]

Backend = Literal["cudnn", "native", "splash", "xla"]
"""What computes causal attention: cuDNN's fused program, our native one for a CPU, Pallas's for
TPUs, or what XLA makes of ours."""

Kept = Float[Array, "batch heads positions d_head"] | Int8Rows
"""Keys or values as a cache has them."""


def rotary(
    x: Float[Array, "batch length heads d_head"],
    positions: Int[Array, "batch length"] | Int[Array, " length"],
    dims: int,
    base: float,
) -> Float[Array, "batch length heads d_head"]:
    """Rotate the first `dims` of each head by angles proportional to the position.

    Pairs are interleaved, (0, 1), (2, 3), ..., as in GPT-J ("RoFormer", arXiv:2104.09864): the
    pair at `2i` turns by `position * base ** (-2i / dims)` radians. Angles are float32.
    """
    if not dims:
        return x
    frequencies = base ** (-jnp.arange(0, dims, 2, dtype=jnp.float32) / dims)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if not dims % kernels.LANES and kernels.in_use():
        by_token = (jnp.broadcast_to(y, (*x.shape[:2], 1, dims // 2)) for y in (sin, cos))
        flat = (y.reshape(-1, dims // 2) for y in by_token)
        return kernels.rotary(x.reshape(-1, *x.shape[2:]), *flat).reshape(x.shape)
    sin, cos = sin.astype(x.dtype), cos.astype(x.dtype)
    if kernels.target() == "cpu":
        return _turned(x, sin, cos)
    even, odd = x[..., 0:dims:2], x[..., 1:dims:2]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return jnp.concatenate([turned.reshape(*x.shape[:-1], dims), x[..., dims:]], axis=-1)


def _turned(
    x: Float[Array, "batch length heads d_head"],
    sin: Float[Array, "*#rows 1 half"],
    cos: Float[Array, "*#rows 1 half"],
) -> Float[Array, "batch length heads d_head"]:
    """The same bits, as a CPU makes them fast; so it does the gradient.

    A pair's numbers change places by a product with a matrix of one 1 or -1 a column, where XLA
    would pick them one by one.
    """
    dims = 2 * sin.shape[-1]
    places, swap = np.arange(dims), np.zeros((dims, dims), np.float32)
    swap[places ^ 1, places] = np.where(places % 2, 1, -1)
    pairs = x[..., :dims]
    across = jnp.einsum(
        "blhd,de->blhe", pairs, swap.astype(x.dtype), preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    sin, cos = jnp.repeat(sin, 2, axis=-1), jnp.repeat(cos, 2, axis=-1)
    turned = pairs * cos + across.astype(x.dtype) * sin
    return jnp.concatenate([turned, x[..., dims:]], axis=-1)


def causal_attention(
    query: Float[Array, "batch length heads d_head"],
    key: Float[Array, "batch length heads d_head"],
    value: Float[Array, "batch length heads d_head"],
    ends: Int[Array, "batch length"] | None = None,
    backend: Backend | None = None,
) -> Float[Array, "batch length heads d_head"]:
    """Each position attends to itself and those before it; scores are scaled by 1/sqrt(d_head).

    By XLA, queries go in at most eight blocks, each against only the keys it can see, which saves
    nearly half the products of the full square; the backward pass recomputes each block's scores,
    so nothing quadratic in the length is ever stored.

    Args:
      ends: one past the last position that sees each key, as `document_ends` has it; without,
        those to the row's end do.
      backend: what computes it. Default: what `default_backend` says.

    Raises:
      UserError: the backend cannot.
    """
    check_backend(backend, query.dtype, query.shape[3])
    chosen = backend or default_backend(query.dtype, query.shape[3])
    if chosen == "native":
        every = jnp.full(query.shape[:2], query.shape[1], jnp.int32)
        return kernels.causal_attention(query, key, value, every if ends is None else ends)
    if chosen != "xla":
        return (fused_attention if chosen == "cudnn" else splash_attention)(query, key, value, ends)
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
    length = query.shape[2]
    size = max(128, -(-length // 8))

    @functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
    def rows(query: Array, key: Array, value: Array, begin: int) -> Array:
        end = min(begin + size, length)
        visible = jnp.arange(end) <= jnp.arange(begin, end)[:, None]
        if ends is not None:
            visible &= jnp.arange(begin, end)[:, None] < ends[:, None, None, :end]
        return _mix(query[:, :, begin:end], key[:, :, :end], value[:, :, :end], visible)

    blocks = [rows(query, key, value, begin) for begin in range(0, length, size)]
    return jnp.concatenate(blocks, axis=2).transpose(0, 2, 1, 3)


def default_backend(dtype: DTypeLike, d_head: int) -> Backend:
    """That of cuDNN or our own where what is traced will run on what has it, else XLA.

    On a TPU too: splash attention promises no shorter step there, see docs/planning.md.
    """
    fused: tuple[Backend, ...] = ("cudnn", "native")
    return next((backend for backend in fused if not _missing(backend, dtype, d_head)), "xla")


def check_backend(backend: Backend | None, dtype: DTypeLike, d_head: int) -> None:
    """Refuse a backend that cannot.

    Raises:
      UserError: saying what it misses.
    """
    if backend and (missing := _missing(backend, dtype, d_head)):
        raise UserError(f"attention={backend} needs {missing}: leave it out, or choose xla")


def _missing(backend: Backend, dtype: DTypeLike, d_head: int) -> str | None:
    """What a backend would need, if it cannot."""
    if backend == "cudnn":
        return _missing_for_cudnn(dtype, d_head)
    if backend == "native":
        return _missing_for_native(dtype, d_head)
    return _missing_for_splash(d_head) if backend == "splash" else None


def _target() -> str:
    """The kind of the devices that what is traced will run on, which need not be here."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    kind: str = (jax.local_devices()[0] if target is None else target).device_kind
    return kind


def _missing_for_cudnn(dtype: DTypeLike, d_head: int) -> str | None:
    """What cuDNN would need, if it cannot."""
    device, kind = jax.local_devices()[0], _target()
    capability = gpu.capability(device) if kind == device.device_kind else 0.0
    if capability < 8:
        return f"an NVIDIA GPU, Ampere or later, and this is for {kind}"
    if jnp.dtype(dtype).itemsize != 2:
        return f"numbers of 16 bits, and these are {jnp.dtype(dtype)}"
    largest = 256 if capability >= 9 else 128
    if d_head > largest or d_head % 8:
        return (
            f"heads of up to {largest} dims and a multiple of 8 on {kind}, and these have {d_head}"
        )
    return None


def _missing_for_native(dtype: DTypeLike, d_head: int) -> str | None:
    """What the native program would need, if it cannot."""
    if kernels.target() != "cpu":
        return f"a CPU, and this is for {_target()}"
    if not jax.sharding.get_abstract_mesh().empty:
        return "one device, and a mesh is set"
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        return f"numbers in float32 or bfloat16, and these are {jnp.dtype(dtype)}"
    if d_head % kernels.LANES:
        return f"heads of a multiple of {kernels.LANES} dims, and these have {d_head}"
    return None if kernels.available() else "native programs, and there are none (gptj doctor)"


def _missing_for_splash(d_head: int) -> str | None:
    """What splash attention would need, if it cannot."""
    kind = _target()
    if not kind.startswith("TPU") or kind in ("TPU v2", "TPU v3"):
        return f"a TPU, v4 or later, and this is for {kind}"
    if d_head > tpu.MOST_DIMS:
        return f"heads of up to {tpu.MOST_DIMS} dims, and these have {d_head}"
    return None


def fused_attention(
    query: Float[Array, "batch length heads d_head"],
    key: Float[Array, "batch length heads d_head"],
    value: Float[Array, "batch length heads d_head"],
    ends: Int[Array, "batch length"] | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "batch length heads d_head"]:
    """Causal attention by `jax.nn.dot_product_attention`, each device's rows and heads for itself.

    Where documents end goes in as a mask, of the length's square a row. cuDNN refuses one of an odd
    length, so that such rows are made longer by a position, which sees itself and no other sees.
    """
    length = query.shape[1]
    if ends is not None and length % 2:
        query, key, value = (
            jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (query, key, value)
        )
        ends = jnp.pad(ends, [(0, 0), (0, 1)], constant_values=length + 1)
        return fused_attention(query, key, value, ends, implementation)[:, :length]

    def attend(query: Array, key: Array, value: Array, *mask: Array) -> Array:
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask[0] if mask else None, is_causal=True,
            implementation=implementation,
        )  # fmt: skip

    visible: tuple[Array, ...] = ()
    if ends is not None:
        visible = (jnp.arange(query.shape[1])[:, None] < ends[:, None, None, :],)
    return _on_each_device(attend, query, key, value, *visible)


def splash_attention(
    query: Float[Array, "batch length heads d_head"],
    key: Float[Array, "batch length heads d_head"],
    value: Float[Array, "batch length heads d_head"],
    ends: Int[Array, "batch length"] | None = None,
    interpret: bool = False,
) -> Float[Array, "batch length heads d_head"]:
    """Causal attention by `kernels.tpu`, each device's rows and heads for itself.

    Args:
      interpret: by any device, slowly.
    """
    attend = functools.partial(tpu.attention, interpret=interpret)
    of_rows = () if ends is None else (ends,)
    # A Pallas program does not say over which axes its results differ: over all that split them.
    return _on_each_device(attend, query, key, value, *of_rows, check_vma=False)


def _on_each_device(
    attend: Callable[..., Array],
    query: Float[Array, "batch length heads d_head"],
    key: Float[Array, "batch length heads d_head"],
    value: Float[Array, "batch length heads d_head"],
    *of_rows: Array,
    check_vma: bool = True,
) -> Float[Array, "batch length heads d_head"]:
    """`attend` by each device with its rows and heads; `of_rows` are alike for all heads."""
    split = spec("batch", None, "heads", None)
    if split is None:
        return attend(query, key, value, *of_rows)
    splits = (split,) * 3 + tuple(spec("batch", *[None] * (x.ndim - 1)) for x in of_rows)
    each = jax.shard_map(attend, in_specs=splits, out_specs=split, check_vma=check_vma)
    mixed: Array = each(query, key, value, *of_rows)
    return mixed


def document_ends(begins: Bool[Array, "batch length"]) -> Int[Array, "batch length"]:
    """Where the document of each token ends in its row: `ends` of `causal_attention`.

    Args:
      begins: whether a document begins at a token. Of texts it is the end-of-text before them, from
        which their first token is predicted, in training as when a text is scored.
    """
    length = begins.shape[1]
    after = jax.lax.cummin(jnp.where(begins, jnp.arange(length), length), axis=1, reverse=True)
    return jnp.concatenate([after[:, 1:], jnp.full_like(after[:, :1], length)], axis=1)


def cached_attention(
    query: Float[Array, "batch length heads d_head"],
    last_seen: Int[Array, "batch length"],
    read: Callable[[Int[Array, ""]], KeysValues],
    whole: tuple[Kept, Kept] | None = None,
    slots: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch length heads d_head"]:
    """Each query attends to the keys `0 .. last_seen` of its row of a cache; otherwise the same.

    The cache is read 256 keys at a time up to the longest row's last. Keys that a row does not see
    leave its running sums as they are, bit for bit: how long the others are, or the cache, does not
    change it. The running softmax is "Online normalizer calculation" (arXiv:1805.02867).

    Args:
      read: gives the `i`-th 256 keys and values of every row.
      whole: all of the cache, for a native program.
      slots: which of the cache's rows each row is of. Default: the one of its own number.
    """
    batch, length, heads, d_head = query.shape
    if whole and not d_head % kernels.LANES and kernels.in_use():
        return _natively(query, last_seen, kernels.attention, *whole, slots)
    if whole and gpu.in_use(query.dtype) and gpu.fits(d_head):
        return _natively(query, last_seen, gpu.attention, *whole, slots)
    query = query.transpose(0, 2, 1, 3) * d_head**-0.5
    split = ("batch", "heads", None, None)
    dot = functools.partial(
        jnp.einsum, preferred_element_type=jnp.float32, out_sharding=spec(*split)
    )
    never = float(jnp.finfo(jnp.float32).min)

    def add(index: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        largest, total, mixed = so_far
        key, value = read(index)
        visible = index * KEYS + jnp.arange(KEYS) <= last_seen[:, None, :, None]
        scores = jnp.where(visible, dot("bhqd,bhkd->bhqk", query, key), never)
        new = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
        exp, shrink = jnp.exp(scores - new), jnp.exp(largest - new)
        total = total * shrink + sum_last(exp, *split[:3])
        mixed = mixed * shrink + dot("bhqk,bhkd->bhqd", exp.astype(value.dtype), value)
        return new, total, mixed

    def start(value: float, size: int) -> Array:
        shape = (batch, heads, length, size)
        return jnp.full(shape, value, jnp.float32, out_sharding=spec(*split))

    blocks = jnp.max(last_seen) // KEYS + 1
    begin = (start(never, 1), start(0, 1), start(0, d_head))
    _, total, mixed = jax.lax.fori_loop(0, blocks, add, begin)
    return (mixed / total).astype(query.dtype).transpose(0, 2, 1, 3)


def _natively(
    query: Float[Array, "batch length heads d_head"],
    last_seen: Int[Array, "batch length"],
    program: Callable[..., Array],
    keys: Kept,
    values: Kept,
    slots: Int[Array, " batch"] | None,
) -> Float[Array, "batch length heads d_head"]:
    """The same by a native program, which reads of each row of the cache what that row sees."""
    if isinstance(keys, Int8Rows) and isinstance(values, Int8Rows):
        scales = keys.scale, values.scale
        mixed = program(query, keys.values, values.values, last_seen, scales, slots)
    else:
        assert not isinstance(keys, Int8Rows) and not isinstance(values, Int8Rows)
        mixed = program(query, keys, values, last_seen, None, slots)
    return mixed.astype(query.dtype)


def _mix(
    query: Float[Array, "batch heads queries d_head"],
    key: Float[Array, "batch heads keys d_head"],
    value: Float[Array, "batch heads keys d_head"],
    visible: Bool[Array, "*#rows queries keys"],
) -> Float[Array, "batch heads queries d_head"]:
    """Values averaged by the softmax of the visible scores, in float32 until the last cast."""
    sharding = spec("batch", "heads", None, None)
    scores = jnp.einsum(
        "bhqd,bhkd->bhqk",
        query * query.shape[-1] ** -0.5,
        key,
        preferred_element_type=jnp.float32,
        out_sharding=sharding,
    )
    scores = jnp.where(visible, scores, jnp.finfo(jnp.float32).min)
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    exp = jnp.exp(scores - largest)
    mixed = jnp.einsum(
        "bhqk,bhkd->bhqd",
        exp.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
        out_sharding=sharding,
    )
    return (mixed / sum_last(exp, "batch", "heads", None)).astype(query.dtype)
