"""How fast the devices can multiply and read: what a measured rate is a share of."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from gptj import accelerators, cores


def peak_flops() -> float:
    """Floating-point operations a second that all devices could make at best.

    The makers' figure for bfloat16, whatever is computed in, as is usual for such shares; where
    none is known (a CPU), what a large product in float32 reaches now, all devices being one.
    """
    devices = jax.devices()
    if accelerator := accelerators.named(devices[0].device_kind):
        return accelerator.peak_flops * len(devices)
    processes = jax.process_count() if devices[0].platform == "cpu" else len(devices)
    return measured_flops() * processes


@functools.cache
def measured_flops(size: int = 1024, seconds: float = 0.1, dtype: str = "float32") -> float:
    """The best rate of products of `size` x `size` matrices on one device, summed in float32."""
    with jax.default_device(jax.local_devices()[0]):
        square = jnp.ones((size, size), dtype)
        options = {"precision": "highest", "preferred_element_type": jnp.float32}
        product = jax.jit(lambda a: jnp.matmul(a, a, **options))
        return 2 * size**3 / quickest(lambda: product(square).block_until_ready(), seconds)


def quickest(work: Callable[[], object], seconds: float) -> float:
    """The least time that something takes, in seconds, of all it is done within `seconds`.

    Once more before, for what is compiled then.
    """
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - begin)
    return best


@functools.cache
def measured_bandwidth(size: int = 1 << 29, seconds: float = 0.5) -> float:
    """Bytes a second at which one device reads `size` bytes of its memory, at best."""
    read = _reading_on_a_cpu if jax.local_devices()[0].platform == "cpu" else _reading
    with read(size) as once:
        return size / quickest(once, seconds)


@contextlib.contextmanager
def _reading(size: int) -> Iterator[Callable[[], object]]:
    """A function that reads so many bytes of a device's memory."""
    with jax.default_device(jax.local_devices()[0]):
        rows = jnp.ones((1024, size // 4096), jnp.float32)
        largest = jax.jit(lambda x: jnp.max(x, axis=-1))
        yield lambda: largest(rows).block_until_ready()


@contextlib.contextmanager
def _reading_on_a_cpu(size: int) -> Iterator[Callable[[], object]]:
    """The same, by NumPy on each core: XLA's own reductions reach half of it."""
    parts = np.array_split(np.ones(size // 4, np.float32), cores.usable())
    with ThreadPoolExecutor(len(parts)) as pool:
        yield lambda: list(pool.map(np.max, parts))


def hush_libtpu() -> None:
    """Where the TPU's library is installed and no TPU is, have it not complain of that."""
    if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":  # which JAX set, having found no TPU
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v3-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
