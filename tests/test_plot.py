"""The picture of a run's curves: what is drawn, for whichever metrics there are."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from gptj import plot as module
from gptj.errors import UserError
from gptj.plot import (
    Bar,
    Line,
    PlotConfig,
    Point,
    _smooth,
    check_picture,
    plot,
    plot_bars,
    plot_growth,
    plot_lengths,
    plot_rates,
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
        said = (f"{out} cannot be written", "choose another place")
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


@pytest.fixture
def figures(monkeypatch):
    """What would be saved; to draw it costs time, and what it holds is known before."""
    kept = []
    monkeypatch.setattr(module, "_save", lambda figure, out: kept.append(figure))
    return kept


OUT = Path("never written")


class TestWhatIsUsual:
    def test_a_first_peak_of_the_gradient_is_not_and_sets_no_height(self, figures, tmp_path):
        norms = [100.0, *[2.0] * 99]
        rows = [{"step": n, "loss": 1.0, "grad_norm": g} for n, g in enumerate(norms)]
        plot(PlotConfig((write_run(tmp_path / "run", *rows),), tmp_path / "x.png"))
        (figure,) = figures
        assert figure.axes[1].get_ylim() == (0, pytest.approx(1.3 * 2))
        assert figure.axes[2].get_ylim()[0] == 0

    def test_of_several_runs_the_higher_is_seen(self, figures, tmp_path):
        runs = [
            write_run(tmp_path / name, *({"step": n, "grad_norm": norm} for n in range(9)))
            for name, norm in (("a", 2.0), ("b", 6.0))
        ]
        plot(PlotConfig(tuple(runs), tmp_path / "x.png"))
        assert figures[0].axes[1].get_ylim() == (0, pytest.approx(1.3 * 6))

    @pytest.mark.parametrize(
        ("norms", "peak"),
        [([], 0), ([math.nan, math.inf], 0), ([math.inf, 3.0, math.nan], 3), ([1.0, 2.0], 1.98)],
    )
    def test_what_is_no_number_counts_for_nothing(self, norms, peak):
        rows = [{"step": n, "grad_norm": norm} for n, norm in enumerate(norms)]
        assert module._usual_peak([{"step": 99}, *rows]) == pytest.approx(peak)


def test_the_last_held_out_loss_is_written_out_and_one_run_needs_no_name(figures, tmp_path):
    rows = [{"step": n, "loss": 3.0, "heldout_loss": 2.5 - n / 7} for n in range(4)]
    plot(PlotConfig((write_run(tmp_path / "run", *rows),), tmp_path / "x.png"))
    assert labels(figures[0]) == ["training", "held-out: 2.071 at the end"]


class TestBars:
    def test_groups_stand_below_each_other_with_room_between_and_the_first_on_top(self, figures):
        groups = {"a": [Bar("x 1", 1.0, ""), Bar("y 1", 3.0, "")], "b": [Bar("x 2", 2.0, "")]}
        plot_bars(groups, "title", "unit", None, OUT)
        (axes,) = figures[0].axes
        assert axes.get_yticks().tolist() == pytest.approx([1, 2, 4.2])
        low, high = axes.get_ylim()
        assert low > 4.2 + 0.36
        assert high < -0.3
        assert [text.get_text() for text in axes.texts] == ["a", " ", " ", "b", " "]
        assert axes.get_xlim() == (0, pytest.approx(1.15 * 3))
        assert list(axes.lines) == []

    @pytest.mark.parametrize(("limit", "end"), [(100, 115), (10, 46)])
    def test_both_the_limit_and_what_passes_it_are_seen(self, figures, limit, end):
        plot_bars({"a": [Bar("x", 40.0, "forty")]}, "", "", limit, OUT)
        (axes,) = figures[0].axes
        assert axes.get_xlim()[1] == pytest.approx(end)
        assert axes.lines[0].get_xdata()[0] == limit
        assert axes.texts[1].get_position()[0] == 40

    def test_who_comes_again_has_the_same_color_whatever_the_type(self, figures):
        names = ["ours a", "one a", "two a", "three a", "four a", "five a", "ours b", "one b"]
        plot_bars({"a": [Bar(name, 1.0, "") for name in names]}, "", "", None, OUT)
        colors = [bar.get_facecolor() for bar in figures[0].axes[0].patches]
        assert colors[6:] == colors[:2]
        assert len({*colors[:5]}) == 5
        assert colors[5] == colors[0]  # of five they begin again


def test_lengths_are_shares_of_all_documents_by_powers_of_two(figures):
    counts = {"mine": np.array([0, 1, 3]), "theirs": np.array([5])}
    plot_lengths(counts, OUT)
    (axes,) = figures[0].axes
    mine, theirs = (patch.get_data() for patch in axes.patches)
    assert (mine.values.tolist(), mine.edges.tolist()) == ([0, 25, 75], [1, 2, 4, 8])
    assert (theirs.values.tolist(), theirs.edges.tolist()) == ([100], [1, 2])
    assert labels(figures[0]) == ["mine", "theirs"]
    assert axes.get_xscale() == "log"


def test_rates_are_drawn_with_their_mean_and_the_one_suggested(figures):
    plot_rates([1e-4, 1e-3], [3.0, 2.0], [3.0, 2.5], 4.2e-4, OUT)
    (axes,) = figures[0].axes
    raw, smooth, line = axes.lines
    assert (list(raw.get_ydata()), list(smooth.get_ydata())) == ([3, 2], [3, 2.5])
    assert line.get_xdata()[0] == 4.2e-4
    assert labels(figures[0]) == ["running mean", "suggested: 4.2e-04"]
    assert axes.get_xscale() == "log"


class TestGrids:
    @pytest.mark.parametrize(
        ("count", "across", "down"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 3, 2), (7, 3, 3)]
    )
    def test_at_most_three_stand_beside_each_other(self, figures, count, across, down):
        own = Point("mine", 1e20, 40.0)
        plot_scores({str(n): (KNOWN, own) for n in range(count)}, OUT)
        plot_growth({str(n): [Line("x", (1, 2), (1.0, 2.0))] for n in range(count)}, OUT)
        for figure in figures:
            assert figure.get_size_inches().tolist() == pytest.approx([4.2 * across, 3.4 * down])
        assert len(figures[0].axes) == across * down

    @pytest.mark.parametrize(
        ("found", "low", "high"),
        [([1.0, 1.0], 1 / 30**0.5, 30**0.5), ([1.0, 100.0], 1 / 1.2, 120)],
    )
    def test_what_hardly_grows_looks_so(self, figures, found, low, high):
        """The axis spans a factor of 30 at the least."""
        plot_growth({"a": [Line("x", (1, 2), found)]}, OUT)
        assert figures[0].axes[0].get_ylim() == pytest.approx((low, high))

    def test_with_more_curves_than_colors_all_are_drawn(self, figures):
        plot_growth({"a": [Line(str(n), (1, 2), (1.0, 2.0)) for n in range(7)]}, OUT)
        known = [Point(f"family{n}-1B", 1e21, 6.0) for n in range(7)]
        plot_scores({"a": (known, Point("mine", None, 1.0))}, OUT)
        assert [len(figure.axes[0].lines) for figure in figures] == [7, 7 + 1]

    def test_our_own_score_has_its_error_where_that_is_known(self, figures):
        for error, bars in ((2.0, 1), (None, 0)):
            plot_scores({"a": (KNOWN, Point("mine", 1e20, 40.0, error))}, OUT)
            containers = figures[-1].axes[0].containers
            assert len(containers) == 1
            (_, _, lines) = containers[0]
            assert len(lines) == bars
        (segment,) = figures[0].axes[0].containers[0][2][0].get_segments()
        assert segment[:, 1].tolist() == [38, 42]

    def test_families_are_in_one_order_with_their_members_by_size(self, figures):
        known = [*KNOWN, Point("Bee-2B", 3e21, 5.0), Point("Bee-1B", 1e21, 6.0)]
        plot_scores({"a": (known, Point("mine", None, 1.0))}, OUT)
        families = figures[0].axes[0].lines[:2]
        assert [line.get_label() for line in families] == ["Bee", "GPT-3"]
        assert list(families[0].get_xdata()) == [1e21, 3e21]


def test_a_picture_is_of_a_known_kind():
    for name in ("a.png", "a.svg", "deep/a.pdf"):
        check_picture(Path(name), "plot")
    with pytest.raises(UserError, match=r"^plot=a.PNG must end in one of \.png, \.svg, \.pdf$"):
        check_picture(Path("a.PNG"), "plot")


@pytest.mark.parametrize(
    ("length", "width"), [(79, 1), (80, 2), (119, 2), (120, 3)], ids=lambda n: str(n)
)
def test_smoothing_widens_with_the_curve(length, width):
    values = np.arange(float(length)) ** 2
    middle = values[40 - width : 41 + width].mean()
    np.testing.assert_allclose(_smooth(values)[40], middle)
    np.testing.assert_allclose(_smooth(values)[-1], values[-1 - width :].mean())
