"""How a weight is stored, and the products and sums every layer is made of.

Sums over many elements are written here as matrix products with ones: XLA on a CPU adds a plain
float sum one scalar at a time, in order, and runs the product on vector units, 8 to 35 times
faster at this model's shapes. They ask for full precision, so that they are sums everywhere.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gptj import kernels
from gptj.sharding import BATCH_AXES, reshard, spec


def einsum(
    subscripts: str,
    x: Float[Array, "..."],
    weight: Float[Array, "..."],
    *axes: str | None,
    unreduced: tuple[str, ...] = (),
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """The product of activations and a weight, summed in float32; in the activations' dtype.

    Give it the tokens of all rows as one dim: the weight's gradient then contracts one dim, which
    needs no copy of the activations.

    `axes` are the logical axes of the result. A sum over a split dim stays `unreduced` over that
    mesh axis where the caller says so, to be added to others like it before they travel.
    """
    if kernels.in_use() and x.shape[0] <= kernels.MOST_ROWS:
        product = _few_rows(x, weight)
    else:
        product = jnp.einsum(
            subscripts,
            x,
            weight,
            preferred_element_type=jnp.float32,
            out_sharding=spec(*axes, unreduced=unreduced),
        )
    return product.astype(dtype or x.dtype)


def _few_rows(x: Float[Array, "rows ..."], weight: Float[Array, "..."]) -> Float[Array, "rows ..."]:
    """The same, natively: all dims of `x` but the first are the first of `weight`."""
    rows, split = x.shape[0], x.ndim - 1
    inner = math.prod(weight.shape[:split])
    product = kernels.product(x.reshape(rows, inner), weight.reshape(inner, -1))
    return product.reshape(rows, *weight.shape[split:])


def gather(
    weight: Float[Array, "..."], axes: tuple[str | None, ...], dtype: DTypeLike
) -> Float[Array, "..."]:
    """A stored weight made ready for use: cast to `dtype`, whole along its `embed` dim.

    It is typed as reduced over the batch axes, so that its gradient stays partial sums until the
    gather's own transpose adds and scatters them: one collective a weight, whatever its uses.
    """
    whole = (None if axis == "embed" else axis for axis in axes)
    return reshard(weight.astype(dtype), *whole, reduced=BATCH_AXES)


def sum_last(
    x: Float[Array, "*rows dim"], *axes: str | None, unreduced: tuple[str, ...] = ()
) -> Float[Array, "*rows 1"]:
    """Sum over the last dim, kept as 1, in float32. `axes` are the result's, without that dim."""
    ones = jnp.ones(x.shape[-1], x.dtype, out_sharding=_last_sharding(x))
    total = jnp.einsum(
        "...d,d->...",
        x,
        ones,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
        out_sharding=spec(*axes, unreduced=unreduced),
    )
    return total[..., None]


def spread(
    vector: Float[Array, " dim"], like: Float[Array, "rows dim"], axis: str | None = None
) -> Float[Array, "rows dim"]:
    """A bias or scale repeated for every row of `like`; its gradient is a sum over rows."""
    ones = jnp.ones(like.shape[0], like.dtype, out_sharding=spec("batch"))
    return jnp.einsum(
        "r,d->rd",
        ones,
        vector.astype(like.dtype),
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=spec("batch", axis),
    )


def _last_sharding(x: Array) -> jax.sharding.PartitionSpec | None:
    """How the last dim of `x` is split, as the sharding of a vector along it."""
    if spec() is None:
        return None
    return jax.sharding.PartitionSpec(jax.typeof(x).sharding.spec[-1])
