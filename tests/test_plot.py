"""The picture of a run's curves: what is drawn, for whichever metrics there are."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from gptj.errors import UserError
from gptj.plot import (
    Bar,
    Line,
    PlotConfig,
    Point,
    _smooth,
    plot,
    plot_bars,
    plot_growth,
    plot_scores,
)

pytest.importorskip("matplotlib")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that `plot` saves."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig

    def saved(figure, *args, **options):
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    return figures


def write_run(folder: Path, *rows: dict[str, float]) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def labels(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_loss_held_out_loss_gradient_norm_and_speed(tiny_run, tmp_path, drawn):
    plot(PlotConfig((tiny_run,), tmp_path / "curves.png"))
    loss, norm, speed = drawn[0].axes
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == [
        *("cross-entropy (nats a token)", "gradient norm", "tokens a second")
    ]
    raw, smooth, heldout = loss.lines
    np.testing.assert_array_equal(raw.get_xdata(), np.arange(1, 13))
    assert len(smooth.get_ydata()) == 12
    np.testing.assert_array_equal(heldout.get_xdata(), [6, 12])
    assert len(norm.lines) == 2
    assert len(speed.lines) == 2
    assert labels(drawn[0])[0] == "training"
    assert labels(drawn[0])[1].startswith("held-out: ")


def test_several_runs_on_the_same_axes_each_by_its_name(tiny_run, tmp_path, drawn):
    other = write_run(tmp_path / "other", {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0})
    plot(PlotConfig((tiny_run, other), tmp_path / "curves.png"))
    assert [label.split(":")[0] for label in labels(drawn[0])] == [
        *("tiny training", "tiny held-out", "other training")
    ]


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "loss": 2.0, "grad_norm": 1.0}],
        [{"step": 1}],
        [{"step": 1, "heldout_loss": 2.0}],
        [{"step": n, "loss": float("nan"), "grad_norm": float("nan")} for n in range(1, 9)],
        [{"step": n, "loss": 1.0, "grad_norm": 0.0} for n in range(1, 9)],
        [{"step": n, "loss": 1.0, "tokens_per_second": 5.0} for n in range(1, 500)],
    ],
)
def test_whatever_a_run_has_is_drawn(rows, tmp_path):
    out = tmp_path / "curves.png"
    plot(PlotConfig((write_run(tmp_path / "run", *rows),), out))
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_suffix_chooses_the_kind(tiny_run, tmp_path, suffix, start):
    out = tmp_path / f"curves{suffix}"
    plot(PlotConfig((tiny_run,), out))
    assert out.read_bytes().startswith(start)


def test_without_matplotlib_it_says_how_to_get_it(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'gptj-jax\[plot\]'"):
        plot(PlotConfig((tiny_run,), tmp_path / "curves.png"))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 40, 200])
def test_smoothing_keeps_the_length_and_a_constant(length):
    np.testing.assert_allclose(_smooth(np.full(length, 3.0)), np.full(length, 3.0))


def test_smoothing_is_the_mean_of_the_neighbours():
    values = np.arange(10.0) ** 2
    middle = (values[3] + values[4] + values[5]) / 3
    np.testing.assert_allclose(_smooth(values)[4], middle)
    np.testing.assert_allclose(_smooth(values)[0], (values[0] + values[1]) / 2)


class TestMistakes:
    def test_a_folder_without_metrics(self, refused, tmp_path):
        said = (f"{tmp_path} has no metrics: give the folder of a run",)
        refused("plot", tmp_path, "--out", tmp_path / "a.png", said=said)
        assert list(tmp_path.iterdir()) == []

    def test_one_good_run_and_one_that_is_not_there(self, refused, tiny_run, tmp_path):
        said = ("nowhere has no metrics",)
        refused("plot", tiny_run, "nowhere", "--out", tmp_path / "a.png", said=said)

    def test_no_run_at_all(self, refused):
        refused("plot", said=("no run to plot: name the folder of one",))

    @pytest.mark.parametrize("name", ["curves", "curves.bmp", "curves.png.txt"])
    def test_a_kind_of_picture_there_is_none_of(self, refused, tiny_run, tmp_path, name):
        said = (f"out={tmp_path / name} must end in one of .png, .svg, .pdf",)
        refused("plot", tiny_run, "--out", tmp_path / name, said=said)

    def test_a_place_that_cannot_be_written(self, refused, tiny_run, tmp_path):
        (tmp_path / "file").write_text("a file")
        out = tmp_path / "file/curves.png"
        said = (f"{out} cannot be written", "choose another --out")
        refused("plot", tiny_run, "--out", out, said=said)

    def test_metrics_that_are_damaged(self, refused, own_run):
        with (own_run / "metrics.jsonl").open("ab") as log:
            log.write(b'\xff\xff\n{"step": 13}\n')
        refused("plot", own_run, said=(f"{own_run}/metrics.jsonl:13", "delete that line"))


KNOWN = [Point("GPT-3-13B", 2e22, 70.0), Point("GPT-3-1.3B", 2e21, 60.0), Point("Ada", None, 50.0)]


def test_scores_against_flops_by_family_with_ours_marked(tmp_path, drawn):
    own = Point("mine", 1e20, 40.0, 2.0)
    plot_scores({"a": (KNOWN, own), "b": (KNOWN, own)}, tmp_path / "deep/scores.png")
    (figure,) = drawn
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    family = figure.axes[0].lines[0]
    assert (list(family.get_xdata()), list(family.get_ydata())) == ([2e21, 2e22], [60, 70])
    assert {text.get_text() for text in figure.axes[0].texts} == {"1.3B", "13B"}
    assert labels(figure) == ["GPT-3", "mine"]
    assert figure.axes[0].get_xscale() == "log"


def test_without_flops_ours_is_a_line_across_and_no_frame_is_left_empty(tmp_path, drawn):
    panels = {name: (KNOWN, Point("mine", None, 40.0)) for name in "abcd"}
    plot_scores(panels, tmp_path / "scores.png")
    assert list(drawn[0].axes[0].lines[-1].get_ydata()) == [40, 40]
    assert [axes.axison for axes in drawn[0].axes] == [True] * 4 + [False] * 2


def test_bars_stand_in_groups_with_the_limit_beside_them(tmp_path, drawn):
    groups = {
        "1 slot": [Bar("gptj int8", 40.0, "130 tokens/s"), Bar("peer int8", 20.0, "60 tokens/s")],
        "8 slots": [Bar("gptj int8", 90.0, "600 tokens/s")],
    }
    plot_bars(groups, "decode", "% of the limit", 100, tmp_path / "bars.png")
    (axes,) = drawn[0].axes
    assert [bar.get_width() for bar in axes.patches] == [40, 20, 90]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "gptj int8", "peer int8", "gptj int8"
    ]  # fmt: skip
    ours, peer, again = [bar.get_facecolor() for bar in axes.patches]
    assert ours == again != peer
    assert axes.lines[0].get_xdata()[0] == 100
    assert axes.get_xlim()[1] > 100


def test_growth_is_drawn_with_both_axes_logarithmic(tmp_path, drawn):
    lines = [Line("layers", (1, 2, 4), (1.0, 2.0, 4.0)), Line("batch", (1, 8), (3.0, 9.0))]
    plot_growth({"a step": lines, "compiling": lines[:1]}, tmp_path / "growth.svg")
    step, compiling = drawn[0].axes
    assert [len(axes.lines) for axes in (step, compiling)] == [2, 1]
    assert {step.get_xscale(), step.get_yscale()} == {"log"}
    assert step.get_title(loc="left") == "a step"
