"""What else is measured while a run trains: when, on which weights, and where it lands."""

import dataclasses

import jax
import numpy as np
import pytest

import gptj
from gptj.data.mixture import Mixture
from gptj.data.prepare import PrepareConfig, prepare
from gptj.errors import UserError
from gptj.train import evaluators
from gptj.train.evaluators import Evaluator, of_sources
from gptj.train.heldout import held_out
from gptj.train.metrics import read_metrics


@pytest.fixture
def config(tiny_model, tmp_path):
    """A run on text from two folders, with a part of each held out."""
    for folder, text in (("verse", "the cat sat "), ("prose", "a dog ran far ")):
        (tmp_path / "texts" / folder).mkdir(parents=True)
        for n in range(20):
            (tmp_path / f"texts/{folder}/{n}.txt").write_text(text * (n + 3))
    prepare(PrepareConfig((tmp_path / "texts",), tmp_path / "data", "bytes", held_out=0.3))
    optimizer = gptj.OptimizerConfig(lr=0.01, warmup_steps=2)
    return gptj.TrainConfig(
        tmp_path / "data", tmp_path / "run", model=str(tiny_model), steps=10, batch=4, save_every=5,
        eval_every=4, eval_batches=None, optimizer=optimizer,
    )  # fmt: skip


def test_it_is_called_when_due_with_the_weights_as_they_are(config):
    seen = []

    def measure(params, model, tokenizer):
        seen.append(float(params.output_bias.sum()))
        assert (model.context, tokenizer.vocab_size) == (64, 257)
        return {"own": float(len(seen))}

    result = gptj.train(config, evaluators=[Evaluator(3, measure)])
    rows = {row["step"]: row["own"] for row in read_metrics(config.out) if "own" in row}
    assert rows == {3: 1, 6: 2, 9: 3, 10: 4}
    assert len(set(seen)) == 4
    assert seen[-1] == float(result.params.output_bias.sum())


def test_one_that_fails_costs_no_step(config):
    def measure(*_):
        raise UserError("it does not fit")

    with pytest.raises(UserError, match="it does not fit"):
        gptj.train(config, evaluators=[Evaluator(5, measure)])
    assert [row["step"] for row in read_metrics(config.out)][-1] == 5
    assert (config.out / "checkpoints" / "00000005" / "commit_success.txt").exists()


def test_it_changes_nothing_of_the_run(config, tmp_path):
    plain = gptj.train(dataclasses.replace(config, out=tmp_path / "plain")).params
    also = gptj.train(config, evaluators=[Evaluator(3, lambda *_: {}), of_sources(config)]).params
    jax.tree.map(np.testing.assert_array_equal, plain, also)


def test_the_loss_of_each_source(config):
    result = gptj.train(config, evaluators=[of_sources(config)])
    rows = [row for row in read_metrics(config.out) if "heldout_loss_verse" in row]
    assert [row["step"] for row in rows] == [4, 8, 10]
    store = gptj.TokenStore.open(config.data / "heldout")
    model = gptj.ModelConfig.load(config.out / "model.json")
    total = 0.0
    for name in ("verse", "prose"):
        records = [each for each in store.sources if each.name.startswith(name)]
        part = store.part(records)
        assert part.text(0) == store.text(records[0].first_document)
        found = held_out(result.params, part, model, seq=64, batch=4)
        assert rows[-1][f"heldout_loss_{name}"] == found.loss
        assert found.bits_per_byte is not None
        total += found.loss * found.tokens
    assert total / len(store) == pytest.approx(result.held_out.loss, rel=0.02)


def test_too_many_sources(config, monkeypatch):
    monkeypatch.setattr(evaluators, "MOST_SOURCES", 1)
    with pytest.raises(UserError, match="has 2 sources, more than 1: prepare it from a folder"):
        of_sources(config)


def test_a_source_whose_files_lie_apart_is_one(config, monkeypatch):
    data = Mixture.open(config.data)
    real = data.held_out
    apart = [dataclasses.replace(each, name=f"{n % 2}/{n}") for n, each in enumerate(real.sources)]
    assert len(apart) > 2
    store = dataclasses.replace(
        real, manifest=dataclasses.replace(real.manifest, sources=tuple(apart))
    )
    mixture = dataclasses.replace(data, held_out=store)
    monkeypatch.setattr(evaluators.Mixture, "open", lambda path: mixture)
    monkeypatch.setattr(evaluators, "MOST_SOURCES", 2)
    assert of_sources(config).every == config.eval_every


def test_preferences(config, monkeypatch):
    data = Mixture.open(config.data)
    manifest = dataclasses.replace(data.held_out.manifest, examples="preferences")
    pairs = dataclasses.replace(
        data, held_out=dataclasses.replace(data.held_out, manifest=manifest)
    )
    monkeypatch.setattr(evaluators.Mixture, "open", lambda path: pairs)
    with pytest.raises(UserError, match="eval_sources measures no preferences: leave it out"):
        of_sources(config)


def test_no_held_out_part(config, tmp_path):
    (tmp_path / "data/heldout").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="no held-out part: leave out eval_sources"):
        of_sources(config)
