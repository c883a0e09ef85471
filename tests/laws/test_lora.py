"""Adapters: their gradients are the dense ones projected, and merged they compute the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import adapters, model
from gptj.adapters import FIELDS, LoRAConfig
from gptj.api import Model, load
from gptj.config import ModelConfig
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.errors import UserError
from gptj.flops import flops_per_token
from gptj.quantised import dequantised, quantise
from gptj.sharding import make_mesh, place
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 64, 4, 16, 128, 100, 128, 64)
LORA = LoRAConfig(rank=4, alpha=8.0)
TOKENS = np.random.default_rng(0).integers(0, 100, (4, 33)).astype(np.int32)


def drawn(lora: LoRAConfig = LORA, seed: int = 1):
    """Adapters that change something."""
    found = adapters.init(jax.random.key(seed), CONFIG, lora)
    return jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(seed).normal(size=x.shape, scale=0.1), "f4"),
        found,
    )


def dense(params, pairs, lora: LoRAConfig = LORA):
    """The weights with `scale * down @ up` added, by NumPy."""
    changed = {}
    for name, pair in pairs.items():
        whole = np.asarray(getattr(params.blocks, name), np.float64)
        more = np.einsum("lik,lko->lio", *(np.asarray(x, np.float64) for x in (pair.down, pair.up)))
        changed[name] = jnp.asarray(whole + lora.scale * more.reshape(whole.shape), jnp.float32)
    return dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, **changed))


def loss_beside(params, pairs, tokens, lora=LORA, key=None):
    return model.loss(adapters.joined(params, pairs, CONFIG, lora, key), tokens, CONFIG)


def test_gradients_are_the_dense_ones_projected():
    params, pairs = model.init(jax.random.key(0), CONFIG), drawn()
    found = jax.jit(jax.grad(loss_beside, 1))(params, pairs, TOKENS)
    whole = jax.jit(jax.grad(lambda p: model.loss(p, TOKENS, CONFIG)))(dense(params, pairs))
    for name, pair in pairs.items():
        (layers, inner, _), outer = pair.down.shape, pair.up.shape[-1]
        gradient = np.asarray(getattr(whole.blocks, name)).reshape(layers, inner, outer)
        down = LORA.scale * np.einsum("lio,lko->lik", gradient, pair.up)
        up = LORA.scale * np.einsum("lik,lio->lko", pair.down, gradient)
        np.testing.assert_allclose(found[name].down, down, atol=2e-6)
        np.testing.assert_allclose(found[name].up, up, atol=2e-6)


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 1, 4), (1, 8, 1)], ids=str)
def test_one_device_equals_eight(mesh):
    params, pairs = model.init(jax.random.key(0), CONFIG), drawn()
    tokens = np.concatenate([TOKENS, TOKENS])
    loss, gradient = jax.jit(jax.value_and_grad(loss_beside, 1))(params, pairs, tokens)
    with jax.set_mesh(make_mesh(*mesh)):
        table = adapters.table(CONFIG, LORA)
        placed = jax.tree.map(lambda w, x: place(np.asarray(x), *w.axes), table, pairs)
        found, gradients = jax.jit(jax.value_and_grad(loss_beside, 1))(
            model.init(jax.random.key(0), CONFIG), placed, place(tokens, "batch", None)
        )
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    for ours, one in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, one, atol=3e-6)


def test_they_begin_by_changing_nothing():
    params = model.init(jax.random.key(0), CONFIG)
    begun = adapters.init(jax.random.key(1), CONFIG, LORA)
    assert float(loss_beside(params, begun, TOKENS)) == float(model.loss(params, TOKENS, CONFIG))
    for pair in begun.values():
        assert np.any(pair.down)
        assert not np.any(pair.up)


def test_dropout_leaves_out_its_share_and_keeps_the_mean():
    lora = dataclasses.replace(LORA, dropout=0.5)
    params, pairs = model.init(jax.random.key(0), CONFIG), drawn()
    beside = jax.jit(lambda key: loss_beside(params, pairs, TOKENS, lora, key))
    found = [float(beside(jax.random.key(n))) for n in range(40)]
    assert len(set(found)) == 40
    assert float(beside(jax.random.key(3))) == found[3]
    without = float(loss_beside(params, pairs, TOKENS, lora))
    assert abs(np.mean(found) - without) < 4 * np.std(found) / 40**0.5 + 0.02


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_beside_a_base_in_few_bits_they_are_as_beside_what_it_stands_for(kind):
    params, pairs = model.init(jax.random.key(0), CONFIG), drawn()
    rounded, plain = {}, {}
    for field in FIELDS.values():
        stacked, inner = getattr(params.blocks, field), getattr(model.weights(CONFIG).blocks, field)
        layers = [quantise(layer, inner.inner, kind) for layer in stacked]
        rounded[field] = jax.tree.map(lambda *x: jnp.stack(x), *layers)
        plain[field] = jnp.stack([dequantised(x).reshape(stacked.shape[1:]) for x in layers])
    few, many = (
        dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, **found))
        for found in (rounded, plain)
    )
    gradient = jax.jit(jax.value_and_grad(loss_beside, 1))
    (loss, found), (wanted_loss, wanted) = (gradient(each, pairs, TOKENS) for each in (few, many))
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rank": 0}, "lora-rank=0 must be at least 1"),
        ({"rank": 4, "alpha": 0.0}, "lora-alpha=0.0 must be above 0"),
        ({"rank": 4, "dropout": 1.0}, "lora-dropout=1.0 must be at least 0 and below 1"),
        ({"rank": 4, "targets": ()}, "lora-targets must name one matrix or more"),
        ({"alpha": 3.0}, "give --lora-rank too"),
    ],
)
def test_what_cannot_be_is_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        LoRAConfig(**options)


def test_a_rank_above_the_dims_is_refused():
    with pytest.raises(UserError, match="lora-rank=65 is above 64, the smaller dim of q: lower it"):
        adapters.init(jax.random.key(0), CONFIG, LoRAConfig(rank=65))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of 257 tokens, saved."""
    folder = tmp_path_factory.mktemp("lora") / "base"
    config = dataclasses.replace(CONFIG, vocab_size=257, padded_vocab_size=384)
    Model(config, model.init(jax.random.key(5), config), Tokenizer.bytes()).save(folder)
    return folder


