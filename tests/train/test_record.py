"""What a run writes down beside its numbers: events and samples, by host 0 and no other."""

import contextlib
import json

import jax
import pytest

from gptj.errors import UserError
from gptj.sharding import make_mesh
from gptj.train import record as records
from gptj.train.metrics import read_metrics
from gptj.train.record import Record, surroundings
from gptj.train.rows import Skip, read_skips


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(run, first, last, **values) -> None:
    with contextlib.closing(Record(run, first - 1)) as record:
        for step in range(first, last + 1):
            record.write({"step": step, **values})


def test_events_and_samples_are_added_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(records.time, "time", lambda: 1234.56789)
    for step in (0, 7):  # a restart adds to what is there
        with contextlib.closing(Record(tmp_path, step)) as record:
            record.tell("resume" if step else "start", step, "begun", steps=9)
            record.sample(step, "the cat", " sat")
    assert lines(tmp_path / "events.jsonl") == [
        {"step": step, "event": event, "time": 1234.568, "text": "begun", "steps": 9}
        for step, event in ((0, "start"), (7, "resume"))
    ]
    assert lines(tmp_path / "samples.jsonl") == [
        {"step": step, "prompt": "the cat", "text": " sat"} for step in (0, 7)
    ]


def test_it_goes_on_after_its_last_row_and_says_what_was_lost(tmp_path):
    write(tmp_path, 1, 4, seconds_step=10.0, seconds_lost=5.0)
    write(tmp_path, 5, 6, seconds_step=12.5, seconds_data=0.5, seconds_lost=99.0)
    with contextlib.closing(Record(tmp_path, 4)) as record:
        assert record.last == {"step": 4, "seconds_step": 10.0, "seconds_lost": 5.0}
        assert record.lost == 3.0  # of rows 5 and 6, beside what was lost already
    with contextlib.closing(Record(tmp_path, 4)) as record:
        assert record.lost == 0.0  # they are dropped, and lost once


def test_a_new_run_goes_on_after_nothing(tmp_path):
    with contextlib.closing(Record(tmp_path, 0)) as record:
        assert (record.last, record.lost) == ({}, 0.0)


def test_after_going_back_the_rows_since_are_gone_and_the_skips_are_known(tmp_path):
    skips = [Skip(2, 3), Skip(4, 1)]
    with contextlib.closing(Record(tmp_path, 0)) as record:
        for step in range(1, 6):
            record.write({"step": step, "seconds_step": 2.0 * step})
        record.rewind(2, skips)
        assert record.last["step"] == 2
        assert record.lost == 6.0
        record.write({"step": 3})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert read_skips(tmp_path) == skips
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "skips.json"]


def test_other_hosts_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "is_leader", lambda: False)
    with contextlib.closing(Record(tmp_path, 0, ("tensorboard",))) as record:
        record.write({"step": 1})
        record.tell("start", 0, "begun")
        record.sample(1, "a", "b")
        record.rewind(0, [Skip(0, 1)])
        assert (record.last, record.lost) == ({}, 0.0)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["events.jsonl", "samples.jsonl", "skips.json"])
def test_what_cannot_be_written_is_named(tmp_path, name):
    with contextlib.closing(Record(tmp_path, 0)) as record:
        (tmp_path / name).mkdir()
        add = {
            "events.jsonl": lambda: record.tell("end", 1, "done"),
            "samples.jsonl": lambda: record.sample(1, "a", "b"),
            "skips.json": lambda: record.rewind(0, [Skip(0, 1)]),
        }[name]
        said = (
            rf"{tmp_path / name} could not be written \(Is a directory\): free some space and run"
        )
        with pytest.raises(UserError, match=said):
            add()


def test_what_a_run_ran_on():
    found = surroundings()
    assert [*found["versions"]] == [
        *("python", "gptj-jax", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")
    ]
    assert all(found["versions"].values())
    assert (found["devices"], found["hosts"], found["mesh"]) == ("8 x cpu", 1, "one device")


def test_a_mesh_is_named_by_its_axes():
    with jax.set_mesh(make_mesh(2, 1, 4)):
        assert surroundings()["mesh"] == "data=2 fsdp=1 tensor=4"
