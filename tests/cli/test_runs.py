"""The verbs about a run: what they ask of it, and what they print."""

from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from gptj.checkpoint.manifest import Verified
from gptj.cli import runs
from gptj.cli.runs import AlsoMeasured
from gptj.errors import UserError
from gptj.train.config import TrainConfig
from gptj.train.lr_find import LrFound

CONFIG = TrainConfig(Path("data"), Path("run"))


class TestWhatElseIsMeasured:
    @pytest.fixture
    def harness(self, monkeypatch):
        asked = []

        def under_way(tasks, limit):
            asked.append(("under way", tasks, limit))
            return "measure"

        tasks = SimpleNamespace(
            load=lambda *what: asked.append(what) or "tasks", under_way=under_way
        )
        monkeypatch.setattr(runs, "harness", lambda: (None, tasks))
        monkeypatch.setattr(runs, "of_sources", lambda config: ("sources of", config))
        return asked

    def test_nothing_unless_asked(self, harness):
        assert AlsoMeasured().evaluators(CONFIG) == []
        assert harness == []

    def test_sources_and_tasks(self, harness):
        also = AlsoMeasured(True, ("piqa", "arc"), 50, 7, Path("questions"))
        sources, tasks = also.evaluators(CONFIG)
        assert sources == ("sources of", CONFIG)
        assert (tasks.every, tasks.measure) == (50, "measure")
        assert tasks.check(10**6) is None
        assert harness == [
            (("piqa", "arc"), Path("questions")),
            ("under way", "tasks", 7),
        ]

    def test_tasks_are_asked_on_one_host(self, harness, monkeypatch):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        said = r"tasks are asked on one host only: leave out eval_tasks, and let `gptj eval run` on"
        with pytest.raises(UserError, match=said):
            AlsoMeasured(eval_tasks=("piqa",)).evaluators(CONFIG)
        assert len(AlsoMeasured(eval_sources=True).evaluators(CONFIG)) == 1

    @pytest.mark.parametrize("name", ["eval_tasks_every", "eval_tasks_limit"])
    def test_at_least_once(self, name):
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1$"):
            AlsoMeasured(eval_tasks=("piqa",), **{name: 0})
        assert AlsoMeasured(eval_tasks=("piqa",), **{name: 1})

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("eval_tasks_every", 5),
            ("eval_tasks_limit", 5),
            ("eval_tasks_limit", None),
            ("eval_tasks_local", Path("questions")),
        ],
    )
    def test_how_tasks_are_asked_means_nothing_without_any(self, name, value):
        said = f"^{name} is of tasks, and none is asked: give --eval-tasks too$"
        with pytest.raises(UserError, match=said):
            AlsoMeasured(**{name: value})
        assert getattr(AlsoMeasured(eval_tasks=("piqa",), **{name: value}), name) == value


class TestTrain:
    def test_what_is_asked_for_arrives(self, gptj, monkeypatch):
        heard = []
        found = lambda config, *, evaluators: heard.append((config, evaluators))  # noqa: E731
        monkeypatch.setattr(runs, "train", found)
        monkeypatch.setattr(AlsoMeasured, "evaluators", lambda also, config: [also, config])
        words = ("--data", "d", "--out", "o", "--steps", 5, "--eval-tasks", "piqa")
        assert gptj("train", *words, "--hosts.count", 1).code == 0
        ((config, (also, same)),) = heard
        assert config == same == TrainConfig(Path("d"), Path("o"), steps=5)
        assert also == AlsoMeasured(eval_tasks=("piqa",))


class TestLrFind:
    def said(self, gptj, monkeypatch, smooth, *words):
        rates = (1e-4, 1e-3, 1e-2)

        def find(config, show):
            show(1e-4, 2.5)
            return LrFound(rates, smooth, smooth)

        drawn = []
        monkeypatch.setattr(runs, "lr_find", find)
        monkeypatch.setattr(runs, "plot_rates", lambda *what: drawn.append(what))
        code, out, _ = gptj("lr-find", "--data", "d", *words)
        assert code == 0
        first, *rest = out.splitlines()
        assert first == "lr 1.00e-04  loss 2.5000"
        return rest, drawn

    @pytest.mark.parametrize(
        ("smooth", "said"),
        [
            ((3.0, 1.0, 2.0), "lowest at lr 1.0e-03; begin with --lr 1.0e-04"),
            ((1.0, 2.0, 3.0), "lowest at lr 1.0e-04, an end of the range: choose another --lowest"),
            (
                (3.0, 2.0, 1.0),
                "lowest at lr 1.0e-02, an end of the range: choose another --highest",
            ),
        ],
    )
    def test_what_to_begin_with_or_where_to_look(self, gptj, monkeypatch, smooth, said):
        assert self.said(gptj, monkeypatch, smooth) == (["", said], [])

    def test_a_picture_of_all_of_it(self, gptj, monkeypatch, tmp_path):
        smooth, picture = (3.0, 1.0, 2.0), tmp_path / "lr.png"
        lines, drawn = self.said(gptj, monkeypatch, smooth, "--out", picture)
        assert lines[-1] == f"wrote {picture}"
        assert drawn == [((1e-4, 1e-3, 1e-2), smooth, smooth, 1e-4, picture)]

    def test_a_picture_that_cannot_be_drawn_is_refused_first(self, refused, monkeypatch):
        monkeypatch.setattr(runs, "lr_find", None)
        refused("lr-find", "--data", "d", "--out", "lr.txt", said=("out=lr.txt",))


class TestVerify:
    @pytest.fixture
    def checkpoints(self, monkeypatch):
        whole = Verified(Path("a/1"), 1, 1_234_567, None)
        damaged = Verified(Path("b/2"), 2, 2_500_000_000, "tensors has changed")
        found = {"a": [whole], "b": [whole, damaged], "c": [damaged, damaged]}
        monkeypatch.setattr(runs, "verified", found.__getitem__)

    @pytest.mark.parametrize(
        ("places", "code"), [("a", 0), ("aa", 0), ("b", 2), ("ac", 2), ("ca", 2)]
    )
    def test_one_that_is_damaged_is_the_exit_status(self, gptj, checkpoints, places, code):
        assert gptj("verify", *places).code == code

    def test_each_is_told_with_its_size(self, gptj, checkpoints):
        assert gptj("verify", "b").out == (
            "a/1        1.2 MB  whole\nb/2    2,500.0 MB  tensors has changed\n"
        )

    def test_quietly_only_what_is_damaged(self, gptj, checkpoints):
        assert gptj("verify", "a", "--quiet") == (0, "", "")
        assert gptj("verify", "b", "--quiet").out == "b/2    2,500.0 MB  tensors has changed\n"

    def test_nothing_to_verify(self, refused):
        refused("verify", said=("no checkpoint to verify: give the folder of a run",))


def test_rows_are_those_that_were_asked_for(gptj, monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "rows_of", lambda *what: asked.append(what) or ["one", "two"])
    assert gptj("show-rows", "run", 7, "--row", 3, "--data", "d") == (0, "one\ntwo\n", "")
    assert gptj("show-rows", "run", 7).code == 0
    assert asked == [(Path("run"), 7, Path("d"), 3), (Path("run"), 7, None, None)]


def test_a_page_says_where_it_is(gptj, monkeypatch):
    monkeypatch.setattr(runs, "report", lambda run, out: f"{run} to {out}")
    assert gptj("report", "a", "--out", "b.html").out == "wrote a to b.html\n"
