"""How a weight is stored, and the products every layer is made of."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Key

from gptj import dense, kernels
from gptj.kernels import gpu
from gptj.quantised import NF4, FewBits, Int4, Int8, dequantised
from gptj.sharding import BATCH_AXES, LOGICAL_TO_MESH, reshape, reshard, spec, split_as

PRODUCT = "product"
"""What rematerialisation calls the products of activations and weights, adapters' added."""

Matrix = Float[Array, "..."] | FewBits
"""A matrix in as many or as few bits as it is stored in."""


@jax.tree_util.register_dataclass
@final
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A matrix and what is added to it, `base + scale * down @ up` (LoRA, arXiv:2106.09685)."""

    base: Matrix
    down: Float[Array, "*layers inner rank"]
    up: Float[Array, "*layers rank outer"]
    key: Key[Array, "*layers"] | None
    """Draws which activations `down` does not see, a share of `dropout`; none is left out without
    it."""
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(metadata={"static": True})
    inner_dims: int = dataclasses.field(metadata={"static": True})
    """How many of the first dims of `base` a product sums over."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Room:
    """Several adapters of one matrix side by side: `span` columns of one and as many of the next.

    From the last one they begin again, where a mesh splits the columns: a device has a part of each
    adapter.
    """

    down: Float[Array, "*layers inner columns"]
    up: Float[Array, "*layers columns outer"]
    scale: Float32[Array, "*layers columns"]
    count: int = dataclasses.field(metadata={"static": True})
    span: int = dataclasses.field(metadata={"static": True})

    def owner(self) -> Int[np.ndarray, " columns"]:
        """Whose each column is, from 1."""
        return np.arange(self.down.shape[-1], dtype=np.int32) // self.span % self.count + 1


@jax.tree_util.register_dataclass
@final
@dataclasses.dataclass(frozen=True)
class LowRanks:
    """A matrix and several adapters, of which each row of a product has one added, or none.

    All of them are multiplied, and what is another's becomes 0 on the way: so one program serves
    whatever is in the room.
    """

    base: Matrix
    room: Room
    chosen: Int[Array, " rows"] | None
    """Which one each row has, from 1; 0 is none. It is said anew in every step."""
    inner_dims: int = dataclasses.field(metadata={"static": True})


Weight = Matrix | LowRank | LowRanks
"""A matrix as it is stored."""

Stored = TypeVar("Stored", Array, FewBits, Matrix, LowRank, LowRanks, Weight)


