"""The page's head, cards and curves: each figure that is there, in the unit and words it needs."""

import base64
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest

from gptj.errors import UserError
from gptj.report import page as module
from gptj.report.curves import Series
from gptj.report.page import CHARTS, page, report
from gptj.report.record import Record


def series(*values: float) -> Series:
    return Series(np.arange(1.0, 1 + len(values)), np.array(values, float))


def record(events=(), course=None, steps=(1.0,), path="runs/mine", **metrics: Series) -> Record:
    return Record(
        Path(path), metrics, np.array(steps, float), [*events], [], course or {"model": {}}
    )


def cards(**metrics: Series) -> dict[str, tuple[str, str]]:
    """Each card's value, and what stands beside it."""
    found = module._cards(record(**metrics))
    return {
        name: (value, aside)
        for name, value, aside in re.findall(
            "<h3>(.*?)</h3><b>(.*?)</b><small>(.*?)</small>", found
        )
    }


class TestCards:
    def test_what_a_run_recorded_and_nothing_else_has_one(self):
        assert cards() == {}
        assert {*cards(loss=series(2.0))} == {"Loss"}

    def test_the_newest_value_stands_beside_its_mean(self):
        assert cards(loss=series(1.0, 2.0, 6.0))["Loss"] == ("6", "last 3 steps: 3")
        many = series(*[1000.0] * 5, *[2.0] * 99, 4.0)
        assert cards(loss=many)["Loss"] == ("4", "last 100 steps: 2.02")

    def test_a_rate_is_the_usual_one_of_the_last_hundred_steps(self):
        many = series(*[9000.0] * 900, *[500.0] * 50, *[700.0] * 50)
        found = cards(tokens_per_second=many, flops_per_second=series(2.5e13))
        assert found["Tokens a second"] == ("600", "25 TFLOP/s")
        assert found.keys() == {"Tokens a second"}

    def test_every_figure_with_what_puts_it_in_proportion(self):
        found = cards(
            heldout_loss=series(2.5), heldout_perplexity=series(12.18),
            heldout_bits_per_byte=series(0.9), tokens=series(2e6), mfu=series(0.456),
            hfu=series(0.5), skipped=series(3), memory_bytes=series(2**31),
            seconds_step=series(90.0), seconds_lost=series(30.0),
        )  # fmt: skip
        assert found == {
            "Held-out loss": ("2.5", "perplexity 12.18"),
            "Bits per byte": ("0.9", "held-out text"),
            "Tokens": ("2M", "in 1 steps"),
            "MFU": ("45.6 %", "HFU 50 %"),
            "Goodput": ("75 %", "of 2m 00s"),
            "Skipped updates": ("3", "for a spike of the loss"),
            "Memory": ("2 GiB", "in use, a device"),
        }

    def test_where_no_update_was_skipped_none_is_spoken_of(self):
        assert cards(skipped=series(0)) == {}

    @pytest.mark.parametrize(("count", "columns"), [(1, 1), (6, 6), (7, 4), (8, 4), (9, 5)])
    def test_more_than_six_are_laid_out_in_two_rows(self, count, columns, monkeypatch):
        made = [(str(n), "1", None) for n in range(count)] + [("absent", None, "x")]
        monkeypatch.setattr(module, "_figures", lambda _: made)
        assert f"--columns:{columns}" in module._cards(record())


class TestUnits:
    @pytest.mark.parametrize(
        ("metric", "value", "shown", "unit"),
        [
            *(("step_seconds", 0.5, 0.5, "seconds"), ("step_seconds", 0.49, 490, "milliseconds")),
            ("mfu", 0.25, 25, "% of the peak"),
            ("memory_bytes", 2**29, 0.5, "GiB a device"),
            ("memory_bytes", 2**28, 256, "MiB a device"),
            ("memory_bytes", 2**10, 2**-10, "MiB a device"),  # the least unit, however small
        ],
    )
    def test_the_first_in_which_it_is_a_half_or_more(self, metric, value, shown, unit):
        found, names = module._in_units({metric: series(value), "loss": series(7)})
        assert found[metric].values[0] == pytest.approx(shown)
        assert unit in names.values()
        assert found["loss"].values[0] == 7

    def test_metrics_that_share_a_chart_share_its_unit_the_largest_s(self):
        given = {"step_seconds_p50": series(0.1), "step_seconds_p95": series(2.0)}
        found, names = module._in_units(given)
        assert names["seconds"] == "seconds"
        assert found["step_seconds_p50"].values[0] == 0.1
        assert given["step_seconds_p95"].values[0] == 2.0

    def test_every_chart_s_curves_are_of_one_unit(self):
        units = {name: unit for unit, (names, _) in module._UNITS.items() for name in names}
        for chart in CHARTS:
            named = {units.get(curve.metric) for curve in chart.curves}
            assert named == ({chart.unit} if chart.unit in module._UNITS else {None})


