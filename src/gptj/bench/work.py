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
from gptj.bench.records import OURS, Side, Work
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.flops import flops_per_token, forward_flops_per_token, multiplied, prefill_flops

SIZES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of a number that is stored."""


def works(bench: Bench, config: ModelConfig | None, side: Side) -> dict[str, Work]:
    """What each case of a subject is, by its name; the model's shape where there is one.

    Raises:
      UserError: there are no files to load.
    """
    if isinstance(bench, LoadBench):
        size = sum(path.stat().st_size for path in weight_files(bench.model))
        return {"from disk": Work("GB", size / 1e9)}
    if isinstance(bench, DataBench):
        read = 6.0 * bench.rows * (bench.seq + 1)
        return {"shuffled rows": Work("rows", bench.rows, bytes=read)}
    assert config
    if isinstance(bench, TrainBench):
        tokens = bench.batch * bench.seq
        return {"a step": Work("tokens", tokens, flops_per_token(config, bench.seq) * tokens)}
    if isinstance(bench, PrefillBench):
        flops, read = prefill_flops(config, bench.tokens), weight_bytes(config, side.stored)
        return {f"{bench.tokens} tokens": Work("tokens", bench.tokens, flops, read)}
    if isinstance(bench, ServeBench):
        return {"the mix": Work("tokens", bench.requests * bench.new_tokens)}
    return {name_of(slots): _drawing(bench, config, slots, side) for slots in bench.slots}


def name_of(slots: int) -> str:
    """The case of so many slots."""
    return f"{slots} slot{'s' * (slots > 1)}"


def _drawing(bench: DecodeBench, config: ModelConfig, slots: int, side: Side) -> Work:
    middle = bench.read + bench.new // 2
    in_int8 = side.system == OURS and bench.kv_cache == "int8"
    size = 1 if in_int8 else 4 if side.stored == "float32" else 2
    kept = 2 * config.layers * config.d_model * size
    read = weight_bytes(config, side.stored) + slots * middle * kept
    flops = forward_flops_per_token(config, middle) * slots
    return Work("tokens", slots * bench.new, flops * bench.new, read * bench.new)


def weight_bytes(config: ModelConfig, stored: str) -> float:
    """The matrices, each of which is read to draw a token; the output's are int8 at the least."""
    layers = multiplied(config, with_output=False)
    output = multiplied(config) - layers
    return layers * SIZES[stored] + output * max(SIZES[stored], SIZES["int8"])


def weight_files(model: str) -> list[Path]:
    """The files of a model on this disk.

    Raises:
      UserError: there are none, or not only those that are loaded.
    """
    from gptj.checkpoint import COURSE  # its libraries would count as memory of our peers

    place = Path(model)
    if (place / COURSE).exists():
        raise UserError(
            f"model={model} is a run, of which only a part is loaded: convert it, and name that"
        )
    files = [place] if place.is_file() else sorted(x for x in place.rglob("*") if x.is_file())
    tensors = [path for path in files if path.suffix == ".safetensors"]
    files = tensors or files  # not the same weights once more in another form
    if not files:
        raise UserError(f"model={model} must be a folder or a file on this disk, with something in")
    return files
