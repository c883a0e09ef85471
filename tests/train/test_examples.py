"""Runs on examples of what to answer, and on preferences."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import gptj
from gptj.data.examples import ExampleConfig
from gptj.data.mixture import Mixture
from gptj.errors import UserError
from gptj.train.evaluators import of_sources
from gptj.train.metrics import read_metrics

MODEL = gptj.ModelConfig(2, 32, 4, 8, 64, 257, 264, 64)
QUICK = {
    "steps": 4,
    "seq": 31,
    "batch": 4,
    "eval_every": 2,
    "optimizer": gptj.OptimizerConfig(lr=1e-2, end_lr=1e-3, warmup_steps=1),
}


def prepared(folder: Path, records, kind: str, held_out: float = 0.2) -> Path:
    folder.mkdir(exist_ok=True)
    lines = folder / f"{kind}.jsonl"
    lines.write_text("".join(json.dumps(each) + "\n" for each in records))
    examples = ExampleConfig(kind)
    config = gptj.PrepareConfig(
        (str(lines),), folder / kind, tokenizer="bytes", held_out=held_out, examples=examples
    )
    gptj.prepare(config)
    return config.out


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    records = [{"prompt": f"{n} is", "completion": " odd" if n % 2 else " even"} for n in range(60)]
    records += [{"prompt": f"{n:80}", "completion": "left out"} for n in range(8)]
    return prepared(tmp_path_factory.mktemp("asked"), records, "completions")


@pytest.fixture(scope="module")
def run(asked, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    gptj.train(gptj.TrainConfig(asked, out, model=MODEL, accumulate=2, **QUICK))
    return out


def test_the_held_out_loss_is_of_answers_alone(run, asked):
    """As it comes out of the scores of whole examples, one by one."""
    store, model = gptj.TokenStore.open(asked / "heldout"), gptj.load(run)
    nats, count = 0.0, 0
    for number in range(store.manifest.documents):
        start, end = store.extent(number)
        tokens = store.tokens[start:end]
        if len(tokens) > 32:
            continue
        ids = np.where(tokens < 0, ~tokens, tokens)
        logits = np.asarray(model.logits([ids[:-1].tolist()]))[0, :, :257].astype(np.float64)
        log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        learnt = tokens[1:] >= 0
        nats -= log[np.arange(len(ids) - 1), ids[1:]][learnt].sum()
        count += learnt.sum()
    (*_, last) = (row for row in read_metrics(run) if "heldout_loss" in row)
    assert last["heldout_loss"] == pytest.approx(nats / count, rel=1e-5)
    assert "heldout_bits_per_byte" not in last


def test_what_is_too_long_is_said(run, asked):
    store = gptj.TokenStore.open(asked / "train")
    long = sum("left out" in store.text(n) for n in range(store.manifest.documents))
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert long > 0
    assert f"left out, longer than seq=31: {long} examples" in events[0]["text"]


def test_preferences_are_learnt_beside_the_model_as_it_was(run, tmp_path):
    records = [
        {"prompt": f"{n} is", "chosen": " a number", "rejected": " a fruit, and sweet"}
        for n in range(40)
    ]
    data = prepared(tmp_path, records, "preferences")
    lora = gptj.StepConfig(lora=gptj.LoRAConfig(rank=4), dpo_beta=0.5)
    config = gptj.TrainConfig(data, tmp_path / "run", from_=str(run), compute=lora, **QUICK)
    result = gptj.train(config)
    rows = read_metrics(tmp_path / "run")
    assert rows[0]["loss"] == pytest.approx(np.log(2), rel=1e-3)  # nothing has changed yet
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["tokens"] == 4 * 4 * 2 * 31
    assert "last_loss" not in rows[-1]
    assert result.held_out.accuracy == rows[-1]["heldout_accuracy"] == 1
    assert result.held_out.tokens == 8

    other = dataclasses.replace(config, out=tmp_path / "other")
    also = dataclasses.replace(lora, z_loss=1e-3)
    for wrong, said in (
        ({"from_": None, "model": MODEL, "compute": gptj.StepConfig()}, "adapters are trained on"),
        ({"compute": also}, "z_loss=0.001 is no part of preferences: leave it out"),
    ):
        with pytest.raises(UserError, match=said):
            gptj.train(dataclasses.replace(other, **wrong))


def test_held_out_examples_that_do_not_fit_are_refused_before_the_first_step(tmp_path):
    pairs = ([{"prompt": "a", "completion": "b" * size}] for size in (20, 200))
    short, long = (
        prepared(tmp_path / str(number), records, "completions", held_out=0)
        for number, records in enumerate(pairs)
    )
    (long / "train").rename(short / "heldout")
    config = gptj.TrainConfig(short, tmp_path / "run", model=MODEL, **QUICK)
    with pytest.raises(UserError, match=r"seq=31 is shorter than every example of .*heldout"):
        gptj.train(config)
    assert not (tmp_path / "run").exists()


def sources(folder: Path, **sizes: int) -> Path:
    """Data of a file for each name, its examples so long."""
    (folder / "texts").mkdir()
    for name, size in sizes.items():
        records = ({"prompt": f"{name}{n}", "completion": "b" * size} for n in range(20))
        text = "".join(json.dumps(each) + "\n" for each in records)
        (folder / f"texts/{name}.jsonl").write_text(text)
    examples, out = ExampleConfig("completions"), folder / "data"
    texts = (str(folder / "texts"),)
    gptj.prepare(gptj.PrepareConfig(texts, out, "bytes", held_out=0.3, examples=examples))
    return out


def test_a_source_whose_examples_do_not_fit_is_refused_before_the_first_step(tmp_path):
    data = sources(tmp_path, short=20, long=200)
    config = gptj.TrainConfig(data, tmp_path / "run", model=MODEL, **QUICK)
    with pytest.raises(UserError, match=r"seq=31 is shorter than .* source long.jsonl.*raise seq"):
        gptj.train(config, evaluators=[of_sources(config)])
    assert not (tmp_path / "run").exists()


def test_of_a_source_whose_files_lie_apart_those_that_fit_are_measured(tmp_path, monkeypatch):
    data = sources(tmp_path, a=20, b=200, c=20)
    config = gptj.TrainConfig(data, tmp_path / "run", model=MODEL, **QUICK)
    real = Mixture.open(data)
    apart = [
        dataclasses.replace(each, name="ab"[n % 2]) for n, each in enumerate(real.held_out.sources)
    ]
    manifest = dataclasses.replace(real.held_out.manifest, sources=tuple(apart))
    found = dataclasses.replace(
        real, held_out=dataclasses.replace(real.held_out, manifest=manifest)
    )
    monkeypatch.setattr(Mixture, "open", lambda _: found)
    only = of_sources(dataclasses.replace(config, eval_batches=None))
    with pytest.raises(UserError, match="of the source b"):
        only.check(31)
    only.check(300)
    row = only.measure(gptj.init(jax.random.key(0), MODEL), MODEL, found.tokenizer)
    assert [*row] == ["heldout_loss_a"]


def test_a_beta_without_preferences_is_refused(asked, tmp_path):
    compute = gptj.StepConfig(dpo_beta=0.5)
    config = gptj.TrainConfig(asked, tmp_path / "run", model=MODEL, compute=compute, **QUICK)
    with pytest.raises(UserError, match=r"dpo_beta=0\.5 is for data of preferences, and"):
        gptj.train(config)