class TestWhatHappened:
    EVENTS = (
        {"step": 5, "event": "resume"}, {"step": 3, "event": "rewind"},
        {"step": 5, "event": "resume"}, {"step": 4, "event": "end"},
    )  # fmt: skip

    def test_it_is_told_once_in_the_order_of_the_steps(self):
        skipped = Series(np.array([1.0, 2.0, 9.0]), np.array([0.0, 1.0, 2.0]))
        found = module._happened(record(self.EVENTS, skipped_step=skipped))
        assert found == [
            (2, "skip", "update skipped"), (3, "rewind", "rewound"), (5, "resume", "resumed"),
            (9, "skip", "update skipped"),
        ]  # fmt: skip
        both = record(({"step": 2, "event": "skip"},), skipped_step=skipped)
        assert [step for step, *_ in module._happened(both)] == [2, 9]

    def test_the_key_explains_those_that_there_are(self):
        found = module._key(record(self.EVENTS))
        assert re.findall("</i>(.*?)</span>", found) == ["resumed", "rewound"]
        assert re.findall('class="mark (.*?)"', found) == ["resume", "rewind"]
        assert module._key(record()) == ""

    def test_lines_that_would_cover_each_other_are_one_and_the_read_out_has_all(self):
        events = [{"step": 1000 + n / 100, "event": "resume"} for n in range(20)]
        made = record(events, steps=(1, 2000), loss=series(1, 2))
        (figure,), data = module._curves(made)
        assert figure.count('class="mark resume"') == 1
        assert len(data["marks"]) == 20

    @pytest.mark.parametrize(
        ("first", "last", "ends"),
        [(1, 100, [0, 100]), (20, 100, [0, 100]), (21, 100, [21, 100]), (7, 7, [7, 8])],
    )
    def test_the_axis_begins_at_0_unless_most_of_it_would_be_empty(self, first, last, ends):
        _, data = module._curves(record(steps=(first, last)))
        assert data["steps"] == ends


class TestTheHead:
    @pytest.fixture
    def folder(self, tmp_path):
        place = tmp_path / "mine"
        place.mkdir()
        (place / "metrics.jsonl").touch()
        os.utime(place / "metrics.jsonl", (86_400 * 365, 86_400 * 365))
        return place

    def spans(self, made: Record) -> list[str]:
        return re.findall("<(?:span|strong)[^>]*>(.*?)<", module._header(made))

    def test_a_bare_run_has_its_step_and_when_that_was(self, folder):
        assert self.spans(record(path=folder, steps=(1, 1200))) == [
            "step 1,200",
            "last step 1971-01-01 00:00 UTC",
        ]
        assert "<h1>mine</h1>" in module._header(record(path=folder))

    def test_another_has_all_that_is_known(self, folder):
        events = [{"step": 0, "event": "start", "steps": 2000, "devices": "8 x cpu", "mesh": "d=8"}]
        made = record(
            events, {"batch": 2, "seq": 8, "model": {}}, (1, 1200), folder, loss=series(2.34567),
            heldout_loss=series(2.5), tokens_per_second=series(5e4),
        )  # fmt: skip
        assert self.spans(made) == [
            "under way", "step 1,200 of 2,000", "loss 2.346", "held-out 2.5", "19.2k tokens",
            "50k tokens/s", "8 x cpu", "d=8", "last step 1971-01-01 00:00 UTC",
        ]  # fmt: skip
        assert 'class="under"' in module._header(made)

    def test_only_the_page_s_own_script_may_run(self, folder):
        text = page(record(path=folder, loss=series(1.0)))
        allowed = re.search("script-src &#x27;sha256-(.*?)&#x27;", text)[1]
        script = re.findall("<script>(.*?)</script>", text, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(x.encode()).digest()).decode() for x in script]
        assert digests == [allowed]
        assert text.startswith("<!DOCTYPE html>\n<html lang=")
        assert f"Written by gptj from {folder}" in text
        assert "<title>mine: training report</title>" in text


class TestWriting:
    def test_by_default_it_goes_into_the_run_s_folder(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        assert report(tmp_path) == tmp_path / "report.html"
        assert report(tmp_path, tmp_path / "a/b/c.html").is_file()

    def test_a_folder_in_its_place_is_no_page(self, tmp_path):
        (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        with pytest.raises(UserError, match=r"cannot be written \(Is a directory\): choose anoth"):
            report(tmp_path, tmp_path)
