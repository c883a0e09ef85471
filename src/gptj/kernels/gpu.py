"""Pallas programs for what XLA does slowly on a GPU: reading a cache, and products of one row.

They are Triton's, by Pallas, of 16-bit numbers and int8. Everything works without them, slower;
`GPTJ_NATIVE=0` in the environment leaves them out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Shaped

from gptj import kernels

BLOCK = 64
"""Cached keys that a block of queries reads at a time; positions are a multiple of it."""

BLOCK_OF_ONE, WARPS_OF_ONE = 32, 8
"""And one query alone, and by how many warps."""

PROGRAMS = 1024
"""Into how many programs the work is cut where there is little of it: 8 on each processor."""


class Tiling(NamedTuple):
    """What a program of `products` holds at a time."""

    terms: int
    columns: int
    warps: int
    ahead: bool
    """Whether the next weights are fetched before these are multiplied."""


TILINGS = {2: Tiling(64, 64, 4, False), 1: Tiling(64, 128, 4, True)}
"""By the bytes of a weight: the fastest of those tried on an H200, see docs/lab.md."""

NEVER = -1e30
"""A score that is not seen: finite, so that nothing makes a NaN of it."""

Kept = Shaped[Array, "slots heads positions d_head"]
Partial = tuple[Float32[Array, "rows heads parts queries d_head"], Array, Array]
"""Of each part of a row's keys: the mix, not divided yet; the largest score; the sum."""


def capability(device: jax.Device) -> float:
    """NVIDIA's number for what a GPU can do, as 9.0 for Hopper; 0 for any other device."""
    own = str(getattr(device, "compute_capability", ""))
    is_number = device.platform == "gpu" and own.replace(".", "", 1).isdecimal()
    return float(own) if is_number else 0.0


def in_use(dtype: DTypeLike) -> bool:
    """Whether what is traced now may use them: numbers of 16 bits, on one GPU, Ampere or later."""
    if kernels.left_out() or jnp.dtype(dtype).itemsize != 2:
        return False
    return jax.sharding.get_abstract_mesh().empty and capability(jax.local_devices()[0]) >= 8


def fits(d_head: int) -> bool:
    """Whether heads of this size can be read: Triton's tiles are powers of two."""
    return 16 <= d_head <= 256 and d_head & (d_head - 1) == 0


def _most_queries(d_head: int) -> int:
    """How many queries a program takes, for its keys and values to find room on a processor."""
    is_large = capability(jax.local_devices()[0]) in (8.0, 9.0, 10.0)  # those of data centres
    return 64 if is_large or d_head <= 64 else 16


def attention(
    query: Float[Array, "rows queries heads d_head"],
    keys: Kept,
    values: Kept,
    last_seen: Int[Array, "rows queries"],
    scales: tuple[Array, Array] | None = None,
    slots: Int[Array, "1"] | None = None,
) -> Float32[Array, "rows queries heads d_head"]:
    """Each query over the keys `0 .. last_seen` of its row, scaled by 1/sqrt(d_head), in float32.

    No more of a row is read than one of its queries sees. A query's sums go in one order, whatever
    is in the other rows. The running softmax is "Online normalizer calculation"
    (arXiv:1805.02867), the parts are joined as in "Flash-Decoding" (PyTorch's blog, 2023).

    Args:
      scales: float32 `[slots, heads, positions, 1]`, what int8 keys and values are multiplied by.
      slots: whose keys the one row there is sees, which are copied for it: Pallas's programs for
        Triton cannot be told a row by a number. Default: those of each row's own number.
    """
    attend = _one_query if query.shape[1] == 1 else _queries
    cached: Sequence[Array] = (keys, values, *(x[..., 0] for x in scales or ()))
    if slots is not None:
        cached = [jax.lax.dynamic_slice_in_dim(x, slots[0], 1) for x in cached]
    mixed, largest, total = attend(query, cached, last_seen)
    share = jnp.exp(largest - jnp.max(largest, axis=2, keepdims=True))
    joined = jnp.sum(mixed * share[..., None], axis=2)
    joined /= jnp.sum(total * share, axis=2)[..., None]
    return joined[:, :, : query.shape[1]].transpose(0, 2, 1, 3)


