"""The parts below the curves: time, samples, events, configuration, versions, as text."""

import re
from pathlib import Path

import numpy as np
import pytest

from gptj.report import sections
from gptj.report.curves import Series
from gptj.report.html import table, tag
from gptj.report.record import Record


def record(events=(), samples=(), course=None, **metrics: float) -> Record:
    steps = np.array([1.0])
    columns = {name: Series(steps, np.array([value])) for name, value in metrics.items()}
    return Record(Path("runs/a"), columns, steps, [*events], [*samples], course or {"model": {}})


def rows(html: str) -> list[list[str]]:
    """The cells of every row of a table's body, as text."""
    found = re.findall(r"<tr>(.*?)</tr>", html.partition("<tbody>")[2])
    return [
        [re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)]
        for row in found
    ]


class TestGoodput:
    def test_shares_are_of_all_time_and_in_one_order(self):
        found = sections.goodput(
            record(seconds_lost=0.04, seconds_step=75.0, seconds_compile=24.96, seconds_data=0.0)
        )
        assert rows(found) == [
            ["training steps", "1m 15s", "75.0 %"],
            ["compiling", "25 s", "25.0 %"],
            ["thrown away and done again", "0.04 s", "&lt; 0.1 %"],
        ]
        assert "75.0 % of 1m 40s, over all restarts, went into training steps." in found
        assert re.findall(r'class="t-(\w+)" style="width:(.*?)%"', found) == [
            ("step", "75.000"), ("compile", "24.960"), ("lost", "0.040"),
        ]  # fmt: skip

    def test_a_twentieth_of_a_percent_is_a_tenth(self):
        found = sections.goodput(record(seconds_step=99.95, seconds_lost=0.05))
        assert rows(found)[1][2] == "0.1 %"

    def test_a_run_that_did_nothing_else_yet(self):
        assert "0.0 % of 5 s" in sections.goodput(record(seconds_compile=5.0))
        assert sections.goodput(record()) == ""


