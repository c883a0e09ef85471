"""Direct preference optimisation: of two answers the preferred becomes likelier than it was.

From "Direct Preference Optimization" (arXiv:2305.18290), equation 7. What it was is told by the
reference, the model without its adapters.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gptj.sharding import reshape


class Preferences(NamedTuple):
    """Of each pair what it says of the model."""

    loss: Float[Array, " pairs"]
    """`-log sigmoid(margin)`, in nats."""
    margin: Float[Array, " pairs"]
    """`beta` times how much likelier the preferred answer became than the other did, in nats."""
    pull: Float[Array, " answers"]
    """The loss's slope by the negative log-likelihood of each answer."""


def preferences(
    own: Float[Array, " answers"], reference: Float[Array, " answers"], beta: float
) -> Preferences:
    """What pairs say, by their answers' negative log-likelihoods, each preferred one first."""
    pairs = own.shape[0] // 2
    gain = reshape(reference - own, (pairs, 2), "batch", None)
    margin = beta * (gain[:, 0] - gain[:, 1])
    slope = beta * jax.nn.sigmoid(-margin)
    pull = reshape(jnp.stack([slope, -slope], axis=1), own.shape, "batch")
    return Preferences(jax.nn.softplus(-margin), margin, pull)


def answers(pairs: Int[Array, "pairs two_rows"]) -> Int[Array, "answers length+1"]:
    """The two rows of each pair one below the other."""
    return reshape(pairs, (2 * pairs.shape[0], pairs.shape[1] // 2), "batch", None)
