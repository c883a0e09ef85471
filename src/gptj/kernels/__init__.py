"""Native programs for what XLA does slowly on a CPU; everything works without them, slower.

Those for a GPU are in `gptj.kernels.gpu`, those for a TPU in `gptj.kernels.tpu`.

A wheel for the machine brings them; else they are compiled by `g++` the first time they are wanted,
in some seconds, and kept in the user's cache folder. `GPTJ_NATIVE=0` in the environment leaves them
out.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Int8, Int32, Num

from gptj import caches
from gptj.kernels import build

TARGETS = {
    "gptj_products": "GptjProducts",
    "gptj_products_int8": "GptjProductsInt8",
    "gptj_products_int4": "GptjProductsInt4",
    "gptj_attention": "GptjAttention",
    "gptj_attention_int8": "GptjAttentionInt8",
    "gptj_causal_attention": "GptjCausalAttention",
    "gptj_causal_gradient": "GptjCausalGradient",
    "gptj_top_k": "GptjTopK",
    "gptj_rows": "GptjRows",
    "gptj_gelu": "GptjGelu",
    "gptj_put": "GptjPut",
    "gptj_rotary": "GptjRotary",
}

MOST_ROWS = 64
"""With more rows than this a product is worth XLA's way,"""

MOST_ROWS_IN_PAIRS = 256
"""unless the processor multiplies its numbers in pairs (AVX512-BF16, AMX), which needs no copy of a
matrix in fewer bits."""

MOST_QUERIES = 16
"""With up to so many queries a row, attention sums for each as for it alone; with more, in another
order, which is the same for all such numbers."""

LANES = 16
"""Dims of a head must be a multiple of this."""

Cached = Float[Array, "slots heads positions d_head"] | Int8[Array, "slots heads positions d_head"]

Held = tuple[Array, Array, Array, Array, Array]
"""Query, key, value, ends, and the logarithm of what each query's weights add up to."""

_wanted = jax.make_user_context(False)
"""JAX's own kind of context: what is traced in it is not taken for what is traced outside."""
_rounding = jax.make_user_context(False)


def wanted(these: bool = True) -> contextlib.AbstractContextManager[None]:
    """Where a program is traced that no gradient is taken of, and that has few rows.

    `causal_attention`, which has a gradient, is the one that asks for no such place.
    """
    context: contextlib.AbstractContextManager[None] = _wanted(these)
    return context


def rounding() -> contextlib.AbstractContextManager[None]:
    """Where activations that meet a matrix in int8 or int4 may be rounded to bytes themselves.

    What is lost of 256 of them, or of a group's, is at the most 1.5 % of their norm; 0.7 % where
    they are normally distributed, which is what a matrix in int8 loses.
    """
    context: contextlib.AbstractContextManager[None] = _rounding(True)
    return context


def worth(x: Float[Array, "rows ..."]) -> bool:
    """Whether a matrix times these rows is to be one of them."""
    return in_use() and 0 < x.shape[0] <= most_rows(x.dtype)


def most_rows(dtype: DTypeLike) -> int:
    """How many rows of these numbers a native product is worth."""
    in_pairs = jnp.dtype(dtype) == jnp.bfloat16 and pairs()
    return MOST_ROWS_IN_PAIRS if in_pairs else MOST_ROWS


def in_use() -> bool:
    """Whether what is traced now may use them: on one CPU device, where they could be built."""
    if not _wanted.value or not jax.sharding.get_abstract_mesh().empty:
        return False
    return jax.default_backend() == "cpu" and available()


def target() -> str:
    """The platform for which is traced: that of the mesh that is set, or else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else str(device.platform)


def is_wanted() -> bool:
    """Whether what is traced now may use native programs, if there are any."""
    return bool(_wanted.value)


def available() -> bool:
    """Whether they are there, after an attempt to build them."""
    return _library() is not None


def left_out() -> bool:
    """Whether the environment says to do without them."""
    return os.environ.get("GPTJ_NATIVE") == "0"


def place() -> Path:
    """Where the library for this processor is, or will be once it is compiled."""
    shipped = build.shipped()
    return shipped if shipped is not None and _serves(shipped) else _own_place()


def pairs() -> bool:
    """Whether products of bfloat16 numbers go in pairs here."""
    library = _library()
    return library is not None and bool(library.GptjPairs())


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library, its programs made known to JAX."""
    if left_out() or build.here() is None:
        return None
    path = place()
    try:
        if not path.exists():
            build.compile_to(path, jax.ffi.include_dir())
    except build.CannotBuild:
        return None
    library = ctypes.CDLL(str(path))
    for name, symbol in TARGETS.items():
        jax.ffi.register_ffi_target(
            name, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu"
        )
    return library


