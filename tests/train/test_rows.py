"""Which rows an update trained on: the loop's own, whatever was passed over, and their text."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.data.batches import TrainBatches
from gptj.data.mixture import Mixture
from gptj.data.prepare import PrepareConfig, prepare
from gptj.data.store import TokenStore
from gptj.errors import UserError
from gptj.train.rows import Skip, batch_index, read_skips, rows_of, visible


@pytest.fixture
def run(own_run, tiny_data):
    (own_run / "data.json").write_text(json.dumps({"path": str(tiny_data)}))
    return own_run


@pytest.fixture
def batches(tiny_data):
    return TrainBatches(Mixture.open(tiny_data), seq=64, batch=4, seed=0)


def skip(run, *skips: tuple[int, int]) -> None:
    rows = [{"step": step, "batches": count} for step, count in skips]
    (run / "skips.json").write_text(json.dumps(rows))


def happen(run, *events: dict) -> None:
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def ids(run, step: int, **options) -> list[int]:
    return [row.id for row in rows_of(run, step, **options)]


class TestBatchIndex:
    @given(st.integers(0, 10**9))
    def test_without_skips_it_is_the_updates_own_number(self, update):
        assert batch_index(update) == update

    def test_skips_add_up_each_from_its_own_update_on(self):
        skips = [Skip(3, 10), Skip(5, 100), Skip(5, 1000)]
        assert [batch_index(n, skips) for n in range(7)] == [0, 1, 2, 13, 14, 1115, 1116]

    skips = st.lists(st.builds(Skip, st.integers(0, 40), st.integers(0, 9)), max_size=5)

    @given(skips, st.randoms())
    def test_no_batch_is_trained_on_twice_in_whatever_order_skips_are_told(self, skips, random):
        indices = [batch_index(n, skips) for n in range(50)]
        assert (np.diff(indices) >= 1).all()
        random.shuffle(skips)
        assert [batch_index(n, skips) for n in range(50)] == indices


class TestWhichRows:
    @pytest.mark.parametrize("step", [1, 2, 12])
    def test_those_of_the_batch_before_the_step(self, run, batches, step):
        assert ids(run, step) == batches.row_ids(step - 1).tolist()

    def test_those_of_a_later_batch_after_a_skip(self, run, batches):
        skip(run, (3, 5))
        assert ids(run, 3) == batches.row_ids(2).tolist()
        assert ids(run, 4) == batches.row_ids(8).tolist()

    def test_rows_named_in_the_log_are_marked(self, run, batches):
        named, *_ = batches.row_ids(2).tolist()
        happen(run, {"step": 3, "event": "skip", "rows": [named]}, {"step": 3, "event": "end"})
        notes = {row.id: row.note for row in rows_of(run, 3)}
        assert notes.pop(named) == "named in the log"
        assert set(notes.values()) == {""}

    def test_rows_named_before_the_run_went_back_are_still_shown(self, run, batches):
        offending = batches.row_ids(2).tolist()
        happen(run, {"step": 3, "event": "rewind", "rows": [*offending, 10**9, "x", -1]})
        skip(run, (1, 50))
        rows = rows_of(run, 3)
        assert [row.id for row in rows[:4]] == batches.row_ids(52).tolist()
        assert [row.id for row in rows[4:]] == offending
        assert all(row.note == "named in the log, of a batch passed over since" for row in rows[4:])

    def test_one_row_of_them(self, run, batches):
        *_, last = batches.row_ids(6).tolist()
        assert ids(run, 7, row=last) == [last]

    def test_a_small_data_sets_batch_may_hold_a_row_twice(self, own_run, tiny_data):
        change(own_run, batch=300)
        found = ids(own_run, 1, data=tiny_data)
        assert len(found) == 300
        assert len(set(found)) == 130


class TestText:
    def test_it_is_what_was_trained_on(self, run, batches):
        for row, tokens in zip(rows_of(run, 5), batches.batch(4), strict=True):
            assert row.text.encode() == bytes(tokens.tolist())
            assert row.tokens == range(row.id * 64, row.id * 64 + 65)
            assert row.sources == ("text.txt",)

    def test_ends_of_documents_and_the_files_they_came_from_are_shown(self, run, tmp_path):
        for name in "ab":
            (tmp_path / f"{name}.txt").write_text(f"{name}é" * 25)
        texts = (tmp_path / "a.txt", tmp_path / "b.txt")
        prepare(PrepareConfig(texts, tmp_path / "data", "bytes", held_out=0))
        store = TokenStore.open(tmp_path / "data" / "train")
        change(run, data=store.fingerprint)
        rows = {row.id: row for row in rows_of(run, 1, tmp_path / "data")}
        assert rows[0].text == "aé" * 21 + "a\ufffd"
        assert rows[0].sources == ("a.txt",)
        assert rows[1].text == "é" + "aé" * 3 + "<|endoftext|>" + "bé" * 17 + "b\ufffd"
        assert rows[1].sources == ("a.txt", "b.txt")

    def test_what_cannot_be_seen_is_written_out(self):
        told = visible("a\tb\nc\r\x1b[31m\u202e\u200b\x00é日\U0001f600")
        assert told == "a\tb\nc\\r\\x1b[31m\\u202e\\u200b\\x00é日\U0001f600"

    def test_as_printed(self, run):
        row = rows_of(run, 1)[0]
        head, *lines = str(row).split("\n")
        assert head == f"--- row {row.id}: tokens {row.tokens[0]} to {row.tokens[-1]}, of text.txt"
        assert "\n".join(lines) == row.text


def change(run, **values) -> None:
    course = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(course | values))


class TestMistakes:
    @pytest.mark.parametrize("step", [0, -3])
    def test_no_such_step(self, run, step):
        with pytest.raises(UserError, match=rf"step={step} must be at least 1"):
            rows_of(run, step)

    def test_no_run(self, tmp_path):
        with pytest.raises(UserError, match="holds no run: give the folder"):
            rows_of(tmp_path, 1)

    def test_no_such_row(self, run):
        with pytest.raises(UserError, match=r"row=999 is none of step 2's: choose one of \d+, "):
            rows_of(run, 2, row=999)

    @pytest.mark.parametrize("course", ["{", "[]", "{}", '{"seq": "64", "batch": 4, "seed": 0}'])
    def test_a_damaged_course(self, run, course):
        (run / "run.json").write_text(course)
        with pytest.raises(UserError, match=r"run\.json is damaged"):
            rows_of(run, 1)

    @pytest.mark.parametrize("data", [None, "{", "[]", "{}", '{"path": 3}'])
    def test_a_place_of_the_data_that_is_not_recorded(self, run, tiny_data, data):
        (run / "data.json").unlink()
        if data is not None:
            (run / "data.json").write_text(data)
        with pytest.raises(UserError, match="does not say where its data are: give"):
            rows_of(run, 1)
        assert len(rows_of(run, 1, tiny_data)) == 4

    def test_a_step_that_is_not_done_yet(self, run):
        with pytest.raises(UserError, match="step=13 is beyond the run's last so far, 12"):
            rows_of(run, 13)

    def test_data_that_have_moved(self, run, tiny_data, tmp_path):
        (run / "data.json").write_text(json.dumps({"path": str(tmp_path / "gone")}))
        with pytest.raises(UserError, match=r"gone holds no prepared data: give .* as --data"):
            rows_of(run, 1)
        moved = shutil.copytree(tiny_data, tmp_path / "moved")
        assert ids(run, 1, data=moved)

    def test_other_data(self, run, tiny_text, tmp_path):
        (tmp_path / "other.txt").write_text("more " + tiny_text.read_text())
        prepare(PrepareConfig((tmp_path / "other.txt",), tmp_path / "data", "bytes"))
        with pytest.raises(UserError, match=r"holds other data .* than .* trained on .* as --data"):
            rows_of(run, 1, tmp_path / "data")

    @pytest.mark.parametrize(
        "skips",
        ["{", "3", "[3]", '[{"step": 1}]', '[{"step": 1, "batches": -1}]', '[{"step": 0.5}]'],
    )
    def test_damaged_skips(self, run, skips):
        (run / "skips.json").write_text(skips)
        with pytest.raises(UserError, match=r"skips\.json is damaged"):
            read_skips(run)
