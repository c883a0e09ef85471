"""A result for people: every figure in its row with what it is a share of, and as bars."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from gptj.bench import show as module
from gptj.bench.records import Figure, Limits, Result, Side, Work
from gptj.bench.show import picture, show
from gptj.plot import Bar

OURS, PEER = Side("gptj", "int8"), Side("one", "int8")
LIMITS = Limits("cpu", 12.34e9, {"float32": 2.5e12, "bfloat16": 999e6})
MACHINE = {"processor": "A Fast One", "threads": 6}


def figure(side: Side, seconds: float, case: str, amount: float = 60.0, read: float = 1e9):
    return Figure(side, case, Work("tokens", amount, bytes=read), [seconds], 3 * 2**29)


def result(*figures: Figure, limits: Limits = LIMITS, left_out: tuple[str, ...] = ()) -> Result:
    return Result("decode", "", {}, limits, list(figures), [*left_out], MACHINE, "2026-01-31")


def said(found: Result, *peers: str) -> list[str]:
    """The lines, each of which has one space where there are several."""
    out = io.StringIO()
    show(found, peers, Console(file=out, width=200))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


BOTH = result(
    figure(OURS, 0.5, "1 slot"), figure(OURS, 0.0125, "8 slots"),
    figure(PEER, 2.0, "1 slot"), figure(PEER, 0.05, "8 slots"), left_out=("two has no int8",),
)  # fmt: skip


class TestTheTable:
    def test_first_comes_what_the_machine_can_do(self):
        assert said(BOTH)[0] == (
            "A Fast One, 6 threads: reads 12.3 GB/s, "
            "multiplies 2.5 TFLOP/s in float32, 999 MFLOP/s in bfloat16"
        )

    def test_an_accelerator_is_named_and_the_host_s_threads_are_not(self):
        far = Limits("NVIDIA H100", 3.1e12, {"bfloat16": 1.5e15})
        (line, *_) = said(result(figure(OURS, 1.0, "1 slot"), limits=far))
        assert line == "NVIDIA H100: reads 3.1 TB/s, multiplies 1.5 PFLOP/s in bfloat16"

    def test_each_case_is_named_once_and_holds_all_who_did_it(self):
        lines = said(BOTH)
        assert lines[1] == "tokens/s seconds of the limit peak memory"
        assert lines[2:6] == [
            "1 slot gptj int8 120 0.5 16 %, memory 1.50 GiB",
            "one int8 30 2 4 %, memory 1.50 GiB",
            "8 slots gptj int8 4,800 0.0125 648 %, memory 1.50 GiB",
            "one int8 1,200 0.05 162 %, memory 1.50 GiB",
        ]

    def test_then_what_was_left_out_and_how_many_times_as_fast_ours_are(self):
        assert said(BOTH)[6:] == [
            "left out: two has no int8",
            "1 slot: gptj int8 is 4.00 times as fast as one int8 (4.00 to 4.00)",
            "8 slots: gptj int8 is 4.00 times as fast as one int8 (4.00 to 4.00)",
        ]

    def test_what_has_no_limit_has_no_share(self):
        lines = said(result(figure(OURS, 0.5, "the mix", read=0.0)))
        assert lines[2] == "the mix gptj int8 120 0.5 1.50 GiB"

    def test_the_original_is_recalled_where_it_was_asked_for(self):
        recalled = [x for x in said(BOTH, "one", "original") if x.startswith("recorded of")]
        assert recalled[0].startswith(
            "recorded of Mesh Transformer JAX, GPT-J-6B on a TPU v3-256: 151,000 tokens/s, "
            "35 % of the makers' peak (https://"
        )
        assert "on a TPU v3-8: 5,000 tokens/s, 37 %" in recalled[1]
        assert not any(x.startswith("recorded of") for x in said(BOTH, "one"))

    @pytest.mark.parametrize(
        ("amount", "rate"), [(999.4, "999"), (1000.0, "1,000"), (0.01234, "0.0123"), (5e6, "5,0")]
    )
    def test_rates_are_in_three_digits_or_whole(self, amount, rate):
        lines = said(result(figure(OURS, 1.0, "1 slot", amount=amount)))
        assert lines[2].startswith(f"1 slot gptj int8 {rate}")


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        *((1e15, "1 P"), (9.99e14, "999 T"), (1e12, "1 T"), (33.14e9, "33.1 G"), (1e9, "1 G")),
        *((9.5e8, "950 M"), (1e4, "0.01 M")),
    ],
)
def test_rates_of_a_machine_have_a_prefix(rate, text):
    assert module._short(rate) == text


class TestThePicture:
    @pytest.fixture
    def drawn(self, monkeypatch):
        """What is given to be drawn."""
        calls = []
        monkeypatch.setattr(module, "plot_bars", lambda *given: calls.append(given))
        return calls

    def test_bars_are_shares_beside_the_whole_limit(self, drawn):
        picture(BOTH, Path("x.png"))
        ((bars, title, below, limit, out),) = drawn
        names = {case: [each.name for each in own] for case, own in bars.items()}
        both = ["gptj int8", "one int8"]
        assert names == {"1 slot": both, "8 slots": both}
        sizes = [each.size for own in bars.values() for each in own]
        assert sizes == pytest.approx([16.207, 4.0519, 648.30, 162.07], rel=1e-4)
        assert [each.said for each in bars["8 slots"]] == ["4,800 tokens/s", "1,200 tokens/s"]
        assert (title, below) == ("gptj bench decode, cpu", "% of the limit")
        assert (limit, out) == (100, Path("x.png"))

    def test_where_one_has_no_limit_all_are_rates(self, drawn):
        """Or bars of two units would stand on one axis."""
        picture(result(figure(OURS, 0.5, "a"), figure(PEER, 2.0, "a", read=0.0)), Path("x.png"))
        ((bars, _, below, limit, _),) = drawn
        assert bars == {
            "a": [Bar("gptj int8", 120.0, "120 tokens/s"), Bar("one int8", 30.0, "30 tokens/s")]
        }
        assert (below, limit) == ("tokens a second", None)

    @pytest.mark.parametrize(
        ("amount", "text"), [(999.9, "1e+03"), (1000.0, "1,000"), (0.5, "0.5"), (12.345, "12.3")]
    )
    def test_a_bar_says_its_rate(self, drawn, amount, text):
        picture(result(figure(OURS, 1.0, "a", amount=amount)), Path("x.png"))
        (bar,) = drawn[0][0]["a"]
        assert bar.said == f"{text} tokens/s"
