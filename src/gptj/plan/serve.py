"""`gptj plan --serve`: what answering requests needs, and how fast tokens can come."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gptj.adapters import rooms_of, with_room
from gptj.attention import KEYS
from gptj.convert.load import abstract_params
from gptj.engine.config import KVCache
from gptj.errors import UserError
from gptj.flops import forward_flops_per_token
from gptj.model import Block, Params, count_parameters
from gptj.plan import remote
from gptj.plan.compiled import TooLarge, device_bytes, exchange_seconds
from gptj.plan.estimate import WIDTH
from gptj.plan.job import Placed, abstract_mesh
from gptj.quantised import Quantisation

SPARE = 0.08
"""Of a device's memory, kept for what a step computes with, where nothing is compiled."""


@dataclasses.dataclass(frozen=True)
class ServeJob(Placed):
    """An engine on some hardware."""

    slots: int
    positions: int
    """Tokens that a slot has room for."""
    dtype: str = "bfloat16"
    quantize: Quantisation | None = None
    kv_cache: KVCache = "model"
    adapters: int = 0
    """For how many there is room."""
    adapter_rank: int = 1
    """The largest of theirs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis("fsdp") > 1:
            raise UserError(
                f"mesh fsdp={self.axis('fsdp')} would gather all weights for every token: serve "
                "on data and tensor"
            )
        if self.positions > self.model.context:
            raise UserError(
                f"positions={self.positions} is more than the model's context of "
                f"{self.model.context}: lower it"
            )
        if self.slots % self.ways:
            raise UserError(
                f"slots={self.slots} cannot be split over data x fsdp = {self.ways} devices: use "
                f"a multiple of {self.ways}"
            )

    @property
    def kept(self) -> int:
        """Positions of a slot as the cache has them."""
        return -(-self.positions // KEYS) * KEYS


@dataclasses.dataclass(frozen=True)
class Rate:
    """How fast a batch of slots draws, at the hardware's best."""

    slots: int
    seconds: float
    """One token for every slot."""
    bound: str
    fits: bool

    @property
    def tokens_per_second(self) -> float:
        """Of all slots together."""
        return self.slots / self.seconds


@dataclasses.dataclass(frozen=True)
class ServePlan:
    """What is known of an engine on some hardware. Bytes are of one device."""

    job: ServeJob
    parameters: int
    weights: float
    adapters: float
    """The room for them, taken or not."""
    cache: float
    """Keys and values of all its slots, at their longest."""
    of_position: float
    """Keys and values of one position of one slot, on all devices that hold a part of it."""
    temporaries: float
    available: float
    most_slots: int
    """That fit at the asked length."""
    longest: int
    """Positions that fit with one slot in each part; the model may know fewer."""
    rates: tuple[Rate, ...]
    versions: str

    @property
    def parts(self) -> dict[str, float]:
        """Of the bytes, by what a reader calls them."""
        room = {"adapters": self.adapters} if self.job.adapters else {}
        own = {"weights": self.weights, **room, "keys and values": self.cache}
        return {**own, "temporaries": self.temporaries}

    @property
    def needed(self) -> float:
        """Bytes in all."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether there is room for the slots asked for."""
        return self.needed <= self.available

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        found = dataclasses.asdict(self) | {"job": self.job.plain()}
        found["rates"] = [
            dataclasses.asdict(each) | {"tokens_per_second": each.tokens_per_second}
            for each in self.rates
        ]
        return found | {"needed": self.needed, "fits": self.fits}


def weight_bytes(job: ServeJob) -> int:
    """Of one device's part of the weights.

    Raises:
      UserError: groups of int4 or nf4 do not fit the model, or the mesh.
    """
    with abstract_mesh(job.mesh):
        return device_bytes(abstract_params(job.model, jnp.dtype(job.dtype), job.quantize))


