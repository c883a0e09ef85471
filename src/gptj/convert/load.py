"""From files to the mesh: each tensor is read, put on its shards, and forgotten."""

from __future__ import annotations

import functools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from gptj.config import ModelConfig
from gptj.convert.names import by_name
from gptj.convert.source import Source
from gptj.convert.tensor import Readers, Tensor, contiguous, count_nans
from gptj.model import Params, Weight, weights
from gptj.quantised import FewBits, Quantisation, quantise
from gptj.sharding import on_mesh, spec

AHEAD = 2
"""The most tensors that are being read at a time."""

ALIGNMENT = 64
"""Bytes; memory so aligned is used by XLA on a CPU as it is."""


def load_params(
    source: Source, dtype: DTypeLike, quantisation: Quantisation | None = None
) -> Params[Array]:
    """The weights of `source` on the mesh that is set, or on one device, stored in `dtype`.

    Args:
      quantisation: how the matrices of products are stored instead, each rounded as soon as it is
        read. A run's checkpoint is restored whole first, and takes its own memory besides.

    Raises:
      UserError: groups of int4 or nf4 do not fit the model, or the mesh.

    Warns:
      UserWarning: some weights are not numbers; says how many, and in which tensors.
    """
    if source.restore is None:
        return load_tree(source.config, source.weights, dtype, source.place, quantisation)
    if quantisation is None:
        return source.restore(jnp.dtype(dtype))
    return quantised(source.restore(source.dtype), source.config, dtype, quantisation)


def quantised(
    params: Params[Array], config: ModelConfig, dtype: DTypeLike, quantisation: Quantisation
) -> Params[Array]:
    """The weights with the matrices of products in few bits, and the rest in `dtype`.

    The dense matrices are consumed, one after the other: what it takes beside them is one of them
    in few bits, and a layer's part of it in float32.
    """

    def stored(weight: Weight, array: Array) -> Array | FewBits:
        kind = _kind(weight, quantisation)
        if kind is None:
            return array.astype(dtype)
        stacked = weight.axes[0] == "layers"
        parts = (array[layer] for layer in range(weight.shape[0])) if stacked else [array]
        rounded = _rounded(weight, parts, kind)
        array.delete()
        return rounded

    made: Params[Array] = jax.tree.map(stored, weights(config), params)
    return made


def abstract_params(
    config: ModelConfig, dtype: DTypeLike, quantisation: Quantisation | None = None
) -> Params[Any]:
    """The shapes, dtypes and shardings of what `load_params` gives, without any memory.

    Raises:
      UserError: groups of int4 or nf4 do not fit the model, or the mesh.
    """

    def stored(weight: Weight) -> Any:
        kind, stacked = _kind(weight, quantisation), weight.axes[0] == "layers"
        sharding = spec(*weight.axes)
        if kind is None:
            return jax.ShapeDtypeStruct(weight.shape, dtype, sharding=on_mesh(sharding))
        own = on_mesh(_of_layer(sharding) if stacked else sharding)
        one = jax.ShapeDtypeStruct(weight.shape[stacked:], jnp.float32, sharding=own)
        piece = jax.eval_shape(lambda x: quantise(x, weight.inner, kind), one)
        layers = weight.shape[:1] if stacked else ()

        def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            split = PartitionSpec(*(None for _ in layers), *x.sharding.spec) if own else None
            return jax.ShapeDtypeStruct((*layers, *x.shape), x.dtype, sharding=on_mesh(split))

        return jax.tree.map(leaf, piece)

    made: Params[Any] = jax.tree.map(stored, weights(config))
    return made


