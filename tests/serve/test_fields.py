"""Kinds of parameters: the last that is taken, the first that is not, and what is said of it."""

from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from gptj.serve import fields
from gptj.serve.fields import Bias, Ids, Prompts, SomeIds, Stops, Strict, off


def taken(kind, value):
    return TypeAdapter(kind).validate_python(value, strict=True)


def said(kind, value) -> str:
    with pytest.raises(ValidationError) as failure:
        taken(kind, value)
    (only,) = failure.value.errors()  # however many things are wrong
    return only["msg"]


IDS = "must be a list of token ids"
STOPS = "must be text or a list of texts, none of them empty"
TOO_MANY = "must be at most 64 texts of 4096 characters together"
BIAS = "must be an object from token ids to numbers"
PROMPTS = "must be text, a list of texts, a list of token ids, or a list of such lists"


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        (Ids, [], []),
        (Ids, [0, 5, 1 << 40], [0, 5, 1 << 40]),
        (SomeIds, [0], [0]),
        (Stops, "ab", ("ab",)),
        (Stops, [], ()),
        (Stops, ["a", "b"], ("a", "b")),
        (Stops, ["x"] * 64, ("x",) * 64),
        (Stops, ["x" * 4096], ("x" * 4096,)),
        (Bias, {}, {}),
        (Bias, {"0": -100, "999999999": 100.0}, {0: -100.0, 999999999: 100.0}),
        (Bias, {"007": 1}, {7: 1.0}),
        (Prompts, "", [""]),
        (Prompts, [1, 2], [[1, 2]]),
        (Prompts, ["a", ""], ["a", ""]),
        (Prompts, [[1], [], [2, 3]], [[1], [], [2, 3]]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_taken(kind, value, found):
    assert taken(kind, value) == found


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        *((Ids, value, IDS) for value in ("1", [1, "2"], [True], [-1], [1.0], None, {"1": 1})),
        (SomeIds, [], "must be at least one token id, or left out"),
        (SomeIds, [-1], IDS),
        *((Stops, value, STOPS) for value in ("", [""], ["a", ""], [1], None, 3, {"a": 1})),
        (Stops, ["x"] * 65, TOO_MANY),
        (Stops, "x" * 4097, TOO_MANY),
        (Stops, ["x" * 4000, "y" * 97], TOO_MANY),
        *((Bias, value, BIAS) for value in ([], "1", {"a": 1}, {"-1": 1}, {"": 1}, {"1": "2"})),
        *((Bias, value, BIAS) for value in ({"1": True}, {"1": None}, {"1234567890": 1})),
        (Bias, {"\u0661": 1}, BIAS),  # an Arabic one
        *(
            (Bias, {"1": value}, "must have numbers between -100 and 100")
            for value in (100.5, -101, float("nan"))
        ),
        *((Prompts, value, PROMPTS) for value in ([], None, 3, [1, "a"], ["a", [1]], [True])),
        *((Prompts, value, PROMPTS) for value in ([[1], "a"], [[-1]], [["a"]], {"a": 1})),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not(kind, value, sentence):
    assert said(kind, value) == sentence


json = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(json)
def test_a_prompt_is_what_its_schema_says_and_nothing_else(value):
    def ids(value: Any) -> bool:
        return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)

    forms = isinstance(value, str) or (
        isinstance(value, list)
        and value != []
        and (ids(value) or all(isinstance(x, str) for x in value) or all(map(ids, value)))
    )
    if not forms:
        assert said(Prompts, value) == PROMPTS
        return
    found = taken(Prompts, value)
    assert found in (value, [value])
    assert all(isinstance(each, str) or ids(each) for each in found)


class Body(Strict):
    """A body."""

    size: int = 1
    """A number."""
    greedy: Annotated[bool | None, *off("it always is", None, True)] = None
    """Always on."""
    top_a: Annotated[float | None, *off("leave it out", None, 0)] = None
    """Not supported."""


class TestBodies:
    def test_a_parameter_that_is_none_is_named_with_what_may_be_meant(self):
        for name, hint in (("siez", "did you mean size?"), ("xyz", "leave it out")):
            assert said(Body, {name: 1}) == f"{name} is not a parameter here: {hint}"
        long = said(Body, {"x" * 10**6: 1})
        assert long == f"{'x' * 100} is not a parameter here: leave it out"

    @pytest.mark.parametrize("value", ["1", 1.0, True, None])
    def test_types_are_taken_at_their_word(self, value):
        with pytest.raises(ValidationError):
            Body(size=value)

    @pytest.mark.parametrize(
        "body", [{}, {"greedy": None}, {"greedy": True}, {"top_a": 0}, {"top_a": 0.0}], ids=str
    )
    def test_what_is_not_supported_may_be_switched_off(self, body):
        assert Body(**body).model_dump(exclude_unset=True) == body

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ({"greedy": False}, "it always is"),
            ({"greedy": 1}, "it always is"),  # which Python takes for True
            ({"top_a": 0.1}, "leave it out"),
            ({"top_a": False}, "leave it out"),
            ({"top_a": "0"}, "leave it out"),
        ],
        ids=str,
    )
    def test_but_not_on(self, body, reason):
        assert said(Body, body) == f"not supported: {reason}"

    def test_the_document_says_what_is_taken(self):
        shown = Body.model_json_schema()["properties"]
        assert shown["greedy"]["enum"] == [None, True]
        assert shown["size"]["description"] == "A number."


@pytest.mark.parametrize(
    ("kind", "least", "most", "beyond"),
    [
        ("Temperature", 0.0, 100.0, (-0.1, 100.1)),
        ("RepetitionPenalty", 0.01, 100.0, (0.0, 100.1)),
        ("Probability", 1e-9, 1.0, (0.0, 1.1)),
        ("Unit", 0.0, 1.0, (-0.1, 1.1)),
    ],
)
def test_numbers_within_bounds(kind, least, most, beyond):
    kind = getattr(fields, kind)
    assert (taken(kind, least), taken(kind, most)) == (least, most)
    for value in beyond:
        said(kind, value)
