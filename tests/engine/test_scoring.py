"""Packed texts score as each does alone, whatever stands beside it and on any mesh."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj import model
from gptj.config import ModelConfig
from gptj.engine import packing
from gptj.engine.packing import Asked, pack
from gptj.engine.scoring import score
from gptj.errors import UserError
from gptj.evaluate.requests import windows
from gptj.model import forward, init
from gptj.sharding import make_mesh, place

CONFIG = ModelConfig(
    layers=2, d_model=64, heads=4, rotary_dims=8, d_ff=128, vocab_size=61, padded_vocab_size=64
)
whole = jax.jit(forward, static_argnums=2)
IDS = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(tuple)


@pytest.fixture(scope="module")
def params():
    drawn = init(jax.random.key(0), CONFIG)
    # Padding that is far the likeliest: it must be no alternative.
    bias = drawn.output_bias.at[CONFIG.vocab_size :].set(50)
    return dataclasses.replace(drawn, output_bias=bias)


def questions(count, choices=4, seed=0):
    """Questions of random tokens with several answers each, some with the same beginning."""
    draw = np.random.default_rng(seed)

    def ids(most):
        return tuple(draw.integers(0, CONFIG.vocab_size, draw.integers(1, most)).tolist())

    return [
        Asked.of(context, answer)
        for context in (ids(90) for _ in range(count))
        for answer in (ids(30) for _ in range(choices))
    ]


def logits_of(params, tokens):
    """After each token of a text, which stands before others that it does not see."""
    padded = np.pad(np.array(tokens, np.int32), (0, 128 - len(tokens)))
    return np.asarray(whole(params, padded[None], CONFIG))[0, :, : CONFIG.vocab_size]


def alone(params, asked):
    """Each by itself, from all logits, in float64 sums."""
    for each in asked:
        begin, end = len(each.context) - 1, len(each.read)
        logits = logits_of(params, each.read)[begin:end]
        after = np.asarray(jax.nn.log_softmax(logits), np.float64)
        total = after[np.arange(len(after)), each.continuation].sum()
        yield total, (after.argmax(-1) == each.continuation).all()


def check(found, params, asked):
    for one, (logprob, greedy) in zip(found, alone(params, asked), strict=True):
        assert one.logprob == pytest.approx(logprob, rel=1e-5, abs=1e-5)
        assert one.greedy == greedy


@pytest.mark.parametrize("shortest", [128, 512])
def test_like_each_alone(params, monkeypatch, shortest):
    monkeypatch.setattr(packing, "SHORTEST", shortest)
    asked = questions(6)
    told = {}
    found = score(params, CONFIG, asked, lambda number, each: told.setdefault(number, each))
    check(found, params, asked)
    assert [told[number] for number in range(len(asked))] == found


def test_what_is_likeliest_is_found_so(params):
    tokens = [7]
    for _ in range(9):
        tokens.append(int(np.argmax(logits_of(params, tokens)[len(tokens) - 1])))
    greedy, other = score(
        params, CONFIG, [Asked.of((7,), tokens[1:]), Asked.of((7,), (*tokens[1:9], 60))]
    )
    assert greedy.greedy
    assert not other.greedy


@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1), (1, 1, 4)])
def test_on_a_mesh(params, sizes):
    asked = questions(5)
    with jax.set_mesh(make_mesh(*sizes)):
        spread = jax.tree.map(
            lambda x, w: place(np.asarray(x), *w.axes), params, model.weights(CONFIG)
        )
        found = score(spread, CONFIG, asked)
    check(found, params, asked)


def test_nothing_asked_is_nothing_scored(params):
    assert score(params, CONFIG, []) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked.of([1] * 60, [2] * 70), "text 1 has 130 tokens, .* window of 128"),
        (Asked.of([], [2]), "1 of the 1 tokens of text 1"),
        (Asked.of([2], []), "0 of the 1 tokens of text 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(params, asked, said):
    config = dataclasses.replace(CONFIG, context=128)
    with pytest.raises(UserError, match=said):
        score(params, config, [Asked.of([1] * 60, [2] * 69), asked])


def test_windows_of_a_text_take_no_memory_of_their_own():
    tokens = np.random.default_rng(0).integers(0, 50_000, 20_000, np.int32)
    tracemalloc.start()
    try:
        asked = list(windows(tokens, 0, window=1024, stride=4))
        rows = sum(1 for _ in pack(asked))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == len(asked) == 1 + (20_000 - 1024) // 4
    assert most < len(asked) * 1024  # a byte a token; each held once would take four


@given(st.lists(st.tuples(IDS, IDS).map(lambda each: Asked.of(*each)), max_size=40))
def test_a_token_sees_its_own_text_and_no_other(asked):
    """From the rows alone: who is seen by a text's last token, in order, are its tokens."""
    found = {}
    for row in pack(asked):
        begin = 0
        for number in row.texts:
            end = begin + len(asked[number].continuation)
            last = row.places[end - 1]
            seen = [at for at in range(last + 1) if last < row.ends[at]]
            assert row.tokens[seen].tolist() == asked[number].read.tolist()
            assert row.positions[seen].tolist() == list(range(len(seen)))
            context = len(asked[number].context)
            assert row.places[begin:end].tolist() == seen[context - 1 :]
            assert row.targets[begin:end].tolist() == asked[number].continuation.tolist()
            found[number] = begin = end
    assert sorted(found) == list(range(len(asked)))


@given(st.lists(st.tuples(st.integers(28, 36), IDS), max_size=40))
def test_texts_stand_in_the_order_of_their_tokens(drawn):
    asked = [Asked.of([3] * count, ids) for count, ids in drawn]
    reads = [each.read.tolist() for each in asked]
    placed = [number for row in pack(asked) for number in row.texts]
    assert placed == sorted(range(len(asked)), key=reads.__getitem__)


def test_what_texts_begin_with_is_read_once():
    question, answers = tuple(range(50)), [(60, n, n) for n in range(8)]
    (row,) = pack([Asked.of(question, answer) for answer in answers])
    assert row.used == len(question) + 1 + len(answers)


def test_a_long_text_has_a_row_of_its_length():
    short, longer, longest = (Asked.of([1] * length, [2]) for length in (1, 600, 1025))
    assert [len(row.tokens) for row in pack([short] * 512)] == [512]
    assert [len(row.tokens) for row in pack([short, longer])] == [1024]
    assert [len(row.tokens) for row in pack([short, longer, longest])] == [1024, 2048]