def params_of(job: ServeJob) -> Params[Any]:
    """The shapes of the weights on the mesh that is set, with the room for adapters beside them.

    Raises:
      UserError: groups of int4 or nf4 do not fit the model, or the mesh, or the room does not.
    """
    own = abstract_params(job.model, jnp.dtype(job.dtype), job.quantize)
    if not job.adapters:
        return own
    return jax.eval_shape(lambda p: with_room(p, job.model, job.adapters, job.adapter_rank), own)


def adapter_bytes(job: ServeJob) -> int:
    """Of one device's part of the room for adapters.

    Raises:
      UserError: the mesh does not divide the room.
    """
    if not job.adapters:
        return 0
    with abstract_mesh(job.mesh):
        blocks = params_of(job).blocks
        assert isinstance(blocks, Block)  # all layers, stacked
        return device_bytes(rooms_of(blocks))


def position_bytes(job: ServeJob) -> float:
    """Keys and values of one position of one slot, on one device that holds the slot."""
    model = job.model
    numbers = model.d_model * WIDTH[job.dtype]
    if job.kv_cache == "int8":
        numbers = model.d_model + 4 * model.heads
    return 2 * model.layers * numbers / job.axis("tensor")


def made(job: ServeJob) -> ServePlan:
    """The plan of an engine: its decode step compiled where the hardware's compiler is.

    Raises:
      UserError: the hardware's compiler is not installed.
    """
    weights, adapters, each = weight_bytes(job), adapter_bytes(job), position_bytes(job)
    own = weights + adapters
    available = job.place.accelerator.memory
    spare, versions = SPARE * available, "by formula, not compiled"
    if job.place.platform != "gpu" and not job.quantize:
        found = remote.facts(remote.ask({"what": "decode", "job": job.plain()}, job.place))
        if isinstance(found, TooLarge):
            available, spare = found.available, max(spare, found.needed - own - _cache(job))
        else:
            spare, versions = max(0.0, found.memory - own - _cache(job)), found.versions
    (rates,) = remote.axis_rates(job.place, [job.mesh])
    left = max(0.0, available - own - spare)
    per_part = int(left // (each * job.kept))
    return ServePlan(
        job=job,
        parameters=count_parameters(job.model),
        weights=weights,
        adapters=adapters,
        cache=_cache(job),
        of_position=each * job.axis("tensor"),
        temporaries=spare,
        available=available,
        most_slots=per_part * job.ways,
        longest=int(left // each),
        rates=_rates(job, weights, adapters, per_part, rates),
        versions=versions,
    )


def _cache(job: ServeJob) -> float:
    return position_bytes(job) * job.kept * job.slots / job.ways


def _rates(
    job: ServeJob, weights: float, adapters: float, per_part: int, rates: dict[str, float]
) -> tuple[Rate, ...]:
    """The roofline of a decode step by its number of slots, up to twice what fits."""
    unit, tensor, slots = job.place.accelerator, job.axis("tensor"), job.ways
    found: list[Rate] = []
    while not found or slots <= 2 * per_part * job.ways:
        rows = slots / job.ways
        kept = position_bytes(job) * job.positions * rows
        size = rows * job.model.d_model * WIDTH[job.dtype]
        exchanged = 0.0
        if tensor > 1:
            once = exchange_seconds("all-reduce", size, tensor, rates["tensor"])
            exchanged = once * (job.model.layers + 1)
        flops = forward_flops_per_token(job.model, job.positions) * rows / tensor
        flops += 2 * rows * adapters / WIDTH[job.dtype]  # all are multiplied, whoever asks
        parts = {
            "memory": (weights + adapters + kept) / unit.bandwidth,
            "compute": flops / unit.peak_flops,
        }
        longer = max(parts, key=lambda name: parts[name])
        bound = "interconnect" if exchanged > parts[longer] else longer
        fits = rows <= per_part
        found.append(Rate(slots, parts[longer] + exchanged, bound, fits))
        slots *= 2
    return tuple(found)