def _one_query(
    query: Float[Array, "rows 1 heads d_head"],
    cached: Sequence[Array],
    last_seen: Int[Array, "rows 1"],
) -> Partial:
    """One query a row, each key's lane with sums of its own until the end."""
    rows, _, heads, d_head = query.shape
    positions = cached[0].shape[2]
    parts = _parts(positions // BLOCK_OF_ONE, rows * heads)
    span = positions // parts

    def of_head(row: Array, head: Array, part: Array) -> tuple[Array | int, ...]:
        return row, head, part, 0

    tile = pl.BlockSpec((None, None, span, d_head), of_head)
    scale = pl.BlockSpec((None, None, span), lambda *at: at)
    single = pl.BlockSpec((None, None, 1), lambda row, head, part: (row, head, part))
    mixed, largest, total = pl.pallas_call(
        functools.partial(_attend_one, span=span, quantised=len(cached) > 2),
        grid=(rows, heads, parts),
        in_specs=[
            pl.BlockSpec((None, None, None, d_head), lambda row, head, part: (row, 0, head, 0)),
            pl.BlockSpec((None, 1), lambda row, head, part: (row, 0)),
            *[tile] * 2, *[scale] * (len(cached) - 2),
        ],
        out_specs=[pl.BlockSpec((None, None, None, d_head), of_head), single, single],
        out_shape=[
            jax.ShapeDtypeStruct((rows, heads, parts, *last), jnp.float32)
            for last in ((d_head,), (), ())
        ],
        compiler_params=triton.CompilerParams(num_warps=WARPS_OF_ONE, num_stages=2),
    )(query, last_seen, *cached)  # fmt: skip
    return mixed[..., None, :], largest[..., None], total[..., None]


def _attend_one(
    query_ref: Array, last_ref: Array, key_ref: Array, value_ref: Array, *refs: Array,
    span: int, quantised: bool,
) -> None:  # fmt: skip
    """One query of a head over a part of its row."""
    scale_refs, (mixed_ref, largest_ref, total_ref) = refs[:-3], refs[-3:]
    query = query_ref[...].astype(jnp.float32) * query_ref.shape[-1] ** -0.5
    begin, last = pl.program_id(2) * span, jnp.max(last_ref[...])
    lanes = jnp.arange(BLOCK_OF_ONE)

    def add(index: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mixed, largest, total = so_far
        at = pl.ds(index * BLOCK_OF_ONE, BLOCK_OF_ONE)
        key, value = (ref[at, :].astype(jnp.float32) for ref in (key_ref, value_ref))
        scores = jnp.sum(key * query[None, :], axis=1)
        if quantised:
            scores *= scale_refs[0][at]
        visible = begin + index * BLOCK_OF_ONE + lanes <= last
        new = jnp.maximum(largest, jnp.where(visible, scores, NEVER))
        exp, shrink = jnp.where(visible, jnp.exp(scores - new), 0), jnp.exp(largest - new)
        weight = exp * scale_refs[1][at] if quantised else exp
        mixed = mixed * shrink[:, None] + weight[:, None] * value
        return mixed, new, total * shrink + exp

    start = (
        jnp.zeros((BLOCK_OF_ONE, query.shape[0]), jnp.float32),
        jnp.full(BLOCK_OF_ONE, NEVER, jnp.float32),
        jnp.zeros(BLOCK_OF_ONE, jnp.float32),
    )
    seen = jnp.clip(last + 1 - begin, 0, span)
    steps = (seen + BLOCK_OF_ONE - 1) // BLOCK_OF_ONE
    mixed, largest, total = jax.lax.fori_loop(0, steps, add, start)
    most = jnp.max(largest)
    share = jnp.exp(largest - most)
    mixed_ref[...] = jnp.sum(mixed * share[:, None], axis=0)
    largest_ref[...] = jnp.full(1, most)
    total_ref[...] = jnp.full(1, jnp.sum(total * share))


def _queries(
    query: Float[Array, "rows queries heads d_head"],
    cached: Sequence[Array],
    last_seen: Int[Array, "rows queries"],
) -> Partial:
    """Blocks of queries a row, by products of matrices: a prompt's, or a few that are guessed."""
    rows, count, heads, d_head = query.shape
    positions = cached[0].shape[2]
    block = min(_most_queries(d_head), max(16, 1 << (count - 1).bit_length()))
    padded = -(-count // block) * block
    parts = _parts(positions // BLOCK, 4 * rows * heads * padded // block)  # larger programs
    span = positions // parts
    query = jnp.pad(query.transpose(0, 2, 1, 3), [(0, 0), (0, 0), (0, padded - count), (0, 0)])
    last_seen = jnp.pad(last_seen, [(0, 0), (0, padded - count)], constant_values=-1)

    def of_queries(row: Array, head: Array, part: Array, block: Array) -> tuple[Array, ...]:
        return row, head, part, block

    tile = pl.BlockSpec((None, None, span, d_head), lambda row, head, part, _: (row, head, part, 0))
    scale = pl.BlockSpec((None, None, span), lambda row, head, part, _: (row, head, part))
    single = pl.BlockSpec((None, None, None, block), of_queries)
    mixed: Partial = pl.pallas_call(
        functools.partial(_attend, span=span, quantised=len(cached) > 2),
        grid=(rows, heads, parts, padded // block),
        in_specs=[
            pl.BlockSpec((None, None, block, d_head), lambda row, head, _, at: (row, head, at, 0)),
            pl.BlockSpec((None, block), lambda row, head, _, at: (row, at)),
            *[tile] * 2, *[scale] * (len(cached) - 2),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, block, d_head), lambda *at: (*of_queries(*at), 0)),
            *[single] * 2,
        ],
        out_shape=[
            jax.ShapeDtypeStruct((rows, heads, parts, padded, *last), jnp.float32)
            for last in ((d_head,), (), ())
        ],
        compiler_params=triton.CompilerParams(num_warps=4 if block == 16 else 8, num_stages=2),
    )(query, last_seen, *cached)  # fmt: skip
    return mixed


def _attend(
    query_ref: Array, last_ref: Array, key_ref: Array, value_ref: Array, *refs: Array,
    span: int, quantised: bool,
) -> None:  # fmt: skip
    """One block of queries of a head over a part of its row."""
    scale_refs, (mixed_ref, largest_ref, total_ref) = refs[:-3], refs[-3:]
    query, last = query_ref[...], last_ref[...]
    begin = pl.program_id(2) * span

    def add(index: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mixed, largest, total = so_far
        at = pl.ds(index * BLOCK, BLOCK)
        key, value = key_ref[at, :].astype(query.dtype), value_ref[at, :].astype(query.dtype)
        scores = _dot(query, key, 1) * query.shape[-1] ** -0.5
        if quantised:
            scores *= scale_refs[0][at][None, :]
        where = begin + index * BLOCK + jnp.arange(BLOCK)
        visible = where[None, :] <= last[:, None]
        new = jnp.maximum(largest, jnp.max(jnp.where(visible, scores, NEVER), axis=1))
        exp = jnp.where(visible, jnp.exp(scores - new[:, None]), 0)
        shrink = jnp.exp(largest - new)
        total = total * shrink + jnp.sum(exp, axis=1)
        if quantised:
            exp *= scale_refs[1][at][None, :]
        return mixed * shrink[:, None] + _dot(exp.astype(query.dtype), value), new, total

    count = query.shape[0]
    start = (
        jnp.zeros(query.shape, jnp.float32),
        jnp.full(count, NEVER, jnp.float32),
        jnp.zeros(count, jnp.float32),
    )
    seen = jnp.clip(jnp.max(last) + 1 - begin, 0, span)
    steps = (seen + BLOCK - 1) // BLOCK
    mixed_ref[...], largest_ref[...], total_ref[...] = jax.lax.fori_loop(0, steps, add, start)


def can_multiply(x: Float[Array, "rows inner"], *weights: Shaped[Array, "inner columns"]) -> bool:
    """Whether `products` takes them: one row, weights of one kind, and whole blocks."""
    sizes = {w.dtype.itemsize for w in weights}
    tiling = TILINGS.get(sizes.pop())
    if x.shape[0] != 1 or sizes or tiling is None:
        return False
    return not any(w.shape[0] % tiling.terms or w.shape[1] % tiling.columns for w in weights)


def products(
    x: Float[Array, "1 inner"], weights: Sequence[Shaped[Array, "inner columns"]]
) -> list[Float32[Array, "1 columns"]]:
    """One row times several matrices of 16 bits or int8, in float32: one program reads them all.

    A memory's whole speed takes much to read at once, more than one of GPT-J's smaller matrices.
    """
    tiling = TILINGS[weights[0].dtype.itemsize]
    inner, columns = x.shape[1], tiling.columns
    blocks = [w.shape[1] // columns for w in weights]
    starts = [sum(blocks[:n]) for n in range(len(blocks))]
    parts = _parts(inner // tiling.terms, sum(blocks))
    size = inner // parts

    def own(start: int, count: int) -> pl.BlockSpec:
        def index(block: Array, part: Array) -> tuple[Array, Array]:
            return part, jnp.clip(block - start, 0, count - 1)

        return pl.BlockSpec((size, columns), index)

    made = pl.pallas_call(
        functools.partial(_multiply, starts=starts, tiling=tiling),
        grid=(sum(blocks), parts),
        in_specs=[
            pl.BlockSpec((None, size), lambda block, part: (0, part)),
            *map(own, starts, blocks),
        ],
        out_specs=pl.BlockSpec((None, columns), lambda block, part: (part, block)),
        out_shape=jax.ShapeDtypeStruct((parts, sum(blocks) * columns), jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=tiling.warps, num_stages=2),
    )(x, *weights)
    whole = jnp.sum(made, axis=0, keepdims=True)
    return jnp.split(whole, [start * columns for start in starts[1:]], axis=1)


def _multiply(x_ref: Array, *refs: Array, starts: list[int], tiling: Tiling) -> None:
    """One block of columns of one of the matrices, over a part of the terms."""
    *w_refs, out_ref = refs
    block, step = pl.program_id(0), tiling.terms
    steps = x_ref.shape[0] // step

    def multiply(w_ref: Array) -> None:
        def read(index: Array | int) -> Array:
            return w_ref[pl.ds(index * step, step), :]

        def add(index: Array, so_far: tuple[Array | None, Array]) -> tuple[Array | None, Array]:
            fetched, total = so_far
            w = read(index) if fetched is None else fetched
            ahead = None if fetched is None else read(jnp.minimum(index + 1, steps - 1))
            x = x_ref[pl.ds(index * step, step)].astype(jnp.float32)
            return ahead, total + x[:, None] * w.astype(jnp.float32)

        zeros = jnp.zeros((step, out_ref.shape[0]), jnp.float32)
        start = (read(0) if tiling.ahead else None, zeros)
        _, total = jax.lax.fori_loop(0, steps, add, start)
        out_ref[...] = jnp.sum(total, axis=0)

    ends = [*starts[1:], None]
    for w_ref, start, end in zip(w_refs, starts, ends, strict=True):
        mine = block >= start if end is None else (block >= start) & (block < end)
        pl.when(mine)(functools.partial(multiply, w_ref))


def _parts(steps: int, programs: int) -> int:
    """Into how many parts something of so many steps goes, so that all programs have work."""
    ways = [1 << n for n in range(16)]
    return max(n for n in ways if steps % n == 0 and n <= max(1, PROGRAMS // programs))


def _dot(a: Array, b: Array, dim: int = 0) -> Float32[Array, "rows columns"]:
    """The product over the last dim of `a` and that one of `b`."""
    numbers = (((1,), (dim,)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)
