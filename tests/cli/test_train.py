"""`gptj train` from end to end: what it says and leaves behind, stopped and gone on with."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from rich.console import Console

from gptj import checkpoint
from gptj.cli import runs
from gptj.train.config import TrainConfig
from gptj.train.loop import train
from gptj.train.metrics import read_metrics


def steps(run: Path) -> list[int]:
    return [row["step"] for row in read_metrics(run)]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


class TestTrain:
    def test_a_run_leaves_checkpoints_metrics_tokenizer_and_curves(self, tiny_run):
        assert checkpoints(tiny_run) == ["00000004", "00000008", "00000012"]
        assert steps(tiny_run) == list(range(1, 13))
        assert {path.name for path in tiny_run.iterdir()} == {
            *("checkpoints", "metrics.jsonl", "model.json", "run.json"),
            *("data.json", "events.jsonl", "tensorboard", "tokenizer.json", "lock"),
        }
        assert list((tiny_run / "tensorboard").glob("events.out.tfevents.*"))

    def test_rows_of_metrics_hold_what_was_measured(self, tiny_run):
        first, *_, last = read_metrics(tiny_run)
        kinds = ("compile", "data", "step", "evaluate", "checkpoint", "lost")
        assert set(first) == {
            *("step", "loss", "last_loss", "z_loss", "grad_norm", "grad_norm_micro", "lr"),
            *("tokens", *(f"seconds_{kind}" for kind in kinds)),
        }
        assert "tokens_per_second" in last
        assert last["heldout_loss"] < first["loss"]
        assert [r["step"] for r in read_metrics(tiny_run) if "heldout_loss" in r] == [6, 12]
        assert ["heldout_bits_per_byte" in row for row in read_metrics(tiny_run)][-1]

    def test_it_says_what_it_does(self, gptj, train_flags, tmp_path):
        code, out, err = gptj("train", *train_flags(tmp_path / "run", log_every=4))
        assert (code, err) == (0, "")
        assert "41.7k parameters" in out
        assert "new run in" in out
        shown = [int(step) for step in re.findall(r"step +(\d+)/12", out)]
        assert shown == [4, 6, 8, 12]

    def test_a_finished_run_says_so_and_changes_nothing(self, gptj, train_flags, own_run):
        before = (own_run / "metrics.jsonl").read_bytes()
        code, out, err = gptj("train", *train_flags(own_run))
        assert (code, err) == (0, "")
        assert "nothing to do: the run is at step 12 of 12" in out
        assert (own_run / "metrics.jsonl").read_bytes() == before
        assert checkpoints(own_run) == ["00000004", "00000008", "00000012"]

    def test_a_stopped_run_goes_on_and_each_step_is_measured_once(
        self, gptj, train_flags, stopped_run, tiny_run
    ):
        with (stopped_run / "metrics.jsonl").open("a") as log:  # steps that were not saved
            log.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
        code, out, _ = gptj("train", *train_flags(stopped_run))
        assert code == 0
        assert "going on from step 4" in out
        assert steps(stopped_run) == list(range(1, 13))
        losses = [[row["loss"] for row in read_metrics(r)] for r in (stopped_run, tiny_run)]
        assert losses[0] == losses[1]

    def test_a_mesh_is_set_while_it_trains(self, gptj, train_flags, tmp_path, monkeypatch):
        seen = []
        found = lambda *_, **__: seen.append(jax.sharding.get_mesh().shape)  # noqa: E731
        monkeypatch.setattr(runs, "train", found)
        shape = {"mesh.data": 2, "mesh.fsdp": 1, "mesh.tensor": 4}
        assert gptj("train", *train_flags(tmp_path / "run", **shape)).code == 0
        assert gptj("train", *train_flags(tmp_path / "run")).code == 0
        assert seen == [{"data": 2, "fsdp": 1, "tensor": 4}, {}]

    def test_without_held_out_text_there_is_no_evaluation(
        self, gptj, train_flags, tiny_text, tmp_path
    ):
        data, run = tmp_path / "data", tmp_path / "run"
        gptj("prepare", tiny_text, "--out", data, "--tokenizer", "bytes", "--held-out", "0")
        assert gptj("train", *train_flags(run, data=data)).code == 0
        assert not any("heldout_loss" in row for row in read_metrics(run))

    def test_a_backup_beside_the_checkpoints_stays(self, gptj, train_flags, stopped_run):
        folder = stopped_run / "checkpoints"
        (folder / "00000004").rename(folder / "00000004-mine")
        (folder / "00000008.orbax-checkpoint-tmp").mkdir()
        assert gptj("train", *train_flags(stopped_run, keep=1)).code == 0
        assert checkpoints(stopped_run) == ["00000004-mine", "00000012"]


class TestStopping:
    def test_sigterm_saves_and_the_same_command_finishes(self, gptj, train_flags, tmp_path):
        run = tmp_path / "run"
        flags = {"anneal_steps": 10, "save_every": 10**6, "eval_every": 10**6, "log_every": 1}
        process = subprocess.Popen(
            [sys.executable, "-m", "gptj.cli", "train", *train_flags(run, steps=10**6, **flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        with process:
            while not process.stdout.readline().startswith("step      3/"):
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert "stopping after this step and saving" in out
        (saved,) = checkpoint.complete(run / "checkpoints")
        step = checkpoint.step_of(saved)
        assert f"stopped at step {step}, saved" in out
        assert steps(run) == list(range(1, step + 1))

        code, out, _ = gptj("train", *train_flags(run, steps=step + 3, **flags))
        assert code == 0
        assert f"going on from step {step} " in out
        assert steps(run) == list(range(1, step + 4))

    def test_before_the_first_step_there_is_nothing_to_save(
        self, gptj, train_flags, tiny_data, tiny_model, tmp_path
    ):
        class Terminal(io.StringIO):
            def write(self, text: str) -> int:
                if "new run in" in text and not self.getvalue():
                    super().write(text)
                    signal.raise_signal(signal.SIGTERM)
                return len(text)

        run = tmp_path / "run"
        config = TrainConfig(tiny_data, run, str(tiny_model))
        result = train(config, console=Console(file=Terminal()))
        assert (result.step, result.loss, result.held_out) == (0, None, None)
        assert gptj("train", *train_flags(run)).code == 0


class TestRecipe:
    @pytest.fixture
    def recipe(self, tiny_data, tiny_model, tmp_path) -> Path:
        path = tmp_path / "recipe.py"
        path.write_text(
            f"""
