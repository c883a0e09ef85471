"""Adapters of a run and their base: a mark that tells it from others, and records that are damaged.

The mark is one for the same weights however they lie, and another for any others.
"""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptj as package
from gptj import ModelConfig, UserError
from gptj.adapters import FIELDS, LoRAConfig, table
from gptj.convert.adapted import MARKED, SAMPLED, Adapter, check_base, check_shapes, mark_of
from gptj.convert.convert import stored_in, write
from gptj.convert.open import open_source
from gptj.convert.source import from_params

CONFIG = ModelConfig(3, 48, 4, 12, 96, 257, 258, context=16)
BFLOAT16 = np.dtype(jnp.bfloat16)
MATRICES = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")


def made(dtype="float32"):
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(draw.normal(size=x.shape), dtype),
        package.init(jax.random.key(0), CONFIG),
    )
    return from_params(CONFIG, params, package.Tokenizer.bytes())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_the_same_however_the_weights_lie(dtype, tmp_path):
    source = made(dtype)
    for kind in ("gptj", "huggingface"):
        write(source, tmp_path / kind, kind, 1)
        assert mark_of(open_source(tmp_path / kind)) == mark_of(source)


def test_a_copy_in_bfloat16_is_the_same_model(tmp_path):
    """Adapters that were trained beside float32 are served beside what was converted from it."""
    whole = made()
    write(stored_in(whole, BFLOAT16), tmp_path / "few", "huggingface", 1)
    copy = open_source(tmp_path / "few")
    assert copy.weights["embedding"].dtype == BFLOAT16
    assert mark_of(copy) == mark_of(whole)


@pytest.mark.parametrize(
    "name",
    [*(f"blocks.{n}.{field}" for n in (0, 2) for field in MATRICES), "embedding", "output"],
)
def test_whatever_was_merged_makes_another(name):
    source = made()
    tensor = source.weights[name]
    draw = np.random.default_rng(1)
    product = np.multiply.outer(
        draw.normal(size=tensor.shape[0]), draw.normal(size=tensor.shape[1:])
    )
    merged = tensor.changed(tensor.shape, lambda x: x + 0.01 * product.astype("f4"))
    changed = replace(source, weights={**source.weights, name: merged})
    assert mark_of(changed) != mark_of(source)


def test_of_files_no_more_is_read_than_it_is_made_of(tmp_path):
    write(made(), tmp_path / "model", "huggingface", 1)
    source, most = open_source(tmp_path / "model"), SAMPLED
    count = 0

    def counted(tensor):
        def read():
            assert len(tensor.shape) == 1, "a matrix is read whole"
            return tensor.read()

        def rows(begin, end, scratch):
            nonlocal count
            count += end - begin
            return tensor.matrix.rows(begin, end, scratch)

        return replace(
            tensor, read=read, matrix=tensor.matrix and replace(tensor.matrix, rows=rows)
        )

    weights = {name: counted(tensor) for name, tensor in source.weights.items()}
    assert mark_of(replace(source, weights=weights)) == mark_of(source)
    assert count == most * (2 * len(MATRICES) + 2)


def test_it_is_what_it_always_was():
    """Or adapters that someone kept would be of no model any more."""
    found = "9902ebeb40da392b0b24ac3a2e69c06d88cdc16070fb500492050c84ea8e47d9"
    assert mark_of(made()) == MARKED + found == f"3:{found}"


def test_adapters_belong_to_the_model_with_their_mark_and_without_one_to_any():
    source = made()
    for mark, fits in ((None, True), (mark_of(source), True), (f"{MARKED}0f", False)):
        adapter = Adapter("here", LoRAConfig(rank=4), lambda *_: None, "base", mark)
        if fits:
            check_base(adapter, source)
            continue
        with pytest.raises(UserError, match=r"here belong to another model than memory: .* base"):
            check_base(adapter, source)


@pytest.mark.parametrize("field", FIELDS.values())
def test_halves_of_another_shape_are_refused(field):
    lora = LoRAConfig(rank=4)
    pair = table(CONFIG, lora)[field]
    whole = [np.zeros(weight.shape[1:], np.float32) for weight in (pair.down, pair.up)]
    check_shapes("here", CONFIG, lora, tuple(whole), field)
    for half in (0, 1):
        for axis in (0, 1):
            other = list(whole)
            other[half] = np.delete(whole[half], 0, axis)
            with pytest.raises(UserError, match=f"here: the adapter of {field} has matrices of"):
                check_shapes("here", CONFIG, lora, tuple(other), field)


LORA = {"rank": 4, "alpha": 8.0, "targets": ["q", "ffn_out"]}
COURSE = {"compute": {"lora": LORA}, "from": "models/base", "base": f"{MARKED}0f"}


def without(*keys, **changes):
    return json.dumps({k: v for k, v in {**COURSE, **changes}.items() if k not in keys})


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            *(("run.json", text) for text in ("", "{", "[]", "3", "\xff", "[" * 99_999)),
            *(("run.json", without(key)) for key in ("from", "base")),
            ("run.json", without(compute=3)),
            *(
                ("run.json", without(compute={"lora": {**LORA, **change}}))
                for change in (
                    {"rank": "4"}, {"rank": 0}, {"targets": ["z"]}, {"targets": 3}, {"gone": 1},
                )
            ),
            *(("data.json", text) for text in ("", "{", "[]", '{"from": 3}')),
        ],
    )  # fmt: skip
    def test_a_damaged_record_is_one_sentence(self, name, text, own_run, refused, tmp_path):
        (own_run / "run.json").write_text(json.dumps(COURSE))
        (own_run / name).write_bytes(text.encode("latin-1"))
        said = (f"{own_run}/{name} is damaged", "copy the run's folder again")
        refused("merge", own_run, tmp_path / "out", said=said)

    def test_a_mark_of_before_is_said_to_be_one(self, own_run, refused, tmp_path):
        (own_run / "run.json").write_text(without(base="0f"))
        said = (f"{own_run}/run.json marks the base as an earlier version did",)
        refused("merge", own_run, tmp_path / "out", said=said)
