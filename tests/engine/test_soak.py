"""Ten thousand requests that come, go and are cancelled: nothing grows."""

import gc
import resource
from pathlib import Path

import jax
import numpy as np
import pytest

from gptj import model
from gptj.config import ModelConfig
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 32, 4, 8, 128, 257, 384, 64)


def resident() -> int:
    """Bytes of memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def serve(engine: Engine, count: int, draw: np.random.Generator) -> None:
    """Answer `count` requests, never more than 50 at once; every tenth is cancelled."""
    asked = 0
    while asked < count or engine.busy:
        while asked < count and len(engine._asked) < 50:
            prompt = draw.integers(0, 257, draw.integers(1, 50)).tolist()
            sampling = SamplingParams(
                max_tokens=int(draw.integers(1, 9)), seed=asked, n=1 + asked % 2, logprobs=1
            )
            number = engine.submit(Request(prompt, sampling))
            asked += 1
            if asked % 10 == 0:
                engine.step()
                engine.cancel(number)
        engine.step()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_nothing_grows():
    params = model.init(jax.random.key(0), CONFIG)
    options = EngineConfig(8, chunk=16, prefix_bytes=1 << 20)
    engine = Engine(params, CONFIG, Tokenizer.bytes(), options)
    engine.warm_up()
    draw = np.random.default_rng(0)
    serve(engine, 2_000, draw)
    gc.collect()
    arrays, memory, compiled = len(jax.live_arrays()), resident(), engine.compilations()
    serve(engine, 10_000, draw)
    gc.collect()
    assert engine.compilations() == compiled
    assert not engine._asked
    assert not engine._bursts
    assert len(jax.live_arrays()) <= arrays + 4
    assert resident() - memory < 16 << 20
