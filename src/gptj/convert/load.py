"""From files to the mesh: each tensor is read, put on its shards, and forgotten."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from gptj.config import ModelConfig
from gptj.convert.names import by_name
from gptj.convert.source import Source
from gptj.convert.tensor import Tensor, count_nans
from gptj.model import Params, Weight, weights
from gptj.sharding import spec


def load_params(source: Source, dtype: DTypeLike) -> Params[Array]:
    """The weights of `source` on the mesh that is set, or on one device, stored in `dtype`.

    Warns:
      UserWarning: some weights are not numbers; says how many, and in which tensors.
    """
    if source.restore is not None:
        return source.restore(jnp.dtype(dtype))
    return load_tree(source.config, source.weights, dtype, source.place)


def load_tree(
    config: ModelConfig, tensors: Mapping[str, Tensor], dtype: DTypeLike, where: str
) -> Params[Array]:
    """Tensors by our names as one tree on the mesh: the weights, or moments of their shapes.

    Beside the tree itself at most two tensors are in host memory: one on its way to the devices,
    and the next one, already being read.
    """
    table = weights(config)
    names_of: dict[int, list[str]] = {}
    for name, (weight, _) in by_name(table, config.layers).items():
        names_of.setdefault(id(weight), []).append(name)
    leaves, tree = jax.tree.flatten(table)
    arrays = _read_ahead([tensors[name] for leaf in leaves for name in names_of[id(leaf)]])
    nans: dict[str, int] = {}

    def read(names: Sequence[str]) -> Iterator[np.ndarray]:
        for name in names:
            array = next(arrays)
            if count := count_nans(array):
                nans[name] = count
            yield array

    made = [_leaf(leaf, read(names_of[id(leaf)]), jnp.dtype(dtype)) for leaf in leaves]
    if nans:
        warnings.warn(
            f"{where}: {sum(nans.values())} weights are not numbers (NaN), in {len(nans)} of its "
            f"tensors, {next(iter(nans))} the first: the model is damaged",
            stacklevel=3,
        )
    return jax.tree.unflatten(tree, made)


def _leaf(weight: Weight, arrays: Iterator[np.ndarray], dtype: jnp.dtype) -> Array:
    """One leaf of the tree, its layers put in place one after the other."""
    sharding = spec(*weight.axes)
    if weight.axes[0] != "layers":
        return _cast(_put(next(arrays), sharding), dtype)
    whole = _empty(weight.shape, dtype, sharding)
    own = None if sharding is None else PartitionSpec(*sharding[1:])
    for layer, array in enumerate(arrays):
        whole = _set_layer(whole, _put(array, own), layer)
    return whole


def _read_ahead(tensors: Sequence[Tensor]) -> Iterator[np.ndarray]:
    """Each tensor's array in turn, the next one read meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(tensors[0].read)
        for tensor in tensors[1:]:
            array = coming.result()
            coming = pool.submit(tensor.read)
            yield array
        yield coming.result()


def _put(array: Shaped[np.ndarray, "..."], layout: PartitionSpec | None) -> Array:
    """A host array on the mesh, each device given its part; a view is laid out on the way."""
    if layout is None:
        return jax.device_put(array)
    sharding = NamedSharding(jax.sharding.get_mesh(), layout)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(shape: tuple[int, ...], dtype: jnp.dtype, layout: PartitionSpec | None) -> Array:
    return jnp.zeros(shape, dtype, out_sharding=layout)


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(
    whole: Float[Array, "layers ..."], piece: Float[Array, "..."], layer: int
) -> Float[Array, "layers ..."]:
    return jax.lax.dynamic_update_index_in_dim(whole, piece.astype(whole.dtype), layer, 0)


@functools.partial(jax.jit, static_argnums=1)
def _cast(x: Array, dtype: jnp.dtype) -> Array:
    return x.astype(dtype)
