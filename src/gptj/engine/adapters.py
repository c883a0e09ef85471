"""The adapters beside an engine's weights: by name, loaded and unloaded while requests run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float32

from gptj.adapters import FIELDS, Adapters, LoRAConfig, columns_for, table
from gptj.config import ModelConfig
from gptj.convert.adapted import Adapter, check_shapes, mark_of
from gptj.convert.open import adapter_for, open_source
from gptj.engine.config import EngineConfig
from gptj.engine.device import Device
from gptj.engine.request import LARGEST, Request
from gptj.errors import UserError

NO_MESH = jax.sharding.Mesh(np.empty((), object), ())

RANK = 16
"""The largest rank where nobody says another."""


class UnknownAdapter(UserError):
    """No adapter of this name is here."""


class AdapterConflict(UserError):
    """There is one of this name already, or no room."""


@dataclasses.dataclass(frozen=True)
class ReadAdapter:
    """An adapter that was found to belong to the model, and waits to be loaded."""

    place: str
    rank: int
    scale: float
    pairs: Adapters[Float32[np.ndarray, "..."]]
    """As wide as their part of the room, with zeros beside and for what has none."""
    digest: str
    """A hash of its numbers."""


@dataclasses.dataclass(eq=False)
class Loaded:
    """An adapter in its part of the room."""

    name: str
    place: str
    rank: int
    digest: str
    index: int
    """Which part, from 1."""
    number: int
    """How many were loaded before it: a name may come again, with other numbers."""
    requests: int = 0
    """Those that are not answered yet."""


class AdapterTable:
    """Which adapters there are. But for `read` it is for the engine's thread alone."""

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        options: EngineConfig,
        base: str | os.PathLike[str] | None,
    ) -> None:
        """A table without any.

        Args:
          base: where the model came from.

        Raises:
          UserError: a rank is given and no room for adapters.
        """
        if options.max_adapter_rank is not None and not options.max_adapters:
            raise UserError(
                f"max_adapter_rank={options.max_adapter_rank} is of adapters, and there is no room "
                "for any: give max_adapters too"
            )
        self._device, self._config, self._base = device, config, base
        self._most, self._rank = options.max_adapters, options.max_adapter_rank or RANK
        self._free = list(range(self._most, 0, -1))
        self._named: dict[str, Loaded] = {}
        self._count = 0

    def __iter__(self) -> Iterator[Loaded]:
        """Those that requests may ask for, the longest here first."""
        return iter(self._named.values())

    def read(self, adapter: str | os.PathLike[str] | Adapter) -> ReadAdapter:
        """Adapters read from their files, and seen to belong to the model. From any thread.

        Raises:
          UserError: they do not, or cannot be read, or have too large a rank.
        """
        if not self._most:
            raise AdapterConflict("there is no room for adapters: start with max_adapters")
        if isinstance(adapter, str | os.PathLike):
            adapter = adapter_for(str(adapter), self._config)
        lora, place = adapter.lora, adapter.place
        assert lora.rank is not None
        if lora.rank > self._rank:
            raise UserError(
                f"the adapters of {place} have rank {lora.rank}, and there is room for "
                f"{self._rank}: raise max_adapter_rank"
            )
        stored = self._device.stored_as
        if lora.quantize not in (None, stored):
            raise UserError(
                f"the adapters of {place} were trained beside weights in {lora.quantize}, and the "
                f"model's are in {stored}: load it with quantize={lora.quantize}"
            )
        self._check_base(adapter)
        pairs = _read(adapter, self._config, columns_for(self._rank))
        return ReadAdapter(place, lora.rank, lora.scale, pairs, _digest(pairs, lora.scale))

    def load(self, name: str, adapter: ReadAdapter) -> Loaded:
        """Put an adapter into the room, for requests that ask for it by this name.

        Raises:
          AdapterConflict: there is one of this name, or no room left.
        """
        if not name:
            raise UserError("an adapter needs a name: give one")
        if name in self._named:
            raise AdapterConflict(
                f"there is an adapter {name!r} already: unload it first, or use another name"
            )
        if not self._free:
            raise AdapterConflict(
                f"all room for adapters, max_adapters={self._most}, is taken: unload one, and wait "
                "for its requests"
            )
        index = self._free[-1]
        self._device.put_adapter(index, adapter.pairs, adapter.scale)
        found = Loaded(name, adapter.place, adapter.rank, adapter.digest, index, self._count)
        self._free.remove(index)
        self._count += 1
        self._named[name] = found
        return found

    def unload(self, name: str) -> None:
        """Take no more requests for an adapter; those there are keep it until they are answered.

        Raises:
          UnknownAdapter: there is none of this name.
        """
        found = self.find(name)
        del self._named[name]
        self._release(found)

    def find(self, name: str) -> Loaded:
        """The adapter of a name.

        Raises:
          UnknownAdapter: there is none.
        """
        if name not in self._named:
            known = ", ".join(map(repr, self._named)) or "none"
            raise UnknownAdapter(f"adapter={name!r} is not here: there is {known}")
        return self._named[name]

    def of(self, request: Request) -> Loaded | None:
        """The one that a request asks for, if any.

        Raises:
          UnknownAdapter: it is not here.
        """
        return None if request.adapter is None else self.find(request.adapter)

    def begin(self, adapter: Loaded | None) -> None:
        """A request is to be answered with it."""
        if adapter:
            adapter.requests += 1

    def end(self, adapter: Loaded | None) -> None:
        """The request is answered."""
        if adapter:
            adapter.requests -= 1
            self._release(adapter)

    def warm_up(self) -> None:
        """Compile what loads an adapter."""
        if self._free:  # else it is
            empty = _empty(self._config, columns_for(self._rank))
            self._device.put_adapter(self._free[-1], empty, 0.0)

    def _release(self, adapter: Loaded) -> None:
        """Let others have its part, once nobody can ask for it and nobody waits for an answer."""
        if not adapter.requests and self._named.get(adapter.name) is not adapter:
            self._free.append(adapter.index)

    def _check_base(self, adapter: Adapter) -> None:
        if adapter.mark is None:
            return
        if self._base is None:
            raise UserError(
                f"the adapters of {adapter.place} belong to {adapter.base}, and where the engine's "
                "model came from is not known: give it as base"
            )
        if adapter.mark != self._mark:
            raise UserError(
                f"the adapters of {adapter.place} belong to another model than {self._base}, to "
                f"{adapter.base}"
            )

    @functools.cached_property
    def _mark(self) -> str:
        assert self._base is not None
        return mark_of(open_source(self._base))


