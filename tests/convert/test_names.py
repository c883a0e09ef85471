"""Names and shapes: of each layer's tensors apart, and what a set of other names is told."""

import ml_dtypes
import numpy as np
import pytest

from gptj.config import ModelConfig
from gptj.convert.names import (
    by_name,
    check_float,
    check_names,
    check_shape,
    matrix_shape,
    tensors,
)  # fmt: skip
from gptj.convert.source import from_params
from gptj.errors import UserError
from gptj.model import Weight, weights

CONFIG = ModelConfig(layers=2, d_model=6, heads=3, rotary_dims=2, d_ff=8, vocab_size=5,
                     padded_vocab_size=7, context=4)  # fmt: skip


def test_each_layer_has_tensors_of_its_own_and_the_rest_come_once():
    table = tensors(CONFIG)
    per_layer = {name.split(".")[2] for name in table if name.startswith("blocks.")}
    for part in per_layer:
        assert table[f"blocks.0.{part}"] == table[f"blocks.1.{part}"]
    assert sum(name.startswith("blocks.") for name in table) == 2 * len(per_layer)
    assert table["embedding"].shape == (7, 6)
    assert table["blocks.1.query"].shape == (6, 3, 2)
    assert "layers" not in {axis for weight in table.values() for axis in weight.axes}


def test_they_hold_as_many_numbers_as_the_stacked_ones():
    import jax

    stacked = jax.tree.leaves(weights(CONFIG), is_leaf=lambda x: isinstance(x, Weight))
    apart = tensors(CONFIG).values()
    assert sum(np.prod(w.shape) for w in apart) == sum(np.prod(w.shape) for w in stacked)


@pytest.mark.parametrize("bias", [False, True])
def test_what_a_model_does_not_have_has_no_name(bias):
    config = ModelConfig(2, 6, 3, 2, 8, 5, 7, 4, embedding_bias=bias)
    assert ("embedding_bias" in tensors(config)) == bias


def test_a_record_comes_with_its_layer():
    found = by_name(weights(CONFIG), 2)
    assert {layer for name, (_, layer) in found.items() if name.startswith("blocks.1.")} == {1}
    assert found["embedding"][1] == found["blocks.0.query"][1] == 0


def test_a_model_in_memory_is_read_a_layer_at_a_time():
    import jax

    table = weights(CONFIG)
    leaves, tree = jax.tree.flatten(table, is_leaf=lambda x: isinstance(x, Weight))
    arrays = [np.random.default_rng(n).normal(size=w.shape) for n, w in enumerate(leaves)]
    params = jax.tree.unflatten(tree, [a.astype(np.float32) for a in arrays])
    source = from_params(CONFIG, params, None, "here")
    assert (source.kind, source.place, source.dtype) == ("gptj", "here", np.float32)
    assert source.tokenizer() is None
    for layer in range(2):
        tensor = source.weights[f"blocks.{layer}.query"]
        np.testing.assert_array_equal(tensor.read(), params.blocks.query[layer])
        assert tensor.shape == (6, 3, 2)
    np.testing.assert_array_equal(source.weights["embedding"].read(), params.embedding)


@pytest.mark.parametrize(
    ("axes", "shape", "merged"),
    [
        (("embed", "heads", None), (6, 3, 2), (6, 6)),
        (("heads", None, "embed"), (3, 2, 6), (6, 6)),
        (("layers", "embed", "heads", None), (4, 6, 3, 2), (4, 6, 6)),
        (("heads", None), (3, 5), (15,)),
        (("embed", "mlp"), (6, 8), (6, 8)),
    ],
)
def test_heads_and_their_dims_are_one_dim_elsewhere(axes, shape, merged):
    assert matrix_shape(Weight(shape, axes, 0.0)) == merged


class TestChecks:
    def test_the_names_expected_pass_in_any_order(self):
        check_names("F", iter(["b", "a"]), iter(["a", "b"]))

    @pytest.mark.parametrize(
        ("found", "said"),
        [
            ({"a"}, "missing b; expected are a, b. Check"),
            ({"a", "b", "x"}, "unknown x; expected are a, b. Check"),
            ({"a", "y", "x"}, "unknown x, y; missing b; expected are a, b. Check"),
            ({"a", "b", "new\nline"}, "unknown new line; expected"),
            ({"a", "b", "x" * 101}, f"unknown {'x' * 100}; expected"),
        ],
    )
    def test_others_are_named(self, found, said):
        with pytest.raises(UserError, match=r"^F does not hold the weights of a GPT-J") as error:
            check_names("F", found, {"a", "b"})
        assert said in str(error.value)

    @pytest.mark.parametrize(
        ("count", "said"), [(6, "n1, n2, n3, n4, n5, n6;"), (7, "n5, n6 and 1 more;")]
    )
    def test_of_many_the_first_six(self, count, said):
        with pytest.raises(UserError) as error:
            check_names("F", {f"n{number}" for number in range(1, count + 1)}, set())
        assert said in str(error.value)

    def test_shapes_and_types(self):
        check_shape("F", "a", (2, 3), (2, 3))
        with pytest.raises(UserError, match=r"F: a has shape \(3, 2\), the config says \(2, 3\)"):
            check_shape("F", "a", (3, 2), (2, 3))
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            check_float("F", "a", np.dtype(dtype))
        for dtype in (np.float64, np.int32, np.uint16):
            with pytest.raises(UserError, match=f"F: a is of type {np.dtype(dtype)}, not float32"):
                check_float("F", "a", np.dtype(dtype))