def einsum(
    subscripts: str,
    x: Float[Array, "rows ..."],
    weight: Weight,
    *axes: str | None,
    unreduced: tuple[str, ...] = (),
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """The product of activations and a weight, summed in float32; in the activations' dtype.

    Give it the tokens of all rows as one dim: the weight's gradient then contracts one dim, which
    needs no copy of the activations.

    `axes` are the logical axes of the result. A sum over a split dim stays `unreduced` over that
    mesh axis where the caller says so, to be added to others like it before they travel. A weight
    has all dims of `x` but the first as its first: so are those in few bits multiplied, and
    bfloat16 on a CPU, whatever the letters.
    """
    if isinstance(weight, LowRank | LowRanks):
        wide = functools.partial(einsum, unreduced=unreduced, dtype=_comes_out_as(x.dtype))
        product = wide(subscripts, x, weight.base, *axes) + _low_rank(x, weight, axes, unreduced)
    elif kernels.worth(x):
        (product,) = _few_rows(x, weight)
    elif _is_one_row(x, weight):
        (product,) = _one_row(x, weight)
    elif isinstance(weight, FewBits):
        product = _few_bits(x, weight, axes, unreduced)
    elif dense.in_halves(x.dtype, weight.dtype):
        inner = math.prod(x.shape[1:])
        flat = dense.product(x.reshape(-1, inner), weight.reshape(inner, -1))
        product = flat.reshape(x.shape[0], *weight.shape[x.ndim - 1 :])
    else:
        product = jnp.einsum(
            subscripts,
            x,
            weight,
            preferred_element_type=_comes_out_as(dtype or x.dtype),
            out_sharding=spec(*axes, unreduced=unreduced),
        )
    product = product.astype(dtype or x.dtype)
    # A partial sum, or one of two that are added, is nothing that a backward pass reads.
    return product if unreduced or dtype else checkpoint_name(product, PRODUCT)


def einsums(
    subscripts: str, x: Float[Array, "rows ..."], weights: Sequence[Weight], *axes: str | None
) -> list[Float[Array, "..."]]:
    """The same of several weights alike, which native programs read together."""
    if _is_one_row(x, *weights):
        return [product.astype(x.dtype) for product in _one_row(x, *weights)]
    matrices = [weight for weight in weights if not isinstance(weight, LowRank | LowRanks)]
    if len(matrices) == len(weights) and kernels.worth(x):
        return [product.astype(x.dtype) for product in _few_rows(x, *matrices)]
    return [einsum(subscripts, x, weight, *axes) for weight in weights]


def _comes_out_as(dtype: DTypeLike) -> DTypeLike:
    """What a product is asked for that is wanted in `dtype`.

    A GPU rounds the float32 sums itself. The gradient that comes back is then of 16 bits too; of a
    float32 product it would be float32, and the weights be widened to be multiplied with it.
    """
    return dtype if kernels.target() == "gpu" else jnp.float32


def _is_kept_as(dtype: DTypeLike) -> DTypeLike:
    """The same of a product that goes on to be scaled: without a gradient always float32."""
    return jnp.float32 if kernels.is_wanted() else _comes_out_as(dtype)


def _is_one_row(x: Float[Array, "rows ..."], *weights: Weight) -> bool:
    """Whether the products are a GPU's native program's."""
    if not (kernels.is_wanted() and gpu.in_use(x.dtype)):
        return False
    flat = [w for w in (_flat(x, weight) for weight in weights) if w is not None]
    return len(flat) == len(weights) and gpu.can_multiply(x.reshape(x.shape[0], -1), *flat)


def _one_row(x: Float[Array, "1 ..."], *weights: Weight) -> list[Float32[Array, "1 ..."]]:
    """Products by it: all dims of `x` but the first are the first of the weights."""
    flat = [_flat(x, weight) for weight in weights]
    made = gpu.products(x.reshape(1, -1), [w for w in flat if w is not None])
    found = []
    for product, weight in zip(made, weights, strict=True):
        if isinstance(weight, Int8):
            found.append((product * weight.scale).reshape(1, *weight.outer_shape))
        else:
            assert isinstance(weight, Array)
            found.append(product.reshape(1, *weight.shape[x.ndim - 1 :]))
    return found


def _flat(x: Float[Array, "rows ..."], weight: Weight) -> Array | None:
    """The numbers of a weight as inner and outer dim, if it is one that `gpu.products` takes."""
    if isinstance(weight, Int8):
        return weight.values
    if isinstance(weight, FewBits | LowRank | LowRanks) or weight.dtype != x.dtype:
        return None
    return weight.reshape(math.prod(x.shape[1:]), -1)


def _low_rank(
    x: Float[Array, "rows ..."],
    weight: LowRank | LowRanks,
    axes: tuple[str | None, ...],
    unreduced: tuple[str, ...],
) -> Float[Array, "rows ..."]:
    """What is added to the product. A sum over a split dim is complete before `up`, and short."""
    flat = x
    if x.ndim > 2:
        shape = (x.shape[0], math.prod(x.shape[1:]))
        flat = jnp.reshape(x, shape, out_sharding=split_as(x, 0, 1))
    if isinstance(weight, LowRank) and weight.key is not None:
        kept = jax.random.bernoulli(
            weight.key, 1 - weight.dropout, flat.shape, out_sharding=split_as(flat, 0, 1)
        )
        flat = jnp.where(kept, flat / (1 - weight.dropout), 0)
    flat = flat if unreduced else reshard(flat, axes[0], None)
    pair = weight if isinstance(weight, LowRank) else weight.room
    short = _product(flat, pair.down, spec(axes[0], None, unreduced=unreduced))
    if unreduced:  # complete, and each part of `up` then gives a partial sum of its own
        short = reshard(short, axes[0], "rank")
    short = _scaled(short, weight, axes[0], "rank" if unreduced else None)
    if not unreduced:
        short = reshard(short, axes[0], None, reduced=("tensor",))
    product = _product(short.astype(x.dtype), pair.up, spec(*axes[:2], unreduced=unreduced))
    if len(axes) == 2:
        return product
    outer = _outer_shape(weight.base, weight.inner_dims)
    return reshape(product, (x.shape[0], *outer), *axes)


def _scaled(
    short: Float[Array, "rows columns"], weight: LowRank | LowRanks, *axes: str | None
) -> Float[Array, "rows columns"]:
    """What goes on from `down` to `up`: of several adapters each row's own."""
    if isinstance(weight, LowRank):
        return weight.scale * short
    assert weight.chosen is not None, "nobody said which adapter each row has"
    is_own = reshard(weight.room.owner() == weight.chosen[:, None], *axes)
    return jnp.where(is_own, short * reshard(weight.room.scale, axes[1]), 0)


def _product(
    x: Float[Array, "rows inner"], matrix: Float[Array, "inner outer"], layout: PartitionSpec | None
) -> Float[Array, "rows outer"]:
    """The product with one of an adapter's matrices."""
    if kernels.worth(x):
        return kernels.products(x, [(matrix,)])[0]
    return jnp.einsum(
        "ri,io->ro", x, matrix, preferred_element_type=_is_kept_as(x.dtype), out_sharding=layout
    )


def _few_rows(x: Float[Array, "rows ..."], *weights: Matrix) -> list[Float[Array, "rows ..."]]:
    """The same, natively: all dims of `x` but the first are the first of the weights."""
    rows = x.reshape(x.shape[0], -1)
    made = kernels.products(rows, [_parts(rows, weight) for weight in weights])
    return [
        product.reshape(x.shape[0], *_outer_shape(weight, x.ndim - 1))
        for product, weight in zip(made, weights, strict=True)
    ]


def _parts(rows: Float[Array, "rows inner"], weight: Matrix) -> tuple[Array, ...]:
    """A matrix as `kernels.products` takes it."""
    if isinstance(weight, Int4):
        return weight.pairs, weight.scale, weight.low
    if isinstance(weight, Int8):
        return weight.values, weight.scale
    if isinstance(weight, NF4):
        return (dequantised(weight, rows.dtype),)
    return (weight.reshape(rows.shape[1], -1),)


def _outer_shape(weight: Matrix, inner_dims: int) -> tuple[int, ...]:
    """The dims of a matrix that a product with it has."""
    return weight.shape[inner_dims:] if isinstance(weight, Array) else weight.outer_shape


@functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    static_argnums=(2, 3),
    policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
)
def _few_bits(
    x: Float[Array, "rows ..."],
    weight: FewBits,
    axes: tuple[str | None, ...],
    unreduced: tuple[str, ...],
) -> Float[Array, "rows ..."]:
    """The same for a weight in few bits: a product of two dims each, of which any may be split.

    A backward pass makes the dense matrix once more: kept, all layers' would be a dense model.
    """
    flat = (x.shape[0], math.prod(x.shape[1:]))
    dot = functools.partial(
        jnp.einsum,
        "ri,io->ro",
        x if x.ndim == 2 else jnp.reshape(x, flat, out_sharding=split_as(x, 0, 1)),
        preferred_element_type=_is_kept_as(x.dtype),
        out_sharding=spec(*axes[:2], unreduced=unreduced),
    )
    if isinstance(weight, Int8):  # its numbers are exact in any type, and scaled once summed
        product = dot(weight.values.astype(x.dtype)).astype(jnp.float32)
        product *= reshard(weight.scale, axes[1], reduced=unreduced)
    else:
        product = dot(dequantised(weight, x.dtype))
    if len(weight.outer_shape) == 1:
        return product
    return reshape(product, (x.shape[0], *weight.outer_shape), *axes)


