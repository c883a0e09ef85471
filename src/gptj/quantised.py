"""Matrices and cache rows in fewer bits: small whole numbers, and the scales that they stand for.

Every product with a weight is `[rows, *inner] x [*inner, *outer]`, so a matrix in few bits is kept
flat, `[inner, outer]`; stacked over layers all arrays have one more leading dim. Numbers are
rounded to nearest, and what one is rounded by does not depend on the activations.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, UInt

from gptj.errors import UserError
from gptj.sharding import spec, split_as

Quantisation = Literal["int8", "int4", "nf4"]
"""How the matrices of a model's products are stored when not as they are."""

GROUP = {"int4": 128, "nf4": 64}
"""Numbers of a column that share a scale, or as many of these as divide the column: 4.5 bits a
number with either."""

NORMAL = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""What the 16 numbers of nf4 stand for: about as many of a normal's draws are nearest to each
("QLoRA", arXiv:2305.14314, appendix E)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A matrix `values * scale`: 8 bits a number, and a scale a column, its largest size / 127."""

    values: Int[Array, "*layers inner outer"]
    scale: Float32[Array, "*layers outer"]
    outer_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    """What `outer` is the product of: the result's dims but the rows."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int4:
    """A matrix `low + scale * q`, q in 0 .. 15: 4.5 bits a number, in groups down each column.

    A byte holds two numbers. The first half of a group's rows are the low bits of its bytes, the
    second half the high ones: a group's bytes lie together, and `inner` can be split between any
    two groups.
    """

    pairs: UInt[Array, "*layers inner/2 outer"]
    scale: Float32[Array, "*layers groups outer"]
    low: Float32[Array, "*layers groups outer"]
    """A group's smallest number; the scale is its range / 15."""
    outer_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NF4:
    """A matrix `scale * NORMAL[q]`, q in 0 .. 15, packed as `Int4` is.

    QLoRA's own code groups a flattened matrix; here groups lie down each column, as a mesh splits.
    """

    pairs: UInt[Array, "*layers inner/2 outer"]
    scale: Float32[Array, "*layers groups outer"]
    """The largest size in a group."""
    outer_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


FewBits = Int8 | Int4 | NF4
"""A matrix in few bits."""


def is_quantised(tree: Any) -> bool:
    """Whether any weight in the tree is in few bits."""
    is_leaf = lambda x: isinstance(x, FewBits)  # noqa: E731
    return any(map(is_leaf, jax.tree.leaves(tree, is_leaf=is_leaf)))


@functools.partial(jax.jit, static_argnames=("inner_dims", "kind"))
def quantise(
    weight: Float[Array, "*inner_and_outer"], inner_dims: int, kind: Quantisation
) -> FewBits:
    """One layer's matrix in few bits, split over the mesh as it was.

    A number that is not finite makes all that share its scale so.

    Args:
      inner_dims: how many of the first dims a product sums over.

    Raises:
      UserError: int4 or nf4 for an odd number of rows, or groups that the mesh does not divide.
    """
    inner, outer_shape = math.prod(weight.shape[:inner_dims]), weight.shape[inner_dims:]
    shape = (inner, math.prod(outer_shape))
    wide = jnp.reshape(weight, shape, out_sharding=split_as(weight, 0, inner_dims))
    wide = wide.astype(jnp.float32)
    if kind == "int8":
        return Int8(*_rounded(wide, axis=0), outer_shape)
    groups = _grouped(wide, _group_size(wide, kind))
    if kind == "nf4":
        scale = jnp.max(jnp.abs(groups), axis=1)
        return NF4(_packed(_nearest(groups / _divisor(scale)[:, None])), scale, outer_shape)
    low = jnp.min(groups, axis=1)
    scale = (jnp.max(groups, axis=1) - low) / 15
    q = jnp.clip(jnp.round((groups - low[:, None]) / _divisor(scale)[:, None]), 0, 15)
    return Int4(_packed(q.astype(jnp.uint8)), scale, low, outer_shape)


