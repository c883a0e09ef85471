"""Native programs for what XLA does slowly on a CPU; everything works without them, slower.

They are compiled by `g++` the first time they are wanted, in some seconds, and kept in the user's
cache folder. `GPTJ_NATIVE=0` in the environment leaves them out.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

SOURCE = Path(__file__).parent / "decode.cc"
TARGETS = {
    "gptj_product": "GptjProduct",
    "gptj_attention": "GptjAttention",
    "gptj_top_k": "GptjTopK",
}
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-Wno-psabi")

MOST_ROWS = 64
"""With more rows than this a product is worth XLA's way."""

LANES = 16
"""Dims of a head must be a multiple of this."""

_wanted = jax.make_user_context(False)
"""JAX's own kind of context: what is traced in it is not taken for what is traced outside."""


def wanted() -> contextlib.AbstractContextManager[None]:
    """Where a program is traced that no gradient is taken of, and that has few rows."""
    context: contextlib.AbstractContextManager[None] = _wanted(True)
    return context


def in_use() -> bool:
    """Whether what is traced now may use them: on one CPU device, where they could be built."""
    if not _wanted.value or not jax.sharding.get_abstract_mesh().empty:
        return False
    return jax.default_backend() == "cpu" and available()


@functools.cache
def available() -> bool:
    """Whether they are there, after an attempt to build them."""
    if os.environ.get("GPTJ_NATIVE") == "0" or (path := _built()) is None:
        return False
    library = ctypes.CDLL(str(path))
    for name, symbol in TARGETS.items():
        jax.ffi.register_ffi_target(
            name, jax.ffi.pycapsule(getattr(library, symbol)), platform="cpu"
        )
    return True


def product(x: Float[Array, "rows inner"], w: Float[Array, "inner columns"]) -> Array:
    """`x @ w` in float32; a row's sums go in one order, whatever the other rows."""
    out = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), jnp.float32)
    made: Array = jax.ffi.ffi_call("gptj_product", out)(x.astype(jnp.float32), w)
    return made


def attention(
    query: Float[Array, "rows heads d_head"],
    keys: Float[Array, "rows heads positions d_head"],
    values: Float[Array, "rows heads positions d_head"],
    last_seen: Int[Array, " rows"],
) -> Float[Array, "rows heads d_head"]:
    """One query a row over the keys `0 .. last_seen`, scaled by 1/sqrt(d_head), in float32."""
    query = query.astype(jnp.float32)
    out = jax.ShapeDtypeStruct(query.shape, jnp.float32)
    made: Array = jax.ffi.ffi_call("gptj_attention", out)(query, keys, values, last_seen)
    return made


def top_k(x: Float[Array, "rows columns"], count: int) -> tuple[Array, Array]:
    """The `count` largest of each row with their columns, falling; of equals the first."""
    shape = (x.shape[0], count)
    out = (jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, jnp.int32))
    values, columns = jax.ffi.ffi_call("gptj_top_k", out)(x)
    return values, columns


def _built() -> Path | None:
    """The library, built if it is not there yet; none where that fails."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    made_for = (SOURCE.read_bytes(), jax.__version__.encode(), _processor())
    name = hashlib.sha256(b"|".join(made_for)).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = base / "gptj" / f"decode-{name}.so"
    if path.exists():
        return path
    if compiler is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / "made.so"
            include = f"-isystem{jax.ffi.include_dir()}"
            command = [compiler, *FLAGS, include, str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True)
            made.replace(path)  # others may be building the same
    except (OSError, subprocess.CalledProcessError):
        return None
    return path


def _processor() -> bytes:
    """What tells processors apart that the same cache folder may be seen from."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_bytes().splitlines() if cpuinfo.exists() else []
    return platform.machine().encode() + b"".join(sorted({x for x in lines if x[:5] == b"flags"}))
