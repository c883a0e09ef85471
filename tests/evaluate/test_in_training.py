"""Tasks asked of a model while it trains: on its own weights, and into the run's metrics."""

import json

import pytest

pytest.importorskip("lm_eval")
from gptj.train.metrics import read_metrics

MESH = ("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2)


def test_the_last_answers_are_those_of_the_saved_model(gptj, train_flags, data, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    words = ("--eval-tasks", "lambada_openai", "--eval-tasks-every", 2)
    flags = train_flags(run, batch=8, steps=3)
    code, said, err = gptj("train", *flags, *words, "--eval-tasks-local", data, *MESH)
    assert (code, err) == (0, "")
    rows = {row["step"]: row for row in read_metrics(run) if "lambada_openai_acc" in row}
    assert list(rows) == [2, 3]
    assert f"lambada_openai_perplexity {rows[3]['lambada_openai_perplexity']:.4g}" in said
    where = ("--tasks", "lambada_openai", "--local", data, "--out", out)
    assert gptj("eval", run, *where, *MESH).code == 0
    (results,) = out.glob("tasks-*.json")
    for each in json.loads(results.read_text())["results"]:
        found = rows[3][f"{each['task']}_{each['metric']}"]
        assert found == pytest.approx(each["value"], rel=1e-5)


def test_only_the_first_questions_are_asked(gptj, train_flags, data, tmp_path):
    words = ("--eval-tasks", "lambada_openai", "--eval-tasks-local", data)
    run, few = tmp_path / "run", ("--eval-tasks-limit", 2)
    assert gptj("train", *train_flags(run, batch=8, steps=3), *words, *few).code == 0
    (row,) = (row for row in read_metrics(run) if "lambada_openai_acc" in row)
    out = tmp_path / "out"
    where = ("--tasks", "lambada_openai", "--local", data, "--limit", 2, "--out", out)
    assert gptj("eval", run, *where).code == 0
    (results,) = out.glob("tasks-*.json")
    for each in json.loads(results.read_text())["results"]:
        assert row[f"{each['task']}_{each['metric']}"] == pytest.approx(each["value"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--eval-tasks", "mmlu", "--eval-tasks-local", "."), "--local knows no files for"),
        (("--eval-tasks-every", "0"), "eval_tasks_every=0 must be at least 1"),
    ],
)
def test_a_mistake_is_said_before_a_step_is_made(refused, train_flags, tmp_path, words, said):
    refused("train", *train_flags(tmp_path / "run"), *words, said=(said,))
    assert not (tmp_path / "run").exists()