class TestRun:
    def flags(self, train_flags, out, base, *more):
        flags = train_flags(out)
        at = flags.index("--model")
        return [*flags[:at], *flags[at + 2 :], "--from", str(base), "--lora-rank", "4", *more]

    @pytest.mark.parametrize("quantize", [None, "int8", "int4", "nf4"])
    def test_a_run_merged_and_as_adapters_is_the_same_model(
        self, quantize, gptj, train_flags, base, tmp_path
    ):
        more = ["--lora-base", quantize] if quantize else []
        run, whole, theirs = tmp_path / "run", tmp_path / "whole", tmp_path / "peft"
        done = gptj("train", *self.flags(train_flags, run, base, *more))
        assert done.code == 0, done.err
        assert gptj("merge", str(run), str(whole)).code == 0
        assert gptj("convert", str(run), str(theirs), "--to", "peft").code == 0
        beside, merged = load(run), load(whole)
        text = "a text that both have to read"
        ids = jnp.asarray([merged.tokenizer.encode(text)])
        np.testing.assert_array_equal(beside.logits(ids), merged.logits(ids))
        assert not np.allclose(load(base).logits(ids), merged.logits(ids), atol=1e-4)
        if quantize is None:  # PEFT does not say how a base was rounded
            np.testing.assert_allclose(load(theirs).logits(ids), merged.logits(ids), atol=1e-5)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["loss"] < rows[0]["loss"]
        saved = sum(path.stat().st_size for path in (run / "checkpoints").rglob("*"))
        assert saved < 3 * 2 * (base / "weights.safetensors").stat().st_size

    def test_a_resumed_run_is_the_uninterrupted_one(self, gptj, train_flags, base, tmp_path):
        more = ["--lora-dropout", "0.1", "--accumulate", "2", "--anneal-steps", "10"]
        whole = self.flags(train_flags, tmp_path / "whole", base, *more)
        assert gptj("train", *whole).code == 0
        cut = self.flags(train_flags, tmp_path / "cut", base, *more)
        at = cut.index("--steps") + 1
        assert gptj("train", *cut[:at], "7", *cut[at + 1 :]).code == 0
        assert gptj("train", *cut).code == 0
        ids = jnp.asarray([Tokenizer.bytes().encode("some text")])
        np.testing.assert_array_equal(
            load(tmp_path / "whole").logits(ids), load(tmp_path / "cut").logits(ids)
        )

    def test_adapters_of_another_base_are_refused(self, gptj, train_flags, base, tmp_path):
        run = tmp_path / "run"
        assert gptj("train", *self.flags(train_flags, run, base)).code == 0
        other = load(base)
        changed = jax.tree.map(lambda x: x + 0.01, other.params)
        Model(other.config, changed, other.tokenizer).save(tmp_path / "other")
        done = gptj("merge", str(run), str(tmp_path / "m"), "--base", str(tmp_path / "other"))
        assert done.code == 2
        assert "belong to another model than" in done.err

    def test_one_is_served_beside_its_base_and_no_other(self, gptj, train_flags, base, tmp_path):
        run, other = tmp_path / "run", tmp_path / "other"
        more = ("--lora-targets", "v", "out", "--lora-rank", "3")
        done = gptj("train", *self.flags(train_flags, run, base, *more))
        assert done.code == 0, done.err
        own, room = load(base), EngineConfig(2, chunk=16, max_adapters=1)
        read = SamplingParams(max_tokens=0, prompt_logprobs=0)

        def beside(params, config=own.config, place=base) -> Engine:
            return Engine(params, config, own.tokenizer, room, base=place)

        def scores(engine, name):
            ((found,),) = engine.run([Request("a text to read", read, adapter=name)])
            return [each.logprob for each in found.prompt_logprobs]

        merged = scores(beside(load(run).params), None)
        with jax.set_mesh(make_mesh(tensor=4)):  # which the rank is not a multiple of
            engine = beside(load(base).params)
            engine.load_adapter("few", run)
            np.testing.assert_allclose(scores(engine, "few"), merged, atol=1e-4)
            assert not np.allclose(scores(engine, None), merged, atol=1e-4)
        changed = jax.tree.map(lambda x: x + 0.01, own.params)
        Model(own.config, changed, own.tokenizer).save(other)
        with pytest.raises(UserError, match=r"belong to another model than .*other, to .*base"):
            beside(changed, place=other).load_adapter("few", run)
        with pytest.raises(UserError, match=r"is not known: give it as base"):
            beside(own.params, place=None).load_adapter("few", run)
        small = dataclasses.replace(own.config, layers=1)
        with pytest.raises(UserError, match=r"are of 2 layers and the model has 1"):
            beside(model.init(jax.random.key(0), small), small).load_adapter("few", run)
        with pytest.raises(UserError, match=r"holds no adapters: give a run of"):
            beside(own.params).load_adapter("few", base)

    def test_adapters_want_a_model_and_an_optimizer_that_can(
        self, gptj, train_flags, base, tmp_path
    ):
        done = gptj("train", *train_flags(tmp_path / "run"), "--lora-rank", "4")
        assert (done.code, "name it with --from MODEL" in done.err) == (2, True)
        flags = self.flags(train_flags, tmp_path / "run", base, "--optimizer", "gptj-2021")
        done = gptj("train", *flags)
        assert done.code == 2
        assert "gptj-2021 trains no adapters" in done.err
        assert not (tmp_path / "run").exists()

    def test_a_whole_model_has_nothing_to_merge(self, gptj, base, tmp_path):
        done = gptj("merge", str(base), str(tmp_path / "out"))
        assert (done.code, "holds no adapters to merge" in done.err) == (2, True)


def test_weights_that_stay_as_they_are_cost_no_gradient():
    whole, beside = (flops_per_token(CONFIG, 32, lora) for lora in (adapters.NO_LORA, LORA))
    multiplied = 6 * sum(
        np.prod(w.shape) for w in jax.tree.leaves(model.weights(CONFIG)) if w.inner
    )
    own = sum(np.prod(w.shape) for w in jax.tree.leaves(adapters.table(CONFIG, LORA)))
    assert whole - beside == multiplied / 3 - 6 * own
