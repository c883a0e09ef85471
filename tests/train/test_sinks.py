"""Curves elsewhere: each library gets every number, and a missing one is named."""

import json
import sys
from types import SimpleNamespace

import pytest

from gptj.errors import UserError
from gptj.train.sinks import open_sink


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"seed": 3}))
    return tmp_path


@pytest.fixture
def library(monkeypatch):
    """A stand-in for both libraries, which have the same three functions."""
    heard = {"rows": []}
    tracked = SimpleNamespace(
        log=lambda values, step: heard["rows"].append((step, values)),
        finish=lambda: heard.update(finished=True),
    )
    fake = SimpleNamespace(init=lambda **options: heard.update(options) or tracked)
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, fake)
    return heard


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_the_run_and_its_rows(name, run, library):
    sink = open_sink(name, run, 0)
    sink.write({"step": 1, "loss": 2.0, "lr": 0.1})
    sink.close()
    assert (library["project"], library["name"]) == ("gptj", run.name)
    assert library["config"] == {"seed": 3}
    assert library["rows"] == [(1, {"loss": 2.0, "lr": 0.1})]
    assert library["finished"]


def test_a_resumed_run_is_the_same_to_weights_and_biases(run, library):
    open_sink("wandb", run, 0)
    first = library["id"]
    open_sink("wandb", run, 5)
    assert (library["id"], library["resume"]) == (first, "allow")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_library_that_is_not_installed_is_named(name, run, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"log_to={name} needs its library: `pip install {name}`"):
        open_sink(name, run, 0)
