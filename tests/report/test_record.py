"""What a run's folder tells, whatever part of it is there."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.model import count_parameters
from gptj.report.record import GOODPUT, Record, _in_order
from gptj.train.meter import KINDS

MODEL = ModelConfig(1, 16, 2, 4, 32, 60, 64, context=32)


@pytest.fixture
def record(tmp_path: Path):
    """A run's folder with such rows, events and course, read."""

    def read(*rows: dict, events=(), samples=(), course=None, model=None) -> Record:
        for name, lines in (("metrics", rows), ("events", events), ("samples", samples)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (tmp_path / f"{name}.jsonl").write_text(text)
        for name, value in (("run.json", course), ("model.json", model)):
            if value is not None:
                (tmp_path / name).write_text(json.dumps(value))
        return Record.read(tmp_path)

    return read


class TestRows:
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
    def test_of_steps_that_were_done_again_the_last_time_counts(self, steps):
        rows = [{"step": step, "n": n} for n, step in enumerate(steps)]
        found = _in_order(rows)
        kept = [row["step"] for row in found]
        assert kept == sorted({*kept})
        assert kept[-1] == steps[-1]
        for row in rows:
            later = [step for step in steps[row["n"] + 1 :] if step <= row["step"]]
            assert (row in found) == (not later)

    def test_without_any_row_there_is_nothing_to_report(self, record):
        with pytest.raises(UserError, match=r"has no metrics: .* \(metrics\.jsonl in it\)"):
            record()

    def test_values_that_tell_of_a_run_that_blew_up_are_left_out_and_their_steps_are_not(
        self, record
    ):
        found = record(
            {"step": 1, "loss": 1e29, "only": float("nan")},
            {"step": 2, "loss": -2e30},
            {"step": 3, "loss": float("inf")},
            {"step": 4, "loss": 0.0},
        )
        assert found.metrics["loss"].steps.tolist() == [1, 4]
        assert {*found.metrics} == {"loss"}
        assert found.steps.tolist() == [1, 2, 3, 4]
        assert (found.step, found.last("loss"), found.last("only")) == (4, 0.0, None)

    def test_only_events_and_samples_that_are_such_are_kept(self, record):
        found = record(
            {"step": 1},
            events=[{"step": 1, "event": "start"}, {"step": 1, "event": 3}, {"step": 1}],
            samples=[{"step": 1, "text": ""}, {"step": 1, "text": None}],
        )
        assert (len(found.events), len(found.samples)) == (1, 1)


class TestFacts:
    def test_the_newest_event_that_says_it_is_believed(self, record):
        events = [
            {"step": 0, "event": "start", "mesh": "data=8", "devices": "8 x cpu"},
            {"step": 5, "event": "resume", "mesh": "data=4"},
            {"step": 6, "event": "skip"},
        ]
        found = record({"step": 6}, events=events)
        assert (found.fact("mesh"), found.fact("devices")) == ("data=4", "8 x cpu")
        assert found.fact("hosts") is None

    @pytest.mark.parametrize(
        ("events", "course", "total"),
        [
            ([{"step": 0, "event": "start", "steps": 9}], {"steps": 20}, 9),
            ([], {"steps": 20}, 20),
            ([], {"steps": 8}, 8),  # done
            ([], {"steps": 7}, None),  # of another run, then
            ([], {"steps": "many"}, None),
            ([], {}, None),
        ],
    )
    def test_how_many_steps_there_are_to_be(self, record, events, course, total):
        assert record({"step": 8}, events=events, course=course).total == total

    def test_tokens_are_counted_or_else_worked_out(self, record):
        assert record({"step": 8, "tokens": 100}, course={"batch": 4, "seq": 16}).tokens == 100
        assert record({"step": 8}, course={"batch": 4, "seq": 16}).tokens == 8 * 4 * 16
        assert record({"step": 8}, course={"batch": 4}).tokens is None
        assert record({"step": 8}, course={"batch": 4, "seq": "x"}).tokens is None

    def test_parameters_are_of_the_shape_in_the_course_or_beside_it(self, record):
        shape = json.loads(json.dumps(MODEL.__dict__))
        assert record({"step": 1}, model={"layers": 1}).parameters is None
        assert record({"step": 1}, model=shape).parameters == count_parameters(MODEL)
        assert record({"step": 1}, course={"model": shape}, model={}).parameters > 0
        assert record({"step": 1}, course={"model": 3}).parameters is None

    def test_time_is_told_in_its_parts_that_took_any(self, record):
        row = {"step": 1, "seconds_step": 3.0, "seconds_data": 0.0, "seconds_sleep": 9.0}
        assert record(row, {"step": 2, "seconds_step": 0.25}).seconds == {"step": 0.25}
        assert record({"step": 1}).seconds == {}

    @pytest.mark.parametrize(
        ("kinds", "step", "state"),
        [
            (["start", "end"], 3, "finished"),
            (["start", "stop", "resume"], 3, "under way"),
            (["start", "stop"], 3, "stopped"),
            (["start", "stop"], 9, "finished"),
            ([], 3, ""),
            ([], 9, "finished"),
        ],
    )
    def test_its_last_event_tells_how_it_stands_unless_it_has_all_its_steps(
        self, record, kinds, step, state
    ):
        events = [{"step": 3, "event": kind} for kind in kinds]
        assert record({"step": step}, events=events, course={"steps": 9}).state == state


def test_it_shows_every_kind_of_time_there_is():
    assert set(GOODPUT) == set(KINDS)
