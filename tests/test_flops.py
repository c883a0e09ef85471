"""Operations counted by hand, of a model small enough to count."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.adapters import LoRAConfig
from gptj.config import ModelConfig
from gptj.flops import (
    flops_per_token,
    forward_flops_per_token,
    hardware_flops_per_token,
    multiplied,
    prefill_flops,
)

MODEL = ModelConfig(3, 32, 4, 4, 64, 257, 384, context=64)
LAYERS, OUTPUT = 3 * (4 * 32 * 32 + 2 * 32 * 64), 32 * 384
A_PAIR = 2 * 2 * 3 * 32
"""Operations of attention for a token and one it sees: two products, in 3 layers of 32."""


def test_only_weights_that_are_in_products_count():
    """No embedding, norm or bias; the output has its padding rows."""
    assert multiplied(MODEL) == LAYERS + OUTPUT
    assert multiplied(MODEL, with_output=False) == LAYERS
    biased = dataclasses.replace(MODEL, embedding_bias=True)
    assert multiplied(biased) == multiplied(MODEL)


@given(st.integers(0, 5000))
def test_a_token_costs_two_operations_a_weight_and_a_pair_of_products_for_each_it_sees(length):
    reading = 2 * (LAYERS + OUTPUT) + A_PAIR * length
    assert forward_flops_per_token(MODEL, length) == reading
    assert flops_per_token(MODEL, 2 * length) == 3 * reading  # which sees half of its row


@given(st.integers(1, 5000))
def test_a_prompt_draws_once_and_its_tokens_see_half_of_it(length):
    expected = length * 2 * LAYERS + A_PAIR * length * length / 2 + 2 * OUTPUT
    assert prefill_flops(MODEL, length) == expected


@pytest.mark.parametrize(
    ("remat", "again"), [("none", 0), ("dots", 0), ("block", 1), ("offload", 1)]
)
def test_the_scores_are_always_made_again_and_whole_layers_by_some(remat, again):
    made = hardware_flops_per_token(MODEL, 40, remat) - flops_per_token(MODEL, 40)
    scores = A_PAIR // 2 * 20
    assert made == scores + again * (2 * LAYERS + A_PAIR * 20)


def test_beside_adapters_weights_have_no_gradient_and_the_adapters_do():
    lora = LoRAConfig(rank=2)
    own = 3 * 2 * (4 * 64 + 2 * (32 + 64))  # of each matrix two thin ones
    whole, beside = flops_per_token(MODEL, 40), flops_per_token(MODEL, 40, lora)
    assert whole - beside == 2 * (LAYERS + OUTPUT) - 6 * own
    made = hardware_flops_per_token(MODEL, 40, "none", lora) - beside
    assert made == hardware_flops_per_token(MODEL, 40, "none") - whole
