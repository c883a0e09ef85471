"""What can be asked: each field's range to its ends, what goes together, and what follows."""

import re

import numpy as np
import pytest

from gptj.engine.config import EngineConfig
from gptj.engine.request import GUIDES, LARGEST, SamplingParams
from gptj.errors import UserError

SEED_MAX = 4_294_967_295


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", (0, 1e-300, LARGEST)),
        ("top_p", (1e-300, 1)),
        ("typical_p", (1e-300, 1)),
        ("min_p", (0, 1)),
        ("repetition_penalty", (0.01, 100)),
        ("presence_penalty", (-LARGEST, LARGEST)),
        ("frequency_penalty", (-LARGEST, LARGEST)),
        ("top_k", (0, 2**31 - 1)),
        ("max_tokens", (1, 2**31 - 1)),
        ("seed", (0, SEED_MAX)),
        ("min_tokens", (0, 128)),
        ("n", (1,)),
        ("best_of", (1,)),
        ("logprobs", (0, 20)),
        ("prompt_logprobs", (0, 20)),
        ("stop_tokens", ((), (0,))),
        ("banned_tokens", ((), (0, np.int32(3)))),
        ("allowed_tokens", (None, (0,))),
        ("logit_bias", ({}, {0: -LARGEST, 1: LARGEST})),
        ("overflow", ("stop", "slide")),
        ("stop", ((), ("\n",))),
    ],
)
def test_the_ends_of_a_range_are_within_it(field, values):
    for value in values:
        assert getattr(SamplingParams(**{field: value}), field) == value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": -1e-9}, "temperature=-1e-09 must be a finite number, 0 (greedy) or above"),
        ({"temperature": True}, "temperature=True must be a number"),
        ({"temperature": 3.1e38}, "temperature=3.1e+38 must be a finite number of 32 bits"),
        ({"presence_penalty": -3.1e38}, "presence_penalty=-3.1e+38 must be a finite number of 32"),
        ({"top_p": 0}, "top_p=0 must be above 0 and at most 1 (1 is off)"),
        ({"typical_p": 1.001}, "typical_p=1.001 must be above 0 and at most 1 (1 is off)"),
        ({"min_p": -0.001}, "min_p=-0.001 must be at least 0 (off) and at most 1"),
        ({"repetition_penalty": 0.009}, "repetition_penalty=0.009 must be a finite number from"),
        ({"repetition_penalty": 100.1}, "repetition_penalty=100.1 must be a finite number from"),
        ({"top_k": True}, "top_k=True must be a whole number"),
        ({"max_tokens": 2**31}, "max_tokens=2147483648 must be at least 1"),
        ({"max_tokens": -1, "prompt_logprobs": 0}, "max_tokens=-1 must be at least 1"),
        ({"seed": 2**32}, f"seed=4294967296 must be between 0 and {SEED_MAX}"),
        (
            {"min_tokens": 3, "max_tokens": 2},
            "min_tokens=3 must be at least 0 and at most max_tokens=2",
        ),
        ({"stop": ["a", ""]}, "stop=['a', ''] must be a tuple of strings, none of them empty"),
        ({"stop_tokens": (True,)}, "stop_tokens=(True,) must be a tuple of token ids"),
        ({"allowed_tokens": (1, -1)}, "allowed_tokens=(1, -1) must be a tuple of token ids"),
        ({"banned_tokens": "7"}, "banned_tokens='7' must be a tuple of token ids"),
        ({"allowed_tokens": ()}, "allowed_tokens=() must be at least one token id, or left out"),
        ({"logit_bias": {-1: 0.0}}, "logit_bias=-1 must be of a token id"),
        ({"logit_bias": {"a": 0.0}}, "logit_bias='a' must be of a token id"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias=nan must be a finite number"),
        ({"overflow": "roll"}, "overflow='roll' must be `stop` or `slide`"),
        ({"n": 3, "best_of": 2}, "best_of=2 must be at least n=3"),
        ({"best_of": 1.5}, "best_of=1.5 must be a whole number"),
        ({"logprobs": 21}, "logprobs=21 must be between 0 and 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs=-1 must be between 0 and 20"),
        ({"prompt_logprobs": True}, "prompt_logprobs=True must be a whole number"),
        ({"regex": 3}, "regex=3 must be text"),
    ],
)
def test_a_step_beyond_is_refused_with_what_it_may_be(given, said):
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        SamplingParams(**given)


