"""Adapters opened beside their base, of a run or of PEFT's: what the sum is, and who says what."""

import json
from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import ModelConfig, Tokenizer, UserError
from gptj.adapters import FIELDS, LoRAConfig, table
from gptj.checkpoint import Saver, of_run
from gptj.convert import peft
from gptj.convert.adapted import Adapter, mark_of
from gptj.convert.convert import write
from gptj.convert.names import tensors
from gptj.convert.open import adapter_at, adapter_for, open_source
from gptj.convert.source import from_params
from gptj.model import weights
from gptj.quantised import dequantised, quantise

CONFIG = ModelConfig(2, 16, 2, 4, 32, 257, 258, context=16)
LORA = LoRAConfig(rank=3, alpha=6.0, targets=("q", "out", "ffn_in"))
OTHER_TOKENS = Tokenizer.train(["the cat sat on the mat"], 270)


def drawn(table, seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda w: draw.normal(size=w.shape).astype("f4"), table)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model by the name its adapters have for it, `a`; and one of other weights, `b`."""
    root = tmp_path_factory.mktemp("bases")
    for seed, name in enumerate("ab"):
        made = from_params(CONFIG, drawn(weights(CONFIG), seed), Tokenizer.bytes())
        write(replace(made, step=7), root / name)
    return root / "a"


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """Runs that trained adapters, one beside a whole base and one beside a rounded one."""
    root = tmp_path_factory.mktemp("runs")
    for name, lora in {"whole": LORA, "rounded": replace(LORA, quantize="int8")}.items():
        (root / name).mkdir()
        CONFIG.save(root / name / "model.json")
        course = {"compute": {"lora": asdict(lora)}, "from": str(base)}
        text = json.dumps({**course, "base": mark_of(open_source(base))})
        (root / name / "run.json").write_text(text)
        with Saver(of_run(root / name)) as saver:
            for step in (1, 2):
                tree = jax.tree.map(jnp.asarray, drawn(table(CONFIG, lora), step))
                saver.save(step, {"params": tree}, {"model": asdict(CONFIG)})
    return root


@pytest.fixture
def of_peft(base, tmp_path):
    pairs = drawn(table(CONFIG, LORA), 2)
    adapter = Adapter("x", LORA, lambda f, n: (pairs[f].down[n], pairs[f].up[n]), None)
    (tmp_path / "peft").mkdir()
    peft.write(adapter, CONFIG, str(base), tmp_path / "peft")
    return tmp_path / "peft"


@pytest.mark.parametrize("kind", ["whole", "rounded", "peft"])
def test_each_matrix_that_has_one_is_the_sum_and_the_rest_is_the_base(kind, base, runs, request):
    place = request.getfixturevalue("of_peft") if kind == "peft" else runs / kind
    whole, found, pairs = open_source(base), open_source(place), drawn(table(CONFIG, LORA), 2)
    assert (found.kind, found.place, found.step) == ("gptj with adapters", str(place), None)
    for name in tensors(CONFIG):
        expected, field = whole.weights[name].read(), name.rpartition(".")[2]
        if field in {FIELDS[target] for target in LORA.targets}:
            layer, shape = int(name.split(".")[1]), expected.shape
            if kind == "rounded":
                inner = 2 if field == "attention_out" else 1  # of heads and their dims
                few = quantise(jnp.asarray(expected), inner, "int8")
                expected = np.asarray(dequantised(few)).reshape(shape)
            product = pairs[field].down[layer] @ pairs[field].up[layer]
            expected = expected + 2 * product.reshape(shape)  # alpha over the rank
        np.testing.assert_allclose(found.weights[name].read(), expected, rtol=1e-6, atol=1e-6)


def test_a_base_of_few_bits_stays_in_its_type(base, runs, tmp_path):
    few = replace(open_source(base), weights={
        name: tensor.cast(np.dtype(jnp.bfloat16), name)
        for name, tensor in open_source(base).weights.items()
    })  # fmt: skip
    write(few, tmp_path / "few")
    found = open_source(runs / "whole", base=str(tmp_path / "few"))
    assert {tensor.read().dtype for tensor in found.weights.values()} == {np.dtype(jnp.bfloat16)}


class TestWhoSays:
    def test_the_base_is_the_one_named_or_the_newest_place_of_it(self, base, runs):
        data = runs / "whole" / "data.json"
        for said, expected in ((None, base), ({}, base), ({"from": "/moved"}, "/moved")):
            data.unlink(missing_ok=True)
            if said is not None:
                data.write_text(json.dumps(said))
            assert adapter_at(str(runs / "whole")).base == str(expected)
        with pytest.raises(UserError, match=r"no model at /moved.*belong to it: name it with"):
            open_source(runs / "whole")
        assert open_source(runs / "whole", base=str(base)).place == str(runs / "whole")
        data.unlink()
        with pytest.raises(UserError, match=r"belong to another model than .*/b: name theirs"):
            open_source(runs / "whole", base=str(base.with_name("b")))

    def test_the_tokenizer_is_the_one_named_or_beside_them_or_the_bases(self, of_peft):
        assert open_source(of_peft).tokenizer().sha256 == Tokenizer.bytes().sha256
        OTHER_TOKENS.save(of_peft / "tokenizer.json")
        assert open_source(of_peft).tokenizer().sha256 == OTHER_TOKENS.sha256
        assert (
            open_source(of_peft, tokenizer="bytes").tokenizer().sha256 == Tokenizer.bytes().sha256
        )


class TestForAModel:
    def test_of_its_layers_they_are_found(self, runs, of_peft):
        for place in (runs / "whole", of_peft):
            assert adapter_for(str(place), CONFIG).lora == LORA

    def test_of_other_layers_they_are_refused(self, runs, of_peft):
        with pytest.raises(UserError, match="are of 2 layers and the model has 1: they are of"):
            adapter_for(str(runs / "whole"), replace(CONFIG, layers=1))
        with pytest.raises(UserError, match=r"holds .*\.h\.1\..*, which is no adapter of this"):
            adapter_for(str(of_peft), replace(CONFIG, layers=1))

    def test_a_model_or_a_run_that_trained_none_has_none(self, base, runs, tmp_path):
        assert adapter_at(str(base)) is None
        with pytest.raises(UserError, match="/a holds no adapters: give a run of"):
            adapter_for(str(base), CONFIG)
        course = json.loads((runs / "whole" / "run.json").read_text())
        for name in ("checkpoints", "model.json"):
            (tmp_path / name).symlink_to(runs / "whole" / name)
        for compute in ({}, {"lora": None}, {"lora": {"rank": None}}):
            (tmp_path / "run.json").write_text(json.dumps({**course, "compute": compute}))
            assert adapter_at(str(tmp_path)) is None
        (tmp_path / "run.json").unlink()  # of a version that wrote none
        assert adapter_at(str(tmp_path)) is None