def products(
    x: Float[Array, "rows inner"], matrices: Sequence[tuple[Array, ...]]
) -> list[Float32[Array, "rows columns"]]:
    """`x @ w` in float32 for each of the matrices, of as many rows and stored alike.

    A row's sums go in one order, whatever the other rows, and whatever the other matrices.

    Args:
      matrices: of each the floats; or int8 and a scale a column; or pairs of 4 bits, and a scale
        and a low end for each group and column (`gptj.quantised.Int4`).
    """
    assert len({(len(w), w[0].dtype) for w in matrices}) == 1, "matrices are stored alike"
    name = ("gptj_products", "gptj_products_int8", "gptj_products_int4")[len(matrices[0]) - 1]
    out = [jax.ShapeDtypeStruct((x.shape[0], w[0].shape[1]), jnp.float32) for w in matrices]
    x = x if x.dtype == jnp.bfloat16 else x.astype(jnp.float32)
    rounded = _rounding.value and x.dtype == jnp.bfloat16
    settings = {"rounded": np.bool_(rounded)} if len(matrices[0]) > 1 else {}
    made: Sequence[Array] = jax.ffi.ffi_call(name, out)(
        x, *(part for w in matrices for part in w), **settings
    )
    return list(made)


def attention(
    query: Float[Array, "rows queries heads d_head"],
    keys: Cached,
    values: Cached,
    last_seen: Int[Array, "rows queries"],
    scales: tuple[Array, Array] | None = None,
    slots: Int[Array, " rows"] | None = None,
) -> Float32[Array, "rows queries heads d_head"]:
    """Each query over the keys `0 .. last_seen` of its row, scaled by 1/sqrt(d_head), in float32.

    A query's sums go in one order, whatever the other queries and rows: one for up to
    `MOST_QUERIES` queries a row, and one for more.

    Args:
      scales: float32 `[slots, heads, positions, 1]`, what int8 keys and values are multiplied by.
      slots: whose keys a row sees. Default: those of its own number.
    """
    query = query.astype(jnp.float32)
    slots = jnp.arange(query.shape[0], dtype=jnp.int32) if slots is None else slots
    out = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    if scales is None:
        made: Array = jax.ffi.ffi_call("gptj_attention", out)(query, keys, values, last_seen, slots)
        return made
    call = jax.ffi.ffi_call("gptj_attention_int8", out)
    made = call(query, keys, scales[0], values, scales[1], last_seen, slots)
    return made


@jax.custom_vjp
def causal_attention(
    query: Float[Array, "batch length heads d_head"],
    key: Float[Array, "batch length heads d_head"],
    value: Float[Array, "batch length heads d_head"],
    ends: Int32[Array, "batch length"],
) -> Float[Array, "batch length heads d_head"]:
    """Each position attends to itself and those before it that it sees, scaled by 1/sqrt(d_head).

    For training: it has a gradient, though not forwards. All sums are float32, each in one order.
    A thread holds one head in float32, and the scores of 32 of its queries; it keeps the memory,
    18 MB for 2,048 positions of 256 dims.

    Args:
      ends: one past the last position that sees each key.
    """
    assert query.dtype == key.dtype == value.dtype, "attention is of numbers alike"
    assert query.shape == key.shape == value.shape, "each position has a query, a key and a value"
    return _causal_attention(query, key, value, ends)[0]


def _causal_attention(query: Array, key: Array, value: Array, ends: Array) -> tuple[Array, Array]:
    batch, length, heads, _ = query.shape
    of_queries = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    out = jax.ShapeDtypeStruct(query.shape, query.dtype), of_queries
    call = jax.ffi.ffi_call("gptj_causal_attention", out, vmap_method="sequential")
    mixed, levels = call(query, key, value, ends)
    return mixed, levels


def _causal_forward(query: Array, key: Array, value: Array, ends: Array) -> tuple[Array, Held]:
    mixed, levels = _causal_attention(query, key, value, ends)
    return mixed, (query, key, value, ends, levels)


