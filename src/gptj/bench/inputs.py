"""What every side is given: the same rows and prompts, drawn from seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gptj.bench.config import TrainBench
from gptj.config import ModelConfig


def batches(bench: TrainBench, config: ModelConfig) -> Callable[[], NDArray[np.int32]]:
    """Rows to train on, others at each call; shape (batch, seq + 1)."""
    draw, shape = np.random.default_rng(0), (bench.batch, bench.seq + 1)
    return lambda: draw.integers(0, config.vocab_size, shape, dtype=np.int32)


def prompts(config: ModelConfig, count: int, tokens: int) -> list[list[int]]:
    """So many prompts of so many tokens, of which none ends a text."""
    draw = np.random.default_rng(count)
    return draw.integers(0, config.vocab_size - 1, (count, tokens)).tolist()
