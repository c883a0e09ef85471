"""A run's record of numbers: each step once, in order, whatever became of the run before."""

import contextlib
import json
import math
import struct
import threading
from pathlib import Path

import pytest

from gptj.errors import UserError
from gptj.train.metrics import MetricsLog, read_metrics


def record(run: Path, rows: list[dict[str, float]], after: int = 0) -> None:
    with contextlib.closing(MetricsLog(run, after, ("tensorboard",))) as log:
        for row in rows:
            log.write(row)


def numbered(first: int, last: int, loss: float = 1.0) -> list[dict[str, float]]:
    return [{"step": step, "loss": loss} for step in range(first, last + 1)]


def board(run: Path) -> list[tuple[int, dict[str, float]]]:
    """The events TensorBoard would read, file by file: step and values by name."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for file in sorted((run / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime_ns):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            event = Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            values = {value.tag: value.simple_value for value in event.summary.value}
            if values:
                events.append((event.step, values))
    return events


class TestReading:
    def test_rows_come_back_as_written(self, tmp_path):
        rows = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1e-30, "tokens_per_second": 3}]
        record(tmp_path, rows)
        assert read_metrics(tmp_path) == rows

    def test_a_folder_without_a_record_has_no_rows(self, tmp_path):
        assert read_metrics(tmp_path) == []
        assert read_metrics(tmp_path / "nowhere") == []

    @pytest.mark.parametrize("tail", ["{", '{"step": 3, "lo', "\0\0\0", "nul", "5", '{"loss": 1}'])
    def test_a_last_line_cut_short_is_left_out(self, tmp_path, tail):
        record(tmp_path, numbered(1, 2))
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(tail)
        assert read_metrics(tmp_path) == numbered(1, 2)

    def test_half_a_character_is_no_trouble(self, tmp_path):
        record(tmp_path, numbered(1, 2))
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"\xe2\x82')
        assert read_metrics(tmp_path) == numbered(1, 2)

    @pytest.mark.parametrize("line", ["", "oops", "5", "[]", "{}", '{"loss": 1}', '{"step": "x"}'])
    def test_another_bad_line_is_named(self, tmp_path, line):
        record(tmp_path, numbered(1, 2))
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(f'{line}\n{{"step": 3}}\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl:3 is not a row .*: delete that line"):
            read_metrics(tmp_path)

    def test_numbers_that_are_none_survive(self, tmp_path):
        record(tmp_path, [{"step": 1, "loss": math.nan, "grad_norm": math.inf}])
        (row,) = read_metrics(tmp_path)
        assert math.isnan(row["loss"])
        assert math.isinf(row["grad_norm"])


class TestResuming:
    def test_rows_past_the_step_are_dropped(self, tmp_path):
        record(tmp_path, numbered(1, 9, loss=1.0))
        record(tmp_path, numbered(5, 7, loss=2.0), after=4)
        assert read_metrics(tmp_path) == numbered(1, 4, loss=1.0) + numbered(5, 7, loss=2.0)

    def test_so_is_a_line_cut_short(self, tmp_path):
        record(tmp_path, numbered(1, 4))
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 5, "lo')
        record(tmp_path, numbered(5, 6), after=4)
        assert read_metrics(tmp_path) == numbered(1, 6)

    def test_from_the_beginning_nothing_is_left(self, tmp_path):
        record(tmp_path, numbered(1, 4))
        record(tmp_path, [])
        assert read_metrics(tmp_path) == []

    def test_a_row_is_on_disk_when_write_returns(self, tmp_path):
        with contextlib.closing(MetricsLog(tmp_path, 0)) as log:
            log.write({"step": 1, "loss": 2.0})
            assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.0

    def test_a_damaged_record_is_left_as_it_is(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text('oops\n{"step": 1}\n')
        with pytest.raises(UserError):
            MetricsLog(tmp_path, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


class TestTensorBoard:
    def test_it_gets_every_number_of_every_step(self, tmp_path):
        record(tmp_path, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "lr": 0.25}])
        assert board(tmp_path) == [(1, {"loss": 2.0}), (2, {"loss": 1.5, "lr": 0.25})]

    def test_a_run_resumed_at_once_does_not_overwrite_what_was_there(self, tmp_path):
        record(tmp_path, numbered(1, 2))
        record(tmp_path, numbered(3, 4), after=2)
        assert [step for step, _ in board(tmp_path)] == [1, 2, 3, 4]

    def test_a_resumed_run_tells_it_from_where(self, tmp_path):
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        record(tmp_path, [], after=4)
        (file,) = (tmp_path / "tensorboard").iterdir()
        begin = Event(step=5, session_log=SessionLog(status=SessionLog.START))
        assert begin.SerializeToString() in file.read_bytes()

    def test_numbers_that_are_none_are_no_trouble(self, tmp_path):
        record(tmp_path, [{"step": 1, "loss": math.nan}])
        assert math.isnan(board(tmp_path)[0][1]["loss"])


class TestAFullDisk:
    @pytest.mark.parametrize("size", [300, 3000, 30_000])
    def test_writing_ends_with_a_sentence_and_never_waits(self, full_disk, tmp_path, size):
        threads = threading.active_count()
        said = "free some space and run the same command again"
        with full_disk(size), pytest.raises(UserError, match=said):
            record(tmp_path, numbered(1, 2000))
        assert threading.active_count() == threads

    def test_afterwards_the_record_goes_on(self, full_disk, tmp_path):
        with full_disk(3000), pytest.raises(UserError):
            record(tmp_path, numbered(1, 2000))
        assert read_metrics(tmp_path) == numbered(1, len(read_metrics(tmp_path)))
        record(tmp_path, numbered(11, 12), after=10)
        assert read_metrics(tmp_path) == numbered(1, 12)

    def test_not_even_room_to_begin(self, full_disk, tmp_path):
        record(tmp_path, numbered(1, 100))
        said = f"the metrics of {tmp_path} could not be written"
        with full_disk(100), pytest.raises(UserError, match=said):
            MetricsLog(tmp_path, 100)
        assert read_metrics(tmp_path) == numbered(1, 100)
