"""The engine's half on the devices: weights, cache and slots, and the programs that change them."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from gptj import kernels
from gptj.adapters import Adapters, rooms_of, with_room, with_rooms
from gptj.config import ModelConfig
from gptj.engine import programs
from gptj.engine.cache import Cache, new_cache
from gptj.engine.request import SamplingParams
from gptj.engine.slots import Slots, one_slot
from gptj.engine.step import Draft, LogProbs, any_step_alike, same_bits
from gptj.matrices import LowRanks
from gptj.model import Block, Params
from gptj.sharding import batch_ways, spec

Tree = TypeVar("Tree")


TOO_LONG = 1.5
"""Plain steps that a guessing one may take, without its draft, where it is always made."""


class Device:
    """What is computed with. Nothing here waits for a result but what measures a step's time."""

    def __init__(
        self,
        params: Params[Array],
        config: ModelConfig,
        *,
        slots: int,
        positions: int,
        chunk: int,
        burst: int,
        guesses: int = 0,
        draft: Draft | None = None,
        int8_cache: bool = False,
        adapters: int = 0,
        adapter_rank: int = 1,
    ) -> None:
        """An empty cache and idle slots beside the weights.

        Args:
          guesses: how many tokens a step guesses ahead, by `draft` or else by looking them up.
          adapters: for how many there is room beside the weights, of at most `adapter_rank`.

        Raises:
          UserError: the mesh that is set does not divide the model or the slots.
        """
        self.config, self.adapters = config, adapters
        """For how many adapters there is room."""
        self._adapter_of = np.zeros(slots, np.int32)
        self.parts = batch_ways()
        self._chunk, self._burst = chunk, burst
        self._per_part = slots // self.parts
        self._spare = -(-positions // chunk) * chunk
        """Where a part of the mesh that has no prompt to read reads one of no use."""
        self._guesses = guesses
        self.history = positions if guesses and not draft else 0
        """For how many tokens a slot has room where guesses are looked up."""
        room = self._spare + max(chunk if self.parts > 1 else 0, guesses)
        caches = [
            new_cache(model.config, slots, model.params.embedding.dtype, room, int8_cache)
            for model in (Draft(params, config), draft)
            if model
        ]
        self.cache: Cache = _beside(params, sum(caches, ()))
        self.slots = _beside(params, _new_slots(config, slots, self.history))
        self.params = apart(params, copied=True)  # if there is still room
        self._draft = draft and Draft(apart(draft.params, copied=True), draft.config)
        if adapters:
            self.params = _with_room(self.params, config, adapters, adapter_rank)
        counts = jax.jit(lambda: [jnp.int32(n) for n in range(burst + 1)])()
        self._counts = _beside(params, counts)
        """Numbers of steps, there already: a decode step uploads nothing."""
        self.break_even: float | None = None
        """How many tokens a guessing step must draw to be worth it, once that is known."""
        self._break_even: Array | None = None

    def own_params(self) -> Params[Array]:
        """The weights without what lies beside them."""
        own: Params[Array] = jax.tree.map(
            lambda x: x.base if isinstance(x, LowRanks) else x,
            self.params,
            is_leaf=lambda x: isinstance(x, LowRanks),
        )
        return own

    @property
    def stored_as(self) -> str:
        """In what the matrices of the layers are: a dtype, or how few bits."""
        blocks = self.own_params().blocks
        query: Any = (blocks[0] if isinstance(blocks, tuple) else blocks).query
        return str(query.dtype) if isinstance(query, Array) else type(query).__name__.lower()

    @property
    def is_guessing(self) -> bool:
        """Whether any step guesses, as far as it is known what that costs."""
        return self._guesses > 0

    @property
    def may_spare_draft(self) -> bool:
        """Whether no completion shows for which others a draft model guesses."""
        with kernels.wanted():
            return self._draft is not None and any_step_alike(
                self.params, self.config, len(self.slots.token), self._guesses
            )

    def judge(self, break_even: float | None) -> None:
        """Say how many tokens a guessing step must draw on average to be worth it.

        Without a number it is how much longer such a step takes, with every slot in it; rounded up
        to quarters, so that it is the same the next time. Several hosts would not measure the same.
        Where that is more than it can draw, or steps cannot be chosen as they pay, nothing is
        guessed.
        """
        if break_even is None:
            self._break_even = _beside(self.params, jnp.float32(1))  # who may guess does
            if jax.process_count() > 1:
                break_even = 1.5
            else:
                full, spared = self._step_seconds(True), self._step_seconds(False)
                guesses, self._guesses = self._guesses, 0
                plain = self._step_seconds(False)
                break_even = max(1.0, math.ceil(4 * full / plain) / 4)
                with kernels.wanted():
                    chosen = same_bits(self.params, self.config, len(self.slots.token), guesses)
                if break_even <= guesses + 1 and (chosen or spared <= TOO_LONG * plain):
                    self._guesses = guesses
        self.break_even = break_even
        self._break_even = _beside(self.params, jnp.float32(break_even))

    def _step_seconds(self, guessing: bool) -> float:
        """How long a step takes in which all slots draw, after a prompt in which guesses abound.

        Those that may not guess take a plain step, or where one cannot be chosen spare a draft.
        """
        sampling = SamplingParams()
        seconds: dict[int, list[float]] = {0: [], 1: []}
        values = one_slot(
            self.config, [0] * 8, sampling, eos=None, guessing=guessing, history=self.history
        )
        slots = len(self.slots.token)
        for _ in range(5):
            for slot in range(slots):
                self.put(slot, values)
            for steps, taken in seconds.items():
                jax.block_until_ready(self.slots)
                begin = time.perf_counter()
                jax.block_until_ready(self.draw(steps))
                taken.append(time.perf_counter() - begin)
        for slot in range(slots):
            self.set_active(slot, False)
        return min(seconds[1]) - min(seconds[0])

    def read(
        self,
        pieces: list[tuple[int, int, list[int]] | None],
        size: int,
        scored: int,
        guessing: bool = True,
    ) -> LogProbs:
        """Read a chunk of `size` tokens of one slot's prompt in each part of the mesh.

        Args:
          pieces: for each part the slot, where the chunk begins, and its tokens and the next.
          scored: see `programs.prefill`.
          guessing: whether a draft model, if there is one, reads it too.
        """
        tokens = np.zeros((self.parts, size + 1), np.int32)
        start = np.full(self.parts, self._spare, np.int32)
        slots, adapter = np.zeros(self.parts, np.int32), np.zeros(self.parts, np.int32)
        for part, piece in enumerate(pieces):
            if piece:
                slot, start[part], known = piece
                tokens[part, : len(known)] = known
                slots[part] = slot % self._per_part
                adapter[part] = self._adapter_of[slot]
        found, self.cache = programs.prefill(
            self.params, self.cache, tokens, start, slots, np.int32(scored), self.config,
            adapter if self.adapters else None,
        )  # fmt: skip
        if self._draft and self._guesses and guessing:
            self.cache = programs.prefill_draft(self._draft, self.cache, tokens, start, slots)
        return found

    def draw(self, steps: int) -> tuple[Int32[Array, "rows slots"], LogProbs]:
        """Make up to so many decode steps; see `programs.decode`."""
        guessing: dict[str, Any] = {}
        if self._guesses:
            guessing = {
                "guesses": self._guesses, "draft": self._draft, "break_even": self._break_even
            }  # fmt: skip
        tokens, found, self.cache, self.slots = programs.decode(
            self.params, self.cache, self.slots, self._counts[steps], self._burst, self.config,
            **guessing,
        )  # fmt: skip
        return tokens, found

    def put(self, slot: int, values: Slots) -> None:
        """Give a slot to a completion."""
        self.slots = programs.set_slot(self.slots, np.int32(slot), values)
        self._adapter_of[slot] = values.adapter

    def put_adapter(self, index: int, pairs: Adapters[np.ndarray], scale: float) -> None:
        """Put an adapter into a part of the room; its matrices are as wide as the part."""

        def put(block: Block[Any], own: Adapters[np.ndarray]) -> Block[Any]:
            at, by = np.int32(index), np.float32(scale)
            return with_rooms(block, programs.put_adapter(rooms_of(block), own, at, by))

        def of_layer(n: int) -> Adapters[np.ndarray]:
            own: Adapters[np.ndarray] = jax.tree.map(lambda x: x[n], pairs)
            return own

        blocks: Block[Any] | tuple[Block[Any], ...] = self.params.blocks
        if isinstance(blocks, tuple):
            blocks = tuple(put(block, of_layer(n)) for n, block in enumerate(blocks))
        else:
            blocks = put(blocks, pairs)
        self.params = dataclasses.replace(self.params, blocks=blocks)

    def set_active(self, slot: int, active: bool) -> None:
        """Set a slot going, or stop it."""
        self.slots = programs.set_active(self.slots, np.int32(slot), np.bool_(active))

    def set_allowed(self, slot: int, allowed: Bool[np.ndarray, " vocab"]) -> None:
        """Say which tokens a guided slot may draw next."""
        self.slots = programs.set_allowed(self.slots, np.int32(slot), allowed)

    def copy_out(self, slot: int, start: int) -> Cache:
        """The keys and values of a chunk."""
        return programs.copy_out(self.cache, np.int32(slot), np.int32(start), self._chunk)

    def copy_in(self, slot: int, start: int, chunk: Cache) -> None:
        """Put a chunk's keys and values into a slot."""
        self.cache = programs.copy_in(self.cache, chunk, np.int32(slot), np.int32(start))

    def step_bytes(self, kept: int) -> int:
        """What a decode step reads: the weights but the embedding, and `kept` keys and values."""
        weights = jax.tree.leaves((self.params.blocks, self.params.output))
        arrays = jax.tree.leaves(self.cache[: self.config.layers])
        slots, _, positions, _ = arrays[0].shape
        of_token = sum(x.nbytes for x in arrays) // (slots * positions)
        return sum(x.nbytes for x in weights) + kept * of_token


def _new_slots(config: ModelConfig, count: int, history: int) -> Slots:
    """Slots in which nothing goes on."""
    idle = one_slot(config, [0], SamplingParams(), eos=0, active=False, history=history)

    def spread(value: np.ndarray) -> Array:
        x = np.broadcast_to(value, (count, *np.shape(value)))
        axes = ("batch", *[None] * np.ndim(value))
        return jnp.zeros(x.shape, x.dtype, out_sharding=spec(*axes)) + value

    return jax.jit(lambda: jax.tree.map(spread, idle))()


def _with_room(
    params: Params[Array], config: ModelConfig, adapters: int, rank: int
) -> Params[Array]:
    """The weights with room for adapters beside them."""
    params = with_room(params, config, adapters, rank)

    def placed(block: Block[Any]) -> Block[Any]:
        return with_rooms(block, _beside(params, rooms_of(block)))

    blocks = params.blocks
    new = tuple(map(placed, blocks)) if isinstance(blocks, tuple) else placed(blocks)
    return dataclasses.replace(params, blocks=new)


def _beside(params: Params[Array], tree: Tree) -> Tree:
    """Tied to the weights' device, as what programs return is: else they compile once more."""
    if spec() is not None:
        return tree
    placed: Tree = jax.device_put(tree, params.embedding.sharding)
    return placed


def apart(params: Params[Array], copied: bool = False) -> Params[Array]:
    """The weights with an array for each layer, which on a CPU are views of the stacked ones.

    On a CPU a program that takes a layer out of a stack copies it, and a step takes out them all.

    Args:
      copied: on a GPU too, where they are copies, if it has room for both.
    """
    device = next(iter(params.embedding.devices()))
    if isinstance(params.blocks, tuple) or spec() is not None:
        return params
    if device.platform != "cpu" and not (copied and _fits_twice(params.blocks, device)):
        return params

    def rows(stacked: Array) -> list[Array]:
        if device.platform == "cpu":
            return [jax.device_put(row, stacked.sharding) for row in np.asarray(stacked)]
        return list(_unstacked(stacked))

    stacks = jax.tree.map(rows, params.blocks)
    is_list = lambda x: isinstance(x, list)  # noqa: E731
    count = len(stacks.norm_scale)
    blocks = tuple(
        jax.tree.map(lambda row, n=n: row[n], stacks, is_leaf=is_list) for n in range(count)
    )
    return dataclasses.replace(params, blocks=blocks)


def _fits_twice(blocks: Block[Array], device: jax.Device) -> bool:
    """Whether a GPU has room for the layers once more, and for a half of that besides."""
    if device.platform != "gpu":
        return False
    stats: dict[str, int] = device.memory_stats() or {}
    free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    return not stats or 1.5 * sum(x.nbytes for x in jax.tree.leaves(blocks)) <= free


@jax.jit
def _unstacked(stacked: Array) -> tuple[Array, ...]:
    return tuple(stacked)
