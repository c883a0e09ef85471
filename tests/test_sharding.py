"""Logical axes to mesh axes, and the sentences for a mesh that cannot be."""

import jax
import numpy as np
import pytest
from jax import P
from jax.sharding import AxisType

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.sharding import (
    MESH_AXES,
    batch_ways,
    check_batch,
    check_mesh,
    local_parts,
    make_mesh,
    on_mesh,
    place,
    place_parts,
    reshape,
    reshard,
    spec,
)


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


def test_into_how_many_parts_a_batch_is_split():
    assert batch_ways() == 1
    check_batch(7)
    for mesh, ways in (((4, 1, 1), 4), ((1, 4, 2), 4), ((2, 2, 2), 4), ((1, 1, 8), 1)):
        with jax.set_mesh(make_mesh(*mesh)):
            assert batch_ways() == ways
            check_batch(3 * ways)
            if ways > 1:
                with pytest.raises(UserError, match=rf"= {ways} devices: use a multiple of {ways}"):
                    check_batch(3 * ways + 1)


def test_any_model_goes_on_one_device_and_what_divides_it_on_more():
    odd = ModelConfig(1, 6, 3, 2, 7, 5, 9, 16)
    check_mesh(odd)
    with jax.set_mesh(make_mesh(data=8)):
        check_mesh(odd)
    with jax.set_mesh(make_mesh(fsdp=2)):
        check_mesh(odd)
    even = ModelConfig(1, 8, 4, 2, 8, 5, 10, 16)
    with (
        jax.set_mesh(make_mesh(tensor=4)),
        pytest.raises(UserError, match="tensor=4 does not divide the model's padded_vocab_size=10"),
    ):
        check_mesh(even)


def test_a_mesh_has_its_axes_in_order_and_the_devices_it_was_given():
    mesh = make_mesh(2, 1, 3, devices=jax.devices()[:7])
    assert mesh.axis_names == MESH_AXES == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == (2, 1, 3)
    assert list(mesh.devices.flat) == jax.devices()[:6]
    with pytest.raises(UserError, match="needs 8 devices, there are 7: lower one of the three"):
        make_mesh(8, devices=jax.devices()[:7])
    for name in MESH_AXES:
        with pytest.raises(UserError, match=f"mesh {name}=-1 must be at least 1"):
            make_mesh(**{name: -1})


def test_of_several_hosts_all_devices_are_used(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert make_mesh(8).size == 8
    with pytest.raises(UserError, match=r"is of 4 devices, the 2 hosts have 8: raise one of the"):
        make_mesh(2, 2)


class TestPartsOfAnArray:
    """Each host reads what its own devices hold, and of what is not split all."""

    WHOLE = np.arange(8 * 6).reshape(8, 6)

    @pytest.mark.parametrize(
        ("axes", "shape"),
        [(("batch", None), (2, 6)), (("batch", "heads"), (2, 3)), ((None, None), (8, 6))],
    )
    def test_on_a_mesh(self, axes, shape):
        asked = []

        def read(part):
            asked.append(part)
            return self.WHOLE[part]

        with jax.set_mesh(make_mesh(2, 2, 2)):
            parts = local_parts(self.WHOLE.shape, *axes)
            assert len(parts) == 8
            made = place_parts(self.WHOLE.shape, read, *axes)
        assert {self.WHOLE[part].shape for part in [*parts, *asked]} == {shape}
        assert {str(part) for part in asked} == {str(part) for part in parts}
        np.testing.assert_array_equal(made, self.WHOLE)

    def test_without_one(self):
        (part,) = local_parts((8, 6), "batch", None)
        assert part == (slice(0, 8), slice(0, 6))
        np.testing.assert_array_equal(place(self.WHOLE, "batch", None), self.WHOLE)


def test_a_layout_is_on_the_mesh_that_is_set_whether_its_devices_are_there_or_not():
    assert on_mesh(None) is on_mesh(spec("batch")) is None
    with jax.set_mesh(make_mesh(8)):
        found = on_mesh(spec("batch"))
        assert found.mesh == jax.sharding.get_mesh()
        assert found.spec == P(("data", "fsdp"))
    absent = jax.sharding.AbstractMesh((4, 1, 1), MESH_AXES, axis_types=(AxisType.Explicit,) * 3)
    with jax.sharding.use_abstract_mesh(absent):
        assert on_mesh(spec("batch")).mesh == absent
    automatic = jax.sharding.AbstractMesh((4, 1, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    with (
        jax.sharding.use_abstract_mesh(automatic),
        pytest.raises(UserError, match="which gives explicit"),
    ):
        spec("batch")


def test_what_is_reshaped_says_how_it_is_split():
    with jax.set_mesh(make_mesh(data=2, tensor=4)):
        x = place(np.arange(16.0).reshape(2, 8), "batch", None)
        made = reshape(x, (2, 4, 2), "batch", "heads", None)
        assert made.sharding.shard_shape(made.shape) == (1, 1, 2)
        summed = reshard(made, "batch", None, None)
        assert summed.sharding.shard_shape(made.shape) == (1, 4, 2)
        np.testing.assert_array_equal(np.asarray(summed).reshape(-1), np.arange(16.0))
