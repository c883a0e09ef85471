"""Axes and numbers at the edges: where a notation, a unit or ticks give way to others."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.report.scale import Axis, duration, number, size, tick_labels, with_unit


class TestAround:
    @given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
    def test_a_twentieth_of_room_is_left_at_either_end(self, low, span):
        axis = Axis.around(low, low + span)
        assert axis.low == pytest.approx(low - span / 20, abs=1e-6)
        assert axis.high == pytest.approx(low + span + span / 20, abs=1e-6)

    @pytest.mark.parametrize(("value", "room"), [(5.0, 0.5), (-5.0, 0.5), (0.0, 1.0)])
    def test_a_constant_has_some_too(self, value, room):
        assert Axis.around(value, value) == Axis(value - room, value + room)

    def test_of_a_logarithm_it_is_a_factor(self):
        axis = Axis.around(10, 1e5, log=True)
        assert (axis.low, axis.high) == pytest.approx((10**0.8, 10**5.2))
        assert Axis.around(3, 3, log=True) == Axis(3 / 1.2, 3 * 1.2, log=True)


def test_beyond_the_ends_a_value_lies_just_beyond():
    for axis in (Axis(10, 20), Axis(10, 1000, log=True)):
        np.testing.assert_allclose(
            axis.place(np.array([-1e9, axis.low, axis.high, 1e9])), [-0.05, 0, 1, 1.05], atol=1e-12
        )


class TestTicks:
    @pytest.mark.parametrize(
        ("low", "high", "count", "ticks"),
        [
            (0, 5, 5, [0, 1, 2, 3, 4, 5]),
            (0, 5.01, 5, [0, 2, 4]),
            (0, 10.1, 5, [0, 2.5, 5, 7.5, 10]),
            (0, 12.6, 5, [0, 5, 10]),
            (0, 25.1, 5, [0, 10, 20]),
            (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
            (0.1, 0.3, 2, [0.1, 0.2, 0.3]),
        ],
    )
    def test_steps_are_1_2_two_and_a_half_or_5(self, low, high, count, ticks):
        assert Axis(low, high).ticks(count) == ticks

    def test_whole_ones_step_by_one_or_more(self):
        assert Axis(0, 2).ticks(5, whole=True) == [0, 1, 2]
        assert Axis(0, 12.4).ticks(5, whole=True) == [0, 3, 6, 9, 12]
        assert Axis(0, 2).ticks(5) == [0, 0.5, 1, 1.5, 2]

    @pytest.mark.parametrize(
        ("low", "high", "ticks"),
        [
            (1, 1000, [1, 10, 100, 1000]),
            (1, 100, [1, 3, 10, 30, 100]),
            (1, 10, [1, 2, 5, 10]),
            (1, 5, [1, 1.5, 2, 3, 4, 5]),
            (10, 11, [10, 10.2, 10.4, 10.6, 10.8, 11]),  # evenly: the logarithm shows no round one
            (1, 1e8, [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8]),
            (1, 1e9, [1, 100, 1e4, 1e6, 1e8]),
            (1, 1e16, [1, 100, 1e4, 1e6, 1e8, 1e10, 1e12, 1e14, 1e16]),
        ],
    )
    def test_logarithmic_ones_are_of_the_fewest_digits_that_give_four(self, low, high, ticks):
        assert Axis(low, high, log=True).ticks(5) == ticks


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([], ""),
        ([0], "0"),
        ([1.5, 2], "1.5 2.0"),
        ([0, 5000, 9000], "0 5,000 9,000"),
        ([0, 5000, 10_000], "0 5k 10k"),
        ([-20_000, 0], "-20k 0"),
        ([0, 0.01], "0 1e-2"),
        ([0, 0.02], "0.00 0.02"),
        ([0.1, 1, 2], "0.1 1.0 2.0"),
        ([0.1, 1, 2.1], "0.1 1 2.1"),
        ([2e9, 4e9], "2G 4G"),
        ([0, 2.5e-5], "0 2.5e-5"),
    ],
)
def test_an_axis_has_one_notation_unless_it_spans_more_than_twenty_times(ticks, labels):
    assert " ".join(tick_labels(ticks)) == labels


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            *((999.94, "999.9"), (999.95, "1,000"), (-1234.5, "-1,234"), (9994.9, "9,995")),
            *((9995.1, "10k"), (-12_345, "-12.3k"), (999_499, "999k"), (999_500, "1M")),
            *((1e9, "1G"), (1e12, "1T"), (2.5e15, "2.5P"), (1.2e18, "1.2E")),
            *((1e-3, "0.001"), (9.994e-4, "1e-3"), (-5e-7, "-5e-7"), (1.25, "1.25")),
            *((math.nan, "nan"), (-math.inf, "-inf")),
        ],
    )
    def test_in_about_four_digits(self, value, text):
        assert number(value) == text

    @given(st.floats(1e-6, 9e20))
    def test_they_are_right_to_two_digits_and_never_long(self, value):
        text = number(value)
        factors = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
        digits = text.rstrip("kMGTPE")
        found = float(digits.replace(",", "")) * factors.get(text[len(digits) :], 1)
        assert found == pytest.approx(value, rel=0.06)
        assert len(text) <= 7
        assert number(-value) == f"-{text}"

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            *((1023, "1023 bytes"), (1024, "1 KiB"), (2**20 - 1, "1,024 KiB"), (2**20, "1 MiB")),
            *((999.6 * 2**20, "1,000 MiB"), (999.4 * 2**20, "999 MiB"), (2**30, "1 GiB")),
            *((1.5 * 2**40, "1,536 GiB"), (0, "0 bytes")),
        ],
    )
    def test_bytes_in_the_largest_unit_there_is_one_of(self, value, text):
        assert size(value) == text

    def test_a_unit_takes_the_thousands(self):
        assert with_unit(1234, "B") == "1,234 B"
        assert with_unit(2e15, "FLOP/s") == "2 PFLOP/s"
        assert with_unit(1.5e18, "FLOP/s") == "1.5 EFLOP/s"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            *((0, "0 s"), (59.94, "59.9 s"), (60, "1m 00s"), (3599, "59m 59s"), (3600, "1h 00m")),
            *((86_399, "23h 59m"), (86_400, "1d 00h"), (90_061, "1d 01h"), (119.6, "2m 00s")),
        ],
    )
    def test_times_in_their_two_largest_units(self, seconds, text):
        assert duration(seconds) == text
