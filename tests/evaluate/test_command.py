"""`gptj eval` from end to end: what it prints and leaves behind, and how it says that it cannot."""

import functools
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")
import lm_eval.tasks

import gptj.evaluate
from gptj.cli import evaluate as commands
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.evaluate import scorer as rooms
from gptj.evaluate import tasks
from gptj.flops import flops_per_token


@pytest.fixture
def evaluate(gptj, folder, data, tmp_path):
    """The command on the model of a wide window, its results in `tmp_path / "out"`."""

    def run(*words):
        where = ("--local", data) if not {"--text", "--local"} & set(words) else ()
        return gptj("eval", folder, *where, "--out", tmp_path / "out", *words)

    return run


def record(tmp_path: Path, kind: str = "tasks") -> dict:
    (path,) = (tmp_path / "out").glob(f"{kind}*.json")
    return json.loads(path.read_text())


def test_the_default_tasks_beside_the_published_rows(evaluate, tmp_path):
    code, out, err = evaluate()
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert ["GPT-J-6B", "3.99", "69.7", "65.3", "66.1", "76.5", "76.5"] in rows
    assert "± standard error" in out
    assert "prompts as today; published rows: https://github.com/kingoflolz/" in out
    found = record(tmp_path)
    assert {(each["task"], each["metric"]) for each in found["results"]} >= {
        ("lambada_openai", "perplexity"), ("piqa", "acc"), ("piqa", "acc_norm"),
    }  # fmt: skip
    assert (found["settings"]["as"], found["harness"]) == ("today", tasks.VERSION)
    (picture,) = (tmp_path / "out").glob("tasks-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {picture}, a line across: --train-flops says" in out
    assert evaluate("--tasks", "piqa", "--train-flops", 1e20).out.endswith(".png\n")


def test_other_settings_write_other_files(evaluate, tmp_path, data):
    piqa, other = ("--tasks", "piqa"), shutil.copytree(data, tmp_path / "other")
    first = ("--limit", "3")
    asked = [piqa, (*piqa, *first), ("--tasks", "winogrande", *first), (*piqa, "--local", other)]
    asked += [(*piqa, "--quantize", "int8"), (*piqa, "--as", "gptj-2021"), (*piqa, *first)]
    written = []
    for words in asked:
        code, out, _ = evaluate(*words)
        assert code == 0
        written += [line.removeprefix("wrote ") for line in out.splitlines() if ".json" in line]
    names = [Path(path).name.rpartition("-")[0] for path in written]
    assert names[:3] == ["tasks-piqa", "tasks-piqa-first3", "tasks-winogrande-first3"]
    assert names[3:] == ["tasks-piqa", "tasks-piqa-int8", "tasks-piqa-gptj-2021", names[1]]
    assert written[-1] == written[1]  # the same again
    assert len(set(written)) == len(written) - 1
    assert {str(path) for path in (tmp_path / "out").glob("tasks*.json")} == set(written)


def test_another_version_asks_anew(evaluate, monkeypatch, tmp_path):
    assert evaluate("--tasks", "piqa").code == 0
    monkeypatch.setattr(commands, "version", lambda name: "9.9")
    assert "before" not in evaluate("--tasks", "piqa").out
    assert len(list((tmp_path / "out").glob("answers-*.jsonl"))) == 2
    assert len(list((tmp_path / "out").glob("tasks-*.json"))) == 2


def test_it_goes_on_from_what_was_answered_before(evaluate, tmp_path):
    assert "before" not in evaluate("--tasks", "piqa", "--limit", 3).out
    answers = next((tmp_path / "out").glob("answers-*.jsonl"))
    assert len(answers.read_text().splitlines()) == 6
    assert "6 of 24 requests were scored before" in evaluate("--tasks", "piqa").out
    assert len(answers.read_text().splitlines()) == 24


def test_interrupted_it_says_what_is_kept_and_ends_the_same(evaluate, monkeypatch, tmp_path):
    assert evaluate("--tasks", "piqa").code == 0
    whole, right = record(tmp_path), rooms.score
    shutil.rmtree(tmp_path / "out")

    def interrupted(params, config, asked, known):
        def some(number, each):
            known(number, each)
            if number == asked.index(asked[-1]) or each.logprob < -60:
                raise KeyboardInterrupt

        return right(params, config, asked, some)

    monkeypatch.setattr(rooms, "score", interrupted)
    code, out, err = evaluate("--tasks", "piqa")
    assert (code, err) == (130, "gptj eval: interrupted\n")
    assert "answers are kept in" in out
    assert not list((tmp_path / "out").glob("tasks*"))
    monkeypatch.setattr(rooms, "score", right)
    assert "were scored before: going on" in evaluate("--tasks", "piqa").out
    assert record(tmp_path) == whole


def test_without_matplotlib_the_figures_still_come(evaluate, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, _ = evaluate("--tasks", "piqa", "--limit", 2)
    assert code == 0
    assert "no picture: plotting needs matplotlib: pip install 'gptj-jax[plot]'" in out
    assert len(record(tmp_path)["results"]) == 2


def test_as_in_2021_the_results_say_so(evaluate, tmp_path):
    pytest.importorskip("ftfy")
    code, out, _ = evaluate("--tasks", "winogrande", "--as", "gptj-2021")
    assert (code, record(tmp_path)["settings"]["as"]) == (0, "gptj-2021")
    assert "prompts as gptj-2021" in out


def test_a_runs_own_training_is_where_it_stands_in_the_picture(tiny_run, own_run, tmp_path):
    model = ModelConfig.load(tiny_run / "model.json")
    assert commands._spent(tiny_run, model) == 12 * 4 * 64 * flops_per_token(model, 64)
    assert commands._spent(tmp_path, model) is None
    course = json.loads((own_run / "run.json").read_text())
    (own_run / "run.json").write_text(json.dumps({**course, "from": "runs/other"}))
    assert commands._spent(own_run, model) is None  # what runs/other took is not known
    (own_run / "run.json").write_text("{")
    with pytest.raises(UserError, match="damaged: say --train-flops"):
        commands._spent(own_run, model)


def test_a_text(evaluate, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on it's mat " * 30)
    code, out, _ = evaluate("--text", tmp_path / "text.txt", "--stride", 50)
    found = record(tmp_path, "text")
    assert code == 0
    assert f"{found['bits_per_byte']:.4f} bits a byte (1 documents" in out
    assert (found["stride"], found["bytes"]) == (50, 720)


def test_the_articles_suite(evaluate, monkeypatch, make_model, gptj, tmp_path, data):
    out = ("--out", tmp_path / "out")
    words = ("--suite", "article", "--limit", 1, "--draws", 2)
    code, said, err = gptj(
        "eval", make_model(512), *words, *out, "--local", _arithmetic(data, tmp_path)
    )
    assert (code, err) == (0, "")
    found = record(tmp_path, "article")
    assert len(found["results"]) == len(found["answers"]) == 8 + 3 + 10
    assert {"greedy", "nucleus", "advantage", "likeliest"} <= set(found["results"][0])
    assert len(found["answers"][0]["nucleus"]) == 2
    assert "arithmetic_5ds" in said


def _arithmetic(data: Path, tmp_path: Path) -> Path:
    """All ten sets, of the same questions."""
    from gptj.evaluate.local import ARITHMETIC

    (tmp_path / "gpt3_arithmetic").mkdir()
    for name in ARITHMETIC.values():
        source = data / "gpt3_arithmetic/two_digit_addition.jsonl"
        shutil.copy(source, tmp_path / f"gpt3_arithmetic/{name}.jsonl")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--text", "a", "--suite", "article"), "a text and a suite are two evaluations"),
        (("--text", "a", "--limit", "3"), "--limit means nothing to an evaluation of text"),
        (("--text", "a", "--tasks", "piqa"), "--tasks means nothing to an evaluation of text"),
        (("--suite", "article", "--as", "gptj-2021"), "--as means nothing to"),
        (("--stride", "3"), "--stride means nothing to an evaluation of tasks"),
        (("--draws", "3"), "--draws means nothing to an evaluation of tasks"),
        (("--limit", "0"), "limit=0 must be at least 1"),
        (("--text", "a", "--stride", "0"), "stride=0 must be at least 1"),
        (("--train-flops", "0"), "train_flops=0.0 must be a number above 0"),
        (("--train-flops", "-1.5"), "train_flops=-1.5 must be a number above 0"),
        (("--train-flops", "nan"), "train_flops=nan must be a number above 0"),
        (("--text", "nowhere.txt"), "nowhere.txt"),
        (("--tasks", "piqa", "--local", "nowhere"), "there is no nowhere/piqa/*.jsonl or .arrow"),
        (("--tasks", "mmlu", "--local", "nowhere"), "--local knows no files for the task 'mmlu'"),
    ],
)
def test_a_mistake_is_one_sentence(refused, folder, words, said):
    refused("eval", folder, *words, said=(said,))


def test_a_window_that_is_too_short_is_said_before_anything_is_scored(
    refused, short_folder, data, tmp_path
):
    long = tmp_path / "data/piqa/valid.jsonl"
    shutil.copytree(data, tmp_path / "data")
    row = {"goal": "the", "sol1": " ".join(["cat sat"] * 30), "sol2": "a", "label": 0}
    long.write_text(json.dumps(row) + "\n")
    words = ("--tasks", "piqa", "--local", tmp_path / "data", "--out", tmp_path / "out")
    refused(
        "eval",
        short_folder,
        *words,
        said=("piqa: a continuation of", "the model's window of 24: evaluate a model of a longer"),
    )
    assert [path.read_text() for path in (tmp_path / "out").glob("answers*")] == [""]


@pytest.fixture
def few_tasks(monkeypatch):
    """The harness without its ten thousand files, which take seconds to read."""
    folder = Path(lm_eval.tasks.__file__).parent / "piqa"
    few = functools.partial(tasks.TaskManager, include_defaults=False, include_path=folder)
    monkeypatch.setattr(tasks, "TaskManager", few)


def test_no_files_and_no_network(refused, folder, few_tasks):
    said = ("the data of piqa are not to be had", "check the network, or name a folder", "--local")
    refused("eval", folder, "--tasks", "piqa", said=said)


def test_a_task_that_the_harness_does_not_have(refused, folder, few_tasks):
    refused("eval", folder, "--tasks", "piqua", said=("no task 'piqua'", "(there are piqa)"))


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"generation_kwargs": {"do_sample": True}}, "name: the task asks for draws"),
        ({"UNSAFE_CODE": True}, "the task name runs code that a model wrote"),
    ],
)
def test_a_task_that_we_do_not_do_is_refused_at_once(refused, monkeypatch, task, said):
    one = SimpleNamespace(**task, get_config={**task, "output_type": "generate_until"}.get)
    monkeypatch.setattr(tasks, "_downloaded", lambda names: {"tasks": {"name": one}})
    refused("eval", "nowhere", "--tasks", "name", said=(said,))


def test_without_the_harness_it_says_what_to_install(refused, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in ("tasks", "harness"):
        monkeypatch.delattr(gptj.evaluate, name, raising=False)
        monkeypatch.delitem(sys.modules, f"gptj.evaluate.{name}", raising=False)
    refused("eval", "nowhere", said=("the tasks need lm_eval: pip install 'gptj-jax[eval]'",))