def gather(weight: Stored, axes: tuple[str | None, ...], dtype: DTypeLike) -> Stored:
    """A stored weight made ready for use: cast to `dtype`, whole along its `embed` dim.

    It is typed as reduced over the batch axes, so that its gradient stays partial sums until the
    gather's own transpose adds and scatters them: one collective a weight, whatever its uses.
    One in few bits has no gradient, and stays in them.
    """
    if isinstance(weight, LowRank):
        down, up = _gather_pair(weight, axes, axes[weight.inner_dims], dtype)
        base = gather(weight.base, axes, dtype)
        return dataclasses.replace(weight, base=base, down=down, up=up)
    if isinstance(weight, LowRanks):
        down, up = _gather_pair(weight.room, axes, axes[weight.inner_dims], dtype)
        room = dataclasses.replace(weight.room, down=down, up=up)
        return dataclasses.replace(weight, base=gather(weight.base, axes, dtype), room=room)
    whole = [None if axis == "embed" else axis for axis in axes]
    if isinstance(weight, FewBits):
        flat = whole[0], whole[len(axes) - len(weight.outer_shape)]
        return jax.tree.map(lambda x: reshard(x, *flat[-x.ndim :]), weight)
    return reshard(weight.astype(dtype), *whole, reduced=BATCH_AXES)


def _gather_pair(
    pair: LowRank | Room, axes: tuple[str | None, ...], last: str | None, dtype: DTypeLike
) -> tuple[Array, Array]:
    """The two matrices of adapters, of a matrix whose `outer` begins with the axis `last`."""
    up = gather(pair.up, (rank_axis(axes[0]), last), dtype)
    return gather(pair.down, (axes[0], None), dtype), up


def rank_axis(inner: str | None) -> str | None:
    """The logical axis of an adapter's rank in `up`, where `inner` is the first of its matrix."""
    return "rank" if LOGICAL_TO_MESH[inner or "layers"] == "tensor" else None


def gather_dense(
    weight: Weight, axes: tuple[str | None, str | None], dtype: DTypeLike
) -> Float[Array, "inner outer"]:
    """The same as one array, for a matrix that is in no `einsum`."""
    if isinstance(weight, FewBits):
        weight = dequantised(gather(weight, axes, dtype), dtype)
    assert not isinstance(weight, LowRank | LowRanks), "adapters are of matrices in layers"
    return gather(weight, axes, dtype)
