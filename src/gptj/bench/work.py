"""How much work each case is: what a side that does it must multiply and read at the least."""

from __future__ import annotations

from pathlib import Path

from gptj.bench.config import (
    Bench,
    DataBench,
    DecodeBench,
    LoadBench,
    PrefillBench,
    ServeBench,
    TrainBench,
)
from gptj.bench.records import Work
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.flops import flops_per_token, forward_flops_per_token, multiplied, prefill_flops

SIZES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5, "nf4": 0.5}
"""Bytes of a number that is stored."""


def works(bench: Bench, config: ModelConfig | None, stored: str) -> dict[str, Work]:
    """What each case of a subject is, by its name; the model's shape where there is one.

    Raises:
      UserError: there are no files to load.
    """
    if isinstance(bench, LoadBench):
        size = sum(path.stat().st_size for path in weight_files(bench.model))
        return {"from disk": Work("GB", size / 1e9)}
    if isinstance(bench, DataBench):
        rows = bench.rows // bench.batch * bench.batch
        return {"shuffled rows": Work("rows", rows, bytes=6.0 * rows * (bench.seq + 1))}
    assert config
    if isinstance(bench, TrainBench):
        tokens = bench.batch * bench.seq
        return {"a step": Work("tokens", tokens, flops_per_token(config, bench.seq) * tokens)}
    if isinstance(bench, PrefillBench):
        flops, read = prefill_flops(config, bench.tokens), weight_bytes(config, stored)
        return {f"{bench.tokens} tokens": Work("tokens", bench.tokens, flops, read)}
    if isinstance(bench, ServeBench):
        return {"the mix": Work("tokens", bench.requests * bench.new_tokens)}
    return {name_of(slots): _drawing(bench, config, slots, stored) for slots in bench.slots}


def name_of(slots: int) -> str:
    """The case of so many slots."""
    return f"{slots} slot{'s' * (slots > 1)}"


def _drawing(bench: DecodeBench, config: ModelConfig, slots: int, stored: str) -> Work:
    middle = bench.read + bench.new // 2
    kept = 2 * config.layers * config.d_model * (4 if stored == "float32" else 2)
    read = weight_bytes(config, stored) + slots * middle * kept
    flops = forward_flops_per_token(config, middle) * slots
    return Work("tokens", slots * bench.new, flops * bench.new, read * bench.new)


def weight_bytes(config: ModelConfig, stored: str) -> float:
    """The matrices, each of which is read to draw a token."""
    return multiplied(config) * SIZES[stored]


def weight_files(model: str) -> list[Path]:
    """The files of a model on this disk.

    Raises:
      UserError: there are none.
    """
    place = Path(model)
    files = [place] if place.is_file() else sorted(x for x in place.rglob("*") if x.is_file())
    if not files:
        raise UserError(f"model={model} must be a folder or a file on this disk, with something in")
    return files
