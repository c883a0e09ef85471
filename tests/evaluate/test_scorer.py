"""Answers are kept as they come: nothing is computed twice, and nothing that was scored is lost."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptj
from gptj.engine.packing import Asked
from gptj.engine.request import SamplingParams
from gptj.errors import UserError
from gptj.evaluate import scorer as rooms
from gptj.evaluate.cache import Cache, fingerprint
from gptj.evaluate.scorer import Scorer
from gptj.sharding import make_mesh

ASKED = [Asked.of((1, 2, n), (3, n)) for n in range(40)]
SAMPLING = SamplingParams(max_tokens=5, n=2, seed=1)


@pytest.fixture
def model(tiny_run):
    return gptj.load(tiny_run)


@pytest.fixture
def scorer(model, tmp_path):
    """Scorers that share one file of answers, as processes one after the other do."""
    with contextlib.ExitStack() as opened:

        def begin() -> Scorer:
            cache = opened.enter_context(contextlib.closing(Cache(tmp_path / "answers")))
            return Scorer(model.params, model.config, model.tokenizer, cache)

        yield begin


def test_scores_are_those_of_the_model(model):
    found = Scorer(model.params, model.config, model.tokenizer).score(ASKED[:3])
    for each, (context, continuation) in zip(
        found, ((each.context, each.continuation) for each in ASKED), strict=False
    ):
        logits = model.logits(np.array([[*context, *continuation]]))[0]
        logprobs = jax.nn.log_softmax(logits)
        at = range(len(context) - 1, len(context) + 1)
        own = [logprobs[n, token] for n, token in zip(at, continuation, strict=True)]
        assert each.logprob == pytest.approx(float(sum(own)), rel=1e-5)
        assert each.greedy == all(
            int(logits[n].argmax()) == token for n, token in zip(at, continuation, strict=True)
        )


def test_a_mesh_scores_the_same(tiny_run, model):
    alone = Scorer(model.params, model.config, model.tokenizer).score(ASKED)
    with jax.set_mesh(make_mesh(data=2, tensor=2)):
        split = gptj.load(tiny_run)
        found = Scorer(split.params, split.config, split.tokenizer).score(ASKED)
        assert fingerprint(split.params, split.config) == fingerprint(model.params, model.config)
    np.testing.assert_allclose(*([e.logprob for e in side] for side in (alone, found)), rtol=1e-5)


def alike(found, whole) -> bool:
    """The same to float32's rounding, which depends on what is scored beside."""
    pairs = zip(found, whole, strict=True)
    near = all(one.logprob == pytest.approx(other.logprob, rel=1e-6) for one, other in pairs)
    return near and [a.greedy for a in found] == [b.greedy for b in whole]


def test_nothing_is_scored_twice(scorer, monkeypatch):
    first = scorer().score([*ASKED, *ASKED])
    texts = scorer().write([[1, 2], [3]], [SAMPLING] * 2)
    monkeypatch.setattr(rooms, "score", lambda params, config, asked, known: asked and 1 / 0)
    monkeypatch.setattr(rooms, "Engine", None)
    again = scorer()
    assert again.score(ASKED) == first[:40] == first[40:]
    assert again.write([[3], [1, 2]], [SAMPLING] * 2) == texts[::-1]


def test_an_interruption_loses_nothing(model, scorer, tmp_path, monkeypatch):
    whole, right = Scorer(model.params, model.config, model.tokenizer).score(ASKED), rooms.score

    def interrupted(params, config, asked, known):
        def some(number, each):
            known(number, each)
            if len(file.read_text().splitlines()) == 17:
                raise KeyboardInterrupt

        return right(params, config, asked, some)

    file = tmp_path / "answers"
    monkeypatch.setattr(rooms, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scorer().score(ASKED)
    left = []
    monkeypatch.setattr(
        rooms, "score", lambda p, c, asked, known: left.extend(asked) or right(p, c, asked, known)
    )
    assert alike(scorer().score(ASKED), whole)
    assert len(left) == 40 - 17


def test_a_line_that_a_crash_cut_short_is_scored_again(scorer, tmp_path):
    file = tmp_path / "answers"
    whole = scorer().score(ASKED)
    file.write_bytes(file.read_bytes()[:-9])
    with contextlib.closing(Cache(file)) as cache:
        assert len(cache) == 39
    assert alike(scorer().score(ASKED), whole)
    with contextlib.closing(Cache(file)) as cache:
        assert len(cache) == 40


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*: choose another --out"):
        Cache(tmp_path / "file" / "answers")


def test_a_full_disk_is_said_in_one_sentence(full_disk, tmp_path):
    said = r"cannot be written \(File too large\).* goes on from"
    with contextlib.closing(Cache(tmp_path / "answers")) as cache:

        def fill():
            for number in range(20):
                cache.keep_texts([number], "how", ["a text"])

        with full_disk(300), pytest.raises(UserError, match=said):
            fill()
    with contextlib.closing(Cache(tmp_path / "answers")) as cache:
        assert len(cache) > 3
        assert cache.texts([3], "how") == ["a text"]


def test_a_fingerprint_tells_models_apart(model):
    own = fingerprint(model.params, model.config)
    assert fingerprint(model.params, model.config) == own
    one = model.params.output_bias.at[3].add(1e-6)
    changed = jax.tree.map(lambda x: one if x is model.params.output_bias else x, model.params)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
    others = [fingerprint(params, model.config) for params in (changed, rounded)]
    assert len({own, *others}) == 3


def test_a_model_without_a_tokenizer_is_refused(model):
    with pytest.raises(UserError, match="--tokenizer"):
        Scorer(model.params, model.config, None)
