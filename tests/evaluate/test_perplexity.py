"""Bits per byte and perplexity of a text are the model's own, at every stride."""

import math

import numpy as np
import pytest

import gptj
from gptj.errors import UserError
from gptj.evaluate import perplexity
from gptj.evaluate.scorer import Scorer


@pytest.fixture(scope="module")
def model(tiny_run):
    return gptj.load(tiny_run)


@pytest.fixture
def scorer(model):
    return Scorer(model.params, model.config, model.tokenizer)


def test_a_text_within_the_window(model, scorer):
    texts = ["the cat sat", "né"]
    found = perplexity.score_texts(scorer, texts)
    nats = -sum(float(each.sum()) for each in model.score(texts))
    assert found.nats == pytest.approx(nats, rel=1e-5)
    assert (found.documents, found.tokens, found.bytes) == (2, 14, 14)
    assert found.perplexity == pytest.approx(math.exp(nats / 14), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / 14 / math.log(2), rel=1e-5)


@pytest.mark.parametrize("stride", [7, 64])
def test_a_text_longer_than_the_window(model, scorer, stride):
    text = "the cat sat on a mat " * 9
    window, ids = model.config.context, [model.tokenizer.eos_id, *model.tokenizer.encode(text)]
    nats, end = 0.0, 1
    while end < len(ids):
        begin, end = end, min(len(ids), end + (window if end == 1 else stride))
        row = ids[max(0, end - 1 - window) : end]
        logits = np.asarray(model.logits(np.array([row[:-1]])), np.float64)[0]
        own = logits[range(len(row) - 1), row[1:]] - np.log(np.exp(logits).sum(-1))
        nats -= own[-(end - begin) :].sum()
    assert perplexity.score_texts(scorer, [text], stride).nats == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("stride", [0, 65])
def test_a_stride_the_window_does_not_have(scorer, stride):
    with pytest.raises(UserError, match=f"stride={stride} must be from 1 to the model's window"):
        perplexity.score_texts(scorer, ["the"], stride)


def test_a_file_with_nothing_in_it(tmp_path):
    for name, text in (("a.txt", "some"), ("b.jsonl", '{"text": ""}\n')):
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"b\.jsonl is empty: leave it out"):
        perplexity.read([tmp_path])
    (found,) = perplexity.read([tmp_path / "a.txt"])
    assert found.text == "some"


def test_a_text_with_nothing_in_it(scorer):
    with pytest.raises(UserError, match="the text is empty"):
        perplexity.score_texts(scorer, [""])
