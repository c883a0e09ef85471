"""What the backward pass computes once more instead of keeping it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax

from gptj.errors import UserError
from gptj.matrices import PRODUCT

Remat = Literal["none", "dots", "block", "offload"]
"""What the backward pass recomputes: nothing, all but the matrix products, or the whole block; to
offload is to recompute the whole block from an input that waited in the host's memory."""

LAYER_INPUT, HOST_MEMORY = "layer_input", "pinned_host"


def rematerialised(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """`layer` with its backward pass recomputing what `remat` says."""
    if remat == "none":
        return layer
    if remat == "dots":
        saved = jax.checkpoint_policies.save_only_these_names(PRODUCT)
        return jax.checkpoint(layer, policy=saved, prevent_cse=False)
    if remat == "block":
        return jax.checkpoint(layer, prevent_cse=False)
    if remat == "offload":
        kinds = {memory.kind for memory in jax.devices()[0].addressable_memories()}
        if HOST_MEMORY not in kinds:
            have = f"these have {', '.join(sorted(kinds))}: use remat=block"
            raise UserError(f"remat=offload needs devices with {HOST_MEMORY} memory, {have}")
        offloaded = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT],
            offload_src="device",
            offload_dst=HOST_MEMORY,
        )
        return jax.checkpoint(layer, policy=offloaded, prevent_cse=False)
    raise UserError(f"remat={remat!r} is not one of {', '.join(get_args(Remat))}")
