"""What is to be planned, in a record that another process can be told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from gptj.adapters import LoRAConfig
from gptj.config import ModelConfig
from gptj.convert.load import abstract_params
from gptj.errors import UserError
from gptj.plan.place import Place, find
from gptj.sharding import BATCH_AXES, MESH_AXES, check_divides
from gptj.train.objective import StepConfig
from gptj.train.optimizer import ORIGINAL, OptimizerConfig

Mesh = tuple[int, int, int]
"""The sizes of `gptj.sharding.MESH_AXES`."""


@dataclasses.dataclass(frozen=True)
class Placed:
    """A model on a mesh of some hardware."""

    place: Place
    model: ModelConfig
    mesh: Mesh

    def __post_init__(self) -> None:
        check_mesh(self.model, self.mesh, self.place)

    @property
    def ways(self) -> int:
        """Into how many parts the mesh splits a batch, or the slots."""
        return math.prod(self.axis(name) for name in BATCH_AXES)

    def axis(self, name: str) -> int:
        """The size of a mesh axis."""
        return self.mesh[MESH_AXES.index(name)]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self) | {"place": self.place.name}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """From what `plain` made, on the same machine."""
        own = {
            "place": find(plain["place"]),
            "mesh": tuple(plain["mesh"]),
            "model": ModelConfig.from_dict(plain["model"]),
        }
        return cls(**plain | own)


@dataclasses.dataclass(frozen=True)
class Job(Placed):
    """A training step on some hardware."""

    batch: int
    """Rows in a step, or pairs of them."""
    accumulate: int
    """Parts a step's batch is computed in, one after the other."""
    seq: int
    optimizer: OptimizerConfig
    compute: StepConfig
    sequential: bool = False
    """Whether the block is GPT-3's, feed-forward after attention, for comparison."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adapters(self.model, self.optimizer, self.compute.lora)
        check_split(self.model, self.mesh, self.compute.lora)
        if self.pairs and not self.adapts:
            raise UserError(
                "preferences are learnt by adapters beside the model as it was: give --lora-rank"
            )
        if self.seq > self.model.context:
            raise UserError(
                f"seq={self.seq} is longer than the model's context of {self.model.context} "
                "tokens: lower seq, or raise the model's context"
            )
        if self.batch % (self.ways * self.accumulate):
            raise UserError(
                f"a batch of {self.batch} rows cannot be split over data x fsdp = {self.ways} "
                f"devices in accumulate={self.accumulate} equal parts: use a multiple of "
                f"{self.ways * self.accumulate}, or change the mesh or accumulate"
            )

    @property
    def rows(self) -> int:
        """Rows, or pairs of them, that a device computes at a time."""
        return self.batch // self.ways // self.accumulate

    @property
    def pairs(self) -> bool:
        """Whether preferences are learnt, each of two rows."""
        return self.compute.dpo_beta is not None

    @property
    def step(self) -> StepConfig:
        """How a step computes, with what the data would say."""
        if not self.pairs:
            return self.compute
        return dataclasses.replace(self.compute, examples=True, pairs=True)

    @property
    def width(self) -> int:
        """Tokens that come with a row, or a pair."""
        return (self.seq + 1) * (2 if self.pairs else 1)

    @property
    def tokens_at_once(self) -> int:
        """Tokens that a device computes at a time."""
        return self.rows * self.seq * (2 if self.pairs else 1)

    @property
    def tokens(self) -> int:
        """Tokens of a step, on all devices."""
        return self.batch * self.seq * (2 if self.pairs else 1)

    @property
    def unit(self) -> str:
        """What `batch` counts."""
        return "pairs of rows" if self.pairs else "rows"

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, beside weights that stay as they are."""
        return self.compute.lora.rank is not None

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """From what `plain` made, on the same machine."""
        lora = LoRAConfig.of(plain["compute"]["lora"])
        own = {
            "optimizer": OptimizerConfig(**plain["optimizer"]),
            "compute": StepConfig(**plain["compute"] | {"lora": lora}),
        }
        return super().of(plain | own)


def mesh_words(mesh: Mesh) -> str:
    """A mesh as it is asked for: `data=32,tensor=8`."""
    parts = (f"{axis}={size}" for axis, size in zip(MESH_AXES, mesh, strict=True) if size > 1)
    return ",".join(parts) or "data=1"


def abstract_mesh(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Where shapes are split as on such a mesh, of whatever devices."""
    kinds = (AxisType.Explicit,) * len(MESH_AXES)
    made: contextlib.AbstractContextManager[Any] = jax.sharding.use_abstract_mesh(
        AbstractMesh(mesh, MESH_AXES, axis_types=kinds)
    )
    return made


def check_adapters(model: ModelConfig, optimizer: OptimizerConfig, lora: LoRAConfig) -> None:
    """Refuse adapters that cannot be trained, if they are what is.

    Raises:
      UserError: the model or the optimizer cannot have them.
    """
    if lora.rank is None:
        return
    if optimizer.kind == ORIGINAL:
        raise UserError(f"optimizer={ORIGINAL} trains no adapters: choose another")
    lora.check(model)


@functools.cache
def check_split(model: ModelConfig, mesh: Mesh, lora: LoRAConfig) -> None:
    """Refuse a mesh that cannot have adapters or their base, if there are any.

    Raises:
      UserError: it does not divide their rank, or splits what int4 and nf4 keep together.
    """
    if lora.rank is not None:
        with abstract_mesh(mesh):
            lora.check(model)
            abstract_params(model, jnp.float32, lora.quantize)


def check_mesh(model: ModelConfig, mesh: Mesh, place: Place) -> None:
    """Refuse a mesh that the hardware or the model cannot have.

    Raises:
      UserError: naming the axis, the dimension it does not divide, and both sizes.
    """
    sizes = dict(zip(MESH_AXES, mesh, strict=True))
    for axis, size in sizes.items():
        if size < 1:
            raise UserError(f"mesh {axis}={size} must be at least 1")
    if math.prod(mesh) != place.devices:
        raise UserError(
            f"the mesh {mesh_words(mesh)} is of {math.prod(mesh)} devices, {place.name} has "
            f"{place.devices}: their product must be that"
        )
    check_divides(model, sizes)
