"""The arithmetic of figures: rates, shares of a limit, and ratios to peers, worked out by hand."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.bench.records import Figure, Limits, Result, Side, Work

LIMITS = Limits("cpu", 10e9, {"float32": 100e9, "bfloat16": 200e9})
TIMES = st.lists(st.floats(0.01, 100), min_size=1, max_size=9)


def figure(side: Side, seconds: list[float], case: str = "a step", **work: float) -> Figure:
    return Figure(side, case, Work("tokens", work.pop("amount", 8.0), **work), seconds, 1)


def result(*figures: Figure) -> Result:
    return Result("train", "gptj bench", {}, LIMITS, list(figures), [], {}, "2026-01-31")


class TestTheLimit:
    @pytest.mark.parametrize(
        ("stored", "seconds"), [("float32", 1.0), ("bfloat16", 0.5), ("int8", 0.5), ("int4", 0.5)]
    )
    def test_numbers_of_fewer_bits_than_16_are_multiplied_as_bfloat16(self, stored, seconds):
        assert LIMITS.seconds(Work("x", 1, flops=100e9), stored) == (seconds, "compute")

    def test_but_bytes_as_such_where_that_was_measured(self):
        limits = dataclasses.replace(LIMITS, flops=LIMITS.flops | {"int8": 400e9})
        kinds = ("float32", "bfloat16", "int8", "int4")
        found = {kind: limits.seconds(Work("x", 1, flops=100e9), kind)[0] for kind in kinds}
        assert found == {"float32": 1.0, "bfloat16": 0.5, "int8": 0.25, "int4": 0.25}

    def test_reading_takes_as_long_whatever_the_type(self):
        for stored in ("float32", "bfloat16", "int8", "int4", ""):
            assert LIMITS.seconds(Work("x", 1, bytes=5e9), stored) == (0.5, "memory")

    @given(st.floats(0, 1e15), st.floats(0, 1e15))
    def test_neither_is_ever_faster_than_the_limit(self, flops, read):
        found, bound = LIMITS.seconds(Work("x", 1, flops, read), "float32")
        assert found >= flops / 100e9
        assert found >= read / 10e9
        assert found == {"compute": flops / 100e9, "memory": read / 10e9}[bound]

    def test_of_two_measurements_each_rate_is_the_higher_whichever_came_first(self):
        other = Limits("cpu", 20e9, {"float32": 150e9, "bfloat16": 150e9})
        best = Limits("cpu", 20e9, {"float32": 150e9, "bfloat16": 200e9})
        assert Limits.usual([LIMITS, other]) == Limits.usual([other, LIMITS]) == best
        assert Limits.usual([LIMITS]) == LIMITS

    @given(st.lists(st.floats(1, 1e12), min_size=1, max_size=9))
    def test_of_several_half_are_as_high_and_half_as_low(self, rates):
        found = Limits.usual([Limits("cpu", rate, {"int8": -rate}) for rate in rates])
        assert 2 * sum(rate <= found.bandwidth for rate in rates) >= len(rates)
        assert 2 * sum(rate >= found.bandwidth for rate in rates) >= len(rates)
        assert -found.flops["int8"] in rates

    def test_devices_side_by_side_read_and_multiply_as_many_times_as_much(self):
        four = Limits("cpu", 40e9, {"float32": 400e9, "bfloat16": 800e9})
        assert LIMITS.of_devices(4) == four
        assert LIMITS.of_devices(1) == LIMITS


class TestAFigure:
    def test_a_side_is_called_by_its_system_and_type(self):
        assert [str(Side("gptj", "int8")), str(Side("a plain reading"))] == [
            "gptj int8",
            "a plain reading",
        ]

    @pytest.mark.parametrize(
        ("seconds", "median", "rate"),
        [([4.0], 4.0, 2.0), ([1.0, 9.0, 2.0], 2.0, 4.0), ([1.0, 3.0, 100.0, 0.5], 2.0, 4.0)],
    )
    def test_a_rate_is_of_the_middle_turn(self, seconds, median, rate):
        found = figure(Side("gptj"), seconds)
        assert (found.median, found.rate) == (median, rate)

    def test_a_share_is_of_the_middle_turn_and_of_the_type_s_own_limit(self):
        wide = figure(Side("gptj", "float32"), [4.0, 8.0, 2.0], flops=100e9)
        narrow = figure(Side("gptj", "bfloat16"), [4.0, 8.0, 2.0], flops=100e9)
        found = result(wide, narrow)
        assert found.share(wide) == (0.25, "compute")
        assert found.share(narrow) == (0.125, "compute")

    def test_what_neither_reads_nor_multiplies_has_no_share(self):
        assert result().share(figure(Side("gptj", "float32"), [1.0])) is None


class TestRatios:
    def test_ours_stand_beside_every_peer_of_the_same_case_and_type(self):
        sides = [("gptj", "float32"), ("gptj", "int8"), ("one", "float32"), ("two", "int8")]
        figures = [figure(Side(*side), [1.0], case) for case in ("a", "b") for side in sides]
        found = [(x.case, str(x.ours), str(x.peer)) for x in result(*figures).ratios]
        assert sorted(found) == [
            ("a", "gptj float32", "one float32"),
            ("a", "gptj int8", "two int8"),
            ("b", "gptj float32", "one float32"),
            ("b", "gptj int8", "two int8"),
        ]

    def test_what_has_no_type_stands_beside_all_of_ours(self):
        figures = [figure(Side("gptj", kind), [1.0]) for kind in ("float32", "bfloat16")]
        reading = figure(Side("a plain reading"), [0.5])
        assert [each.median for each in result(*figures, reading).ratios] == [0.5, 0.5]

    def test_without_a_peer_there_are_none(self):
        figures = [figure(Side("gptj", kind), [1.0]) for kind in ("float32", "bfloat16")]
        assert result(*figures).ratios == []

    def test_each_turn_is_compared_with_the_same_turn_of_the_peer(self):
        """A machine that slows down slows both: the ratio of medians would be 3."""
        ours = figure(Side("gptj", "int8"), [1.0, 2.0, 4.0])
        peer = figure(Side("one", "int8"), [2.0, 6.0, 16.0])
        (found,) = result(ours, peer).ratios
        assert (found.median, found.least, found.most) == (3.0, 2.0, 4.0)
        uneven = figure(Side("one", "int8"), [4.0, 2.0, 4.0])
        (found,) = result(ours, uneven).ratios
        assert (found.median, found.least, found.most) == (1.0, 1.0, 4.0)

    def test_who_does_twice_the_work_in_the_same_time_is_twice_as_fast(self):
        ours = figure(Side("gptj", "int8"), [1.0], amount=6.0)
        peer = figure(Side("one", "int8"), [1.0], amount=3.0)
        (found,) = result(ours, peer).ratios
        assert found.median == 2.0

    @given(TIMES, st.floats(0.1, 10))
    def test_a_ratio_knows_no_unit_of_time(self, seconds, factor):
        ours = figure(Side("gptj", "int8"), seconds)
        slower = figure(Side("one", "int8"), [factor * each for each in seconds])
        (found,) = result(ours, slower).ratios
        assert found.least == pytest.approx(factor)
        assert found.most == pytest.approx(factor)

    def test_a_turn_that_one_side_lacks_is_our_own_fault(self):
        ours, peer = figure(Side("gptj"), [1.0, 2.0]), figure(Side("one"), [1.0])
        with pytest.raises(ValueError, match="zip"):
            _ = result(ours, peer).ratios


def test_as_json_all_that_follows_is_written_out():
    ours = figure(Side("gptj", "float32"), [4.0], flops=100e9)
    peer = figure(Side("one", "float32"), [8.0])
    found = json.loads(json.dumps(result(ours, peer).as_json()))
    mine, other = found["figures"]
    assert (mine["side"], mine["case"], mine["seconds"]) == ("gptj float32", "a step", [4.0])
    assert (mine["per_second"], mine["share"], mine["bound"]) == (2.0, 0.25, "compute")
    assert mine["work"] == {"unit": "tokens", "amount": 8.0, "flops": 100e9, "bytes": 0.0}
    assert (other["side"], other["per_second"]) == ("one float32", 1.0)
    assert not {"share", "bound"} & {*other}
    assert found["ratios"] == [
        {
            **{"ours": "gptj float32", "peer": "one float32", "case": "a step"},
            **{"median": 2.0, "least": 2.0, "most": 2.0},
        }
    ]
    assert found["limits"]["flops"] == {"float32": 100e9, "bfloat16": 200e9}
    assert (found["date"], found["left_out"]) == ("2026-01-31", [])
