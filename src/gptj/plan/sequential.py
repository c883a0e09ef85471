"""The block as GPT-3 has it, feed-forward after attention, to see what GPT-J's design saves.

It is no model of this project: it has one LayerNorm's weights for both, so that everything else
stays as it is, and it is compiled, never run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from jaxtyping import Array, Float, Int

from gptj import model
from gptj.attention import causal_attention, rotary
from gptj.config import ModelConfig
from gptj.dense import spread
from gptj.matrices import einsum
from gptj.model import Attend, Block
from gptj.sharding import reshape, reshard


def block(
    x: Float[Array, "batch length embed"],
    stored: Block[Array],
    config: ModelConfig,
    positions: Int[Array, "*batch length"],
    attend: Attend = causal_attention,
) -> Float[Array, "batch length embed"]:
    """One layer: each half normalises the stream, and adds to it before the other begins."""
    w = model._gathered(stored, config, x.dtype)
    rows = reshape(x, (-1, config.d_model), "batch", None)

    def normal(rows: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        y = model.layer_norm(rows, w.norm_scale, w.norm_offset, config.layer_norm_eps)
        return reshard(y, "batch", None, reduced=("tensor",))

    y = normal(rows)

    def heads(weight: Array) -> Float[Array, "batch length heads d_head"]:
        product = einsum("re,ehd->rhd", y, weight, "batch", "heads", None)
        return reshape(product, (*x.shape[:2], *product.shape[1:]), "batch", None, "heads", None)

    query = rotary(heads(w.query), positions, config.rotary_dims, config.rotary_base)
    key = rotary(heads(w.key), positions, config.rotary_dims, config.rotary_base)
    mixed = attend(query, key, heads(w.value))
    mixed = reshape(mixed, (-1, config.heads, config.d_head), "batch", "heads", None)
    branch = einsum("rhd,hde->re", mixed, w.attention_out, "batch", None, unreduced=("tensor",))
    rows += reshard(branch, "batch", None)
    inner = einsum("re,ef->rf", normal(rows), w.ffn_in, "batch", "ffn")
    branch = model.feed_forward_out(inner, w.ffn_in_bias, w.ffn_out)
    rows += reshard(branch, "batch", None) + spread(w.ffn_out_bias, rows)
    return reshape(rows, x.shape, "batch", None, None)


@contextlib.contextmanager
def blocks() -> Iterator[None]:
    """Within the context, every model that is traced has these blocks."""
    parallel, model.block = model.block, block
    try:
        yield
    finally:
        model.block = parallel
