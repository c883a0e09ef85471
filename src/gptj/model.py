"""GPT-J: its weights, the block, the forward pass and the loss. Read this first.

The block is GPT-J's parallel residual: one LayerNorm feeds attention and feed-forward side by
side, and both results join the residual stream together. Split over `tensor`, each side ends in
a partial sum; the two are added *before* they are reduced, so a block costs one all-reduce
forward and, by the transposed type on the LayerNorm's output, one backward.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int, Key

from gptj import kernels
from gptj.attention import causal_attention, rotary
from gptj.config import ModelConfig
from gptj.cross_entropy import NO_Z_LOSS, TokenLosses, ZLoss, linear_cross_entropy
from gptj.dense import settled, spread, sum_last
from gptj.matrices import einsum, einsums, gather, gather_dense
from gptj.remat import LAYER_INPUT, Remat, rematerialised
from gptj.sharding import LOGICAL_TO_MESH, check_mesh, on_mesh, reshape, reshard, spec

Attend = Callable[[Array, Array, Array], Array]

Leaf = TypeVar("Leaf")
"""The trees below hold arrays in use, and `Weight` records or abstract shapes in the tables."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block(Generic[Leaf]):
    """The weights of one layer, or of all of them stacked on a leading axis."""

    norm_scale: Leaf
    norm_offset: Leaf
    query: Leaf
    key: Leaf
    value: Leaf
    attention_out: Leaf
    ffn_in: Leaf
    ffn_in_bias: Leaf
    ffn_out: Leaf
    ffn_out_bias: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Params(Generic[Leaf]):
    """All weights of a model."""

    embedding: Leaf
    blocks: Block[Leaf] | tuple[Block[Leaf], ...]
    """All layers stacked, as training scans them; or each for itself, as the engine wants them."""
    norm_scale: Leaf
    norm_offset: Leaf
    output: Leaf
    output_bias: Leaf
    embedding_bias: Leaf | None = None
    """Only where `ModelConfig.embedding_bias` says so."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """What one weight is: everything else about it derives from this record."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """Logical axes, one a dim; see `gptj.sharding.LOGICAL_TO_MESH`."""
    init: float
    """Standard deviation of the truncated normal a matrix starts from; the constant of a vector."""
    inner: int = 0
    """How many dims of a layer's matrix a product sums over; 0 where it is in none."""

    @property
    def is_matrix(self) -> bool:
        """Matrices are drawn at random and decay; vectors (biases, norms) do neither."""
        return len([axis for axis in self.axes if axis != "layers"]) > 1


def weights(config: ModelConfig) -> Params[Weight]:
    """The table of a model's weights: a `Weight` at every leaf."""
    d, f, v, n = config.d_model, config.d_ff, config.padded_vocab_size, config.layers
    h, k = config.heads, config.d_head
    std = 1 / math.sqrt(d)
    residual_std = 2 / n / math.sqrt(d)  # the original's: the branches' sum starts small

    def stacked(*dims: tuple[str | None, int], init: float, inner: int = 0) -> Weight:
        axes, shape = zip(*dims, strict=True)
        return Weight((n, *shape), ("layers", *axes), init, inner)

    embed, whole, heads, head = ("embed", d), (None, d), ("heads", h), (None, k)
    return Params(
        embedding=Weight((v, d), ("vocab", "embed"), 1 / math.sqrt(v)),
        blocks=Block(
            norm_scale=stacked(whole, init=1.0),
            norm_offset=stacked(whole, init=0.0),
            query=stacked(embed, heads, head, init=std, inner=1),
            key=stacked(embed, heads, head, init=std, inner=1),
            value=stacked(embed, heads, head, init=std, inner=1),
            attention_out=stacked(heads, head, embed, init=residual_std, inner=2),
            ffn_in=stacked(embed, ("ffn", f), init=std, inner=1),
            ffn_in_bias=stacked(("ffn", f), init=0.0),
            ffn_out=stacked(("ffn", f), embed, init=residual_std, inner=1),
            ffn_out_bias=stacked(whole, init=0.0),
        ),
        norm_scale=Weight((d,), (None,), 1.0),
        norm_offset=Weight((d,), (None,), 0.0),
        output=Weight((d, v), ("embed", "vocab"), std, inner=1),
        output_bias=Weight((v,), ("vocab",), 0.0),
        embedding_bias=Weight((d,), (None,), 0.0) if config.embedding_bias else None,
    )


