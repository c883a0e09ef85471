"""Curves made shorter and smoother: at the very sizes where something changes."""

import numpy as np
import pytest

from gptj.report.curves import POINTS, Series, decimate, smooth, thin


def ramp(length: int) -> Series:
    return Series(np.arange(100.0, 100 + length), np.arange(float(length)) ** 2)


@pytest.mark.parametrize("shorten", [decimate, thin])
def test_a_curve_that_is_short_enough_is_left_as_it_is(shorten):
    for length in (1, 9, 10):
        assert shorten(ramp(length), 10) is not None
        np.testing.assert_array_equal(shorten(ramp(length), 10), ramp(length))
    assert len(shorten(ramp(11), 10).steps) <= 10


def test_by_default_no_more_points_than_a_screen_has_columns():
    assert len(decimate(ramp(50_000)).steps) <= POINTS
    assert len(thin(ramp(50_000)).steps) == POINTS // 2


def test_an_even_choice_has_both_ends_and_equal_gaps():
    found = thin(ramp(91), 10)
    np.testing.assert_array_equal(found.steps, 100 + 10 * np.arange(10))
    np.testing.assert_array_equal(found.values, (10.0 * np.arange(10)) ** 2)


def test_of_every_stretch_the_least_and_greatest_are_kept():
    values = np.zeros(1000)
    values[::100], values[50::100] = 7, -7
    found = decimate(Series(np.arange(1000.0), values), 42)
    assert {*np.flatnonzero(values)} <= {*found.steps}


class TestSmoothing:
    def test_fewer_than_40_points_are_not_smoothed(self):
        short = ramp(39)
        assert smooth(short) is short
        assert smooth(ramp(40)).values[20] == (19**2 + 20**2 + 21**2) / 3

    def test_the_window_grows_with_the_curve_and_from_the_beginning(self):
        """A fortieth to either side, but of no point more than the half of what came before."""
        values = np.random.default_rng(0).normal(size=400)
        means = smooth(Series(np.arange(400.0), values)).values
        for at, half in ((0, 0), (1, 0), (2, 1), (5, 2), (19, 9), (20, 10), (21, 10), (300, 10)):
            np.testing.assert_allclose(means[at], values[at - half : at + half + 1].mean())
        for at in (390, 399):
            np.testing.assert_allclose(means[at], values[at - 10 : 400].mean())

    def test_where_all_neighbours_are_left_out_a_point_stays_itself(self):
        values = np.arange(40.0)
        left_out = np.zeros(40, bool)
        left_out[20:23] = True
        means = smooth(Series(values, values), left_out).values
        assert means[21] == 21
        assert means[20] == 19  # of its neighbours one is left
        assert means[23] == 23.5

    def test_it_is_exact_far_from_zero(self):
        """A running sum of large numbers would lose the small changes between them."""
        values = 1e9 + np.tile([0.0, 1e-3], 2000)
        means = smooth(Series(np.arange(4000.0), values)).values
        np.testing.assert_allclose(means[200:] - 1e9, 5e-4, atol=1e-5)

    def test_only_what_is_a_million_times_the_usual_is_cut(self):
        values = np.tile([-100.0, 100.0], 200)
        for peak, counted in ((5e7, 5e7), (1e12, 1e8)):
            values[100] = peak
            means = smooth(Series(np.arange(400.0), values)).values
            np.testing.assert_allclose(means[100], counted / 21, rtol=1e-4)
