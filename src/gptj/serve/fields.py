"""Kinds of parameters that protocols share, each checked at once and refused in one sentence.

A list of a million wrong things is one error here, where pydantic would make a million.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

MOST_STOPS, MOST_STOP_CHARACTERS = 64, 4096
"""Of one request: each token drawn is compared with every stop string."""

MOST_BIAS = 100.0

IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
TEXTS = {"type": "array", "items": {"type": "string"}}
STOP = {"type": "string", "minLength": 1}


class Strict(BaseModel):
    """A body: no parameter but its own, no type but the one it says."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, body: Any) -> Any:
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in body if isinstance(body, dict) else ():
            if name not in known:
                shown, close = name[:100], difflib.get_close_matches(name[:100], known, 1)
                hint = f"did you mean {close[0]}?" if close else "leave it out"
                said = "{name} is not a parameter here: {hint}"
                raise PydanticCustomError("unknown_parameter", said, {"name": shown, "hint": hint})
        return body


class Said(BaseModel):
    """An answer, or a part of one."""

    model_config = ConfigDict(use_attribute_docstrings=True)


def wrong(sentence: str) -> NoReturn:
    """Refuse a value: the sentence goes on from the parameter's name."""
    raise PydanticCustomError("wrong_value", "{said}", {"said": sentence})


def off(reason: str, *allowed: Any) -> tuple[PlainValidator, WithJsonSchema]:
    """Of a parameter that is not supported: only the values that ask for nothing are let pass."""

    def check(value: Any) -> Any:
        for known in allowed:
            if value == known and isinstance(value, bool) == isinstance(known, bool):
                return value
        wrong(f"not supported: {reason}")

    return PlainValidator(check), WithJsonSchema({"enum": list(allowed)})


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(map(_is_id, value)):
        wrong("must be a list of token ids")
    return value


def _some_ids(value: Any) -> list[int]:
    return _ids(value) or wrong("must be at least one token id, or left out")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        wrong("must be text or a list of texts, none of them empty")
    if len(stops) > MOST_STOPS or sum(map(len, stops)) > MOST_STOP_CHARACTERS:
        wrong(f"must be at most {MOST_STOPS} texts of {MOST_STOP_CHARACTERS} characters together")
    return tuple(stops)


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        wrong("must be an object from token ids to numbers")
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            wrong("must be an object from token ids to numbers")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            wrong("must be an object from token ids to numbers")
        if not -MOST_BIAS <= bias <= MOST_BIAS:
            wrong(f"must have numbers between {-MOST_BIAS:.0f} and {MOST_BIAS:.0f}")
    return {int(token): float(bias) for token, bias in value.items()}


def _prompts(value: Any) -> list[str | list[int]]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(map(_is_id, value)):
            return [value]
        if all(isinstance(each, str) for each in value):
            return value
        if all(isinstance(each, list) and all(map(_is_id, each)) for each in value):
            return value
    wrong("must be text, a list of texts, a list of token ids, or a list of such lists")


Temperature = Annotated[float, Field(ge=0, le=100)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100)]
"""Both within what logits of 32 bits can be divided by."""

Probability = Annotated[float, Field(gt=0, le=1)]
Unit = Annotated[float, Field(ge=0, le=1)]

Ids = Annotated[list[int], PlainValidator(_ids), WithJsonSchema(IDS)]
"""Token ids."""

SomeIds = Annotated[list[int], PlainValidator(_some_ids), WithJsonSchema({**IDS, "minItems": 1})]
"""At least one token id."""

Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema({"anyOf": [STOP, {"type": "array", "items": STOP, "maxItems": MOST_STOPS}]}),
]
"""One stop string, or several."""

Bias = Annotated[
    dict[int, float],
    PlainValidator(_bias),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": {"type": "number", "minimum": -MOST_BIAS, "maximum": MOST_BIAS},
        }
    ),
]
"""What is added to the logits of token ids."""

Prompts = Annotated[
    list[str | list[int]],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {**IDS, "minItems": 1},
                {**TEXTS, "minItems": 1},
                {"type": "array", "items": IDS, "minItems": 1},
            ]
        }
    ),
]
"""One prompt as text or token ids, or several."""
