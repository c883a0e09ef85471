"""Products and sums of dense numbers, said so that each kind of device makes them fast.

*Products of bfloat16.* JAX's own gradients of a product that is summed in float32 are products of
float32 numbers: the sums' gradient is float32, and what it meets is widened. A CPU with AVX512-BF16
takes more than twice as long for it. Here the gradient is rounded, which loses nothing where the
sums were rounded, since it was rounded with them.

*Sums* over many elements are written as matrix products with ones: XLA on a CPU adds a plain float
sum one scalar at a time, in order, and runs the product on vector units, 8 to 35 times faster at
this model's shapes. They ask for full precision, so that they are sums everywhere. A GPU's are
plain sums, which it fuses with what is around them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from gptj import kernels
from gptj.sharding import spec, split_as

Kept = tuple[Float[Array, "rows inner"], Float[Array, "inner outer"]]


def in_halves(*dtypes: DTypeLike) -> bool:
    """Whether products of these numbers are best made by `product`: of bfloat16, on one CPU."""
    are_halves = all(jnp.dtype(dtype) == jnp.bfloat16 for dtype in dtypes)
    return are_halves and spec() is None and kernels.target() == "cpu"


@jax.custom_vjp
def product(
    x: Float[Array, "rows inner"], weight: Float[Array, "inner outer"]
) -> Float32[Array, "rows outer"]:
    """`x @ weight`, summed in float32. The gradient that comes back is rounded to `x`'s dtype."""
    return jnp.dot(x, weight, preferred_element_type=jnp.float32)


def _forward(x: Array, weight: Array) -> tuple[Array, Kept]:
    return product(x, weight), (x, weight)


def _backward(kept: Kept, pull: Float32[Array, "rows outer"]) -> Kept:
    x, weight = kept
    rounded = pull.astype(x.dtype)
    of_x = jnp.einsum("ro,io->ri", rounded, weight, preferred_element_type=jnp.float32)
    return of_x.astype(x.dtype), over_rows(x, rounded).astype(weight.dtype)


product.defvjp(_forward, _backward)


def over_rows(
    x: Float[Array, "rows inner"], pull: Float[Array, "rows outer"]
) -> Float32[Array, "inner outer"]:
    """`x.T @ pull`, summed in float32: what a weight's gradient is.

    `x` is turned before: XLA would hide that in the product, which is then a slow one.
    """
    turned = jax.lax.optimization_barrier(x.T.reshape(-1)).reshape(x.shape[::-1])
    summed = jnp.dot(turned, pull, preferred_element_type=jnp.float32)
    # Of a product that is turned afterwards XLA makes one that it cannot run.
    return jax.lax.optimization_barrier(summed)


def sum_last(x: Float[Array, "*rows dim"], *axes: str | None) -> Float[Array, "*rows 1"]:
    """Sum over the last dim, kept as 1, in float32. `axes` are the result's, without that dim."""
    if _is_plain():
        return jnp.sum(x, axis=-1, keepdims=True, dtype=jnp.float32)
    ones = jnp.ones(x.shape[-1], x.dtype, out_sharding=split_as(x, -1))
    total = jnp.einsum(
        "...d,d->...",
        x,
        ones,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
        out_sharding=spec(*axes),
    )
    return total[..., None]


def spread(
    vector: Float[Array, " dim"], like: Float[Array, "rows dim"], axis: str | None = None
) -> Float[Array, "rows dim"]:
    """A bias or scale repeated for every row of `like`; its gradient is a sum over rows."""
    if _is_plain():  # widened, so that the gradient is summed in float32
        rounded = vector.astype(like.dtype).astype(jnp.float32)
        return jnp.broadcast_to(rounded, like.shape).astype(like.dtype)
    ones = jnp.ones(like.shape[0], like.dtype, out_sharding=spec("batch"))
    return jnp.einsum(
        "r,d->rd",
        ones,
        vector.astype(like.dtype),
        precision=jax.lax.Precision.HIGHEST,
        out_sharding=spec("batch", axis),
    )


def _is_plain() -> bool:
    """Whether sums are best said as sums: on one GPU, which makes them beside what feeds them."""
    return spec() is None and kernels.target() == "gpu"


def settled(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` made before the product that reads it, where there is no gradient.

    On a GPU XLA makes it inside that product, anew for each block of columns.
    """
    if kernels.is_wanted() and kernels.target() == "gpu":
        return jax.lax.optimization_barrier(x)
    return x
