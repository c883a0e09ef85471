"""Low-rank adapters: which matrices have one, how they begin, and how they join the weights.

"LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). The weights stay as they
are, in whatever they are stored in; what is trained is a tree of `Pair`, a few numbers beside them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Key

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.matrices import LowRank, LowRanks, Room, rank_axis
from gptj.model import Block, Leaf, Params, Weight, draw, weights
from gptj.quantised import Quantisation
from gptj.sharding import spec, split_as

Target = Literal["q", "k", "v", "out", "ffn_in", "ffn_out"]

FIELDS: dict[Target, str] = {
    "q": "query",
    "k": "key",
    "v": "value",
    "out": "attention_out",
    "ffn_in": "ffn_in",
    "ffn_out": "ffn_out",
}
"""The field of `Block` that each name means."""


def _flag(name: str) -> Any:
    return tyro.conf.arg(name=f"lora-{name}")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Adapters that are trained in place of the weights."""

    rank: Annotated[int | None, _flag("rank")] = None
    """Train adapters of this rank (LoRA) and leave the weights of the model that training starts
    from as they are. Default: none, the weights themselves are trained."""
    alpha: Annotated[float, _flag("alpha")] = 16.0
    """What an adapter's product is multiplied by, over its rank."""
    targets: Annotated[tuple[Target, ...], _flag("targets")] = get_args(Target)
    """The matrices of each layer that get an adapter: of attention `q`, `k`, `v`, `out`, of the
    feed-forward `ffn_in`, `ffn_out`."""
    dropout: Annotated[float, _flag("dropout")] = 0.0
    """Share of the activations that an adapter does not see, drawn anew at every step."""
    rank_stabilised: Annotated[bool, _flag("rank-stabilised")] = False
    """Divide alpha by the root of the rank instead (rsLoRA, arXiv:2312.03732)."""
    quantize: Annotated[Quantisation | None, _flag("base")] = None
    """Keep the weights below the adapters in `int8`, `int4` or `nf4` (QLoRA, arXiv:2305.14314).
    Default: as the layers compute."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"lora-rank={self.rank} must be at least 1")
        if not self.alpha > 0:
            raise UserError(f"lora-alpha={self.alpha} must be above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora-dropout={self.dropout} must be at least 0 and below 1")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError("lora-targets must name one matrix or more, each once")
        if self.rank is None and dataclasses.replace(self, rank=1) != LoRAConfig(1):
            raise UserError("--lora options are of adapters: give --lora-rank too")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LoRAConfig:
        """What JSON says of it."""
        return cls(**{**values, "targets": tuple(values["targets"])})

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        assert self.rank is not None
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def check(self, config: ModelConfig) -> None:
        """See that a model can have these.

        Raises:
          UserError: the rank is above a dim of a matrix, or not divided by the mesh.
        """
        assert self.rank is not None
        for target in self.targets:
            pair = table(config, self)[FIELDS[target]]
            if self.rank > (most := min(pair.down.shape[1], pair.up.shape[2])):
                raise UserError(
                    f"lora-rank={self.rank} is above {most}, the smaller dim of {target}: lower it"
                )
        ways = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
        if self.rank % ways and {"out", "ffn_out"} & {*self.targets}:
            raise UserError(f"the mesh axis tensor={ways} does not divide lora-rank={self.rank}")


NO_LORA = LoRAConfig()
"""The weights themselves are trained."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair(Generic[Leaf]):
    """An adapter: `down @ up`, times the scale, is added to a matrix. All layers are stacked."""

    down: Leaf
    up: Leaf


Adapters = dict[str, Pair[Leaf]]
"""By field of `Block`."""


def table(config: ModelConfig, lora: LoRAConfig) -> Adapters[Weight]:
    """What each array of the adapters is: `down` begins at random, `up` at 0."""
    assert lora.rank is not None
    blocks, found = weights(config).blocks, {}
    for target in lora.targets:
        whole: Weight = getattr(blocks, FIELDS[target])
        (layers, *dims), (_, *axes) = whole.shape, whole.axes
        inner, outer = math.prod(dims[: whole.inner]), math.prod(dims[whole.inner :])
        first, last = axes[0], axes[whole.inner]
        found[FIELDS[target]] = Pair(
            # As wide as PEFT's uniform draws, which are Kaiming's with a = sqrt(5).
            Weight(
                (layers, inner, lora.rank), ("layers", first, None), 1 / math.sqrt(3 * inner), 1
            ),
            Weight((layers, lora.rank, outer), ("layers", rank_axis(first), last), 0.0, 1),
        )
    return found


def trained(config: ModelConfig, lora: LoRAConfig) -> Params[Weight] | Adapters[Weight]:
    """The table of what a run changes: the weights, or their adapters."""
    return weights(config) if lora.rank is None else table(config, lora)


def init(key: Key[Array, ""], config: ModelConfig, lora: LoRAConfig) -> Adapters[Array]:
    """Adapters that change nothing yet, each born on its own shard of the mesh that is set."""
    lora.check(config)
    leaves, tree = jax.tree.flatten(table(config, lora))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [draw(k, w) for k, w in zip(keys, leaves, strict=True)])