def init(key: Key[Array, ""], config: ModelConfig) -> Params[Array]:
    """Random float32 weights, each born on its own shard of the mesh that is set.

    Matrices are normal, truncated at two standard deviations and not rescaled, as the original's;
    biases are 0 and norms 1. The same key gives the same weights on every mesh, bit for bit.
    """
    check_mesh(config)
    table, tree = jax.tree.flatten(weights(config))
    keys = jax.random.split(key, len(table))
    return jax.tree.unflatten(tree, [draw(k, w) for k, w in zip(keys, table, strict=True)])


@functools.partial(jax.jit, static_argnums=1)
def draw(key: Key[Array, ""], weight: Weight) -> Float[Array, "..."]:
    """How a weight begins; a vector's key is not looked at."""
    sharding = spec(*weight.axes)
    if not weight.is_matrix:
        return jnp.full(weight.shape, weight.init, jnp.float32, out_sharding=sharding)
    bits = jax.random.bits(key, weight.shape, jnp.uint16, out_sharding=sharding)
    return weight.init * jnp.asarray(_quantiles()).at[bits].get(out_sharding=sharding)


@functools.cache
def _quantiles() -> Float32[np.ndarray, " draws"]:
    """A normal truncated at two deviations, as 2**16 equally likely values.

    Drawn by a look-up, weights are exact: compilers round an inverse error function differently
    from one shard shape, and one device, to the next.
    """
    normal, draws = statistics.NormalDist(), 1 << 16
    below = normal.cdf(-2)
    share = (1 - 2 * below) / draws
    return np.array([normal.inv_cdf(below + (i + 0.5) * share) for i in range(draws)], np.float32)


def abstract(config: ModelConfig) -> Params[jax.ShapeDtypeStruct]:
    """The shapes and, on the mesh that is set, the shardings of the float32 weights."""
    shapes: Params[jax.ShapeDtypeStruct] = abstract_table(weights(config))
    return shapes


def abstract_table(table: Any) -> Any:
    """The same of any tree of `Weight`."""

    def shape(weight: Weight) -> jax.ShapeDtypeStruct:
        sharding = on_mesh(spec(*weight.axes))
        return jax.ShapeDtypeStruct(weight.shape, jnp.float32, sharding=sharding)

    return jax.tree.map(shape, table)


def count_parameters(config: ModelConfig, original_shards: int | None = None) -> int:
    """How many numbers the weights hold.

    With `original_shards`, as the original counted them: every weight its shards did not split
    was stored once per shard, and the embedding had a bias (GPT-J, 8 shards: 6,053,381,344).
    """
    copies = original_shards or 1
    if original_shards:
        config = dataclasses.replace(config, embedding_bias=True)
    total = 0
    for weight in jax.tree.leaves(weights(config)):
        split = any(LOGICAL_TO_MESH.get(axis or "") == "tensor" for axis in weight.axes)
        total += math.prod(weight.shape) * (1 if split else copies)
    return total


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def layer_norm(
    x: Float[Array, "rows embed"],
    scale: Float[Array, " embed"],
    offset: Float[Array, " embed"],
    eps: float,
) -> Float[Array, "rows embed"]:
    """LayerNorm over the last dim, its statistics in float32 (arXiv:1607.06450).

    Like the GELU, cheaper for the backward pass to recompute than to store and read.
    """
    wide = x.astype(jnp.float32)
    centred = wide - sum_last(wide, "batch") / x.shape[-1]
    variance = sum_last(jnp.square(centred), "batch") / x.shape[-1]
    normal = centred * jax.lax.rsqrt(variance + eps)
    return (normal * spread(scale, wide) + spread(offset, wide)).astype(x.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False)