def test_nothing_may_be_drawn_where_a_prompt_is_scored():
    assert SamplingParams(max_tokens=0, prompt_logprobs=0).max_tokens == 0
    with pytest.raises(UserError, match="max_tokens=0 must be at least 1"):
        SamplingParams(max_tokens=0, logprobs=0)


class TestGuides:
    @pytest.mark.parametrize("name", GUIDES)
    def test_it_is_the_one_that_was_given_even_an_empty_one(self, name):
        assert SamplingParams(**{name: ""}).guide == (name, "")
        assert SamplingParams().guide is None

    def test_a_schema_given_as_a_dict_is_its_json(self):
        assert SamplingParams(json_schema={"type": "null"}).guide == (
            "json_schema", '{"type": "null"}',
        )  # fmt: skip
        assert SamplingParams(json_schema={}).json_schema == "{}"

    @pytest.mark.parametrize(
        "two", [("json_schema", "regex"), ("regex", "grammar"), ("json_schema", "grammar")]
    )
    def test_two_cannot_both_be_kept_to(self, two):
        with pytest.raises(UserError, match=f"^{two[0]} and {two[1]} cannot both be kept to"):
            SamplingParams(**dict.fromkeys(two, "{}"))

    @pytest.mark.parametrize(
        "other",
        [{"allowed_tokens": (1,)}, {"banned_tokens": (1,)}, {"min_tokens": 1}, {"ignore_eos": 1}],
        ids=str,
    )
    def test_what_may_leave_it_nothing_is_refused_with_it_alone(self, other):
        SamplingParams(**other)
        (name,) = other
        with pytest.raises(UserError, match=f"^{name} may leave regex no token to go on with: "):
            SamplingParams(regex="a", **other)
        SamplingParams(regex="a", stop_tokens=(1,), logit_bias={1: 2.0}, top_k=3)


class TestWhatFollows:
    @pytest.mark.parametrize(
        ("given", "eos", "ends"),
        [
            ({}, 9, {9}), ({}, None, set()), ({}, 0, {0}), ({"ignore_eos": True}, 9, set()),
            ({"stop_tokens": (3, 4)}, 9, {3, 4, 9}),
            ({"stop_tokens": (3,), "ignore_eos": True}, 9, {3}),
            ({"stop_tokens": (9,), "ignore_eos": True}, 9, {9}),
        ],
    )  # fmt: skip
    def test_what_ends_a_completion(self, given, eos, ends):
        assert SamplingParams(**given).ends(eos) == ends

    def test_how_many_are_drawn(self):
        assert SamplingParams(n=3).drawn == 3
        assert SamplingParams(n=3, best_of=3).drawn == 3
        assert SamplingParams(n=3, best_of=5).drawn == 5


class TestTheEngine:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"max_adapter_rank": 0}, "max_adapter_rank=0 must be at least 1"),
            ({"prefix_bytes": -1}, "prefix_bytes=-1 must be at least 0"),
            ({"speculate": -1}, "speculate=-1 must be at least 0"),
            ({"max_adapters": -1}, "max_adapters=-1 must be at least 0"),
            ({"break_even": 0.99}, "break_even=0.99 must be at least 1"),
            ({"break_even": float("nan")}, "break_even=nan must be at least 1"),
            ({"kv_cache": "int4"}, "kv_cache='int4' must be `model` or `int8`"),
        ],
    )
    def test_what_no_engine_has(self, given, said):
        with pytest.raises(UserError, match=f"^{said}$"):
            EngineConfig(**given)

    def test_the_ends_of_its_ranges_are_accepted(self):
        least = EngineConfig(1, 2, 1, 1, 1, 0, 1.0, "int8", 0, 1, 0)
        assert (least.slots, least.positions, least.max_adapter_rank) == (1, 2, 1)

    @pytest.mark.parametrize(
        ("chunk", "sizes"),
        [
            (128, (128, 64, 32)), (64, (64, 32, 16)), (32, (32, 16)), (31, (31,)), (34, (34, 17)),
            (63, (63,)), (66, (66, 33)), (68, (68, 34, 17)), (1, (1,)),
        ],
    )  # fmt: skip
    def test_chunks_are_whole_halves_and_quarters_of_16_or_more(self, chunk, sizes):
        assert EngineConfig(chunk=chunk).sizes == sizes
