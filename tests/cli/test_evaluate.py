"""`gptj eval`: how results are named, what they are told by, and what is drawn of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from gptj.cli import evaluate
from gptj.cli.evaluate import DECIDING, EvalCommand
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.evaluate.published import TASKS
from gptj.evaluate.results import Measured
from gptj.flops import flops_per_token

MODEL = ModelConfig(1, 8, 2, 2, 12, 257, 264, 64)
RECORD = {"fingerprint": "abc", "gptj": "1", "jax": "2", "harness": "3", "settings": {"limit": 5}}


def named(record=RECORD, **options) -> str:
    path = EvalCommand("runs/mine", **options).results(record)
    assert path.parent == Path("evals/mine")
    name, digest = path.stem.rsplit("-", 1)
    assert path.suffix == ".json"
    assert len(digest) == 8
    return name


class TestNames:
    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({}, "tasks"),
            ({"tasks": ("piqa", "arc_easy"), "limit": 5}, "tasks-piqa+arc_easy-first5"),
            ({"style": "gptj-2021", "dtype": "bfloat16"}, "tasks-gptj-2021-bfloat16"),
            ({"quantize": "int8", "dtype": "bfloat16"}, "tasks-int8"),
            ({"text": (Path("a/b c.txt"), Path("d.md")), "stride": 7}, "text-b_c+d-stride7"),
            ({"suite": "article", "limit": 2}, "article-first2"),
            ({"tasks": ("a/b", "c:d")}, "tasks-a_b+c_d"),
            ({"tasks": tuple("abcdefghij" * 20)}, ("tasks-" + "+".join("abcdefghij" * 20))[:100]),
        ],
        ids=str,
    )
    def test_what_was_asked_is_in_the_name(self, options, name):
        assert named(**options) == name

    @pytest.mark.parametrize("key", DECIDING)
    def test_whatever_decides_the_answers_makes_another_file(self, key):
        command = EvalCommand("m")
        other = command.results({**RECORD, key: "another"})
        assert other != command.results(RECORD)
        assert other.name.startswith("tasks-")

    def test_nothing_else_does(self):
        command = EvalCommand("m")
        more = {"results": [1], "device": "cpu", "model": "elsewhere"}
        assert command.results({**RECORD, **more}) == command.results(RECORD)
        assert command.results(dict(reversed(RECORD.items()))) == command.results(RECORD)

    @pytest.mark.parametrize(
        ("model", "name"), [("runs/mine/", "mine"), ("a/gpt-j-6b", "gpt-j-6b"), ("/", "model")]
    )
    def test_a_folder_is_named_by_the_model_unless_it_is_told(self, model, name):
        assert EvalCommand(model).folder == Path("evals") / name
        assert EvalCommand(model, out=Path("there")).folder == Path("there")


class TestKinds:
    @pytest.mark.parametrize(
        ("options", "kind", "settings"),
        [
            ({}, "tasks", {"tasks": [*TASKS], "as": "today", "limit": None, "local": None}),
            ({"text": (Path("a"),)}, "text", {"text": [str(Path("a").resolve())], "stride": None}),
            (
                {"suite": "article", "local": Path("b"), "seed": 3},
                "article",
                {"limit": None, "local": str(Path("b").resolve()), "draws": 4, "seed": 3},
            ),
        ],
        ids=["tasks", "text", "suite"],
    )
    def test_settings_are_those_that_mean_something(self, options, kind, settings):
        command = EvalCommand("m", **options)
        assert command.kind == kind
        plain = {"dtype": None, "quantize": None, "tokenizer": None}
        assert command.settings == settings | plain
        assert json.loads(json.dumps(command.settings)) == command.settings

    def test_the_cost_of_training_is_of_the_picture_and_changes_no_answer(self):
        assert "train_flops" not in EvalCommand("m", train_flops=1e20).settings

    @pytest.mark.parametrize(
        ("options", "flag", "of"),
        [
            ({"text": (Path("a"),), "train_flops": 1.0}, "train-flops", "text"),
            ({"text": (Path("a"),), "seed": 1}, "seed", "text"),
            ({"suite": "article", "stride": 3}, "stride", "a suite"),
            ({"suite": "article", "tasks": ("piqa",)}, "tasks", "a suite"),
            ({"seed": 1}, "seed", "tasks"),
        ],
        ids=str,
    )
    def test_a_flag_of_another_kind_is_refused(self, options, flag, of):
        said = f"^--{flag} means nothing to an evaluation of {of}: leave it out$"
        with pytest.raises(UserError, match=said):
            EvalCommand("m", **options)

    def test_no_task_at_all(self):
        with pytest.raises(UserError, match="no task to ask: name one, such as lambada_openai"):
            EvalCommand("m", tasks=())

    @pytest.mark.parametrize("name", ["limit", "draws"])
    def test_the_smallest_number_is_1(self, name):
        assert EvalCommand("m", suite="article", **{name: 1})
        with pytest.raises(UserError, match=f"^{name}=0 must be at least 1$"):
            EvalCommand("m", suite="article", **{name: 0})


class TestWhatTrainingTook:
    def run(self, folder, course, *rows):
        if course is not None:
            (folder / "run.json").write_text(course)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return evaluate._spent(folder, MODEL)

    ROWS = ({"step": 1, "tokens": 500}, {"step": 2, "tokens": 1000})

    def test_all_tokens_of_a_run_from_the_beginning(self, tmp_path):
        course = json.dumps({"from": None, "seq": 32})
        spent = self.run(tmp_path, course, *self.ROWS)
        assert spent == 1000 * flops_per_token(MODEL, 32)

    @pytest.mark.parametrize(
        ("course", "rows"),
        [
            (json.dumps({"from": "models/base", "seq": 32}), ROWS),
            (json.dumps({"seq": 32}), ()),
            (None, ROWS),
        ],
        ids=["from another", "no step yet", "no run"],
    )
    def test_what_is_not_known_is_not_said(self, tmp_path, course, rows):
        assert self.run(tmp_path, course, *rows) is None

    @pytest.mark.parametrize("course", ["{", "[]", "{}", '{"seq": null}', '{"seq": "x"}'])
    def test_a_damaged_course(self, tmp_path, course):
        with pytest.raises(UserError, match=r"run\.json is damaged: say --train-flops"):
            self.run(tmp_path, course, *self.ROWS)


class TestThePicture:
    PIQA = Measured("piqa", "acc", 0.75, 0.01, 100)

    @pytest.fixture
    def drawn(self, monkeypatch):
        drawn = []
        monkeypatch.setattr(evaluate, "plot_scores", lambda *what: drawn.append(what))
        return drawn

    def said(self, found, **options) -> str:
        console = Console(record=True, width=200)
        record = {"results": [vars(each) for each in found]}
        scorer = SimpleNamespace(config=MODEL)
        command = EvalCommand("nowhere/mine", **options)
        evaluate._picture(command, scorer, record, Path("p.png"), console)
        return console.export_text().strip()

    def test_a_point_in_per_cent_among_the_published(self, drawn):
        assert self.said([self.PIQA], train_flops=1e20) == "wrote p.png"
        ((panels, picture),) = drawn
        assert picture == Path("p.png")
        ((points, own),) = panels.values()
        assert (own.name, own.flops, own.score, own.error) == ("mine", 1e20, 75.0, 1.0)
        assert len(points) > 3
        assert all(0 < point.score <= 100 for point in points)

    def test_of_training_that_is_not_known_there_is_a_line(self, drawn):
        said = "wrote p.png, a line across: --train-flops says what training took in all"
        assert self.said([self.PIQA]) == said
        assert next(iter(drawn[0][0].values()))[1].flops is None

    def test_where_nothing_was_published_there_is_none(self, drawn):
        assert self.said([Measured("other", "acc", 0.5, None, 10)]) == ""
        assert drawn == []

    def test_one_that_cannot_be_drawn_costs_no_figures(self, monkeypatch):
        def refuse(*_):
            raise UserError("matplotlib is missing")

        monkeypatch.setattr(evaluate, "plot_scores", refuse)
        assert self.said([self.PIQA]) == "no picture: matplotlib is missing"


@pytest.mark.parametrize(("shortened", "lines"), [(0, 0), (1234, 1)])
def test_contexts_that_were_cut_are_counted(shortened, lines):
    console = Console(record=True, width=200)
    evaluate._say_shortened(console, SimpleNamespace(shortened=shortened, window=64))
    said = console.export_text().splitlines()
    assert len(said) == lines
    if said:
        assert said[0].endswith("to the model's window of 64 tokens: 1,234")