def feed_forward_out(
    inner: Float[Array, "rows ffn"], bias: Float[Array, " ffn"], weight: Float[Array, "ffn embed"]
) -> Float[Array, "rows embed"]:
    """`gelu(inner + bias) @ weight`, a partial sum over `tensor`.

    GELU in GPT-J's tanh form (arXiv:1606.08415). The backward pass recomputes it, and not the
    product.
    """
    if kernels.in_use():
        active = kernels.gelu(inner, bias)
    else:
        active = settled(jax.nn.gelu(inner + spread(bias, inner, "ffn"), approximate=True))
    return einsum("rf,fe->re", active, weight, "batch", None, unreduced=("tensor",))


def embed(
    params: Params[Array], tokens: Int[Array, "batch length"], dtype: DTypeLike
) -> Float[Array, "batch length embed"]:
    """The rows of the embedding table for `tokens`, with the embedding's bias if there is one."""
    table = gather(params.embedding, ("vocab", "embed"), dtype)
    x = _rows(table, tokens)
    if params.embedding_bias is None:
        return x
    rows = reshape(x, (-1, x.shape[-1]), "batch", None)
    rows += spread(gather(params.embedding_bias, (None,), dtype), rows)
    return reshape(rows, x.shape, "batch", None, None)


def _rows(
    table: Float[Array, "vocab embed"], tokens: Int[Array, "batch length"]
) -> Float[Array, "batch length embed"]:
    """The table's rows. On a CPU XLA would widen all of a bfloat16 table to look a few up in it."""
    if table.dtype == jnp.bfloat16 and kernels.in_use():
        return kernels.rows(table, tokens.reshape(-1)).reshape(*tokens.shape, -1)
    return table.at[tokens].get(out_sharding=spec("batch", None, None))


def block(
    x: Float[Array, "batch length embed"],
    stored: Block[Array],
    config: ModelConfig,
    positions: Int[Array, "*batch length"],
    attend: Attend = causal_attention,
) -> Float[Array, "batch length embed"]:
    """One layer. `attend` takes rotated queries and keys, and values, and returns their mix."""
    w = _gathered(stored, config, x.dtype)
    rows = reshape(x, (-1, config.d_model), "batch", None)
    y = layer_norm(rows, w.norm_scale, w.norm_offset, config.layer_norm_eps)
    y = reshard(y, "batch", None, reduced=("tensor",))

    def by_row(product: Array) -> Float[Array, "batch length heads d_head"]:
        return reshape(product, (*x.shape[:2], *product.shape[1:]), "batch", None, "heads", None)

    products = einsums("re,ehd->rhd", y, (w.query, w.key, w.value), "batch", "heads", None)
    query, key, value = map(by_row, products)
    query = rotary(query, positions, config.rotary_dims, config.rotary_base)
    key = rotary(key, positions, config.rotary_dims, config.rotary_base)
    mixed = attend(query, key, value)
    mixed = reshape(mixed, (-1, config.heads, config.d_head), "batch", "heads", None)
    inner = einsum("re,ef->rf", y, w.ffn_in, "batch", "ffn")
    branches = einsum("rhd,hde->re", mixed, w.attention_out, "batch", None, unreduced=("tensor",))
    branches += feed_forward_out(inner, w.ffn_in_bias, w.ffn_out)
    branches = reshard(branches, "batch", None) + spread(w.ffn_out_bias, rows)
    return x + reshape(branches, x.shape, "batch", None, None)


def _gathered(stored: Block[Array], config: ModelConfig, dtype: DTypeLike) -> Block[Array]:
    """One layer's weights ready for use: matrices in `dtype`, vectors in float32."""

    def ready(weight: Weight, array: Array) -> Array:
        return gather(array, weight.axes[1:], dtype if weight.is_matrix else jnp.float32)

    return jax.tree.map(ready, weights(config).blocks, stored)