def joined(
    params: Params[Array],
    adapters: Adapters[Array],
    config: ModelConfig,
    lora: LoRAConfig,
    key: Key[Array, ""] | None = None,
) -> Params[Array]:
    """The weights with the adapters beside them, for a forward pass.

    Args:
      key: draws what is left out, where there is dropout and it is wanted.
    """
    made: dict[str, Any] = {}
    for number, (name, pair) in enumerate(sorted(adapters.items())):
        keys = None
        if key is not None and lora.dropout:
            keys = jax.random.split(jax.random.fold_in(key, number), config.layers)
        made[name] = LowRank(
            getattr(params.blocks, name),
            pair.down,
            pair.up,
            keys,
            lora.scale,
            lora.dropout,
            getattr(weights(config).blocks, name).inner,
        )
    assert isinstance(params.blocks, Block)
    return dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, **made))


# Several beside one model: there is room from the start, and each is put into a part of it.

RANKS = 16
"""Columns of an adapter's part, or twice, four times, ... as many: what adds several numbers at a
time then begins at the same places in each part, and the zeros of the others change no sum."""


def columns_for(rank: int) -> int:
    """How many columns the part of an adapter of at most that rank has."""
    return RANKS << max(0, math.ceil(math.log2(rank / RANKS)))


def with_room(params: Params[Array], config: ModelConfig, count: int, rank: int) -> Params[Array]:
    """The weights, each layer's matrices with room for so many adapters of at most that rank.

    Raises:
      UserError: the mesh that is set does not divide the room, or an adapter is there already.
    """
    columns = columns_for(rank)
    ways = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    if columns % ways:
        raise UserError(
            f"the mesh axis tensor={ways} does not divide the {columns} columns of an adapter: "
            "make it a power of two"
        )
    dtype, inner, blocks = params.embedding.dtype, weights(config).blocks, params.blocks
    first = int(isinstance(blocks, tuple))  # a layer for itself has no dim of layers

    def beside(block: Block[Any]) -> Block[Any]:
        made = {}
        for name, pair in table(config, LoRAConfig(count * columns)).items():
            base = getattr(block, name)
            if isinstance(base, LowRank | LowRanks):
                raise UserError("the model has an adapter beside it already: merge it first")
            scale = Weight((config.layers, count * columns), ("layers", None), 0.0)
            down, up = (_zeros(weight, dtype, first) for weight in (pair.down, pair.up))
            room = Room(down, up, _zeros(scale, jnp.float32, first), count, columns // ways)
            made[name] = LowRanks(base, room, None, getattr(inner, name).inner)
        return dataclasses.replace(block, **made)

    made = tuple(map(beside, blocks)) if isinstance(blocks, tuple) else beside(blocks)
    return dataclasses.replace(params, blocks=made)


def _zeros(weight: Weight, dtype: DTypeLike, first: int) -> Float[Array, "..."]:
    """Zeros for a weight, from its dim `first` on."""
    return jnp.zeros(weight.shape[first:], dtype, out_sharding=spec(*weight.axes[first:]))


def choose(block: Block[Any], rows: Int[Array, " rows"]) -> Block[Any]:
    """A layer's weights, where there is room for adapters with the one of each row; 0 is none."""

    def each(weight: Any) -> Any:
        is_room = isinstance(weight, LowRanks)
        return dataclasses.replace(weight, chosen=rows) if is_room else weight

    return jax.tree.map(each, block, is_leaf=lambda x: isinstance(x, LowRanks))


Rooms = dict[str, Room]
"""By field of `Block`."""


def rooms_of(block: Block[Any]) -> Rooms:
    """The room in a layer, or in all of them stacked."""
    return {name: getattr(block, name).room for name in FIELDS.values()}


def with_rooms(block: Block[Any], rooms: Rooms) -> Block[Any]:
    """The layer with another room."""
    changed = {
        name: dataclasses.replace(getattr(block, name), room=room) for name, room in rooms.items()
    }
    return dataclasses.replace(block, **changed)


def put(
    rooms: Rooms,
    adapters: Adapters[Array],
    index: Int[Array, ""],
    scale: Float32[Array, ""],
) -> Rooms:
    """The room with an adapter in its part `index`, from 1, whose matrices are as wide."""

    def put_one(room: Room, pair: Pair[Array]) -> Room:
        own, column = room.owner() == index, np.arange(room.down.shape[-1])
        number = column // (room.span * room.count) * room.span + column % room.span

        def among(old: Array, new: Array, axis: int) -> Array:
            layout = split_as(old, *range(old.ndim))
            new = jnp.take(new, number, axis)
            new = new if layout is None else jax.reshard(new, layout)
            is_own = jnp.expand_dims(own, () if axis == -1 else -1)
            return jnp.where(is_own, new.astype(old.dtype), old)

        return dataclasses.replace(
            room,
            down=among(room.down, pair.down, -1),
            up=among(room.up, pair.up, -2),
            scale=jnp.where(own, scale, room.scale),
        )

    return {name: put_one(room, adapters[name]) for name, room in rooms.items()}
