"""A chart: which curves it has, what its frame holds, and where lines, labels and marks stand."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.report import chart as module
from gptj.report.chart import HEIGHT, TALL, Chart, Curve, Drawn, draw, mark
from gptj.report.curves import Series
from gptj.report.html import Html
from gptj.report.scale import Axis

ACROSS = Axis(0, 100)
NONE = Html("")


def series(*values: float, first: float = 1) -> Series:
    return Series(np.arange(first, first + len(values)), np.array(values, float))


def drawn(chart: Chart, **metrics: Series) -> tuple[str, list[dict]]:
    figure, values = draw(chart, metrics, ACROSS, NONE, 3)
    return figure, values


def one(kind: str = "line", **more: object) -> Chart:
    return Chart("Loss", "nats", (Curve("loss", "ours", 2, kind),), **more)


def frame(*values: float, kind: str = "line", zero: bool = False) -> Axis:
    """The axis of a chart with one curve."""
    each = Drawn(Curve("loss", kind=kind), None, series(*values))
    return module._axis(one(zero=zero), [each])


class TestWhichCurves:
    def test_a_metric_that_was_not_recorded_has_none_and_without_any_there_is_no_chart(self):
        assert draw(one(), {"other": series(1, 2)}, ACROSS, NONE, 0) is None
        both = Chart("x", "", (Curve("a", "first"), Curve("b", "second")))
        assert [each["name"] for each in drawn(both, b=series(1, 2))[1]] == ["second"]

    def test_what_never_was_but_zero_shows_nothing(self):
        assert draw(one(), {"loss": series(0, 0, 0)}, ACROSS, NONE, 0) is None
        assert draw(one(), {"loss": series(0, 0, 1)}, ACROSS, NONE, 0)

    def test_one_curve_makes_way_for_a_better_one(self):
        chart = Chart("x", "", (Curve("a", "rough", unless="b"), Curve("b", "fine")))
        names = [[v["name"] for v in drawn(chart, **m)[1]] for m in (
            {"a": series(1)}, {"a": series(1), "b": series(2)},
        )]  # fmt: skip
        assert names == [["rough"], ["fine"]]


class TestTheFigure:
    def test_it_has_its_title_unit_and_height(self):
        low, _ = drawn(one(), loss=series(1, 2))
        assert "<h3>Loss</h3> <span>nats</span>" in low
        assert f'class="chart" style="--height:{HEIGHT}px"' in low
        tall, _ = drawn(one(tall=True), loss=series(1, 2))
        assert f'class="chart tall" style="--height:{TALL}px"' in tall

    @pytest.mark.parametrize(
        ("log", "values", "switch"),
        [
            (True, (1, 2), True),
            (False, (1, 2), False),
            (True, (0, 2), False),
            (True, (-1, 2), False),
        ],
    )
    def test_a_logarithm_is_offered_where_all_is_above_0(self, log, values, switch):
        figure, _ = drawn(one(log=log), loss=series(*values))
        assert figure.count('class="layer') == 1 + switch
        assert ('id="log-3"' in figure) == ('for="log-3"' in figure) == switch

    def test_single_steps_below_0_forbid_a_logarithm_though_their_mean_does_not(self):
        values = np.full(80, 5.0)
        values[50] = -1
        figure, _ = drawn(one("smoothed", log=True), loss=series(*values))
        assert "log-3" not in figure

    def test_a_mark_stands_at_its_step_and_says_what_it_is(self):
        assert mark(25, ACROSS, "skip", "<a spike>") == (
            '<i class="mark skip" style="left:25.00%" title="&lt;a spike&gt;"></i>'
        )
        assert mark(25, Axis(20, 40), "skip", "x").count("left:25.00%") == 1
        figure, _ = draw(one(), {"loss": series(1, 2)}, ACROSS, mark(25, ACROSS, "resume", ""), 3)
        assert 'class="mark resume"' in figure


class TestTheFrame:
    def test_it_starts_at_0_where_it_is_to_and_else_a_little_below(self):
        assert frame(10, 20, 20, 20, zero=True) == Axis(0, 20 + 20 / 20)
        assert 9 < frame(*[10, 20] * 50).low < 10
        assert 20 < frame(*[10, 20] * 50).high < 21

    def test_a_spike_of_a_few_steps_leaves_it_and_a_twentieth_of_them_does_not(self):
        """Of a mean the spike is gone; of single steps beside it, a fiftieth may be above."""
        calm = series(*[2.0] * 1000)
        raw = np.tile([1.0, 3.0], 500)
        for spikes, held in ((10, False), (50, True)):
            raw[400 : 400 + spikes] = 99
            each = Drawn(Curve("loss", kind="smoothed"), series(*raw), calm)
            assert (module._axis(one(), [each]).high > 99) == held

    def test_what_lasts_never_leaves_it(self):
        """A run that diverges is seen to, in however few steps at its end."""
        line = np.full(1000, 2.0)
        line[-1:] = 50
        assert frame(*line).high > 50
        line[-1:] = -50
        assert frame(*line).low < -50

    def test_the_first_fall_may_leave_it(self):
        line = np.concatenate([np.linspace(100, 3, 15), np.linspace(3, 2, 985)])
        assert frame(*line).high < 10

    def test_points_are_few_and_all_after_the_first_twentieth_stay(self):
        assert frame(9, 5, 4, 3, kind="points").high < 6  # the first is before
        assert frame(5, 9, 4, 3, kind="points").high > 9

    @pytest.mark.parametrize(("at", "held"), [(4, False), (5, True), (8, True)])
    def test_the_first_twentieth_is_of_its_own_steps(self, at, held):
        values = np.full(101, 2.0)
        values[at] = 99
        each = Drawn(Curve("loss", kind="points"), None, series(*values, first=1000))
        assert (module._axis(one(), [each]).high > 99) == held

    def test_two_curves_share_it(self):
        pair = [Drawn(Curve("x"), None, series(*[v] * 9)) for v in (1.0, 30.0)]
        axis = module._axis(one(), pair)
        assert axis.low < 1 < 30 < axis.high

    def test_the_logarithmic_one_holds_all(self):
        raw, line = series(0.5, 400), series(2, 3)
        axis = module._log_axis(Axis(1, 4), [Drawn(Curve("x"), raw, line)])
        assert axis.log
        assert axis.low < 0.5 < 400 < axis.high
        assert module._log_axis(Axis(1, 900), [Drawn(Curve("x"), raw, line)]).high > 900
        pair = [Drawn(Curve("x"), raw, line), Drawn(Curve("y"), None, series(0.1, 9))]
        axis = module._log_axis(Axis(1, 4), pair)
        assert axis.low < 0.1 < 400 < axis.high


class TestTheNote:
    def test_what_left_the_frame_is_said_with_its_step(self):
        each = Drawn(Curve("x"), series(1, 12345, 3, first=7), series(1, 2, 3, first=7))
        assert module._note(Axis(0, 10), [each]) == (
            "mean; single steps faint; up to 12.3k at step 8"
        )
        assert module._note(Axis(0, 12345), [each]) == "mean; single steps faint"

    def test_it_is_the_highest_of_all_curves(self):
        pair = [Drawn(Curve("x"), None, series(*v)) for v in ((1, 30), (20, 2))]
        assert module._note(Axis(0, 10), pair) == "up to 30 at step 2"

    def test_a_plain_curve_within_its_frame_needs_none(self):
        assert module._note(Axis(0, 10), [Drawn(Curve("x"), None, series(1, 2))]) == ""


class TestLines:
    def paths(self, kind: str, count: int) -> list[str]:
        each = Drawn(Curve("x", "", 4, kind), None, series(*np.linspace(0, 100, count)))
        found = [str(path) for path in module._paths(each, Axis(0, 100), ACROSS)]
        return [re.search('class="(.*?)"', path)[1] for path in found]

    def test_a_line_goes_from_step_to_step_with_what_is_high_on_top(self):
        path = module._path(Series(np.array([0, 50, 100.0]), np.array([0, 7.5, 10.0])),
                            Axis(0, 10), ACROSS)  # fmt: skip
        assert path == "M0 10000L5000 2500L10000 0"

    @pytest.mark.parametrize(
        ("kind", "count", "classes"),
        [
            ("line", 2, ["c4"]),
            ("line", 1, ["c4", "c4 dots"]),  # or it would not be seen
            ("points", 60, ["c4 thin", "c4 dots"]),
            ("points", 61, ["c4 thin"]),
        ],
    )
    def test_few_points_are_dots(self, kind, count, classes):
        assert self.paths(kind, count) == classes

    def test_dots_are_lines_of_no_length(self):
        each = Drawn(Curve("x", kind="points"), None, series(0, 100, first=0))
        dots = module._paths(each, Axis(0, 100), ACROSS)[-1]
        assert 'd="M0 10000h0M100 0h0"' in dots

    def test_single_steps_lie_behind_their_mean(self):
        values = series(*np.tile([1.0, 3.0], 40))
        figure, said = drawn(one("smoothed"), loss=values)
        assert re.findall('<path d="[^"]*" class="(.*?)"', figure) == ["c2 raw", "c2"]
        assert [each["mean"] for each in said] == [False, True]
        only, said = drawn(one("mean"), loss=values)
        assert re.findall('<path d="[^"]*" class="(.*?)"', only) == ["c2"]
        assert [each["mean"] for each in said] == [False]
        assert max(said[0]["y"][40:]) < 2.5

    def test_a_curve_too_short_to_smooth_is_drawn_once(self):
        figure, said = drawn(one("smoothed"), loss=series(*[1.0, 3.0] * 9))
        assert figure.count("<path") == len(said) == 1
        assert said[0]["y"] == [1.0, 3.0] * 9

    def test_a_step_that_was_skipped_has_no_part_in_the_mean(self):
        values = np.full(80, 2.0)
        values[19], values[40] = 7, 900
        skipped = Series(np.array([20.0, 41.0]), np.array([0.0, 1.0]))
        _, (raw, mean) = drawn(one("smoothed"), loss=series(*values), skipped_step=skipped)
        assert max(raw["y"]) == 900
        assert set(mean["y"][25:]) == {2.0}
        assert mean["y"][19] == 3.0  # of five, as this one was not
        _, (_, mean) = drawn(one("smoothed"), loss=series(*values))
        assert max(mean["y"]) > 100

    def test_the_read_out_has_four_digits_at_their_steps(self):
        _, (said,) = drawn(one(), loss=series(1.23456, 98765.4, first=5))
        assert said == {"name": "ours", "mean": False, "x": [5, 6], "y": [1.235, 98770.0]}


def ends(heights: list[float], height: int = HEIGHT) -> list[tuple[str, float]]:
    """The labels of curves that end at so many hundredths of the frame: class and place."""
    curves = [
        Drawn(Curve("x", f"n{n}", n), None, series(1.0, each)) for n, each in enumerate(heights)
    ]
    found = module._ends(curves, Axis(0, 100), height)
    matches = [re.search('"end c([0-9]+)" style="top:(-?[0-9]+)px"', each) for each in found]
    return [(f"n{match[1]}", float(match[2])) for match in matches]


class TestLabels:
    def test_each_stands_beside_its_end(self):
        assert dict(ends([75, 25])) == {"n0": HEIGHT / 4, "n1": 3 * HEIGHT / 4}

    def test_where_two_overlap_at_the_bottom_a_third_far_above_stays(self):
        found = ends([0, 0, 83])
        assert found == [("n2", round(0.17 * HEIGHT)), ("n0", HEIGHT - 45), ("n1", HEIGHT - 15)]

    def test_it_says_the_last_value_and_the_name_if_it_has_one(self):
        named, plain = (Drawn(Curve("x", name), None, series(1, 2.5)) for name in ("ours", ""))
        first, second = module._ends([named, plain], Axis(0, 10), HEIGHT)
        assert "<b>2.5</b><span>ours</span>" in first
        assert first.startswith('<div class="end c1" style="top:')
        assert "<span>" not in second

    @given(st.lists(st.floats(-50, 150), min_size=1, max_size=4))
    def test_none_covers_another_or_the_steps_below_and_their_order_is_the_curves(self, heights):
        found = ends(heights)
        places = [top for _, top in found]
        assert all(b - a >= 29 for a, b in pairwise(places))
        assert 0 <= places[0] <= places[-1] <= HEIGHT - 15
        order = [int(name[1:]) for name, _ in found]
        clipped = [min(max(heights[n], 0), 100) for n in order]
        floor = 100 * 15 / HEIGHT  # what ends lower is put there, in the order of the curves
        assert [max(each, floor) for each in clipped] == sorted(
            (max(each, floor) for each in clipped), reverse=True
        )


def test_steps_are_named_where_they_are():
    found = re.findall('style="left:(.*?)%">(.*?)<', module._steps(Axis(0, 50_000)))
    assert found == [(f"{20 * n:.2f}", "0" if not n else f"{10 * n}k") for n in range(6)]
    for last, labels in ((2, "012"), (12, ["0", "3", "6", "9", "12"])):  # there is no half a step
        assert re.findall(">([0-9]+)<", module._steps(Axis(0, last))) == [*labels]


def test_ticks_are_named_where_they_are_and_a_tall_chart_has_more():
    each = [Drawn(Curve("x"), None, series(1, 2))]

    def ticks(height: int, high: float) -> list[tuple[str, str]]:
        layer = module._layer(Axis(0, high), ACROSS, each, height, "even")
        return re.findall('style="top:(.*?)%"><b>(.*?)<', layer)

    assert ticks(HEIGHT, 7) == [("100.00", "0"), ("71.43", "2"), ("42.86", "4"), ("14.29", "6")]
    assert [label for _, label in ticks(HEIGHT, 5.5)] == [*"024"]
    assert [label for _, label in ticks(TALL, 7)] == [*"01234567"]
    assert [label for _, label in ticks(TALL, 7.5)] == [*"0246"]