from pathlib import Path
import gptj

def recipe():
    return gptj.TrainConfig(
        data=Path({str(tiny_data)!r}),
        out=Path({str(tmp_path / "run")!r}),
        model={str(tiny_model)!r},
        steps=5,
        batch=4,
        seed=7,
        optimizer=gptj.OptimizerConfig(lr=0.01, warmup_steps=2, anneal_steps=10),
    )
"""
        )
        return path

    def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_default(
        self, gptj, recipe, tmp_path
    ):
        assert gptj("train", recipe, "--steps", "3").code == 0
        course = json.loads((tmp_path / "run/run.json").read_text())
        assert steps(tmp_path / "run") == [1, 2, 3]  # flag over recipe (5) over default (1000)
        assert (course["seed"], course["optimizer"]["lr"]) == (7, 0.01)  # recipe over default
        assert (course["accumulate"], course["optimizer"]["b1"]) == (1, 0.9)  # default

    def test_its_help_shows_its_values(self, gptj, recipe):
        out = " ".join(gptj("train", recipe, "--help").out.split())
        assert "Updates in all. (default: 5)" in out

    def test_a_recipe_may_hold_the_model_itself(self, gptj, recipe, tiny_model, tmp_path):
        model = f"gptj.ModelConfig.load(Path({str(tiny_model)!r}))"
        recipe.write_text(recipe.read_text().replace(repr(str(tiny_model)), model))
        assert gptj("train", recipe, "--steps", "3").code == 0
        assert (tmp_path / "run/model.json").read_text() == tiny_model.read_text()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "must define a function recipe()"),
            ("recipe = 3", "must define a function recipe()"),
            ("def recipe(): return 3", "that returns a gptj.TrainConfig"),
            ("def recipe(data): return 3", "fails, --debug shows where: TypeError"),
            ("def recipe(:", "fails, --debug shows where: SyntaxError"),
            ("import nothing_of_the_kind", "No module named 'nothing_of_the_kind'"),
            ("import gptj\ndef recipe(): gptj.TrainConfig(stepz=1)", "stepz"),
            ("import gptj\ndef recipe(): gptj.TrainConfig('d', 'o', steps=0)", "steps=0"),
        ],
    )
    def test_one_that_is_wrong(self, gptj, text, said, tmp_path):
        (tmp_path / "mine.py").write_text(text)
        code, _, err = gptj("train", tmp_path / "mine.py")
        assert code == 2
        assert said in err
        assert "Traceback" not in err

    def test_one_that_is_not_there(self, gptj):
        code, _, err = gptj("train", "nowhere.py")
        assert code == 2
        assert err == (
            "gptj train: no recipe nowhere.py: give a Python file with a function recipe()\n"
        )
