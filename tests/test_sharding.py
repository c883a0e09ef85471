"""Logical axes to mesh axes, and the sentences for a mesh that cannot be."""

import jax
import numpy as np
import pytest
from jax import P

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.sharding import check_batch, check_mesh, make_mesh, place, reshard, spec


def test_without_a_mesh_nothing_is_placed():
    assert spec("batch", "heads") is None
    x = place(np.ones((3, 2)), "batch", None)
    assert reshard(x, "batch", None) is x


def test_with_one_every_axis_finds_its_place():
    with jax.set_mesh(make_mesh(2, 2, 2)):
        assert spec("batch", None, "heads") == P(("data", "fsdp"), None, "tensor")
        assert spec("embed", "ffn") == P("fsdp", "tensor")
        assert spec(None, unreduced=("tensor",)) == P(None, unreduced={"tensor"})
        x = place(np.ones((8, 2)), "batch", None)
        assert x.sharding.shard_shape(x.shape) == (2, 2)


def test_two_dims_cannot_claim_one_mesh_axis():
    with (
        jax.set_mesh(make_mesh(tensor=2)),
        pytest.raises(AssertionError, match="claim a mesh axis"),
    ):
        spec("heads", "ffn")


@pytest.mark.parametrize(
    ("mesh", "sentence"),
    [
        ({"tensor": 8}, "tensor=8 does not divide the model's heads=4"),
        ({"fsdp": 8}, "fsdp=8 does not divide the model's d_model=36"),
        ({"tensor": 4}, "tensor=4 does not divide the model's d_ff=70"),
    ],
)
def test_a_mesh_that_does_not_divide_the_model_is_named(mesh, sentence):
    config = ModelConfig(1, 36, 4, 2, 70, 128, 128, 16)
    with jax.set_mesh(make_mesh(**mesh)), pytest.raises(UserError, match=sentence):
        check_mesh(config)


def test_a_batch_that_cannot_be_split_is_named():
    with jax.set_mesh(make_mesh(data=4)), pytest.raises(UserError, match="a batch of 6 rows"):
        check_batch(6)


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match="needs 16 devices, there are 8"):
        make_mesh(data=4, tensor=4)
    with pytest.raises(UserError, match="mesh data=0 must be at least 1"):
        make_mesh(data=0)


def test_a_mesh_made_elsewhere_is_explained():
    with (
        jax.set_mesh(jax.make_mesh((8,), ("x",))),
        pytest.raises(UserError, match=r"make it with gptj\.make_mesh"),
    ):
        spec("batch")
