"""What can be measured, and how it is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from gptj.attention import Backend
from gptj.bench.records import Stored
from gptj.config import ModelConfig
from gptj.engine.config import EngineConfig
from gptj.errors import UserError
from gptj.quantised import Quantisation
from gptj.remat import Remat

Peer = Literal["transformers", "ctranslate2", "original"]
"""Others: transformers with PyTorch, CTranslate2, and what Mesh Transformer JAX was recorded at."""


def _check_positive(record: object, *names: str) -> None:
    for name in names:
        if (value := getattr(record, name)) < 1:
            raise UserError(f"{name}={value} must be at least 1")


@dataclasses.dataclass(frozen=True)
class TrainBench:
    """Time the training step: float32 weights and AdamW, random rows."""

    model: str = "125m"
    """The name of a preset, or the JSON file of a model's shape."""
    stored: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    """What layers compute in; of a peer, bfloat16 is PyTorch's autocast."""
    seq: int = 512
    """Tokens of a row."""
    batch: int = 4
    """Rows of a step."""
    remat: Remat = "none"
    """What the backward pass recomputes, as of `gptj train`."""
    attention: Backend | None = None
    """What computes attention, as of `gptj train`."""

    def __post_init__(self) -> None:
        _check_positive(self, "seq", "batch")


@dataclasses.dataclass(frozen=True)
class DecodeBench:
    """Time drawing: every slot draws greedily, what reading the prompts took is taken off."""

    model: str = "125m"
    """A model of any kind; or the name of a preset or the JSON file of a shape, which get random
    weights. Peers always have random ones of the same shape."""
    stored: tuple[Stored, ...] = ("float32", "bfloat16", "int8", "int4")
    """What the matrices are stored in."""
    slots: tuple[int, ...] = (1, 8)
    """Completions that draw at once."""
    read: int = 32
    """Tokens of a prompt."""
    new: int = 64
    """Tokens that each slot draws."""
    kv_cache: Literal["model", "int8"] = "model"
    """What our keys and values are stored in."""

    def __post_init__(self) -> None:
        _check_positive(self, "read", "new")
        if not self.slots or min(self.slots) < 1:
            raise UserError(f"slots={self.slots} must each be at least 1")


@dataclasses.dataclass(frozen=True)
class PrefillBench:
    """Time reading one prompt, to the first token after it."""

    model: str = "125m"
    """A model of any kind; or the name of a preset or the JSON file of a shape, which get random
    weights. Peers always have random ones of the same shape."""
    stored: tuple[Stored, ...] = ("float32", "bfloat16", "int8", "int4")
    """What the matrices are stored in."""
    tokens: int = 256
    """Tokens of the prompt."""
    chunk: int = EngineConfig().chunk
    """Tokens of it that our engine reads at a time."""

    def __post_init__(self) -> None:
        _check_positive(self, "tokens", "chunk")


@dataclasses.dataclass(frozen=True)
class LoadBench:
    """Time loading a model, its files not in memory before, beside a plain reading of them."""

    model: tyro.conf.Positional[str]
    """The folder or file of a model, on this disk."""
    stored: tuple[Stored, ...] = ("bfloat16",)
    """What to load the matrices as."""


@dataclasses.dataclass(frozen=True)
class DataBench:
    """Time reading shuffled rows of prepared texts, as a training run does."""

    data: tyro.conf.Positional[Path]
    """What `gptj prepare` or `gptj mix` wrote."""
    seq: int = 2048
    """Tokens of a row."""
    batch: int = 64
    """Rows of a batch."""
    rows: int = 6400
    """Rows of each turn."""

    def __post_init__(self) -> None:
        _check_positive(self, "seq", "batch", "rows")
        if self.rows % self.batch:
            raise UserError(f"rows={self.rows} must be a multiple of batch={self.batch}")


@dataclasses.dataclass(frozen=True)
class ServeBench:
    """Drive the engine with a mix of requests, and say how soon and how fast it answers."""

    model: str = "125m"
    """A model of any kind; or the name of a preset or the JSON file of a shape, which get random
    weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What to store and compute in."""
    quantize: Quantisation | None = None
    """Keep the matrices in so many bits."""
    requests: int = 64
    """How many requests are asked, in all."""
    rate: float = 0.0
    """Requests a second, at random moments; 0 asks them all at once."""
    shortest: int = 64
    """Tokens of the shortest prompt; lengths are drawn evenly."""
    longest: int = 256
    """Tokens of the longest prompt."""
    new_tokens: int = 64
    """Tokens that each request draws."""
    temperature: float = 0.8
    """0 always takes the likeliest token, as all sides do beside a peer."""
    seed: int = 0
    """Of the lengths, the prompts and the moments: the same seed asks the same."""
    engine: EngineConfig = EngineConfig()

    def __post_init__(self) -> None:
        _check_positive(self, "requests", "shortest", "new_tokens")
        if self.longest < self.shortest:
            raise UserError(f"longest={self.longest} must be at least shortest={self.shortest}")
        if not self.rate >= 0:
            raise UserError(f"rate={self.rate} must be 0 (all at once) or above")

    @property
    def stored(self) -> tuple[str, ...]:
        """What the matrices are stored in."""
        return (self.quantize or self.dtype,)


Bench = TrainBench | DecodeBench | PrefillBench | LoadBench | DataBench | ServeBench


def check_context(bench: DecodeBench | PrefillBench | ServeBench, config: ModelConfig) -> None:
    """See that the longest text fits into the model's context.

    Raises:
      UserError: naming what to lower.
    """
    rooms = {
        DecodeBench: ("read", "new"),
        PrefillBench: ("tokens",),
        ServeBench: ("longest", "new_tokens"),
    }
    names = rooms[type(bench)]
    drawn_past_it = type(bench) is ServeBench  # the last token drawn is never read
    if sum(getattr(bench, name) for name in names) >= config.context + drawn_past_it:
        said = " and ".join(f"{name}={getattr(bench, name)}" for name in names)
        raise UserError(
            f"{said} {'are together' if len(names) > 1 else 'is'} more than the model's context of "
            f"{config.context} has room for: lower {'one' if len(names) > 1 else 'it'}"
        )
