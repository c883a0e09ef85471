"""What a request becomes on the devices: one value after the other."""

import numpy as np
import pytest

from gptj.config import ModelConfig
from gptj.engine.request import SamplingParams
from gptj.engine.slots import one_slot

VOCAB, PADDED, EOS = 6, 8, 5
CONFIG = ModelConfig(1, 8, 2, 4, 8, VOCAB, PADDED, 8)
OFF = -np.inf


def slot(prompt=(3, 1), eos: int | None = EOS, **given):
    own = ("choice", "adapter", "room", "active", "guessing", "history", "allowed")
    options = {name: given.pop(name) for name in own if name in given}
    return one_slot(CONFIG, list(prompt), SamplingParams(**given), eos=eos, **options)


def test_it_begins_at_the_last_token_of_the_prompt():
    one = slot((3, 1, 4))
    assert (one.token, one.position) == (4, 2)
    assert np.flatnonzero(one.in_prompt).tolist() == [1, 3, 4]
    assert not one.drawn.any()
    assert one.pace == 0
    assert one.active
    assert not slot(active=False).active


def test_each_control_has_its_own_place():
    numbers = {
        "temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "typical_p": 0.75,
        "repetition_penalty": 2, "presence_penalty": 3, "frequency_penalty": 4,
        "top_k": 5, "seed": 2**32 - 1,
    }  # fmt: skip
    one = slot(**numbers, min_tokens=6, max_tokens=70, choice=7, adapter=8, guessing=True)
    assert {name: getattr(one, name) for name in numbers} == numbers
    assert (one.required, one.remaining, one.choice, one.adapter) == (6, 70, 7, 8)
    assert one.guessing
    assert not slot().guessing
    assert slot(overflow="slide").slide
    assert not slot().slide


@pytest.mark.parametrize("room", [None, 0, 3])
def test_the_room_is_the_engines_where_that_is_less(room):
    assert slot(max_tokens=9, room=room).remaining == (9 if room is None else room)


@pytest.mark.parametrize(
    ("params", "eos", "ends"),
    [({}, EOS, [5]), ({}, None, []), ({"stop_tokens": (2,)}, EOS, [2, 5]),
     ({"stop_tokens": (2,), "ignore_eos": True}, EOS, [2]), ({"ignore_eos": True}, EOS, [])],
)  # fmt: skip
def test_what_ends_it(params, eos, ends):
    assert np.flatnonzero(slot(eos=eos, **params).ends).tolist() == ends


@pytest.mark.parametrize(
    ("params", "bias"),
    [
        ({}, [0] * 8),
        ({"logit_bias": {1: -2.0, 4: 1.5}}, [0, -2, 0, 0, 1.5, 0, 0, 0]),
        ({"banned_tokens": (0, 4)}, [OFF, 0, 0, 0, OFF, 0, 0, 0]),
        ({"banned_tokens": (1,), "logit_bias": {1: 9.0}}, [0, OFF, 0, 0, 0, 0, 0, 0]),
        ({"allowed_tokens": (1, 2)}, [OFF, 0, 0, OFF, OFF, 0, OFF, OFF]),
        ({"allowed_tokens": (1,), "logit_bias": {0: 5, 1: 2}}, [OFF, 2, *[OFF] * 3, 0, OFF, OFF]),
    ],
)  # fmt: skip
def test_bias_bans_and_what_is_allowed_become_one_number_a_token(params, bias):
    one = slot(**params)
    assert one.bias.tolist() == bias
    assert bool(one.biased) == any(bias)


def test_only_what_keeps_to_a_guide_is_guided():
    free, bound = slot(), slot(allowed=np.arange(PADDED) == 3)
    assert not free.guided
    assert free.allowed.all()
    assert bound.guided
    assert np.flatnonzero(bound.allowed).tolist() == [3]


@pytest.mark.parametrize(
    ("params", "wanted"),
    [({}, False), ({"logprobs": 0}, True), ({"n": 3}, False), ({"best_of": 2}, True)],
)
def test_alternatives_where_anyone_looks_at_them(params, wanted):
    assert bool(slot(**params).alternatives) == wanted


@pytest.mark.parametrize(
    ("room", "history"), [(0, []), (1, [3]), (2, [3, 1]), (5, [3, 1, 0, 0, 0])]
)
def test_the_history_is_the_prompt_in_so_much_room(room, history):
    assert slot(history=room).history.tolist() == history


@pytest.mark.parametrize(
    ("params", "penalised", "filtered"),
    [
        ({}, False, False),
        ({"repetition_penalty": 0.5}, True, False),
        ({"presence_penalty": -0.5}, True, False),
        ({"frequency_penalty": 0.1}, True, False),
        ({"top_k": 1}, False, True),
        ({"top_p": 0.99}, False, True),
        ({"min_p": 0.01}, False, True),
        ({"typical_p": 0.99}, False, True),
    ],
)
def test_penalties_and_filters_are_on_where_any_of_them_is(params, penalised, filtered):
    one = slot(**params)
    assert (bool(one.penalised), bool(one.filtered)) == (penalised, filtered)
