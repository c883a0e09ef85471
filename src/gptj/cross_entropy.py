"""The output projection and the cross-entropy as one function that never holds all logits.

A batch's float32 logits are the largest array of a training step (GPT-J, one sequence: 413 MB),
and autodiff would keep two of them. This walks the sequence in chunks and computes each chunk's
gradient while its logits are still there, so nothing is stored and nothing computed twice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Float32, Int

from gptj import dense
from gptj.dense import sum_last
from gptj.sharding import BATCH_AXES, batch_ways, reshape, reshard, spec

CHUNK = 128
"""Positions of every sequence whose logits exist at one time."""

NEVER = -1e30
"""The logit of a column that is not a token: finite, so that nothing downstream makes a NaN."""


@dataclasses.dataclass(frozen=True)
class ZLoss:
    """`weight * logsumexp(logits)**2` a token, which keeps the normaliser near one.

    From PaLM (arXiv:2204.02311, section 5). The original trainer's is of the logits less their
    maximum, held constant: `shifted`.
    """

    weight: float = 0.0
    shifted: bool = False


NO_Z_LOSS = ZLoss()


class TokenLosses(NamedTuple):
    """What each token adds to the loss, in nats; no gradient flows from it."""

    nll: Float[Array, "..."]
    """Its negative log-likelihood."""
    z_loss: Float[Array, "..."]
    """What is added for the size of its normaliser."""


Residuals = tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]
Chunk = tuple[Float[Array, "rows embed"], Int[Array, " rows"], Float[Array, " rows"]]


def linear_cross_entropy(
    hidden: Float[Array, "batch length embed"],
    output: Float[Array, "embed vocab"],
    bias: Float[Array, " vocab"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    vocab_size: int,
    z_loss: ZLoss = NO_Z_LOSS,
) -> tuple[Float[Array, ""], TokenLosses]:
    """Weighted sum over tokens of `-log softmax(hidden @ output + bias)[target]`, in float32.

    Args:
      hidden: activations, whole over `tensor`.
      output: the projection, typed reduced over the batch axes; `bias` is stored as is.
      weights: what each token counts; weights summing to one give a mean.
      vocab_size: logits from this column on are left out of the softmax.
      z_loss: what is added for the size of the normaliser.

    Returns:
      The loss, and of each token its parts, "batch length".
    """
    loss, parts = _fused(hidden, output, bias, targets, weights, vocab_size, z_loss)
    return loss, jax.lax.stop_gradient(parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _fused(
    hidden: Array,
    output: Array,
    bias: Array,
    targets: Array,
    weights: Array,
    vocab_size: int,
    z_loss: ZLoss,
) -> tuple[Array, TokenLosses]:
    def step(loss: Array, chunk: Chunk) -> tuple[Array, TokenLosses]:
        chunk_loss, parts, _ = _chunk_loss(chunk, output, bias, vocab_size, z_loss)
        return loss + chunk_loss, parts

    loss, parts = jax.lax.scan(step, jnp.zeros(()), _split(hidden, targets, weights))
    return loss, jax.tree.map(lambda x: _join(x, hidden), parts)


def _fused_forward(
    hidden: Array,
    output: Array,
    bias: Array,
    targets: Array,
    weights: Array,
    vocab_size: int,
    z_loss: ZLoss,
) -> tuple[tuple[Array, TokenLosses], Residuals]:
    def step(carry: Residuals, chunk: Chunk) -> tuple[Residuals, tuple[TokenLosses, Array]]:
        loss, d_output, d_bias = carry
        chunk_loss, parts, d_logits = _chunk_loss(chunk, output, bias, vocab_size, z_loss)
        ones = jnp.ones_like(chunk[2])
        d_bias += _product("r,rv->v", ones, d_logits, partial_bias)
        d_logits = d_logits.astype(hidden.dtype)
        d_output = _add_product(d_output, chunk[0], d_logits, partial_output)
        d_hidden = _product("rv,ev->re", d_logits, output, spec("batch", None))
        return (loss + chunk_loss, d_output, d_bias), (parts, d_hidden.astype(hidden.dtype))

    # Over the batch axes the weights' gradients stay partial sums until all chunks are in.
    pending = BATCH_AXES if batch_ways() > 1 else ()
    partial_output = spec(None, "vocab", unreduced=pending)
    partial_bias = spec("vocab", unreduced=pending)
    d_output = jnp.zeros(output.shape, jnp.float32, out_sharding=spec(None, "vocab"))
    d_bias = jnp.zeros(bias.shape, jnp.float32, out_sharding=spec("vocab"))
    start = (
        jnp.zeros(()),
        reshard(d_output, None, "vocab", unreduced=pending),
        reshard(d_bias, "vocab", unreduced=pending),
    )
    (loss, d_output, d_bias), (parts, d_hidden) = jax.lax.scan(
        step, start, _split(hidden, targets, weights)
    )
    d_output = reshard(d_output, None, "vocab", unreduced=BATCH_AXES).astype(output.dtype)
    return (loss, jax.tree.map(lambda x: _join(x, hidden), parts)), (
        _join(d_hidden, hidden),
        d_output,
        reshard(d_bias, "vocab").astype(bias.dtype),
    )


def _fused_backward(
    vocab_size: int, z_loss: ZLoss, gradients: Residuals, cotangents: tuple[Array, TokenLosses]
) -> tuple[Array | None, ...]:
    d_hidden, d_output, d_bias = gradients
    scale = cotangents[0]  # the second is the tokens', which carry no gradient
    partial_scale = reshard(scale, reduced=BATCH_AXES).astype(d_output.dtype)
    return (
        d_hidden * scale.astype(d_hidden.dtype),
        d_output * partial_scale,
        d_bias * scale.astype(d_bias.dtype),
        None,
        None,
    )


_fused.defvjp(_fused_forward, _fused_backward)


def _chunk_loss(
    chunk: Chunk, output: Array, bias: Array, vocab_size: int, z_loss: ZLoss
) -> tuple[Array, TokenLosses, Array]:
    """A chunk's weighted loss, its tokens' parts of it, and the loss's gradient on the logits."""
    hidden, targets, weights = chunk
    logits = _product("re,ev->rv", hidden, output, spec("batch", "vocab"))
    columns = jax.lax.broadcasted_iota(
        jnp.int32, logits.shape, 1, out_sharding=spec("batch", "vocab")
    )
    logits = jnp.where(columns < vocab_size, logits + bias.astype(jnp.float32), NEVER)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    exp = jnp.exp(logits - largest)
    total = sum_last(exp, "batch")
    above = jnp.log(total)[..., 0]
    log_total = above + largest[..., 0]
    is_target = columns == targets[..., None]
    # One column is the target: its maximum is its value, and a maximum is a vectorised reduction.
    nll = log_total - jnp.max(jnp.where(is_target, logits, -jnp.inf), axis=-1)
    z = above if z_loss.shifted else log_total
    parts = TokenLosses(nll, z_loss.weight * z**2)
    loss = jnp.sum(weights * (parts.nll + parts.z_loss))
    pull = weights * (1 + 2 * z_loss.weight * z)
    d_logits = exp * (pull[..., None] / total) - jnp.where(is_target, weights[..., None], 0)
    return loss, parts, d_logits