def _causal_backward(held: Held, pull: Array) -> tuple[Array, Array, Array, None]:
    out = [jax.ShapeDtypeStruct(pull.shape, pull.dtype)] * 3
    call = jax.ffi.ffi_call("gptj_causal_gradient", out, vmap_method="sequential")
    of_query, of_key, of_value = call(*held, pull)
    return of_query, of_key, of_value, None


causal_attention.defvjp(_causal_forward, _causal_backward)


def top_k(x: Float[Array, "rows columns"], count: int) -> tuple[Array, Array]:
    """The `count` largest of each row with their columns, falling; of equals the first."""
    shape = (x.shape[0], count)
    out = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32))
    values, columns = jax.ffi.ffi_call("gptj_top_k", out)(x)
    return values, columns


def rows(table: Array, numbers: Int[Array, " count"]) -> Array:
    """Those rows of a table, `[count, columns]`; for a number that no row has, the nearest."""
    out = jax.ShapeDtypeStruct((numbers.shape[0], table.shape[1]), table.dtype)
    made: Array = jax.ffi.ffi_call("gptj_rows", out)(table, numbers.astype(jnp.int32))
    return made


def _serves(path: Path) -> bool:
    """Whether this JAX takes such a library: one that asks for more than it has would break it."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    major, minor = (
        int(found[1]) if (found := re.search(rf"#define XLA_FFI_API_{part} (\d+)", header)) else -1
        for part in ("MAJOR", "MINOR")
    )
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # made for another C library
        return False
    return library.GptjApiMajor() == major and library.GptjApiMinor() <= minor


def _own_place() -> Path:
    """Where this machine's own is kept; a change of it, of JAX or of the sources makes another."""
    folder = build.SOURCE.parent
    sources = [path.read_bytes() for path in (build.SOURCE, *sorted(folder.glob("*.h")))]
    made_for = (*sources, jax.__version__.encode(), caches.processor().encode())
    name = hashlib.sha256(b"|".join(made_for)).hexdigest()[:16]
    return caches.folder() / f"decode-{name}.so"


def gelu(
    x: Float[Array, "rows columns"], bias: Float32[Array, " columns"]
) -> Float[Array, "rows columns"]:
    """GELU of `x + bias` by tanh (arXiv:1606.08415), float32 within, in the dtype of `x`.

    XLA's on a CPU is of one thread.
    """
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    made: Array = jax.ffi.ffi_call("gptj_gelu", out)(x, bias)
    return made


def rotary(
    x: Float[Array, "tokens heads d_head"],
    sin: Float32[Array, "tokens half"],
    cos: Float32[Array, "tokens half"],
) -> Float[Array, "tokens heads d_head"]:
    """Each token's heads with their pairs (0, 1), (2, 3), ... turned, and rounded once.

    As many pairs as there are sines; twice their number is a multiple of `LANES`. XLA's on a CPU
    is of one thread, a number at a time.
    """
    straight = jnp.repeat(cos, 2, axis=-1)
    across = jnp.stack([-sin, sin], axis=-1).reshape(straight.shape)
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    made: Array = jax.ffi.ffi_call("gptj_rotary", out)(x, straight, across)
    return made


def put(
    cache: Num[Array, "slots heads positions d_head"],
    tokens: Num[Array, "1 length heads d_head"],
    slot: Int[Array, ""],
    at: Int[Array, ""],
) -> Num[Array, "slots heads positions d_head"]:
    """The cache, in place, with tokens' heads in one slot from a position on.

    XLA joins it with what made them, and does both a number at a time.
    """
    kept = jnp.bfloat16 if cache.dtype == jnp.uint16 else cache.dtype
    assert tokens.dtype == kept, f"{tokens.dtype} is put into {cache.dtype}"
    assert tokens.shape[2:] == (cache.shape[1], cache.shape[3]), "heads are alike"
    if cache.dtype == jnp.uint16:
        tokens = jax.lax.bitcast_convert_type(tokens, jnp.uint16)
    out = jax.ShapeDtypeStruct(cache.shape, cache.dtype)
    call = jax.ffi.ffi_call("gptj_put", out, input_output_aliases={0: 0})
    made: Array = call(cache, tokens, slot, at)
    return made
