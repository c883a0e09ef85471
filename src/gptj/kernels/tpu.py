"""Attention in training on a TPU, by JAX's splash attention: scores never leave the chip."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Bool, Float, Int

BLOCK = 512
"""Most queries, and keys, that a program holds at a time."""

LANES = 128
"""Blocks are a multiple of it."""

MOST_DIMS = 256
"""Of a head: what blocks of that size have been compiled with, for v4, v5e, v5p and v6e."""


def attention(
    query: Float[Array, "batch length heads d_head"],
    key: Float[Array, "batch length heads d_head"],
    value: Float[Array, "batch length heads d_head"],
    ends: Int[Array, "batch length"] | None = None,
    interpret: bool = False,
) -> Float[Array, "batch length heads d_head"]:
    """Causal attention, scaled by 1/sqrt(d_head), and its gradients.

    Splash attention knows documents by a number for each. Theirs is where they end, and a row whose
    `ends` are not of documents one after the other comes out as NaN. A row is filled up to whole
    blocks with positions that none before sees.

    Args:
      ends: one past the last position of each key's document.
      interpret: by any device, slowly.
    """
    length, heads, d_head = query.shape[1:]
    block = block_size(length)
    more = -length % block
    query = query * d_head**-0.5
    by_head = [
        jnp.pad(x.transpose(0, 2, 1, 3), [(0, 0), (0, 0), (0, more), (0, 0)])
        for x in (query, key, value)
    ]
    program = _program(heads, length + more, block, interpret)
    if ends is None:
        mixed = jax.vmap(program)(*by_head)
    else:
        numbers = jnp.pad(ends, [(0, 0), (0, more)])  # no document ends at 0
        mixed = jax.vmap(program)(*by_head, splash.SegmentIds(numbers, numbers))
        mixed = jnp.where(_are_documents(ends)[:, None, None, None], mixed, jnp.nan)
    return mixed[:, :, :length].transpose(0, 2, 1, 3)


def block_size(length: int) -> int:
    """That of equal blocks with the fewest positions to fill up, as few as `BLOCK` allows."""
    count = -(-length // BLOCK)
    return -(-length // (count * LANES)) * LANES


def _program(heads: int, length: int, block: int, interpret: bool) -> Callable[..., Array]:
    """Splash attention of one row."""
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block,
        block_q_dq=block, block_kv_dq=block,
        block_q_dkv=block, block_kv_dkv=block,
    )  # fmt: skip
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    made: Callable[..., Array] = splash.make_splash_mha_single_device(
        mask, block_sizes=sizes, interpret=interpret
    )
    return made


def _are_documents(ends: Int[Array, "batch length"]) -> Bool[Array, " batch"]:
    """Whether each position is the last of its document, or in the one of the position after it."""
    length = ends.shape[1]
    is_last = ends == jnp.arange(1, length + 1)
    are_inside = jnp.all(is_last[:, :-1] | (ends[:, :-1] == ends[:, 1:]), axis=1)
    return are_inside & is_last[:, -1]
