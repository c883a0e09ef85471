"""A plan as a page: one file that asks for nothing, with the figures that the terminal has."""

import dataclasses
import html.parser
import json
import re

import pytest

from gptj.plan import serve, terminal
from gptj.plan.compiled import Compiled, Exchange
from gptj.plan.page import page
from gptj.plan.place import find
from gptj.plan.plan import plan_of

GIB, MIB = 2**30, 2**20
WAIT = Exchange("all-reduce", ("data", "fsdp"), 4, MIB, 2, 0.25, False, tuple("abcde"))
FACTS = Compiled(2.6, 3 * GIB, GIB, 2 * GIB, GIB, 3350e9, (WAIT,), 0, "JAX 9 <beta>", "xla")


class Page(html.parser.HTMLParser):
    """Reads a page: the rows and the text of each section, and every tag closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.titles, self.styles, self.text = [], [], [], [], ""
        self.attributes = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *each) for each in attrs]
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if self.open[-1:] == ["h2"]:
            self.titles.append(data)
        if not {"style", "script"} & set(self.open):
            self.text += f"{data}\n"

    def widths(self, of):
        """Of all bars of that style class, in percent."""
        tags = zip(self.attributes, self.attributes[1:], strict=False)
        return [
            float(re.fullmatch(r"width:([\d.]+)%", style[2])[1])
            for kind, style in tags
            if kind == ("i", "class", of) and style[1] == "style"
        ]


@pytest.fixture
def plan(small_job):
    def planned(**changes):
        return plan_of(small_job("h100:8", (2, 2, 2)), dataclasses.replace(FACTS, **changes))

    return planned


def test_asks_for_nothing_and_carries_all_that_json_has(plan):
    found = plan().plain() | {"note": "</script><b>"}
    text = page(found, [plan()])
    assert not re.search(r"(src|href|url)\s*[=(]", text)
    values = re.search(r'<script type="application/json" id="plan">(.*?)</script>', text, re.S)
    assert json.loads(values[1]) == json.loads(json.dumps(found))
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("meta", "content", policy) in Page(text).attributes
    assert "JAX 9 <beta>" in Page(text).text  # and so it was escaped


def test_a_step(plan):
    found = plan()
    read = Page(page(found.plain(), [found]))
    assert read.titles == [
        *("Memory of a device", "Activations kept, by remat", "Collectives in a step"),
        "Seconds of a step",
    ]
    for said in (terminal.verdict(found), terminal.computing(found), terminal.how(found)):
        assert said in read.text
    assert "16 rows of 256 tokens, 2 x 2 a device" in read.text
    for card in ("of 74.5 GiB a device", "bound: memory", "8 devices"):
        assert card in read.text
    for mfu, hfu in (
        (found.used.gptj_mfu, found.used.gptj_hfu),
        (found.used.palm_mfu, found.used.palm_hfu),
        (found.used.article_mfu, found.used.article_hfu),
    ):
        assert f"{100 * mfu:.1f} %\nHFU {100 * hfu:.1f} %\n" in read.text
    assert ["weights", "2 GiB", "2.7 %"] in read.rows
    assert ["none", "4.5 MiB", ""] in read.rows
    wait = ["all-reduce", "data+fsdp", "4", "1 MiB", "2", "2 MiB", "0.25", "a, b, c, d…"]
    assert wait in read.rows
    assert ["interconnect", "0.25", "at best"] in read.rows
    (row,) = [row for row in read.rows if row[0] == "predicted"]
    assert row[1] == "1.25"
    assert row[2].startswith("products at 50.8 % of the peak (30B")
    assert row[2].endswith("and 0.25 s of waiting for others")


def test_bars_are_of_what_there_is_or_of_what_is_needed(plan):
    """By hand in test_estimate.py: 4.5 MiB, 2.25 MiB, 512 KiB and nothing are kept."""
    read = Page(page(plan().plain(), [plan()]))
    assert read.widths("t-data")[-4:] == [100, 50, 11.1, 0]
    assert read.widths("t-step") == [pytest.approx(100 * 2 * GIB / 80e9, abs=1e-3)]
    large = plan(temporaries=157 * GIB, weights=80 * GIB, optimizer=0, arguments=3 * GIB)
    read = Page(page(large.plain(), [large]))
    assert read.widths("t-step") == [50]
    assert ["weights", "80 GiB", "107.4 %"] in read.rows
    assert ("strong", "class", "stopped") in read.attributes


def test_collectives_that_are_few_hidden_or_none(plan):
    hidden = dataclasses.replace(WAIT, is_hidden=True, arrays=("a", "b", "c", "d"))
    read = Page(page({}, [plan(exchanges=(hidden,))]))
    (row,) = [row for row in read.rows if row[0].startswith("all-reduce")]
    assert (row[0], row[-1]) == ("all-reduce (hidden)", "a, b, c, d")
    assert "None." in Page(page({}, [plan(exchanges=())])).text


def test_what_was_asked_for_beside_it(plan):
    found = plan().plain() | {
        "run": {"tokens": 4e9, "chip_hours": 1234.0}, "measured": {"devices": "8 x <cpu>"}
    }  # fmt: skip
    read = Page(page(found, [plan()]))
    assert read.titles[-2:] == ["The whole run", "Measured here"]
    assert read.rows[-3:] == [["tokens", "4G"], ["chip hours", "1,234"], ["devices", "8 x <cpu>"]]


def test_a_ranking_has_the_first_ones_figures_and_all_reasons(plan):
    plans = [plan(), plan(temporaries=90 * GIB)]
    reasons = ["", "needs more"]
    ranked = [each.plain() | {"reason": r} for each, r in zip(plans, reasons, strict=True)]
    ranked[0]["run"] = {"days": 2.5}
    ranked[1]["run"] = {"days": 99.0}
    read = Page(page({"ranked": ranked}, plans))
    assert read.titles[0] == "What was tried"
    assert read.text.index("What was tried") < read.text.index("Tokens a second")
    mesh = ["data=2,fsdp=2,tensor=2", "block", "2 x 2"]
    assert [*mesh, "4 GiB", "1.25", "3,277", "the best"] in read.rows
    assert [*mesh, "93 GiB", "1.25", "3,277", "needs more"] in read.rows
    assert read.rows[-1] == ["days", "2.5"]
    assert "What was tried" not in Page(page({"ranked": ranked[:1]}, plans[:1])).titles


@pytest.mark.parametrize("fits", [True, False])
def test_an_engine(small_job, fits):
    model = small_job("h100:8", (8, 1, 1)).model
    asked = serve.ServeJob(find("h100:8"), model, (4, 1, 2), 8, 200)
    rates = (serve.Rate(8, 0.002, "memory", True), serve.Rate(16, 0.0025, "compute", False))
    found = serve.ServePlan(
        asked, 1_839_616, 3 * GIB, 0, GIB, 100.0, 2 * GIB, (20 if fits else 5) * GIB, 12, 5000,
        rates, "by formula",
    )  # fmt: skip
    read = Page(page(found.plain(), [found]))
    room = "20 GiB" if fits else "5 GiB"
    assert f"it {'fits' if fits else 'does not fit'}: 6 GiB of {room} a device" in read.text
    assert ("strong", "class", "finished" if fits else "stopped") in read.attributes
    assert "1.84M parameters in bfloat16" in read.text
    assert "Slots that fit\n12\nof 200 tokens\nLongest\n5,000\n" in read.text
    assert ["8", "2", "4,000", "memory", ""] in read.rows
    assert ["16", "2.5", "6,400", "compute", "does not fit"] in read.rows
    assert ["keys and values", "1 GiB", "5.0 %" if fits else "20.0 %"] in read.rows
    few = dataclasses.replace(found, job=dataclasses.replace(asked, quantize="int8"))
    assert "1.84M parameters in int8" in Page(page(few.plain(), [few])).text