class TestSamples:
    def shown(self, *samples: dict) -> list[tuple[str, str]]:
        found = sections.samples(record(samples=samples))
        return re.findall(r"<summary>step ([0-9,]+)<span>(.*?)</span>", found)

    def test_no_sample_no_section(self):
        assert sections.samples(record()) == ""

    def test_each_step_is_a_fold_with_its_first_words_the_latest_open(self):
        samples = [
            {"step": 1000, "text": " the  cat\nsat"},
            {"step": 20, "prompt": "A", "text": "A dog"},
            {"step": 20, "prompt": "B", "text": "B " + "x" * 200},
        ]
        assert self.shown(*samples) == [("1,000", "the cat sat"), ("20", "A dog")]
        found = sections.samples(record(samples=samples))
        assert found.count("<details") == 2
        assert found.index('open=""') < found.index("1,000")
        assert found.count('open=""') == 1

    def test_its_first_words_are_160_characters_with_the_prompt(self):
        ((_, words),) = self.shown({"step": 1, "prompt": "P" * 100, "text": "x" * 100})
        assert words == "P" * 100 + "x" * 60

    def test_the_prompt_is_told_from_what_follows_it_whether_or_not_that_repeats_it(self):
        for text in ("Once upon", " upon"):
            found = sections._sample({"prompt": "Once", "text": text}, 99)
            assert found == '<pre class="sample"><b>Once</b> upon</pre>'
        assert "<b></b>x" in sections._sample({"prompt": 3, "text": "x"}, 99)

    @pytest.mark.parametrize(
        ("longest", "end"), [(9, "abcd</pre>"), (4, "abcd</pre>"), (3, "abc<i> … 1 more")]
    )
    def test_a_sample_too_long_is_cut_and_says_by_how_much(self, longest, end):
        found = sections._sample({"prompt": "prompt", "text": "abcd"}, longest)
        assert end in found
        assert f"<b>{'prompt'[:longest]}</b>" in found
        assert ("more characters" in found) == (longest < 4)

    def test_all_together_are_no_longer_than_a_page_bears(self):
        """Forty steps of four samples: 300,000 characters over 160 of them."""
        samples = [
            {"step": step, "prompt": "p" * n, "text": "x" * 5000}
            for step in range(40)
            for n in range(4)
        ]
        found = sections.samples(record(samples=samples))
        cut = {len(each) for each in re.findall("</b>(x+)", found)}
        assert cut == {300_000 // 160}

    @pytest.mark.parametrize(("count", "kept"), [(39, 39), (40, 40), (41, 40)])
    def test_at_most_40_steps_evenly_with_both_ends(self, count, kept):
        samples = [{"step": step, "text": "x"} for step in range(1, count + 1)]
        found = self.shown(*samples)
        assert len(found) == kept
        assert (found[0][0], found[-1][0]) == (str(count), "1")
        told = f"{kept} of {count} steps with samples." in sections.samples(record(samples=samples))
        assert told == (count > kept)


class TestEvents:
    def test_the_latest_come_first_with_their_time_in_utc(self):
        events = [
            {"step": 0, "event": "start", "time": 0, "text": "Begun."},
            {"step": 1200, "event": "stop", "time": 86_399.9},
        ]
        assert rows(sections.events(record(events))) == [
            ["1970-01-01 23:59:59", "1,200", "stop", ""],
            ["1970-01-01 00:00:00", "0", "start", "Begun."],
        ]
        assert sections.events(record()) == ""

    @pytest.mark.parametrize(("count", "told"), [(200, False), (201, True)])
    def test_of_many_the_latest_200(self, count, told):
        found = sections.events(record({"step": n, "event": "skip"} for n in range(count)))
        assert len(rows(found)) == 200
        assert rows(found)[0][1] == str(count - 1)
        assert (f"The latest 200 of {count}." in found) == told

    @pytest.mark.parametrize("time", [None, "yesterday", 1e99, float("nan"), []])
    def test_a_time_that_is_none_is_left_out(self, time):
        assert sections._when(time) == ""

    @pytest.mark.parametrize(("count", "end"), [(1, " 0: "), (16, ", 15: "), (17, ", 15, …: ")])
    def test_skipped_rows_are_named_with_what_shows_them(self, count, end):
        event = {"step": 70, "text": "A spike.", "rows": [*range(count)]}
        said = re.sub("<.*?>", "", sections._told(event, record()))
        assert said.startswith("A spike.rows 0")
        assert said.endswith(f"{end}gptj show-rows runs/a 70")

    @pytest.mark.parametrize("given", [None, [], 3, "ab"])
    def test_an_event_without_rows_names_none(self, given):
        assert sections._told({"step": 70, "text": "x", "rows": given}, record()) == "x"


class TestConfiguration:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            *((True, "yes"), (False, "no"), (None, "none"), (2048, "2,048"), (3e5, "300,000")),
            *(
                (1e15, "1P"),
                (-2e15, "-2P"),
                (0.0006, "6e-4"),
                ("adamw", "adamw"),
                ([1, 2], "[1, 2]"),
                (0, "0"),
            ),
            *(("ab" * 16, f"<code>{'ab' * 16}</code>"), ("ab" * 15, "ab" * 15)),
            *((f"x{'ab' * 16}", f"x{'ab' * 16}"), (float("inf"), "inf")),
        ],
    )
    def test_values_are_for_people(self, value, text):
        assert sections._value(value) == text

    def test_each_group_has_a_table_and_what_is_in_none_comes_first(self):
        course = {"optimizer": {"lr": 0.1}, "seed": 3, "empty": {}, "model": {"layers": 2}}
        found = sections.configuration(record(course=course))
        assert re.findall("<h3>(.*?)</h3>", found) == ["run", "optimizer", "model"]
        assert rows(found)[0] == ["seed", "3"]

    def test_the_model_s_size_leads_its_group(self):
        shape = {
            **{"layers": 1, "d_model": 16, "heads": 2, "rotary_dims": 4, "d_ff": 32},
            **{"vocab_size": 60, "padded_vocab_size": 64, "context": 32, "layer_norm_eps": 1e-5},
            **{"rotary_base": 1e4, "embedding_bias": False},
        }
        found = sections.configuration(record(course={"model": shape}))
        named = rows(found)
        assert [each[0] for each in named[:2]] == ["parameters", "layers"]

    def test_without_any_there_is_no_section(self):
        assert sections.configuration(record()) == ""


def test_versions_tell_what_a_restart_changed_and_nothing_twice():
    events = [
        {"step": 0, "event": "start", "versions": {"jax": "1"}, "devices": "8 x cpu", "hosts": 0},
        {"step": 9, "event": "skip"},
        {"step": 1000, "event": "resume", "versions": {"jax": "1"}, "devices": "4 x cpu"},
        {"step": 2000, "event": "resume", "versions": {"jax": "2", "numpy": 2}, "mesh": "data=4"},
        {"step": 3000, "event": "resume", "versions": {"jax": "1"}},
        {"step": 4000, "event": "resume", "versions": "none"},
    ]
    assert rows(sections.versions(record(events))) == [
        ["jax", "1 → 2 at step 2,000 → 1 at step 3,000"],
        ["devices", "8 x cpu → 4 x cpu at step 1,000"],
        ["numpy", "2"],
        ["mesh", "data=4"],
    ]
    assert sections.versions(record([{"step": 1, "event": "skip"}])) == ""


class TestHtml:
    def test_without_a_head_each_row_s_first_cell_is_one(self):
        assert table((), [("a", "b"), ("c", "d")], "facts") == (
            '<table class="facts"><tbody><tr><th>a</th><td>b</td></tr>'
            "<tr><th>c</th><td>d</td></tr></tbody></table>"
        )

    def test_with_one_no_cell_is(self):
        assert table(("x", "<y>"), [("a", "b")], "facts") == (
            '<table class="facts"><thead><tr><th>x</th><th>&lt;y&gt;</th></tr></thead>'
            "<tbody><tr><td>a</td><td>b</td></tr></tbody></table>"
        )

    def test_some_tags_have_no_end_and_names_are_html_s(self):
        assert tag("meta", http_equiv="x") == '<meta http-equiv="x">'
        assert tag("i", class_="a", title=None, open="") == '<i class="a" open=""></i>'
