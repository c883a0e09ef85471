"""Knowing a spike: a step whose loss or gradient is far above those of the steps before it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

WINDOW = 128
"""Steps that a new one is compared with."""

FLOOR = 0.01
"""The least deviation believed, as a share of the mean: a flat window makes no spike of noise."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recent:
    """The last steps whose updates were made.

    Part of the state, so that a run that was stopped decides as one that was not.
    """

    loss: Float[Array, " window"]
    grad_norm: Float[Array, " window"]
    count: Int[Array, ""]
    """Updates made in all."""
    streak: Int[Array, ""]
    """Updates skipped in a row, up to now."""


@jax.jit
def no_recent() -> Recent:
    """Before the first step."""

    def zeros(*shape: int, dtype: DTypeLike = jnp.int32) -> Array:
        return jnp.zeros(shape, dtype)  # one of its own for each, to be donated

    window = functools.partial(zeros, WINDOW, dtype=jnp.float32)
    return Recent(window(), window(), zeros(), zeros())


def is_calm(
    recent: Recent, loss: Float[Array, ""], grad_norm: Float[Array, ""], sigma: float
) -> Bool[Array, ""]:
    """Whether a step is finite and, once the window is full, at most `sigma` deviations above it.

    `sigma` 0 asks for finite only.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if not sigma:
        return finite
    usual = _within(recent.loss, loss, sigma) & _within(recent.grad_norm, grad_norm, sigma)
    return finite & (usual | (recent.count < WINDOW))


def _within(values: Float[Array, " window"], value: Array, sigma: float) -> Bool[Array, ""]:
    mean = jnp.mean(values)
    return value <= mean + sigma * jnp.maximum(jnp.std(values), FLOOR * mean)


def remember(
    recent: Recent, loss: Float[Array, ""], grad_norm: Float[Array, ""], calm: Bool[Array, ""]
) -> Recent:
    """The window after a step: with it in the place of the oldest, if it was calm."""
    oldest = calm & (jnp.arange(WINDOW) == recent.count % WINDOW)
    return Recent(
        jnp.where(oldest, loss, recent.loss),
        jnp.where(oldest, grad_norm, recent.grad_norm),
        recent.count + calm,
        jnp.where(calm, 0, recent.streak + 1),
    )
