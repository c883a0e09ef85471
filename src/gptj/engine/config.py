"""How large an engine is, and how it goes about its work."""

from __future__ import annotations

import dataclasses
from typing import Literal

from gptj.errors import UserError

KVCache = Literal["model", "int8"]


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How large the engine is, and how it divides its time."""

    slots: int = 8
    """Completions that draw at once; a mesh's data and fsdp axes split them. Rounded up so that
    each part has 1, 2, 4 or a multiple of 8, or to guess ahead 1 or a multiple of 8."""
    positions: int | None = None
    """Tokens that a slot has room for. Default: the model's context."""
    chunk: int = 128
    """Tokens of a prompt that are read at a time."""
    chunks_a_step: int = 4
    """The most chunks that are read between two steps of those who draw."""
    burst: int = 8
    """Decode steps in one dispatch while nobody's prompt is being read."""
    speculate: int = 0
    """Tokens that a step guesses ahead (speculative decoding): by a draft model, or else what
    followed the last few tokens before. The completions stay what they are. It is done
    where it pays; 0 is off."""
    break_even: float | None = None
    """How many tokens a guessing step must draw on average to be worth it. Default: how much longer
    it takes than a plain one, measured before the first request; 1.5 on several hosts."""
    kv_cache: KVCache = "model"
    """What keys and values are stored in: the model's dtype, or int8 by head and position."""
    max_adapters: int = 0
    """For how many low-rank adapters there is room beside the weights, to be loaded and unloaded
    while the engine runs. Each request says which it wants; 0 is off."""
    max_adapter_rank: int | None = None
    """The largest rank of one. Default: 16."""
    prefix_bytes: int = 256 << 20
    """Memory for what prompts begin with, to be found by others; 0 keeps none. On a mesh that
    splits the slots it is not used."""

    def __post_init__(self) -> None:
        for name in ("slots", "chunk", "chunks_a_step", "burst"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.positions is not None and self.positions < 2:
            raise UserError(f"positions={self.positions} must be at least 2")
        if self.max_adapter_rank is not None and self.max_adapter_rank < 1:
            raise UserError(f"max_adapter_rank={self.max_adapter_rank} must be at least 1")
        for name in ("prefix_bytes", "speculate", "max_adapters"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0")
        if self.break_even is not None and not self.break_even >= 1:
            raise UserError(f"break_even={self.break_even} must be at least 1")
        if self.kv_cache not in ("model", "int8"):
            raise UserError(f"kv_cache={self.kv_cache!r} must be `model` or `int8`")

    def rounded(self, ways: int) -> EngineConfig:
        """The same with the number of slots that a mesh of so many parts makes of it.

        A CPU computes rows by the vector, and those left over one by one, with other last bits: the
        ninth of nine slots would give other completions than the first.
        """
        part = -(-self.slots // ways)
        if part > (1 if self.speculate else 4):
            part = -(-part // 8) * 8
        elif part == 3:
            part = 4
        return dataclasses.replace(self, slots=part * ways)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the chunks that are read: whole ones, halves and quarters, of 16 tokens or more."""
        parts = [n for n in (2, 4) if self.chunk % n == 0 and self.chunk // n >= 16]
        return (self.chunk, *(self.chunk // n for n in parts))
