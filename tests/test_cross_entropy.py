"""The fused loss against the plain one, written in float64 beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import cross_entropy
from gptj.cross_entropy import CHUNK, ZLoss, linear_cross_entropy

EMBED, COLUMNS, TOKENS = 8, 11, 9


def drawn(length, seed=0):
    """Activations, projection, bias, targets and weights; two columns are no tokens."""
    draw = np.random.default_rng(seed)
    return (
        draw.normal(size=(2, length, EMBED)).astype(np.float32),
        draw.normal(size=(EMBED, COLUMNS)).astype(np.float32),
        draw.normal(size=COLUMNS).astype(np.float32),
        draw.integers(0, TOKENS, (2, length), np.int32),
        draw.uniform(size=(2, length)).astype(np.float32),
    )


def plainly(hidden, output, bias, targets, weights, z_loss):
    """The loss, of each token its parts, and the gradients of the first three, in float64."""
    hidden, output, bias, weights = (np.float64(x) for x in (hidden, output, bias, weights))
    logits = (hidden @ output + bias)[..., :TOKENS]
    total = np.exp(logits).sum(-1)
    size = np.log(total) - (logits.max(-1) if z_loss.shifted else 0)
    right = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    nll, z = np.log(total) - right, z_loss.weight * size**2
    pulled = np.exp(logits) / total[..., None] * (1 + 2 * z_loss.weight * size)[..., None]
    pulled -= np.eye(TOKENS)[targets]
    pulled = np.pad(pulled * weights[..., None], [(0, 0), (0, 0), (0, COLUMNS - TOKENS)])
    gradients = (
        pulled @ output.T,
        np.einsum("ble,blv->ev", hidden, pulled),
        pulled.sum((0, 1)),
    )
    return (weights * (nll + z)).sum(), (nll, z), gradients


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


KINDS = [ZLoss(), ZLoss(0.1), ZLoss(0.1, shifted=True)]


@pytest.mark.parametrize(
    ("length", "z_loss"),
    [(1, KINDS[0]), (CHUNK, KINDS[1]), (CHUNK + 1, KINDS[2])],
)
def test_it_is_the_plain_loss_and_so_are_its_gradients(length, z_loss):
    """Whether the sequence fills its chunks or not: padding counts nothing."""
    given = drawn(length)

    def loss(hidden, output, bias):
        return linear_cross_entropy(hidden, output, bias, *given[3:], TOKENS, z_loss)

    (found, parts), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        *given[:3]
    )
    expected, own, pulled = plainly(*given, z_loss)
    close(found, expected)
    close(parts.nll, own[0])
    close(parts.z_loss, own[1])
    jax.tree.map(close, gradients, pulled)
    alone, also = jax.jit(loss)(*given[:3])  # without gradients, which has its own loop
    close(alone, expected)
    jax.tree.map(close, tuple(also), own)


def test_a_gradient_is_scaled_by_what_comes_back_and_keeps_its_dtype():
    hidden, output, bias, targets, weights = drawn(5)
    hidden, output = hidden.astype(jnp.bfloat16), output.astype(jnp.bfloat16)

    @jax.jit
    def pull(scale):
        def made(*of):
            return scale * linear_cross_entropy(*of, targets, weights, TOKENS)[0]

        return jax.grad(made, (0, 1, 2))(hidden, output, bias)

    once, thrice = pull(1.0), pull(3.0)
    assert [each.dtype for each in once] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for one, other in zip(once, thrice, strict=True):
        np.testing.assert_allclose(np.float32(other), 3 * np.float32(one), rtol=2**-7)


def test_no_gradient_comes_from_what_is_told_of_each_token():
    given = drawn(3)

    @jax.jit
    @jax.grad
    def pulled(hidden):
        _, told = linear_cross_entropy(hidden, *given[1:], TOKENS, ZLoss(0.1))
        return sum(each.sum() for each in told)

    assert not np.any(pulled(given[0]))


def test_a_column_that_is_no_token_changes_nothing_and_learns_nothing():
    hidden, output, bias, *rest = drawn(4)
    large = bias.copy()
    large[TOKENS:] = 1e6

    @jax.jit
    def both(bias):
        return jax.value_and_grad(
            lambda output, bias: linear_cross_entropy(hidden, output, bias, *rest, TOKENS)[0],
            (0, 1),
        )(output, bias)

    (one, gradients), (other, _) = both(bias), both(large)
    assert one == other
    assert not np.any(gradients[0][:, TOKENS:])
    assert not np.any(gradients[1][TOKENS:])


@pytest.mark.parametrize("embed", [3, 1024, 1025, 1536])
def test_a_large_product_is_added_a_part_at_a_time(embed):
    draw = np.random.default_rng(0)
    total, hidden, pulled = (
        draw.normal(size=shape).astype(np.float32) for shape in ((embed, 5), (4, embed), (4, 5))
    )
    add = jax.jit(cross_entropy._add_product, static_argnums=3)
    np.testing.assert_allclose(
        add(total, hidden, pulled, None), total + hidden.T @ pulled, rtol=1e-5, atol=1e-5
    )
    in_parts = "while" in add.lower(total, hidden, pulled, None).as_text()
    assert in_parts == (embed > 1024)
