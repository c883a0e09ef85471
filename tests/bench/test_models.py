"""The model that is measured: a named shape, drawn as it is stored, or one that is there."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from gptj.bench import models
from gptj.bench.models import loaded, shape_of, stored_as
from gptj.config import ModelConfig, preset
from gptj.errors import UserError
from gptj.model import weights

SMALL = ModelConfig(1, 16, 2, 4, 32, 60, 64, context=32)


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    """The JSON file of a shape."""
    path = tmp_path_factory.mktemp("shape") / "small.json"
    SMALL.save(path)
    return str(path)


class TestTheShape:
    def test_it_is_a_preset_s_a_file_s_or_a_model_s(self, shape, monkeypatch):
        assert shape_of("125m") == preset("125m")
        assert shape_of(shape) == SMALL
        found = SimpleNamespace(config=SMALL)
        monkeypatch.setattr(models, "open_source", lambda model: {"a/model": found}[model])
        assert shape_of("a/model") == SMALL

    def test_a_folder_goes_before_a_preset_of_its_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert shape_of("125m") == preset("125m")
        (tmp_path / "125m").mkdir()
        with pytest.raises(UserError, match="125m"):
            shape_of("125m")

    def test_what_is_neither_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="no model at"):
            shape_of(str(tmp_path / "nothing"))


@pytest.fixture
def made(monkeypatch):
    """What is quantised or loaded; a weight that is drawn holds its key alone."""
    calls = []

    def draw(key, weight):
        whole = jax.random.key_data(key)[-1].astype(jnp.float32)
        return jnp.broadcast_to(whole, weight.shape)

    def load(model, dtype, quantize):
        calls.append((model, jnp.dtype(dtype).name, quantize))
        return SimpleNamespace(params="loaded", config=SMALL)

    def quantised(params, config, dtype, bits):
        calls.append((config, dtype, bits, {leaf.dtype.name for leaf in jax.tree.leaves(params)}))
        return "quantised"

    for name, stand_in in (("draw", draw), ("load", load), ("quantised", quantised)):
        monkeypatch.setattr(models, name, stand_in)
    return calls


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_random_weights_are_of_the_shape_and_type_and_each_has_a_key_of_its_own(
    shape, made, stored
):
    params, config = stored_as(shape, stored)
    assert (config, made) == (SMALL, [])
    leaves, expected = jax.tree.leaves(params), jax.tree.leaves(weights(SMALL))
    assert [leaf.shape for leaf in leaves] == [weight.shape for weight in expected]
    assert {leaf.dtype.name for leaf in leaves} == {stored}
    if stored == "float32":
        assert len({float(leaf.flatten()[0]) for leaf in leaves}) == len(leaves)


def test_beside_few_bits_bfloat16_computes_and_nothing_lies_there_in_float32(shape, made):
    for bits in ("int8", "int4"):
        assert stored_as(shape, bits) == ("quantised", SMALL)
    assert made == [(SMALL, "bfloat16", bits, {"bfloat16"}) for bits in ("int8", "int4")]
    assert loaded(shape, "float32", "nf4")[0] == "quantised"
    assert made[2] == (SMALL, "float32", "nf4", {"float32"})


def test_a_model_that_is_there_is_loaded_so(made):
    for stored in ("float32", "bfloat16", "int8", "int4"):
        assert stored_as("a/model", stored) == ("loaded", SMALL)
    assert made == [
        ("a/model", "float32", None), ("a/model", "bfloat16", None),
        ("a/model", "bfloat16", "int8"), ("a/model", "bfloat16", "int4"),
    ]  # fmt: skip