def hidden_states(
    params: Params[Array],
    tokens: Int[Array, "batch length"],
    config: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
    positions: Int[Array, "batch length"] | None = None,
    attend: Attend = causal_attention,
) -> Float[Array, "batch length embed"]:
    """The stream after all layers and the final LayerNorm: what the output projection reads."""
    at = jnp.arange(tokens.shape[1]) if positions is None else positions

    def layer(x: Array, stored: Block[Array]) -> tuple[Array, None]:
        return block(checkpoint_name(x, LAYER_INPUT), stored, config, at, attend), None

    layer, x = rematerialised(layer, remat), embed(params, tokens, dtype)
    if isinstance(params.blocks, tuple):
        for stored in params.blocks:
            x, _ = layer(x, stored)
    else:
        x, _ = jax.lax.scan(layer, x, params.blocks)
    return final_norm(params, x, config)


def final_norm(
    params: Params[Array], x: Float[Array, "batch length embed"], config: ModelConfig
) -> Float[Array, "batch length embed"]:
    """The LayerNorm after the last layer."""
    rows = reshape(x, (-1, config.d_model), "batch", None)
    y = layer_norm(rows, params.norm_scale, params.norm_offset, config.layer_norm_eps)
    return reshape(y, x.shape, "batch", None, None)


def logits(
    params: Params[Array], hidden: Float[Array, "batch length embed"], config: ModelConfig
) -> Float[Array, "batch length vocab"]:
    """The output projection, in float32. Columns past `config.vocab_size` mean nothing."""
    output = gather(params.output, ("embed", "vocab"), hidden.dtype)
    rows = reshape(hidden, (-1, config.d_model), "batch", None)
    product = einsum("re,ev->rv", rows, output, "batch", "vocab", dtype=jnp.float32)
    product += params.output_bias.astype(jnp.float32)
    return reshape(product, (*hidden.shape[:2], product.shape[1]), "batch", None, "vocab")


def forward(
    params: Params[Array],
    tokens: Int[Array, "batch length"],
    config: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "batch length vocab"]:
    """Logits for every position, float32, over all `config.padded_vocab_size` columns.

    Args:
      dtype: what the layers compute in; products are summed in float32 either way.
    """
    return logits(params, hidden_states(params, tokens, config, dtype=dtype), config)


def losses(
    params: Params[Array],
    tokens: Int[Array, "batch length+1"],
    config: ModelConfig,
    *,
    weights: Float[Array, "batch length"] | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
    z_loss: ZLoss = NO_Z_LOSS,
    attend: Attend = causal_attention,
) -> tuple[Float[Array, ""], TokenLosses]:
    """The training loss, and of each token its parts, "batch length" (nats, no gradient).

    Args:
      tokens: rows of `length + 1` ids; each but the first is predicted from those before it.
      weights: what each prediction counts in the loss, the mean over all when not given.
      z_loss: what is added to each token's loss for the size of its normaliser.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if weights is None:
        mean, sharding = 1 / targets.size, spec("batch", None)
        weights = jnp.full(targets.shape, mean, jnp.float32, out_sharding=sharding)
    hidden = hidden_states(params, inputs, config, dtype=dtype, remat=remat, attend=attend)
    output = gather_dense(params.output, ("embed", "vocab"), dtype)
    return linear_cross_entropy(
        hidden, output, params.output_bias, targets, weights, config.vocab_size, z_loss
    )


def loss(
    params: Params[Array],
    tokens: Int[Array, "batch length+1"],
    config: ModelConfig,
    *,
    weights: Float[Array, "batch length"] | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
    z_loss: ZLoss = NO_Z_LOSS,
) -> Float[Array, ""]:
    """Mean next-token cross-entropy in nats: `losses` without the per-token values."""
    found = losses(params, tokens, config, weights=weights, dtype=dtype, remat=remat, z_loss=z_loss)
    return found[0]
