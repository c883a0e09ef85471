"""What may be asked of a measurement: every number's least, and that texts fit the model."""

import dataclasses
from pathlib import Path

import pytest

from gptj.bench.config import (
    DataBench,
    DecodeBench,
    PrefillBench,
    ServeBench,
    TrainBench,
    check_context,
)
from gptj.config import ModelConfig
from gptj.errors import UserError

DATA = DataBench(Path("data"))
MODEL = ModelConfig(2, 32, 4, 4, 64, 257, 384, context=64)


@pytest.mark.parametrize(
    ("bench", "name"),
    [
        *((TrainBench(), name) for name in ("seq", "batch")),
        *((DecodeBench(), name) for name in ("read", "new")),
        *((PrefillBench(), name) for name in ("tokens", "chunk")),
        *((DATA, name) for name in ("seq", "batch", "rows")),
        *((ServeBench(), name) for name in ("requests", "shortest", "new_tokens")),
    ],
)
def test_every_count_is_at_least_1(bench, name):
    others = {"batch": 1} if name == "rows" else {}
    assert getattr(dataclasses.replace(bench, **{**others, name: 1}), name) == 1
    for value in (0, -3):
        with pytest.raises(UserError, match=f"^{name}={value} must be at least 1$"):
            dataclasses.replace(bench, **{name: value})


@pytest.mark.parametrize("slots", [(), (0,), (8, 0), (1, -2)])
def test_of_no_slots_nothing_is_drawn(slots):
    with pytest.raises(UserError, match="must each be at least 1") as refusal:
        DecodeBench(slots=slots)
    assert f"slots={slots}" in str(refusal.value)


def test_rows_are_whole_batches():
    assert dataclasses.replace(DATA, rows=64).rows == 64
    for rows in (63, 65, 127):
        with pytest.raises(UserError, match=f"rows={rows} must be a multiple of batch=64"):
            dataclasses.replace(DATA, rows=rows)


def test_all_requests_may_be_equally_long_but_not_end_before_they_begin():
    assert ServeBench(shortest=9, longest=9).longest == 9
    with pytest.raises(UserError, match="longest=8 must be at least shortest=9"):
        ServeBench(shortest=9, longest=8)


def test_a_rate_is_none_or_some():
    assert [ServeBench(rate=rate).rate for rate in (0.0, 0.01)] == [0.0, 0.01]
    for rate in (-0.01, float("nan")):
        with pytest.raises(UserError, match=rf"rate={rate} must be 0 \(all at once\) or above"):
            ServeBench(rate=rate)


def test_the_mix_is_stored_as_its_bits_say_or_else_its_dtype():
    assert ServeBench(dtype="bfloat16").stored == ("bfloat16",)
    assert ServeBench(dtype="bfloat16", quantize="int4").stored == ("int4",)


@pytest.mark.parametrize(
    ("fits", "more", "said"),
    [
        (DecodeBench(read=30, new=33), {"new": 34}, "read=30 and new=34 are together more than"),
        (DecodeBench(read=1, new=62), {"read": 2}, "read=2 and new=62 are together more than"),
        (PrefillBench(tokens=63), {"tokens": 64}, "tokens=64 is more than"),
        (
            ServeBench(shortest=1, longest=30, new_tokens=34),
            {"new_tokens": 35},
            "longest=30 and new_tokens=35 are together more than",
        ),
    ],
)
def test_what_just_fits_the_context_is_taken_and_one_token_more_is_not(fits, more, said):
    """A token more is drawn than was asked for, but of a request: its last is never read."""
    check_context(fits, MODEL)
    with pytest.raises(UserError) as refusal:
        check_context(dataclasses.replace(fits, **more), MODEL)
    remedy = "lower one" if " and " in said else "lower it"
    assert str(refusal.value) == f"{said} the model's context of 64 has room for: {remedy}"
