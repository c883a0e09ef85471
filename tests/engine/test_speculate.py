"""Guessing ahead: the completions are what they are without it, and come in fewer steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import kernels, model
from gptj.config import ModelConfig
from gptj.engine import device
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.engine.step import NGRAMS, Draft, look_up
from gptj.errors import UserError
from gptj.sharding import make_mesh
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 32, 4, 8, 128, 257, 384, 300)
NATIVE = dataclasses.replace(CONFIG, heads=2)  # of heads that our native attention takes
SMALL = ModelConfig(1, 16, 2, 8, 64, 257, 384, 320)
BYTES = Tokenizer.bytes()
GUESSES = 3
OPTIONS = EngineConfig(slots=4, chunk=32, burst=4)

REQUESTS = [
    Request(prompt, SamplingParams(**{"max_tokens": 40, "logprobs": 2, **sampling}))
    for prompt in ("", "abcabcabc", "once upon a time there was " * 4, "z" * 290)
    for sampling in (
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9, "seed": 3},
        {"temperature": 0.3, "top_k": 2, "repetition_penalty": 1.2, "frequency_penalty": 0.1},
        {"temperature": 0.0, "presence_penalty": 0.5, "min_tokens": 7, "stop": ("a",)},
        {"temperature": 0.5, "n": 2, "best_of": 3, "logit_bias": {97: 3.0}, "max_tokens": 5},
        {"temperature": 0.0, "overflow": "slide", "ignore_eos": True},
    )
]


def make_draft() -> Draft:
    return Draft(model.init(jax.random.key(1), SMALL), SMALL)


def engine(
    guesses: int = 0, draft: Draft | None = None, config: ModelConfig = CONFIG, **options
) -> Engine:
    params = model.init(jax.random.key(0), config)
    options = {"speculate": guesses, "break_even": 1.0 if guesses else None, **options}
    return Engine(params, config, BYTES, dataclasses.replace(OPTIONS, **options), draft)


@pytest.fixture(scope="module")
def plain():
    """What the requests give one token a step."""
    return engine().run(REQUESTS)


def same(found, expected) -> None:
    """The same tokens; the log-probabilities of another program, to float32's rounding."""
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.text, a.tokens, a.finish_reason) == (b.text, b.tokens, b.finish_reason)
            logprobs = [[each.logprob for each in c.logprobs] for c in (a, b)]
            np.testing.assert_allclose(*logprobs, atol=2e-5)


@pytest.mark.parametrize(
    "by", ["looking it up", "a draft that loses", pytest.param("a draft", marks=pytest.mark.slow)]
)
def test_the_completions_are_the_same(plain, by):
    draft = None if by == "looking it up" else make_draft()
    loses = {"break_even": 4.0} if by.endswith("loses") else {}
    same(engine(GUESSES, draft, **loses).run(REQUESTS), plain)


@pytest.mark.parametrize("drafting", [pytest.param(False, marks=pytest.mark.slow), True])
def test_on_a_mesh(plain, drafting):
    some = slice(None, None, 5)
    with jax.set_mesh(make_mesh(data=2, tensor=2)):
        draft = make_draft() if drafting else None
        same(engine(GUESSES, draft).run(REQUESTS[some]), plain[some])


def steps_of(one: Engine, sampling: SamplingParams) -> int:
    """Calls of `Engine.step` until one request is answered."""
    one.submit(Request("go", dataclasses.replace(sampling, ignore_eos=True)))
    steps = 0
    while one.busy:
        one.step()
        steps += 1
    return steps


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_that_is_the_model_itself_is_always_right(temperature):
    own = Draft(model.init(jax.random.key(0), CONFIG), CONFIG)
    sampling = SamplingParams(temperature, max_tokens=128)
    # Bursts of four steps, each of up to four tokens.
    assert steps_of(engine(), sampling) >= 128 / 4
    assert steps_of(engine(GUESSES, own), sampling) <= 128 / 16 + 3


