"""A run's folder: begun once, recognised again, and never mistaken for another's."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer
from gptj.train.run import begin, exclusive

MODEL = ModelConfig(2, 32, 4, 4, 64, 257, 384, context=64)
BYTES = Tokenizer.bytes()
COURSE = {"data": "d1", "seed": 0, "optimizer": {"lr": 0.1, "anneal_steps": 5}, "shape": (1, 2)}


def start(run, model=MODEL, **changes) -> None:
    begin(run, model, BYTES, COURSE | changes, Path("data"))


def save_something(run) -> None:
    """What makes a checkpoint a complete one."""
    (run / "checkpoints/00000001").mkdir(parents=True)
    (run / "checkpoints/00000001/manifest.json").write_text("{}")


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "deep" / "run"
    start(run)
    save_something(run)
    return run


def test_it_writes_the_model_the_tokenizer_and_the_course(run):
    assert ModelConfig.load(run / "model.json") == MODEL
    assert Tokenizer.load(run / "tokenizer.json").sha256 == BYTES.sha256
    course = json.loads((run / "run.json").read_text())
    assert course["model"]["d_ff"] == 64
    assert course["optimizer"]["lr"] == 0.1


def test_an_empty_folder_may_be_there(tmp_path):
    start(tmp_path)
    assert (tmp_path / "run.json").is_file()


def test_the_same_run_is_recognised_and_nothing_is_written(run):
    times = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    start(run)
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == times


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed=0, now it is 1: use the first value"),
        ({"optimizer": {"lr": 0.2, "anneal_steps": 5}}, "optimizer.lr=0.1, now it is 0.2: use"),
        ({"optimizer": {"lr": 0.1}}, "optimizer.anneal_steps=5, now it is None"),
        ({"optimizer": {"lr": 0.1, "anneal_steps": 6}}, "now it is 6 (it follows from steps"),
        ({"new": 3}, "new=None, now it is 3: use the first value"),
        ({"shape": (1, 3)}, "shape=[1, 2], now it is [1, 3]: use the first value"),
        ({"model": dataclasses.replace(MODEL, heads=8)}, "model.heads=4, now it is 8: use"),
    ],
)
def test_another_course_is_refused_by_its_first_difference(run, change, said):
    with pytest.raises(UserError) as failure:
        start(run, **change)
    assert said in str(failure.value)
    assert str(failure.value).startswith(f"{run} was started with ")


def test_another_base_of_adapters_is_refused_by_its_place(tmp_path):
    start(tmp_path, **{"from": "models/base"}, base="2:aa")
    save_something(tmp_path)
    with pytest.raises(UserError, match=r"beside another model than lies at from=models/base now"):
        start(tmp_path, **{"from": "models/base"}, base="2:bb")


def test_other_data_are_refused_unless_allowed(run):
    said = r"the data are not those .* \(fingerprint d2, then d1\): .* --allow-data-change"
    with pytest.raises(UserError, match=said):
        start(run, data="d2")
    begin(run, MODEL, BYTES, COURSE | {"data": "d2"}, Path("new"), allow_data_change=True)
    assert json.loads((run / "run.json").read_text())["data"] == "d2"
    assert json.loads((run / "data.json").read_text())["path"] == str(Path("new").absolute())
    start(run, data="d2")
    with pytest.raises(UserError, match="seed=0, now it is 1"):
        begin(run, MODEL, BYTES, COURSE | {"data": "d3", "seed": 1}, Path(), allow_data_change=True)


def test_without_a_checkpoint_it_may_begin_anew_in_any_way(tmp_path):
    start(tmp_path / "run")
    start(tmp_path / "run", dataclasses.replace(MODEL, heads=8), seed=5)
    assert json.loads((tmp_path / "run/run.json").read_text())["seed"] == 5
    assert ModelConfig.load(tmp_path / "run/model.json").heads == 8


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_damaged_record_is_said_to_be(run, text):
    (run / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        start(run)
    assert (run / "run.json").read_text() == text


def test_a_record_cut_short_before_any_checkpoint_begins_anew(tmp_path):
    start(tmp_path / "run")
    (tmp_path / "run/run.json").write_text("{")
    start(tmp_path / "run")
    assert json.loads((tmp_path / "run/run.json").read_text())["seed"] == 0


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "model.json").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no run: choose another folder"):
        start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


@pytest.mark.parametrize("under", ["file", "file/run"])
def test_a_place_that_cannot_be_a_folder(tmp_path, under):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot be written \(.*\): free space, or choose another"):
        start(tmp_path / under)


class TestOneProcessAtATime:
    def test_a_second_is_refused_until_the_first_is_done(self, run):
        with exclusive(run), pytest.raises(UserError, match="another process is training in"):
            exclusive(run).__enter__()
        with exclusive(run):
            pass

    def test_a_second_does_not_change_what_the_first_began(self, tmp_path):
        start(tmp_path / "run")
        with exclusive(tmp_path / "run"), pytest.raises(UserError, match="another process"):
            start(tmp_path / "run", seed=5)
        assert json.loads((tmp_path / "run/run.json").read_text())["seed"] == 0

    def test_a_lock_alone_is_no_run(self, tmp_path):
        (tmp_path / "lock").touch()
        start(tmp_path)
        assert (tmp_path / "run.json").is_file()


def test_checkpoints_may_lie_elsewhere_and_the_run_remembers(
    gptj, refused, train_flags, tiny_run, tmp_path
):
    run, place = tmp_path / "run", tmp_path / "large disk"
    assert gptj("train", *train_flags(run, checkpoints=place, save_every=2, keep=9)).code == 0
    assert not (run / "checkpoints").exists()
    shutil.rmtree(place / "00000012")
    code, out, _ = gptj("train", *train_flags(run))
    assert code == 0
    assert "going on from step 10" in out
    assert gptj("diff", run, tiny_run).code == 0
    said = ("has its checkpoints at", "leave that out")
    refused("train", *train_flags(run, checkpoints=tmp_path / "else"), said=said)
    said = ("holds another run's", "choose another place")
    refused("train", *train_flags(tmp_path / "new", checkpoints=place), said=said)