def _add_product(
    total: Float[Array, "embed vocab"],
    hidden: Float[Array, "rows embed"],
    d_logits: Float[Array, "rows vocab"],
    partial: PartitionSpec | None,
) -> Float[Array, "embed vocab"]:
    """Add `hidden.T @ d_logits` to `total`.

    The whole product is as large as the projection itself, 788 MiB for GPT-J. Where no sum over
    devices is pending it is made and added a part at a time; JAX cannot slice a pending one.
    """
    if batch_ways() > 1 or total.shape[0] <= 1024:
        return total + _over_rows(hidden, d_logits, partial)
    size = math.gcd(total.shape[0], 1024)

    def add(index: Array, total: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(hidden, index * size, size, axis=1)
        product = _over_rows(part, d_logits, spec(None, "vocab"))
        before = jax.lax.dynamic_slice_in_dim(total, index * size, size, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(total, before + product, index * size, axis=0)

    return jax.lax.fori_loop(0, total.shape[0] // size, add, total)


def _over_rows(
    hidden: Float[Array, "rows embed"],
    d_logits: Float[Array, "rows vocab"],
    sharding: PartitionSpec | None,
) -> Float32[Array, "embed vocab"]:
    if dense.in_halves(hidden.dtype):
        return dense.over_rows(hidden, d_logits)
    return _product("re,rv->ev", hidden, d_logits, sharding)


def _product(subscripts: str, a: Array, b: Array, sharding: PartitionSpec | None) -> Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32, out_sharding=sharding)


def _split(hidden: Array, targets: Array, weights: Array) -> Chunk:
    """Cut along the sequence into a leading axis of chunks; the padding counts nothing."""

    def cut(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % CHUNK)] + [(0, 0)] * (x.ndim - 2))
        x = jnp.moveaxis(x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]), 1, 0)
        shape = (x.shape[0], -1, *x.shape[3:])
        return reshape(x, shape, None, "batch", *[None] * (x.ndim - 3))

    return cut(hidden), cut(targets), cut(weights)


def _join(chunks: Array, like: Float[Array, "batch length embed"]) -> Array:
    """Undo `_split` on one array."""
    batch, length, _ = like.shape
    after = (None,) * (chunks.ndim - 2)
    shape = (-1, batch, CHUNK, *chunks.shape[2:])
    x = jnp.moveaxis(reshape(chunks, shape, None, "batch", None, *after), 0, 1)
    return x.reshape(batch, -1, *x.shape[3:])[:, :length]
