"""KoboldAI's controls: what they become, and what would make a difference that we do not make."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.engine.request import SamplingParams
from gptj.serve.kobold_models import GenerateRequest
from gptj.serve.refusal import Refused

SAMPLERS = {6: "rep_pen", 5: "temperature", 0: "top_k", 2: "top_p", 4: "typical"}
ON = {6: 1.5, 5: 0.5, 0: 3, 2: 0.5, 4: 0.5}
ENGINE = (6, 5, 0, 2, 4)


def sampling(**body) -> SamplingParams:
    return GenerateRequest(prompt="It", **body).sampling(9, 7, 100)


def test_what_is_not_said_is_the_engines_default():
    assert sampling() == SamplingParams(max_tokens=9, seed=7)
    every = ("temperature", "top_p", "top_k", "min_p", "typical", "rep_pen", "presence_penalty")
    more = ("logit_bias", "bypass_eos", "stop_sequence", "n", "sampler_order")
    assert sampling(**dict.fromkeys((*every, *more))) == SamplingParams(max_tokens=9, seed=7)


def test_each_control_is_the_engines_own():
    body = {SAMPLERS[each]: value for each, value in ON.items()}
    body |= {"min_p": 0.25, "presence_penalty": -1.0, "logit_bias": {"3": 2}, "bypass_eos": True}
    found = sampling(**body, stop_sequence=["a", "b"], n=2)
    assert found == SamplingParams(
        temperature=0.5, top_p=0.5, top_k=3, typical_p=0.5, repetition_penalty=1.5, min_p=0.25,
        presence_penalty=-1.0, logit_bias={3: 2.0}, ignore_eos=True, stop=("a", "b"), n=2,
        max_tokens=9, seed=7,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.permutations([0, 1, 2, 3, 4, 5, 6]), st.sets(st.sampled_from(ENGINE)))
def test_an_order_is_refused_where_it_would_draw_from_something_else(order, on):
    """Samplers that are off do nothing, and top-k and the temperature may change places."""
    asked, kept = ([each for each in steps if each in on] for steps in (order, ENGINE))
    text = "".join(map(str, kept))
    alike = "".join(map(str, asked)) in (text, text.replace("50", "05"))
    body = {SAMPLERS[each]: ON[each] for each in on}
    if alike:
        assert sampling(**body, sampler_order=order) == sampling(**body)
    else:
        with pytest.raises(
            Refused, match=r"would differ from \[6, 5, 0, 2, 4\], which is how"
        ) as no:
            sampling(**body, sampler_order=order)
        assert (no.value.status, no.value.param) == (400, "sampler_order")


@pytest.mark.parametrize(
    ("on", "order", "alike"),
    [
        ({6}, [0, 1, 2, 3, 4, 5], True),  # the older form, in which it comes first
        ({6, 2}, [2, 4], True),
        ({5}, [6, 0], False),  # without its temperature it would draw otherwise
        ({2, 4}, [6, 2], False),
        ({2}, [6, 2, 2], False),
        ({2}, [6, 2, 99], True),
    ],
)
def test_an_order_that_is_not_whole(on, order, alike):
    body = {SAMPLERS[each]: ON[each] for each in on}
    if alike:
        assert sampling(**body, sampler_order=order) == sampling(**body)
    else:
        with pytest.raises(Refused, match="sampler_order="):
            sampling(**body, sampler_order=order)


def test_greedy_is_greedy_in_any_order():
    assert sampling(temperature=0, top_p=0.5, sampler_order=[6, 4, 2, 0, 5]).temperature == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"rep_pen": 1.2, "rep_pen_range": 99}, "rep_pen_range=99: rep_pen looks at all tokens"),
        ({"rep_pen": 1.2, "rep_pen_range": 100, "rep_pen_slope": 0.5}, "rep_pen_slope=0.5 is not"),
        ({"rep_pen": 1.2, "rep_pen_range": 100, "rep_pen_slope": 0}, None),
        ({"rep_pen": 1.2, "rep_pen_range": 0, "rep_pen_slope": 0.5}, None),
        ({"rep_pen": 1.2, "rep_pen_slope": 0.5}, None),
        ({"rep_pen": 1.0, "rep_pen_range": 5, "rep_pen_slope": 0.5}, None),
        ({"rep_pen_range": 5}, None),
    ],
    ids=str,
)
def test_the_penalty_looks_at_all_tokens_alike(body, said):
    if said is None:
        assert sampling(**body).repetition_penalty == body.get("rep_pen", 1.0)
    else:
        with pytest.raises(Refused, match=said):
            sampling(**body)
