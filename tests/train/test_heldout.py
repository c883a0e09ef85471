"""Scores of text that a model has not seen: each token once, whatever the rows and batches."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptj import model
from gptj.config import ModelConfig
from gptj.data.store import TokenStore
from gptj.train import heldout
from gptj.train.heldout import HeldOut, held_out
from gptj.train.objective import StepConfig
from gptj.train.preferences import Preferences

MODEL = ModelConfig(1, 8, 2, 2, 12, 257, 264, 64)
PAIRS = StepConfig(examples=True, pairs=True, dpo_beta=0.1)


@pytest.fixture(scope="module")
def store(tiny_data):
    return TokenStore.open(tiny_data / "heldout")


@pytest.fixture
def known(monkeypatch):
    """A model that finds token number n as unlikely as n/10 nats, and notes what it was given."""
    given_ = []

    def score(params, tokens, weights, *, model, compute):
        given_.append((params, tokens.shape, compute))
        return np.sum(np.asarray(tokens)[:, 1:] * np.asarray(weights)) / 10

    monkeypatch.setattr(heldout, "eval_step", score)
    return given_


quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(st.integers(1, 64), st.integers(1, 40))
def test_each_token_counts_once_in_rows_of_any_length_and_number(store, known, seq, batch):
    known.clear()
    found = held_out("weights", store, MODEL, seq=seq, batch=batch)
    nats = store.tokens[:].astype(np.float64).sum() / 10
    assert found.tokens == len(store)
    assert found.loss == pytest.approx(nats / len(store), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / store.bytes, rel=1e-5)
    assert found.accuracy is None
    assert {each[:2] for each in known} == {("weights", (batch, seq + 1))}
    assert len(known) == math.ceil(math.ceil(len(store) / seq) / batch)


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_of_a_part_there_are_no_bits_per_byte(store, known, batches):
    found = held_out("weights", store, MODEL, seq=8, batch=4, batches=batches)
    assert len(known) == batches
    assert found.tokens == batches * 32
    assert found.bits_per_byte is None
    tokens = store.tokens[:]
    assert tokens.min() / 10 < found.loss < tokens.max() / 10


def test_as_many_batches_as_there_are_is_the_whole(store, known):
    whole = held_out("weights", store, MODEL, seq=64, batch=4)
    assert held_out("weights", store, MODEL, seq=64, batch=4, batches=10**6) == whole


@pytest.mark.parametrize("compute", [None, StepConfig(dtype="bfloat16")])
def test_it_computes_as_the_model_is_trained(store, known, compute):
    held_out("weights", store, MODEL, seq=64, batch=99, compute=compute)
    assert {each[2] for each in known} == {compute or StepConfig()}


def test_a_model_that_knows_nothing_finds_every_token_alike(store):
    zeros = jax.tree.map(lambda weight: jnp.zeros(weight.shape), model.weights(MODEL))
    found = held_out(zeros, store, MODEL, seq=32, batch=8)
    assert found.loss == pytest.approx(math.log(257), rel=1e-5)
    assert found.perplexity == pytest.approx(257, rel=1e-4)


class TestRows:
    def test_of_a_whole_text(self):
        found = HeldOut(math.log(8), 2.5, 100)
        assert found.row() == {
            "heldout_loss": math.log(8),
            "heldout_perplexity": pytest.approx(8),
            "heldout_bits_per_byte": 2.5,
        }

    def test_of_a_part(self):
        assert [*HeldOut(1.0, None, 100).row()] == ["heldout_loss", "heldout_perplexity"]

    def test_of_pairs_there_is_no_perplexity(self):
        found = HeldOut(0.5, None, 4, accuracy=0.75).row()
        assert found == {"heldout_loss": 0.5, "heldout_accuracy": 0.75}
        assert "heldout_accuracy" in HeldOut(0.5, None, 4, accuracy=0.0).row()

    @pytest.mark.parametrize("loss", [700.0, 1e4, math.inf])
    def test_a_hopeless_model_has_a_perplexity_all_the_same(self, loss):
        assert HeldOut(loss, None, 1).perplexity == math.exp(700)


class TestPairs:
    def test_one_of_nothing_but_padding_counts_nothing(self, monkeypatch):
        told = Preferences(jnp.array([1.0, 2.0, 9.0]), jnp.array([0.5, -1.0, 5.0]), jnp.zeros(6))
        monkeypatch.setattr(heldout, "preference_losses", lambda *_, **__: told)
        one, none = [3, 4, ~5, 6], [~0, ~0, ~0, ~0]
        tokens = jnp.array([one, one, none])
        score = heldout.pairs_step.__wrapped__
        found = score("own", "reference", tokens, model=MODEL, compute=PAIRS)
        assert found.tolist() == [3, 1, 2]

    def test_the_means_are_of_pairs(self, monkeypatch):
        sums = iter([[3.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
        asked = []

        class Batches:
            def __init__(self, *how, limit):
                asked.append((*how, limit))

            def __len__(self):
                return 2

            def stored(self, number, rows):
                return np.zeros((4, 2 * 17), np.int32)

        def score(params, reference, tokens, **_):
            asked.append((params, reference, tokens.shape))
            return np.array(next(sums))

        monkeypatch.setattr(heldout, "EvalBatches", Batches)
        monkeypatch.setattr(heldout, "pairs_step", score)
        store = SimpleNamespace()
        found = held_out(
            "own", store, MODEL, seq=16, batch=4, compute=PAIRS, batches=7, reference="base"
        )
        assert (found.loss, found.accuracy, found.tokens) == (4 / 5, 3 / 5, 5)
        assert found.bits_per_byte is None
        assert asked == [(store, 16, 4, 7), *[("own", "base", (4, 34))] * 2]

    def test_they_need_the_model_as_it_was(self):
        with pytest.raises(AssertionError):
            held_out("own", SimpleNamespace(), MODEL, seq=16, batch=4, compute=PAIRS)
