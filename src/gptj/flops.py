"""What a training step costs in floating-point operations: needed, and made."""

from __future__ import annotations

import math

import jax

from gptj.adapters import NO_LORA, LoRAConfig, table
from gptj.config import ModelConfig
from gptj.model import weights
from gptj.remat import Remat


def flops_per_token(config: ModelConfig, length: int, lora: LoRAConfig = NO_LORA) -> int:
    """Floating-point operations to train on one token of a sequence of `length`.

    `6 * P + 6 * layers * d_model * length`. P weights are multiplied, each once forward and twice
    backward, at two operations; attention's two products have `d_model * length / 2` terms a layer
    and token, the causal half of the square. What is computed again to save memory is not counted:
    this is the numerator of the MFU. Weights that adapters leave as they are have no gradient: a
    third less, but for the adapters' own.
    """
    whole = 3 * _forward(config, length, with_output=True)
    if lora.rank is None:
        return whole
    own = sum(math.prod(weight.shape) for weight in jax.tree.leaves(table(config, lora)))
    return whole - 2 * multiplied(config, with_output=True) + 6 * own


def hardware_flops_per_token(
    config: ModelConfig, length: int, remat: Remat, lora: LoRAConfig = NO_LORA
) -> int:
    """The same with what rematerialisation computes again: the numerator of the HFU.

    Attention's scores always are; `block` and `offload` repeat the layers' whole forward pass.
    """
    again = _forward(config, length, with_output=False) if remat in ("block", "offload") else 0
    return flops_per_token(config, length, lora) + config.layers * config.d_model * length + again


def forward_flops_per_token(config: ModelConfig, length: int) -> int:
    """Operations to read one token that sees `length` before it, and to draw the next."""
    return _forward(config, 2 * length, with_output=True)


def prefill_flops(config: ModelConfig, length: int) -> int:
    """Operations to read a prompt of `length` tokens, and to draw the first after it."""
    drawn = 2 * (multiplied(config) - multiplied(config, with_output=False))
    return length * _forward(config, length, with_output=False) + drawn


def _forward(config: ModelConfig, length: int, *, with_output: bool) -> int:
    return 2 * multiplied(config, with_output=with_output) + (
        2 * config.layers * config.d_model * length
    )


def multiplied(config: ModelConfig, *, with_output: bool = True) -> int:
    """The weights that are in products."""
    whole = weights(config)
    products = [weight for weight in jax.tree.leaves(whole.blocks) if weight.is_matrix]
    products += [whole.output] if with_output else []
    return sum(math.prod(weight.shape) for weight in products)
