"""The programs as made: what room they need beside a cache, and what they round."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import kernels, model
from gptj.config import ModelConfig
from gptj.convert.load import quantised as in_few_bits
from gptj.engine import programs
from gptj.engine.cache import new_cache
from gptj.engine.request import SamplingParams
from gptj.engine.slots import one_slot

CONFIG = ModelConfig(2, 64, 4, 16, 64, 64, 4096, 16)

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="no g++ to build the native programs with"),
    pytest.mark.parametrize("quantised", [False, True]),
    pytest.mark.parametrize("dtype", ["float32", "bfloat16"]),
]


def weights_and_cache(dtype, quantised, slots, positions):
    params = jax.tree.map(lambda x: x.astype(dtype), model.init(jax.random.key(0), CONFIG))
    return params, new_cache(CONFIG, slots, jnp.dtype(dtype), positions, quantised)


def room(lowered):
    """Bytes that a program takes beside what it is given and what it gives back."""
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_a_prompt_takes_no_more_room_with_a_larger_cache(dtype, quantised):
    def read(slots, positions):
        first, tokens = jnp.zeros(1, jnp.int32), jnp.ones((1, 33), jnp.int32)
        given = weights_and_cache(dtype, quantised, slots, positions)
        return programs.prefill.lower(*given, tokens, first, first, first[0], CONFIG)

    assert room(read(16, 4096)) == room(read(2, 256))


def test_a_step_takes_no_more_room_with_more_positions(dtype, quantised):
    one = one_slot(CONFIG, [0], SamplingParams(), eos=0)
    slots = jax.tree.map(lambda x: np.stack([x] * 4), one)

    def step(positions):
        given = weights_and_cache(dtype, quantised, 4, positions)
        return programs.decode.lower(*given, slots, jnp.int32(1), 1, CONFIG)

    assert room(step(4096)) == room(step(256))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_what_meets_few_bits_is_rounded_alike_read_and_drawn(dtype, quantised, kind):
    """In each product with a matrix in few bits, the output's too; of float32 in none."""
    params, cache = weights_and_cache(dtype, quantised, 4, 256)
    params = in_few_bits(params, CONFIG, dtype, kind)
    first, tokens = jnp.zeros(1, jnp.int32), jnp.ones((1, 33), jnp.int32)
    one = one_slot(CONFIG, [0], SamplingParams(), eos=0)
    slots = jax.tree.map(lambda x: np.stack([x] * 4), one)
    read = programs.prefill.lower(params, cache, tokens, first, first, first[0], CONFIG)
    drawn = programs.decode.lower(params, cache, slots, jnp.int32(1), 1, CONFIG)
    for program in (read, drawn):
        calls = [
            line for line in program.as_text().splitlines() if f"@gptj_products_{kind}" in line
        ]
        assert len(calls) >= 4
        found = {said for call in calls for said in re.findall(r"rounded = (\w+)", call)}
        assert found == {"true" if dtype == "bfloat16" else "false"}