def _digest(pairs: Adapters[np.ndarray], scale: float) -> str:
    found = hashlib.sha256(np.float32(scale).tobytes())
    for leaf in jax.tree.leaves(pairs):
        found.update(leaf)
    return found.hexdigest()


def _empty(config: ModelConfig, columns: int) -> Adapters[np.ndarray]:
    """An adapter that changes nothing, as wide as its part."""
    zeros: Adapters[np.ndarray] = jax.tree.map(
        lambda weight: np.zeros(weight.shape, np.float32), table(config, LoRAConfig(columns))
    )
    return zeros


def _read(adapter: Adapter, config: ModelConfig, columns: int) -> Adapters[np.ndarray]:
    """The numbers of adapters, as wide as their part."""
    pairs = _empty(config, columns)
    with jax.set_mesh(NO_MESH):  # they are read whole, however a run of several devices kept them
        for target in adapter.lora.targets:
            field = FIELDS[target]
            for layer in range(config.layers):
                down, up = adapter.read(field, layer)
                check_shapes(adapter.place, config, adapter.lora, (down, up), field)
                pairs[field].down[layer, :, : down.shape[1]] = down
                pairs[field].up[layer, : up.shape[0]] = up
    if not all(np.all(np.abs(leaf) <= LARGEST) for leaf in jax.tree.leaves(pairs)):
        raise UserError(f"the adapters of {adapter.place} hold numbers that are not finite")
    return pairs