def load_tree(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    dtype: DTypeLike,
    where: str,
    quantisation: Quantisation | None = None,
) -> Params[Array]:
    """Tensors by our names as one tree on the mesh: the weights, or moments of their shapes.

    What else is in host memory does not grow with the layers. On one CPU device it is the strips
    that `Readers` hold, or of an original's checkpoint, which has none, as many whole tensors, in
    shards and joined. For other devices and meshes, and those in few bits, it is whole tensors:
    those on their way there, and at most `AHEAD` that are being read.
    """
    table = weights(config)
    names_of: dict[int, list[str]] = {}
    for name, (weight, _) in by_name(table, config.layers).items():
        names_of.setdefault(id(weight), []).append(name)
    leaves, tree = jax.tree.flatten(table)
    own = [{name: tensors[name] for name in names_of[id(leaf)]} for leaf in leaves]
    with Readers() as readers:
        kind = np.dtype(jnp.dtype(dtype))
        coming = [
            _leaf(leaf, list(found.values()), kind, _kind(leaf, quantisation), readers)
            for leaf, found in zip(leaves, own, strict=True)
        ]
        made = [finish() for finish in coming]
    names = [name for found in own for name in found]
    counts = [count for _, found in made for count in found]
    nans = {name: count for name, count in zip(names, counts, strict=True) if count}
    if nans:
        warnings.warn(
            f"{where}: {sum(nans.values())} weights are not numbers (NaN), in {len(nans)} of its "
            f"tensors, {next(iter(nans))} the first: the model is damaged",
            stacklevel=3,
        )
    return jax.tree.unflatten(tree, [array for array, _ in made])


def _kind(weight: Weight, quantisation: Quantisation | None) -> Quantisation | None:
    """How a weight of a model so quantised is stored; none where it stays as it is.

    The output projection is never in less than int8: its errors are those of the logits, which
    nothing after it evens out.
    """
    if not weight.inner or quantisation is None:
        return None
    return quantisation if weight.axes[0] == "layers" else "int8"


Leaf = tuple[Array | FewBits, list[int]]
"""One leaf of the tree, and how many NaNs each of the tensors has that it is made of."""


def _leaf(
    weight: Weight,
    tensors: Sequence[Tensor],
    dtype: np.dtype[Any],
    kind: Quantisation | None,
    readers: Readers,
) -> Callable[[], Leaf]:
    """Begin to read a leaf, of one tensor or one a layer; what is returned waits for it."""
    sharding, stacked = spec(*weight.axes), weight.axes[0] == "layers"
    if kind is not None:
        rounded = _round_leaf(weight, tensors, kind, sharding, readers)
        return lambda: rounded
    if sharding is None and _on_a_cpu():
        host = aligned(weight.shape, dtype)
        places = host if stacked else [host]
        counts = [_begin(t, place, readers) for t, place in zip(tensors, places, strict=True)]
        return lambda: (jax.device_put(host), [count() for count in counts])
    leaf = _put_leaf(weight, tensors, dtype, sharding, readers)
    return lambda: leaf


def _begin(tensor: Tensor, place: Shaped[np.ndarray, "..."], readers: Readers) -> Callable[[], int]:
    """Begin to read a tensor to its place: in strips, or if it has none whole, beside others."""
    if tensor.matrix is not None:
        return tensor.read_into(place, readers)
    return readers.submit(lambda: tensor.read_into(place, readers)()).result


def _put_leaf(
    weight: Weight,
    tensors: Sequence[Tensor],
    dtype: np.dtype[Any],
    sharding: PartitionSpec | None,
    readers: Readers,
) -> Leaf:
    """A leaf on its devices, each of its tensors put there and forgotten."""
    if weight.axes[0] != "layers":
        array = tensors[0].read()
        return _cast(_put(array, sharding), dtype), [count_nans(array)]
    whole, nans = _empty(weight.shape, dtype, sharding), []
    for layer, array in enumerate(_read_ahead(tensors, readers)):
        nans.append(count_nans(array))
        whole = _set_layer(whole, _put(array, _of_layer(sharding)), layer)
    return whole, nans


def _round_leaf(
    weight: Weight,
    tensors: Sequence[Tensor],
    kind: Quantisation,
    sharding: PartitionSpec | None,
    readers: Readers,
) -> Leaf:
    """A leaf in few bits, each of its tensors put on its devices, rounded there and forgotten."""
    nans: list[int] = []
    own = _of_layer(sharding) if weight.axes[0] == "layers" else sharding

    def parts() -> Iterator[Array]:
        for array in _read_ahead(tensors, readers):
            nans.append(count_nans(array))
            yield _put(contiguous(array), own)

    return _rounded(weight, parts(), kind), nans


