"""What a training step costs in floating-point operations: needed, and made."""

from __future__ import annotations

import math

import jax

from gptj.config import ModelConfig
from gptj.model import Remat, weights


def flops_per_token(config: ModelConfig, length: int) -> int:
    """Floating-point operations to train on one token of a sequence of `length`.

    `6 * P + 6 * layers * d_model * length`. P weights are multiplied, each once forward and twice
    backward, at two operations; attention's two products have `d_model * length / 2` terms a layer
    and token, the causal half of the square. What is computed again to save memory is not counted:
    this is the numerator of the MFU.
    """
    return 3 * _forward(config, length, with_output=True)


def hardware_flops_per_token(config: ModelConfig, length: int, remat: Remat) -> int:
    """The same with what rematerialisation computes again: the numerator of the HFU.

    Attention's scores always are; `block` and `offload` repeat the layers' whole forward pass.
    """
    again = _forward(config, length, with_output=False) if remat in ("block", "offload") else 0
    return flops_per_token(config, length) + config.layers * config.d_model * length + again


def forward_flops_per_token(config: ModelConfig, length: int) -> int:
    """Operations to read one token that sees `length` before it, and to draw the next."""
    return _forward(config, 2 * length, with_output=True)


def _forward(config: ModelConfig, length: int, *, with_output: bool) -> int:
    table = weights(config)
    products = [weight for weight in jax.tree.leaves(table.blocks) if weight.is_matrix]
    products += [table.output] if with_output else []
    multiplied = sum(math.prod(weight.shape) for weight in products)
    return 2 * multiplied + 2 * config.layers * config.d_model * length