def test_a_text_that_repeats_itself_is_looked_up():
    # Greedy, a random model soon goes round in circles.
    assert steps_of(engine(GUESSES), SamplingParams(0, max_tokens=200)) < 0.8 * 200 / 4


@pytest.mark.parametrize(
    ("slots", "config"),
    [
        pytest.param(1, CONFIG, id="1"),
        pytest.param(8, NATIVE, id="8, natively"),
        pytest.param(8, CONFIG, marks=pytest.mark.slow, id="8"),
        pytest.param(1, NATIVE, marks=pytest.mark.slow, id="1, natively"),
    ],
)
def test_where_guessing_loses_it_ends(slots, config):
    one = engine(GUESSES, make_draft(), config, break_even=2.0, slots=slots)
    for n in range(slots):
        one.submit(Request("go", SamplingParams(max_tokens=100, seed=n, ignore_eos=True)))
    seen = []
    while one.busy:
        one.step()
        seen.append(np.asarray(one.device.slots.pace))
    # A random draft is hardly ever right: it is asked at first, and then no more.
    paces = np.array(seen)[:, :slots]
    assert paces[0].max() < GUESSES
    assert (paces[-1] < 2.5).all()
    assert (paces[-1] == paces[len(paces) // 2]).all()


@pytest.mark.skipif(not kernels.available(), reason="the native programs cannot be built here")
@pytest.mark.parametrize(
    ("slots", "dtype"), [pytest.param(8, "float32", marks=pytest.mark.slow), (16, "bfloat16")]
)
def test_natively_no_bit_shows_how_a_token_was_drawn(slots, dtype):
    if slots * 6 > kernels.most_rows(dtype):
        pytest.skip("this processor has no tiles")
    params, other = (
        jax.tree.map(lambda x: x.astype(dtype), model.init(jax.random.key(n), NATIVE))
        for n in (0, 1)
    )
    draft = Draft(other, NATIVE)
    options = EngineConfig(slots, chunk=32, burst=4, speculate=5, prefix_bytes=0)
    always, never = (
        Engine(params, NATIVE, BYTES, dataclasses.replace(options, break_even=cost), draft)
        for cost in (1.0, 6.5)
    )
    assert always.device.may_spare_draft
    assert always.run(REQUESTS[:12]) == never.run(REQUESTS[:12])


@pytest.mark.parametrize(
    "config",
    [pytest.param(CONFIG, marks=pytest.mark.slow, id=""), pytest.param(NATIVE, id="natively")],
)
def test_one_slot_forgets_who_was_there_before(config):
    noisy = jax.tree.map(lambda x: x * 1.1, model.init(jax.random.key(0), config))
    one = engine(4, Draft(noisy, config), config, break_even=2.5, slots=1, prefix_bytes=0, burst=1)
    asked = Request("go", SamplingParams(max_tokens=150, seed=3, ignore_eos=True, logprobs=0))
    other = Request("on and on", SamplingParams(max_tokens=200, seed=4, ignore_eos=True))
    first, _, again = (one.run([each]) for each in (asked, other, asked))
    assert first == again


def test_what_a_step_costs_is_measured_beside_one_without_guesses(monkeypatch):
    one = engine(GUESSES, break_even=None, slots=8)
    seen = []

    def seconds(guessing):
        seen.append((one.device._guesses, guessing))
        return {(GUESSES, True): 3.0, (GUESSES, False): 1.6, (0, False): 1.0}[seen[-1]]

    monkeypatch.setattr(one.device, "_step_seconds", seconds)
    one.device.judge(None)
    assert len(seen) == 3
    assert one.device.break_even == 3.0
    assert one.device._guesses == 0  # always 1.6 times as long, if steps cannot be chosen


def test_where_it_takes_long_and_cannot_be_chosen_nothing_is_guessed(monkeypatch):
    monkeypatch.setattr(device, "TOO_LONG", 0.0)
    one = engine(GUESSES, break_even=None)
    same(one.run(REQUESTS[:3]), engine().run(REQUESTS[:3]))
    assert np.asarray(one.device.slots.pace).max() == 0
    chosen = engine(GUESSES, config=NATIVE, break_even=None)
    monkeypatch.setattr(chosen.device, "_step_seconds", lambda guessing: 2.0 if guessing else 1.0)
    chosen.run(REQUESTS[:3])
    assert (np.asarray(chosen.device.slots.pace).max() > 0) == kernels.available()


def test_what_it_costs_is_measured_before_the_first_request():
    one = engine(GUESSES, break_even=None)
    assert one.device.break_even is None
    one.submit(Request("a"))
    cost = one.device.break_even
    assert cost >= 1
    assert cost * 4 == round(cost * 4)


@pytest.mark.parametrize(("guessing", "cost"), [(2.1, 2.25), (1.0, 1.0), (0.5, 1.0)])
def test_what_it_costs_is_how_much_longer_its_step_takes(monkeypatch, guessing, cost):
    """A clock that is told: of a tiny model's steps a busy machine's own says anything."""
    one = engine(GUESSES, break_even=None)
    seconds = iter([guessing, 1.0, 1.0])  # all guess, none may, none does
    monkeypatch.setattr(one.device, "_step_seconds", lambda guessing: next(seconds))
    one.submit(Request("a"))
    assert one.device.break_even == cost


def test_where_nothing_is_guessed_a_draft_leaves_the_prefix_cache_alone(monkeypatch):
    one = engine(GUESSES, make_draft(), NATIVE, break_even=None, slots=8)
    monkeypatch.setattr(one.device, "_step_seconds", lambda guessing: 9.0 if guessing else 1.0)
    prompt = Request("once upon a time there was " * 4, SamplingParams(max_tokens=40))
    one.run([prompt])
    assert not one.device.is_guessing
    one.prefix.misses = 0
    for _ in range(3):
        one.run([prompt])
    assert one.prefix.misses == 0


def test_nothing_compiles_after_the_warm_up():
    one = engine(GUESSES, make_draft(), break_even=None, burst=5)
    one.warm_up()
    before = one.compilations()
    one.run(REQUESTS[::3])
    assert one.compilations() == before


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=30)


@settings(deadline=None)
@given(known=tokens, rest=tokens, count=st.integers(1, 5))
def test_a_look_up_finds_what_followed_last_time(known, rest, count):
    expected = [-1] * count
    for size in NGRAMS:
        last = known[len(known) - size :]
        ends = [n for n in range(size, len(known)) if known[n - size : n] == last]
        if ends and len(known) > size:
            expected = (known[ends[-1] :] + expected)[:count]
            break
    history = jnp.array((known + rest + [0] * 60)[:60])
    found = _look_up(history, jnp.array(len(known) - 1), count)
    assert found.tolist() == expected


_look_up = jax.jit(look_up, static_argnums=2)


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"speculate": -1}, "speculate=-1 must be at least 0"),
            ({"break_even": 0.5}, "break_even=0.5 must be at least 1"),
            ({"kv_cache": "int7"}, "kv_cache='int7' must be `model` or `int8`"),
        ],
        ids=str,
    )
    def test_options_out_of_range(self, options, said):
        with pytest.raises(UserError, match=said):
            EngineConfig(**options)

    @pytest.mark.parametrize(
        ("change", "guesses", "said"),
        [
            ({}, 0, "guesses nothing without speculate"),
            (
                {"vocab_size": 200, "padded_vocab_size": 256},
                2,
                "knows 200 tokens and the model 257",
            ),
            ({"context": 100}, 2, "context of 100 is shorter than the engine's 300"),
        ],
        ids=str,
    )
    def test_a_draft_that_does_not_fit(self, change, guesses, said):
        config = dataclasses.replace(SMALL, **change)
        with pytest.raises(UserError, match=said):
            engine(guesses, Draft(model.init(jax.random.key(1), config), config))
