"""What each policy computes again: counted in the program of the gradient."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from gptj import remat
from gptj.errors import UserError
from gptj.matrices import PRODUCT
from gptj.remat import HOST_MEMORY, LAYER_INPUT, rematerialised


def layer(x, w):
    """Two named products with a function between them."""
    x = checkpoint_name(x, LAYER_INPUT)
    hidden = jnp.sin(checkpoint_name(x @ w, PRODUCT))
    return checkpoint_name(hidden @ w, PRODUCT)


def gradient(policy: str) -> str:
    """The program of its gradient."""
    x, w = jnp.ones((2, 3)), jnp.ones((3, 3))
    loss = lambda x, w: jnp.square(rematerialised(layer, policy)(x, w)).sum()  # noqa: E731
    return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, w))


@pytest.mark.parametrize(
    ("policy", "products", "sines"),
    [
        ("none", 2 + 4, 1),  # forward; and backward two each
        ("dots", 2 + 4, 2),
        ("block", 2 + 1 + 4, 2),  # the last product's result is of no use to the gradient
        ("offload", 2 + 1 + 4, 2),
    ],
)
def test_it_computes_again_what_it_does_not_keep(policy, products, sines, monkeypatch):
    memories = [SimpleNamespace(kind=kind) for kind in ("device", HOST_MEMORY)]
    device = SimpleNamespace(addressable_memories=lambda: memories)
    monkeypatch.setattr(remat.jax, "devices", lambda: [device])
    text = gradient(policy)
    assert text.count("dot_general[") == products
    assert text.count("= sin ") == sines
    assert "prevent_cse=True" not in text  # which a scan makes needless, and slow
    assert ("f32<host>" in text) == (policy == "offload")


def test_nothing_to_compute_again_is_the_layer_itself():
    assert rematerialised(layer, "none") is layer


def test_where_the_host_s_memory_is_out_of_reach_nothing_waits_in_it(monkeypatch):
    memories = [SimpleNamespace(kind=kind) for kind in ("unpinned_host", "device")]
    device = SimpleNamespace(addressable_memories=lambda: memories)
    monkeypatch.setattr(remat.jax, "devices", lambda: [device])
    with pytest.raises(UserError) as refusal:
        rematerialised(layer, "offload")
    assert str(refusal.value) == (
        "remat=offload needs devices with pinned_host memory, these have device, unpinned_host: "
        "use remat=block"
    )


def test_an_unknown_policy_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"^remat='all' is not one of none, dots, block, offload$"):
        rematerialised(layer, "all")