def dequantised(weight: FewBits, dtype: DTypeLike = jnp.float32) -> Float[Array, "inner outer"]:
    """The numbers that one layer's matrix in few bits stands for, flat, in `dtype`."""
    if isinstance(weight, Int8):
        return (weight.values.astype(jnp.float32) * weight.scale).astype(dtype)
    halves = _grouped(weight.pairs, weight.pairs.shape[0] // weight.scale.shape[0])
    q = jnp.concatenate([halves & 15, halves >> 4], axis=1)
    if isinstance(weight, NF4):
        found = _normal(q) * weight.scale[:, None]
    else:
        found = q.astype(jnp.float32) * weight.scale[:, None] + weight.low[:, None]
    return _ungrouped(found.astype(dtype))


def _packed(q: UInt[Array, "groups size outer"]) -> UInt[Array, "inner/2 outer"]:
    """Two numbers a byte: see `Int4`."""
    half = q.shape[1] // 2
    return _ungrouped(q[:, :half] | q[:, half:] << 4)


def _nearest(x: Float32[Array, "..."]) -> UInt[Array, "..."]:
    """Which of `NORMAL` each number is nearest to."""
    between = (np.add(NORMAL[1:], NORMAL[:-1]) / 2).astype(np.float32)
    return functools.reduce(jnp.add, ((x > each).astype(jnp.uint8) for each in between))


def _normal(q: UInt[Array, "..."]) -> Float32[Array, "..."]:
    """`NORMAL[q]`, chosen bit by bit: single numbers are what a TPU looks up worst.

    The first bit by products, which are exact: of a choice between constants JAX makes whole
    arrays of them, outside of a loop over layers.
    """
    odd = (q & 1).astype(jnp.float32)
    even = 1 - odd
    found = [even * a + odd * b for a, b in zip(NORMAL[::2], NORMAL[1::2], strict=True)]
    for bit in (1, 2, 3):
        is_set = (q >> bit & 1) == 1
        found = [jnp.where(is_set, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
    return found[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Rows:
    """Vectors along the last dim, `values * scale`: 8 bits a number, and a scale a vector."""

    values: Int[Array, "*rows dim"]
    scale: Float32[Array, "*rows 1"]
    dtype: np.dtype[Any] = dataclasses.field(metadata={"static": True})
    """What they were, and are read as."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The vectors' shape."""
        return self.values.shape

    def read(self) -> Float[Array, "*rows dim"]:
        """The vectors that these stand for."""
        return (self.values.astype(jnp.float32) * self.scale).astype(self.dtype)


def int8_rows(x: Float[Array, "*rows dim"]) -> Int8Rows:
    """Each vector along the last dim rounded by a scale of its own."""
    values, scale = _rounded(x.astype(jnp.float32), axis=-1)
    return Int8Rows(values, scale[..., None], np.dtype(x.dtype))


def _rounded(x: Float32[Array, "..."], axis: int) -> tuple[Array, Float32[Array, "..."]]:
    """The int8 numbers of `x` and what to multiply them by, one scale along `axis`."""
    scale = jnp.max(jnp.abs(x), axis=axis) / 127
    values = jnp.round(x / jnp.expand_dims(_divisor(scale), axis))
    return jnp.clip(values, -127, 127).astype(jnp.int8), scale


def _divisor(scale: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """The scale, and 1 for numbers that are all alike: they are exact with any."""
    return jnp.where(scale > 0, scale, 1)


def _group_size(matrix: Float[Array, "inner outer"], kind: Quantisation) -> int:
    """Numbers of a column that share a scale: as many as divide the column, and lie together."""
    inner = matrix.shape[0]
    size = math.gcd(inner, GROUP[kind])
    if size < 2:
        raise UserError(f"{kind} takes two weights a byte, and {inner} are odd: use int8")
    ways = _ways(matrix)
    if inner // size % ways:
        raise UserError(
            f"the mesh splits {inner} weights of a sum {ways} ways, between groups of {size} that "
            f"{kind} keeps together: use int8, or fewer parts"
        )
    return size


def _grouped(x: Array, size: int) -> Array:
    """`[inner, outer]` as `[groups, size, outer]`."""
    shape = (x.shape[0] // size, size, x.shape[1])
    return jnp.reshape(x, shape, out_sharding=split_as(x, 0, None, 1))


def _ungrouped(x: Array) -> Array:
    """`[groups, size, outer]` as `[inner, outer]`."""
    shape = (x.shape[0] * x.shape[1], x.shape[2])
    return jnp.reshape(x, shape, out_sharding=split_as(x, 0, 2))


def _ways(x: Array) -> int:
    """Into how many parts the mesh splits the first dim."""
    if spec() is None:
        return 1
    split, sizes = jax.typeof(x).sharding.spec[0], jax.sharding.get_abstract_mesh().shape
    names = (split,) if isinstance(split, str) else split or ()
    return math.prod(sizes[name] for name in names)
