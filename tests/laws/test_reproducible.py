"""The law: a request's tokens and log-probabilities are the same bits alone and in any company."""

import contextlib
import dataclasses
import functools
import itertools
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptj import adapters, model
from gptj.adapters import LoRAConfig
from gptj.config import ModelConfig
from gptj.convert.adapted import Adapter
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Completion, Delta, Request, SamplingParams
from gptj.engine.step import Draft
from gptj.sharding import make_mesh
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 32, 4, 8, 128, 257, 384, 600)
NATIVE = ModelConfig(2, 32, 2, 8, 128, 257, 384, 600)  # of heads that our native attention takes
SMALL = ModelConfig(1, 16, 2, 8, 64, 257, 384, 600)
BYTES = Tokenizer.bytes()

PROMPTS = ["", "a", "x" * 15, "once upon a time " * 3, "once upon a time there was", "y" * 300]
SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"top_k": 7, "seed": 5, "repetition_penalty": 1.3},
    {"min_p": 0.02, "frequency_penalty": 0.3, "presence_penalty": 0.2, "min_tokens": 6},
    {"typical_p": 0.9, "logit_bias": {97: 2.0}, "banned_tokens": (98, 99)},
    {"temperature": 1.5, "n": 2, "seed": 9, "stop": ("a",)},
    {"max_tokens": 0, "prompt_logprobs": 2},
    {"overflow": "slide", "max_tokens": 25, "ignore_eos": True},
    *([{"regex": "([ab]|cd){3,9}", "seed": 4}] if find_spec("llguidance") else []),
]
REQUESTS = [
    Request(prompt, SamplingParams(**{"max_tokens": 12, "logprobs": 3, **sampling}))
    for prompt in PROMPTS
    for sampling in SAMPLINGS
]


LORA = LoRAConfig(rank=4)
ADAPTERS = (None, "one", "two")
"""Which of them has an adapter, in an engine that has some."""

KINDS = {
    "plain": EngineConfig(),
    "int8 cache": EngineConfig(kv_cache="int8"),
    "adapters": EngineConfig(max_adapters=2, max_adapter_rank=LORA.rank),
    "guesses": EngineConfig(speculate=3, break_even=1.3),
    "a draft": EngineConfig(speculate=2, break_even=1.3),
    "guesses, natively": EngineConfig(speculate=3, break_even=1.3),
    "a draft, natively": EngineConfig(speculate=2, break_even=1.3),
}


@functools.cache
def engine(slots: int, kind: str = "plain") -> Engine:
    config = NATIVE if kind.endswith("natively") else CONFIG
    params = model.init(jax.random.key(0), config)
    options = dataclasses.replace(KINDS[kind], slots=slots, chunk=32, burst=4)
    draft = Draft(model.init(jax.random.key(1), SMALL), SMALL) if "draft" in kind else None
    made = Engine(params, config, BYTES, options, draft)
    for seed, name in enumerate(ADAPTERS if kind == "adapters" else ()):
        if name:
            made.load_adapter(name, adapter(config, seed))
    return made


def adapter(config: ModelConfig, seed: int) -> Adapter:
    """One that changes something."""
    draw, table = np.random.default_rng(seed), adapters.table(config, LORA)
    found = jax.tree.map(lambda w: draw.normal(size=w.shape, scale=0.2).astype("f4"), table)
    return Adapter("here", LORA, lambda f, n: (found[f].down[n], found[f].up[n]), None)


def asked(kind: str, index: int) -> Request:
    name = ADAPTERS[(index + index // len(SAMPLINGS)) % 3] if kind == "adapters" else None
    return dataclasses.replace(REQUESTS[index], adapter=name)


@functools.cache
def alone(slots: int, kind: str, index: int) -> list[Completion]:
    """What a request gives when nobody else is there and nothing is known of its prompt."""
    engine(slots, kind).prefix.clear()
    return engine(slots, kind).run([asked(kind, index)])[0]


def follow(slots: int, schedule: list[tuple[int, int, int | None]], kind: str = "plain") -> None:
    """Submit and cancel requests as the schedule says, and compare each with itself alone."""
    busy = engine(slots, kind)
    expected = {index: alone(slots, kind, index) for _, index, _ in schedule}
    under_way: dict[int, int] = {}
    cancels: dict[int, int] = {}
    pieces: dict[tuple[int, int], list[Delta]] = {}
    coming, step = sorted(schedule, key=lambda event: event[0]), 0
    while coming or busy.busy:
        while coming and coming[0][0] <= step:
            _, index, patience = coming.pop(0)
            number = busy.submit(asked(kind, index))
            under_way[number] = index
            if patience is not None:
                cancels[number] = step + patience
        for number in [n for n, at in cancels.items() if at <= step]:
            busy.cancel(number)
            del cancels[number]
        for delta in busy.step():
            pieces.setdefault((delta.request, delta.choice), []).append(delta)
        step += 1
    for (number, choice), deltas in pieces.items():
        whole, own = deltas[-1].completion, expected[under_way[number]][choice]
        assert whole is not None
        assert "".join(delta.text for delta in deltas) == whole.text
        assert [t for delta in deltas for t in delta.tokens] == whole.tokens
        if whole.finish_reason == "cancelled":
            assert own.tokens[: len(whole.tokens)] == whole.tokens
            assert own.logprobs[: len(whole.tokens)] == whole.logprobs
        else:
            assert whole == own


events = st.tuples(
    st.integers(0, 12),
    st.integers(0, len(REQUESTS) - 1),
    st.one_of(st.none(), st.none(), st.integers(0, 6)),
)
schedules = st.lists(events, min_size=1, max_size=14)


@given(schedule=schedules)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_a_random_schedule(schedule):
    follow(8, schedule)


@pytest.mark.slow
@given(schedule=schedules)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_three_hundred_random_schedules(schedule):
    follow(8, schedule)


@pytest.mark.parametrize(
    "kind",
    [
        *("int8 cache", "adapters", "guesses", "a draft, natively"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("a draft", "guesses, natively")),
    ],
)
@given(schedule=schedules)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_other_kinds_of_engine(kind, schedule):
    follow(4, schedule, kind)


def test_among_sixty_three_others():
    follow(64, [(n // 8, n % len(REQUESTS), None) for n in range(0, 64 * 5, 5)])


@pytest.mark.parametrize(
    ("slots", "kind"),
    [
        each
        if each[1] == "plain" or each == (12, "guesses, natively")
        else pytest.param(*each, marks=pytest.mark.slow)
        for each in itertools.product((2, 3, 12), KINDS)
    ],
)
def test_in_any_slot(slots, kind):
    fresh = engine.__wrapped__(slots, kind)
    request = Request("once upon", SamplingParams(max_tokens=9, logprobs=2, seed=3))
    first, *others = fresh.run([request] * fresh.options.slots)
    assert all(each == first for each in others)


@pytest.mark.parametrize(
    "mesh",
    [{"tensor": 4}, pytest.param({"data": 2, "tensor": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_on_a_mesh(mesh):
    with jax.set_mesh(make_mesh(**mesh)) if mesh else contextlib.nullcontext():
        params = model.init(jax.random.key(0), CONFIG)
        spread = Engine(params, CONFIG, BYTES, EngineConfig(8, chunk=32, burst=4))
        some = REQUESTS[::5]
        together = spread.run(some)
        assert [spread.run([request])[0] for request in some] == together
    texts = lambda found: [[each.text for each in choices] for choices in found]  # noqa: E731
    assert texts(together) == texts([alone(8, "plain", n) for n in range(0, len(REQUESTS), 5)])
