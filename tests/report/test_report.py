"""A run's report: one valid, inert page of whatever the run has, that needs nothing else."""

import json
import math
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.errors import UserError
from gptj.report import report
from gptj.report.curves import Series, decimate, smooth
from gptj.report.html import Html, join, tag
from gptj.report.page import CHARTS
from gptj.report.record import Record
from gptj.report.scale import Axis, duration, number, size, tick_labels, with_unit


class Page(HTMLParser):
    """A page taken apart; that its tags are balanced is checked on the way."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []
        self.open: list[str] = []
        self.heads: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.attributes += [(name, key, value) for key, value in attributes]
        if name not in ("meta", "input"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and self.open[-1] in ("h2", "h3"):
            self.heads.append(data)


def write_run(folder: Path, rows: list[dict], **files: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in {"metrics": rows, **files}.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def read(run: Path) -> Page:
    return Page(report(run).read_text(encoding="utf-8"))


def full_rows(length: int) -> list[dict]:
    """Rows with every metric there is."""
    curves = ("last_loss", "z_loss", "grad_norm", "grad_norm_micro", "noise_scale", "lr", "mfu")
    others = ("hfu", "tokens_per_second", "flops_per_second", "step_seconds", "memory_bytes")
    spread = ("step_seconds_p50", "step_seconds_p95")
    return [
        {
            "step": step,
            "loss": 2 + math.exp(-step / 9),
            "tokens": 1024 * step,
            "skipped": step // 50,
            **dict.fromkeys((*curves, *others, *spread), 0.1 + step % 7),
            **({"skipped_step": 1} if step % 50 == 0 else {}),
            **({"heldout_loss": 2.5, "heldout_perplexity": 12.2} if step % 20 == 0 else {}),
            **{f"seconds_{name}": 3.0 * step for name in ("step", "data", "lost")},
        }
        for step in range(1, length + 1)
    ]


START = {
    **{"step": 0, "event": "start", "time": 1.7e9, "text": "Begun.", "steps": 200},
    **{"versions": {"jax": "0.10.2"}, "devices": "8 x cpu", "mesh": "data=8"},
}
RESUME = {**START, "step": 70, "event": "resume", "versions": {"jax": "0.11.0"}}
SKIP = {"step": 50, "event": "skip", "text": "A spike.", "rows": list(range(20))}
SAMPLES = [
    {"step": step, "prompt": f"prompt {kind}", "text": f"prompt {kind} and text {step}"}
    for step in (40, 80, 120)
    for kind in "ab"
]


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    """A run with everything a report can show."""
    run = tmp_path_factory.mktemp("runs") / "full"
    write_run(run, full_rows(150), events=[START, SKIP, RESUME], samples=SAMPLES)
    model = {"layers": 2, "d_model": 32}
    (run / "run.json").write_text(json.dumps({"data": "ab" * 32, "model": model, "seed": 0}))
    return run


class TestPage:
    def test_a_real_run(self, own_run):
        page = read(own_run)
        for head in ("Loss", "Curves", "Held-out loss", "Throughput", "Configuration"):
            assert head in page.heads
        assert "step 12" in page.text
        assert "3,072 tokens" in page.text

    def test_everything(self, full):
        page = read(full)
        for head in ("Curves", "Goodput", "Samples", "Events", "Configuration", "Versions"):
            assert head in page.heads
        assert page.tags.count("figure") == len(CHARTS)
        assert {chart.title for chart in CHARTS} <= set(page.heads)
        said = " ".join(page.text.split())
        for words in (
            *("under way", "step 150 of 200", "154k tokens", "8 x cpu", "data=8"),
            *("33.3 % of 22m 30s", "0.10.2 → 0.11.0 at step 70", "abababab", "rows 0, 1, 2"),
            f"gptj show-rows {full} 50",
        ):
            assert words in said

    def test_a_sample_drawn_again_replaces_the_first(self, tmp_path):
        drawn = (("p", "zebra"), ("q", "yak"), ("p", "gnu"))
        samples = [{"step": 4, "prompt": prompt, "text": text} for prompt, text in drawn]
        page = read(write_run(tmp_path, [{"step": 4}], samples=samples))
        assert "zebra" not in page.text
        assert page.text.index("gnu") < page.text.index("yak")

    def test_it_needs_no_other_file_and_no_network(self, full):
        text = report(full).read_text(encoding="utf-8")
        page = Page(text)
        assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
        assert not {"src", "href", "srcset"} & {key for _, key, _ in page.attributes}
        policy = next(value for _, key, value in page.attributes if "default-src" in (value or ""))
        assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha")

    @pytest.mark.parametrize(
        "hostile", ["<script>alert(1)</script>", '"><img src=x>', "</pre>&lt;"]
    )
    def test_whatever_the_run_says_is_only_text(self, tmp_path, hostile):
        event = {"step": 1, "event": hostile, "text": hostile, "rows": [hostile], "mesh": hostile}
        event["versions"] = {hostile: hostile}
        run = write_run(
            tmp_path / "<b>run",
            [{"step": 1, "loss": 2.0}],
            events=[event, event | {"event": "resume"}],
            samples=[{"step": 1, "prompt": hostile, "text": hostile * 2}],
        )
        (run / "run.json").write_text(json.dumps({"model": {hostile: hostile}, hostile: [hostile]}))
        page = read(run)
        assert page.tags.count("script") == 2
        assert "img" not in page.tags
        assert page.text.count(hostile) >= 8
        assert "<b>run" in page.text

    def test_in_the_data_of_the_script_nothing_can_end_it(self, full):
        text = report(full).read_text(encoding="utf-8")
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
        assert "<" not in data
        values = json.loads(data)
        assert len(values["charts"]) == len(CHARTS)
        assert values["steps"] == [0, 150]
        assert [70, "resumed"] in values["marks"]

    def test_samples_come_latest_first_and_only_those_are_unfolded(self, full):
        page = read(full)
        places = [page.text.index(f"step {step}prompt") for step in (120, 80, 40)]
        assert places == sorted(places)
        assert [key for name, key, _ in page.attributes if name == "details"] == ["open"]
        assert page.text.count("and text 120") == 3  # in its fold's first line, and two prompts'

    def test_many_long_samples_are_cut_and_counted(self, tmp_path):
        samples = [{"step": step, "prompt": "", "text": "é" * 20_000} for step in range(1, 301)]
        run = write_run(tmp_path, [{"step": 300, "loss": 2.0}], samples=samples)
        page = read(run)
        assert "40 of 300 steps with samples." in page.text
        assert "16,000 more characters" in page.text
        assert {"step 1", "step 300"} <= set(re.findall(r"step \d+", page.text))
        assert (run / "report.html").stat().st_size < 1e6

    def test_the_same_page_in_another_place(self, full, tmp_path):
        out = tmp_path / "deep" / "page.html"
        assert report(full, out) == out
        assert out.read_bytes() == report(full).read_bytes()


class TestWhateverARunHas:
    @pytest.mark.parametrize(
        "rows",
        [
            [{"step": 1}],
            [{"step": 1, "loss": 2.0, "grad_norm": 1.0}],
            [{"step": 1, "heldout_loss": 2.0}],
            [{"step": 383500, "loss": 2.0}, {"step": 383501, "loss": 1.0}],
            [{"step": n, "loss": math.nan, "grad_norm": math.inf} for n in range(1, 9)],
            [{"step": n, "loss": 1.0, "grad_norm": 0.0} for n in range(1, 9)],
            [{"step": n, "loss": -1.0, "lr": -(10.0**n)} for n in range(1, 200)],
            [{"step": n, "loss": 10.0 ** (3 * n % 300), "lr": 1e-300} for n in range(1, 200)],
            [{"step": n, "loss": 1e-290 * n, "grad_norm": 1e300} for n in range(1, 200)],
            [{"step": n, "loss": 1e-9 * n, "tokens_per_second": 5.0} for n in range(1, 500)],
            [{"step": 10, "seconds_step": 0.0}, {"step": 20, "seconds_step": 1e9}],
        ],
    )
    def test_makes_a_page(self, rows, tmp_path):
        text = report(write_run(tmp_path, rows)).read_text(encoding="utf-8")
        Page(text)
        assert "nan" not in re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL).lower()

    def test_lines_that_are_none_are_passed_over(self, tmp_path):
        run = write_run(tmp_path, [{"step": 1, "loss": 2.0}])
        lines = ["{", "3", '{"step": "1"}', '{"step": 1}', '{"step": 1, "text": 3, "event": 4}']
        for name in ("events", "samples"):
            (run / f"{name}.jsonl").write_text("\n".join(lines))
        record = Record.read(run)
        assert record.events == []
        assert record.samples == []
        read(run)

    def test_events_with_odd_values(self, tmp_path):
        odd = {"step": 1, "event": "skip", "time": 1e99, "text": None, "rows": 3, "versions": []}
        read(write_run(tmp_path, [{"step": 1}], events=[odd, {"step": 0.5, "event": "resume"}]))

    def test_steps_that_were_done_again_count_once(self, tmp_path):
        rows = [{"step": s, "loss": float(i)} for i, s in enumerate((1, 2, 3, 4, 2, 3, 3, 5))]
        loss = Record.read(write_run(tmp_path, rows)).metrics["loss"]
        assert loss.steps.tolist() == [1, 2, 3, 5]
        assert loss.values.tolist() == [0, 4, 6, 7]

    def test_metrics_that_come_and_go(self, tmp_path):
        rows = [{"step": 1, "loss": 5}, {"loss": 4.0, "step": 2, "lr": 0.1}, {"step": 3, "lr": 0.2}]
        metrics = Record.read(write_run(tmp_path, rows)).metrics
        assert {name: [*map(list, series)] for name, series in metrics.items()} == {
            "loss": [[1, 2], [5, 4]],
            "lr": [[2, 3], [0.1, 0.2]],
        }

    @pytest.mark.parametrize(
        ("events", "state"),
        [
            ([], ""),
            ([START], "under way"),
            ([START, {"step": 9, "event": "stop"}], "stopped"),
            ([START, {"step": 9, "event": "end"}], "finished"),
            ([START | {"steps": 9}], "finished"),
        ],
    )
    def test_how_it_stands(self, tmp_path, events, state):
        assert Record.read(write_run(tmp_path, [{"step": 9}], events=events)).state == state


class TestMistakes:
    @pytest.mark.parametrize("name", ["metrics.jsonl", "other"])
    def test_no_metrics(self, tmp_path, name):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="has no metrics: give the folder of a run"):
            report(tmp_path)
        assert not (tmp_path / "report.html").exists()

    @pytest.mark.parametrize("course", ["{", "[]", "\xff"])
    def test_a_damaged_course(self, tmp_path, course):
        run = write_run(tmp_path, [{"step": 1}])
        (run / "run.json").write_text(course, encoding="latin-1")
        with pytest.raises(UserError, match=r"run\.json is damaged, .*: copy the run's folder"):
            report(run)

    def test_a_place_that_cannot_be_written(self, tmp_path):
        run = write_run(tmp_path, [{"step": 1}])
        with pytest.raises(UserError, match=r"cannot be written .*: choose another --out"):
            report(run, run / "metrics.jsonl" / "page.html")


class TestCurves:
    values = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300)

    @given(values, st.integers(4, 50))
    def test_decimation_keeps_the_ends_and_the_extremes(self, values, limit):
        whole = Series(np.arange(len(values), dtype=float), np.array(values))
        few = decimate(whole, limit)
        assert len(few.steps) <= limit
        assert few.values.min() == min(values)
        assert few.values.max() == max(values)
        assert (few.steps[0], few.steps[-1]) == (0, len(values) - 1)
        assert (np.diff(few.steps) > 0).all()
        assert [values[int(step)] for step in few.steps] == few.values.tolist()

    @given(values)
    def test_a_mean_lies_between_the_extremes(self, values):
        means = smooth(Series(np.arange(len(values), dtype=float), np.array(values))).values
        slack = 1e-6 * max(map(abs, values))
        assert len(means) == len(values)
        assert (means >= min(values) - slack).all()
        assert (means <= max(values) + slack).all()

    def test_a_mean_is_of_the_neighbours_without_those_left_out(self):
        values = np.arange(80.0) ** 2
        left_out = np.arange(80) == 50
        means = smooth(Series(np.arange(80.0), values), left_out).values
        np.testing.assert_allclose(means[40], values[38:43].mean())
        np.testing.assert_allclose(means[49], values[[47, 48, 49, 51]].mean())
        np.testing.assert_allclose(means[79], values[77:80].mean())
        assert means[0] == values[0]

    def test_one_enormous_value_does_not_blur_the_others(self):
        values = np.full(400, 2.5) + np.tile([0.0, 0.1], 200)
        values[100] = 1e300
        means = smooth(Series(np.arange(400.0), values)).values
        np.testing.assert_allclose(means[150:], 2.55, atol=0.05)


class TestScale:
    @given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.booleans())
    def test_ticks_are_few_and_on_the_axis(self, low, span, whole):
        axis = Axis(low, low + span)
        ticks = axis.ticks(5, whole)
        assert len(ticks) <= 7
        assert whole or len(ticks) >= 2
        assert all(low - 0.001 * span <= tick <= low + 1.001 * span for tick in ticks)
        assert not whole or all(tick == int(tick) for tick in ticks)
        assert len(set(tick_labels(ticks))) == len(ticks)

    @given(st.floats(1e-9, 1e9), st.floats(1.1, 1e12))
    def test_logarithmic_ticks_too(self, low, ratio):
        axis = Axis(low, low * ratio, log=True)
        ticks = axis.ticks()
        assert 2 <= len(ticks) <= 12
        assert all(low * 0.99 <= tick <= low * ratio * 1.01 for tick in ticks)

    @pytest.mark.parametrize(
        ("low", "high", "log", "labels"),
        [
            (0, 10, False, "0 2 4 6 8 10"),
            (0, 2000, False, "0 500 1,000 1,500 2,000"),
            (0, 1.3e6, False, "0 0.5M 1M"),
            (0, 6e-4, False, "0 2e-4 4e-4 6e-4"),
            (0.3, 1, False, "0.4 0.6 0.8 1.0"),
            (2, 12, True, "2 3 4 5 6 8 10"),
            (0.2, 40, True, "0.3 1 3 10 30"),
            (1e-3, 2e8, True, "1e-3 0.1 10 1,000 100k 10M"),
        ],
    )
    def test_ticks_are_round(self, low, high, log, labels):
        axis = Axis(low, high, log)
        assert " ".join(tick_labels(axis.ticks())) == labels

    def test_places(self):
        np.testing.assert_allclose(Axis(0, 10).place(np.array([0, 5, 10, 99])), [0, 0.5, 1, 1.05])
        places = Axis(1, 100, log=True).place(np.array([1, 10, 100, 0]))
        np.testing.assert_allclose(places, [0, 0.5, 1, -0.05])

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            *((0.0, "0"), (2.34567, "2.346"), (-2.5, "-2.5"), (999.6, "999.6"), (1234.4, "1,234")),
            *((12345.6, "12.3k"), (999_600, "1M"), (6.05e9, "6.05G"), (3.24e-4, "3.2e-4")),
            *((9996.0, "10k"), (math.inf, "inf")),
        ],
    )
    def test_numbers(self, value, text):
        assert number(value) == text

    def test_units(self):
        assert with_unit(4.88e13, "FLOP/s") == "48.8 TFLOP/s"
        assert with_unit(12.5, "FLOP/s") == "12.5 FLOP/s"
        sizes = ["12 bytes", "2 KiB", "4.77 MiB", "56.8 GiB"]
        assert [size(n) for n in (12, 2048, 5e6, 61e9)] == sizes
        seconds = (0.4213, 12.5, 59.999, 200, 7500, 400_000)
        shown = ["0.421 s", "12.5 s", "1m 00s", "3m 20s", "2h 05m", "4d 15h"]
        assert [duration(each) for each in seconds] == shown


def test_text_is_escaped_and_markup_is_not():
    inner = tag("b", "<&>", title='"<')
    assert inner == '<b title="&quot;&lt;">&lt;&amp;&gt;</b>'
    assert tag("p", inner, " & ", id=None) == f"<p>{inner} &amp; </p>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"


def test_a_long_run_is_small_and_quick(tmp_path):
    rng = np.random.default_rng(0)
    names = ("loss", "grad_norm", "lr", "tokens_per_second", "step_seconds", "mfu")
    values = np.round(rng.normal(3, 0.1, (100_000, len(names))), 6)
    values[77_777, 0] = 31.25
    rows = [
        {"step": i + 1, **dict(zip(names, row, strict=True))}
        for i, row in enumerate(values.tolist())
    ]
    run = write_run(tmp_path, rows)
    before = time.process_time()
    text = report(run).read_text(encoding="utf-8")
    assert time.process_time() - before < 4  # a second on an idle machine
    assert len(text) < 1e6
    assert "up to 31.25 at step 77,778" in text
