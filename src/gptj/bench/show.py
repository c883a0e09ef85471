"""A result for people: as a table, and as bars against the limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gptj.bench.config import Peer
from gptj.bench.recorded import ORIGINAL
from gptj.bench.records import Figure, Result
from gptj.plot import Bar, plot_bars

RECORDED: Peer = "original"


def show(result: Result, peers: Sequence[Peer], console: Console) -> None:
    """Print the limits, every figure with its share of them, and the ratios to peers."""
    console.print(_limits(result))
    table = Table("", "", *_columns(result), box=None, header_style="")
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[2:]:
        column.justify = "right"
    for case, figures in _by_case(result):
        for n, figure in enumerate(figures):
            table.add_row("" if n else case, *_row(result, figure))
    console.print(table)
    for why in result.left_out:
        console.print(f"left out: {why}")
    for ratio in result.ratios:
        console.print(
            f"{ratio.case}: {ratio.ours} is {ratio.median:.2f} times as fast as {ratio.peer} "
            f"({ratio.least:.2f} to {ratio.most:.2f})"
        )
    for each in ORIGINAL if RECORDED in peers else ():
        console.print(
            f"recorded of Mesh Transformer JAX, GPT-J-6B on a {each.hardware}: "
            f"{each.tokens_per_second:,.0f} tokens/s, {100 * each.share:.0f} % of the makers' peak "
            f"({each.source})"
        )


def picture(result: Result, out: Path) -> None:
    """Draw each figure's share of its limit as a bar; without a limit, its rate.

    Raises:
      UserError: `out` cannot be written, or matplotlib is not installed.
    """
    bars: dict[str, list[Bar]] = {}
    has_limit = all(result.share(figure) for figure in result.figures)
    for case, figures in _by_case(result):
        for figure in figures:
            share = result.share(figure)
            size = 100 * share[0] if share and has_limit else figure.rate
            said = f"{figure.rate:,.3g} {figure.work.unit}/s" if figure.rate < 1000 else (
                f"{figure.rate:,.0f} {figure.work.unit}/s"
            )  # fmt: skip
            bars.setdefault(case, []).append(Bar(str(figure.side), size, said))
    unit = result.figures[0].work.unit
    title = f"gptj bench {result.subject}, {result.limits.device}"
    below = "% of the limit" if has_limit else f"{unit} a second"
    plot_bars(bars, title, below, 100 if has_limit else None, out)


def _limits(result: Result) -> str:
    limits, machine = result.limits, result.machine
    processor = machine.get("processor") or ""
    device = processor if limits.device == "cpu" else limits.device
    flops = ", ".join(f"{_short(rate)}FLOP/s in {kind}" for kind, rate in limits.flops.items())
    threads = f", {machine['threads']} threads" if limits.device == "cpu" else ""
    return f"{device}{threads}: reads {_short(limits.bandwidth)}B/s, multiplies {flops}"


def _by_case(result: Result) -> Iterator[tuple[str, list[Figure]]]:
    for case in dict.fromkeys(figure.case for figure in result.figures):
        yield case, [figure for figure in result.figures if figure.case == case]


def _columns(result: Result) -> tuple[str, ...]:
    unit = result.figures[0].work.unit
    return f"{unit}/s", "seconds", "of the limit", "peak memory"


def _row(result: Result, figure: Figure) -> tuple[str, ...]:
    share = result.share(figure)
    return (
        str(figure.side),
        f"{figure.rate:,.0f}" if figure.rate >= 1000 else f"{figure.rate:.3g}",
        f"{figure.median:.3g}",
        f"{100 * share[0]:.0f} %, {share[1]}" if share else "",
        f"{figure.peak_bytes / 2**30:.2f} GiB",
    )


def _short(rate: float) -> str:
    """With a prefix of three digits each: 33.1 G."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if rate >= size:
            return f"{rate / size:.3g} {prefix}"
    return f"{rate / 1e6:.3g} M"