def _rounded(weight: Weight, parts: Iterable[Array], kind: Quantisation) -> FewBits:
    """A leaf in few bits from the matrices of its layers, or its only one."""
    pieces = (quantise(part, weight.inner, kind) for part in parts)
    if weight.axes[0] != "layers":
        (only,) = pieces
        return only
    if spec(*weight.axes) is None and _on_a_cpu():
        return _stacked_on_host(pieces, weight.shape[0])
    whole: Any = None
    for layer, piece in enumerate(pieces):
        if whole is None:
            whole = jax.tree.map(functools.partial(_room, layers=weight.shape[0]), piece)
        whole = jax.tree.map(functools.partial(_set_layer, layer=layer), whole, piece)
        jax.block_until_ready(whole)  # or matrices would come in faster than they are rounded
    made: FewBits = whole
    return made


def _stacked_on_host(pieces: Iterable[FewBits], layers: int) -> FewBits:
    """The same in host memory that a CPU device takes over.

    NumPy asks for it in large pages, from which a processor reads a few percent faster.
    """
    whole: Any = None
    for layer, piece in enumerate(pieces):
        if whole is None:
            whole = jax.tree.map(lambda a: aligned((layers, *a.shape), a.dtype), piece)
        for to, array in zip(jax.tree.leaves(whole), jax.tree.leaves(piece), strict=True):
            to[layer] = array
    made: FewBits = jax.tree.map(jax.device_put, whole)
    return made


def _on_a_cpu() -> bool:
    """Whether arrays are put on a CPU, unless a mesh says otherwise."""
    return next(iter(jnp.zeros(()).devices())).platform == "cpu"


def _room(piece: Array, layers: int) -> Array:
    """Zeros for as many arrays like this one, split over the mesh as it is."""
    own = None if spec() is None else PartitionSpec(None, *jax.typeof(piece).sharding.spec)
    return _empty((layers, *piece.shape), piece.dtype, own)


def _of_layer(sharding: PartitionSpec | None) -> PartitionSpec | None:
    """How a layer's own part of a stacked leaf is split."""
    return None if sharding is None else PartitionSpec(*sharding[1:])


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Shaped[np.ndarray, "..."]:
    """Fresh host memory so aligned that a CPU device takes it over without a copy.

    Twice as fast as putting each layer on the device and then in its place: what costs is to
    touch new memory, here done once.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


def _read_ahead(tensors: Sequence[Tensor], readers: Readers) -> Iterator[Shaped[np.ndarray, "..."]]:
    """Each tensor's array in turn, the next ones read meanwhile."""
    coming = deque(readers.submit(tensor.read) for tensor in tensors[:AHEAD])
    for tensor in tensors[AHEAD:]:
        yield coming.popleft().result()
        coming.append(readers.submit(tensor.read))
    while coming:
        yield coming.popleft().result()


def _put(array: Shaped[np.ndarray, "..."], layout: PartitionSpec | None) -> Array:
    """A host array on the mesh, each device given its part; a view is laid out on the way."""
    if layout is None:
        return jax.device_put(array)
    sharding = NamedSharding(jax.sharding.get_mesh(), layout)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(shape: tuple[int, ...], dtype: np.dtype[Any], layout: PartitionSpec | None) -> Array:
    return jnp.zeros(shape, dtype, out_sharding=layout)


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(
    whole: Float[Array, "layers ..."], piece: Float[Array, "..."], layer: int
) -> Float[Array, "layers ..."]:
    return jax.lax.dynamic_update_index_in_dim(whole, piece.astype(whole.dtype), layer, 0)


@functools.partial(jax.jit, static_argnums=1)
def _cast(x: Array, dtype: np.dtype[Any]) -> Array:
    return x.astype(dtype)
