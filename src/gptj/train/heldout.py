"""How well a model predicts text it has not seen: loss, perplexity and bits per byte."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from gptj.config import ModelConfig
from gptj.data.batches import EvalBatches
from gptj.data.store import TokenStore
from gptj.model import Params, losses
from gptj.sharding import Part, place, place_parts
from gptj.train.objective import StepConfig, attend_in, ids_in, learnt, preference_losses
from gptj.train.preferences import answers


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A model's fit to a text, each of its tokens predicted once."""

    loss: float
    """Mean cross-entropy in nats a token; of pairs of answers the mean loss in nats a pair."""
    bits_per_byte: float | None
    """Bits to code one byte of UTF-8 text, end-of-text tokens included; comparable between
    tokenizers, and with a compressor. `None` when only a part of the text was read."""
    tokens: int
    """Tokens predicted; of pairs of answers the pairs."""
    accuracy: float | None = None
    """Of pairs of answers, how many became likelier the right way round."""

    @property
    def perplexity(self) -> float:
        """`exp(loss)`: the number of equally likely tokens that would be as hard to guess."""
        return math.exp(min(self.loss, 700.0))

    def row(self) -> dict[str, float]:
        """The same as metrics by name."""
        if self.accuracy is not None:
            return {"heldout_loss": self.loss, "heldout_accuracy": self.accuracy}
        row = {"heldout_loss": self.loss, "heldout_perplexity": self.perplexity}
        bits = self.bits_per_byte
        return row if bits is None else {**row, "heldout_bits_per_byte": bits}


@functools.partial(jax.jit, static_argnames=("model", "compute"))
def eval_step(
    params: Params[Array],
    tokens: Int[Array, "batch length+1"],
    weights: Float[Array, "batch length"],
    *,
    model: ModelConfig,
    compute: StepConfig,
) -> Float[Array, ""]:
    """Weighted sum of the tokens' negative log-likelihoods, in nats."""
    attend, dtype = attend_in(tokens, compute), jnp.dtype(compute.dtype)
    ids = ids_in(tokens, compute)
    return losses(params, ids, model, weights=weights, dtype=dtype, attend=attend)[0]


@functools.partial(jax.jit, static_argnames=("model", "compute"))
def pairs_step(
    params: Params[Array],
    reference: Params[Array],
    tokens: Int[Array, "pairs two_rows"],
    *,
    model: ModelConfig,
    compute: StepConfig,
) -> Float[Array, "3"]:
    """Of pairs of answers the sum of their losses, how many are right, and how many there are.

    One of nothing but padding counts nothing.
    """
    rows, counts = learnt(answers(tokens))
    found = preference_losses(params, reference, rows, counts, model=model, config=compute)
    real = (counts.sum(1) > 0)[::2]
    sums = jnp.sum(found.loss * real), jnp.sum((found.margin > 0) & real), jnp.sum(real)
    return jnp.stack([each.astype(jnp.float32) for each in sums])


def held_out(
    params: Params[Array],
    store: TokenStore,
    model: ModelConfig,
    *,
    seq: int,
    batch: int,
    compute: StepConfig | None = None,
    batches: int | None = None,
    reference: Params[Array] | None = None,
) -> HeldOut:
    """Score `store`, in order, in rows of `seq` tokens that do not see one another.

    Args:
      batch: rows at a time.
      compute: as the model is trained; of it the dtype counts, and whether documents are isolated.
      batches: read only so many batches; all when not given.
      reference: the model without its adapters, which preferences are told by.
    """
    compute = compute or StepConfig()
    if compute.pairs:
        assert reference is not None
        return _held_out_pairs(params, reference, store, model, seq, batch, compute, batches)
    nats, tokens = 0.0, 0.0
    data = EvalBatches(store, seq, batch, limit=batches)
    for number in range(len(data)):
        weights = data.weights(number, slice(None))

        def read(part: Part, number: int = number) -> NDArray[np.int32]:
            return data.rows(number, part[0])

        rows = place_parts((batch, seq + 1), read, "batch", None)
        split = rows, place(weights, "batch", None)
        nats += float(eval_step(params, *split, model=model, compute=compute))
        tokens += float(np.sum(weights))
    whole = tokens == len(store)
    bits = nats / math.log(2) / store.bytes if whole else None
    return HeldOut(nats / tokens, bits, int(tokens))


def _held_out_pairs(
    params: Params[Array],
    reference: Params[Array],
    store: TokenStore,
    model: ModelConfig,
    seq: int,
    batch: int,
    compute: StepConfig,
    batches: int | None,
) -> HeldOut:
    data = EvalBatches(store, seq, batch, limit=batches)
    total = np.zeros(3)
    for number in range(len(data)):
        read = functools.partial(_pairs, data, number)
        tokens = place_parts((batch, 2 * (seq + 1)), read, "batch", None)
        total += np.asarray(pairs_step(params, reference, tokens, model=model, compute=compute))
    loss, right, pairs = total.tolist()
    return HeldOut(loss / pairs, None, int(pairs), right / pairs)


def _pairs(data: EvalBatches, number: int, part: Part) -> NDArray[np.int32]:
    return data.stored(number, part[0])
