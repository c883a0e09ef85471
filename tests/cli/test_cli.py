"""The command line from end to end: what each verb does, says and leaves behind."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console

import gptj as package
from gptj import checkpoint, cli
from gptj.cli import bench, data, doctor, evaluate, models, plan, runs, serve
from gptj.convert.convert import ConvertConfig, Converted
from gptj.convert.inspect import Difference
from gptj.data.mixture import MixConfig
from gptj.data.prepare import PrepareConfig
from gptj.plan import terminal
from gptj.plan.job import Job
from gptj.plot import PlotConfig
from gptj.serve.config import ServeConfig
from gptj.train.config import TrainConfig
from gptj.train.loop import train
from gptj.train.lr_find import LrFindConfig, LrFound
from gptj.train.metrics import read_metrics

VERBS = (
    *("prepare", "mix", "train", "lr-find", "generate", "eval", "plot", "report", "show-rows"),
    *("verify", "convert", "merge", "inspect", "diff", "serve", "bench", "plan", "doctor"),
)
CONVERTED = Converted(None, Path("out"), ())


def steps(run: Path) -> list[int]:
    return [row["step"] for row in read_metrics(run)]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


class TestTheCommand:
    def test_without_a_verb_it_shows_the_verbs_and_an_example(self, gptj):
        code, out, _ = gptj()
        assert code == 2
        assert all(verb in out for verb in VERBS)
        assert "gptj prepare my-texts/" in out

    @pytest.mark.parametrize("word", ["--help", "-h", "help"])
    def test_asked_for_help_it_says_the_same_and_succeeds(self, gptj, word):
        assert gptj(word) == (0, gptj().out, "")

    def test_version(self, gptj):
        assert gptj("--version") == (0, f"gptj {package.__version__}\n", "")

    def test_an_unknown_verb_names_those_there_are(self, gptj):
        code, _, err = gptj("fly", "--high")
        assert code == 2
        assert err == f"gptj: no verb 'fly': choose one of {', '.join(VERBS)}\n"

    def test_interrupted_it_waits_for_nothing(self):
        """As for a step that the devices are in the middle of."""
        program = (
            "import sys, threading, time; from gptj import cli\n"
            "threading.Thread(target=time.sleep, args=(60,)).start()\n"
            "def run(*_): raise KeyboardInterrupt\n"
            "cli.Verb.run = run; sys.argv[1:] = ['plot']; sys.exit(cli.main())"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (130, "gptj plot: interrupted\n")

    def test_it_runs_as_a_module(self):
        command = [sys.executable, "-m", "gptj.cli", "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("gptj ")

    def test_the_installed_command_is_main(self):
        pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
        assert 'gptj = "gptj.cli:main"' in pyproject
        assert callable(cli.main)


class TestHelp:
    @pytest.mark.parametrize("verb", VERBS)
    def test_it_gives_an_example_and_the_defaults(self, gptj, verb):
        code, out, err = gptj(verb, "--help")
        assert (code, err) == (0, "")
        assert f"Example: gptj {verb} " in out
        has_defaults = verb not in ("report", "show-rows", "diff")
        assert ("(default: " in out) == has_defaults
        assert not re.search(r"\(default:\s*(None)?\)", out)
        assert out.startswith(f"usage: gptj {verb}")

    @pytest.mark.parametrize("verb", VERBS)
    def test_the_example_is_a_command_that_is_understood(self, gptj, verb, monkeypatch, tmp_path):
        example = re.search("^Example: gptj (.*)$", gptj(verb, "--help").out, re.MULTILINE)
        heard = []
        model = SimpleNamespace(generate=lambda prompt, **sampling: heard.append(prompt))

        def hear(*words, **_):
            return heard.append(words[0]) or []

        stands_in = {
            data: {"prepare": hear, "show_prepared": hear, "mix": hear},
            models: {
                "load": lambda *_, **__: model,
                "convert": lambda config: heard.append(config) or CONVERTED,
                "open_source": lambda place, **_: heard.append(place),
                "adapter_at": hear,
                "describe": lambda *_: [],
                "diff": lambda *_: Difference(True, 0, "", 0, 0, False),
            },
            bench: {"_in_turns": hear},
            doctor: {"examine": hear},
            runs: {
                **dict.fromkeys(("train", "plot", "report", "rows_of", "verified"), hear),
                "lr_find": lambda config, _: (
                    heard.append(config) or LrFound((1.0,), (2.0,), (2.0,))
                ),
                "plot_rates": hear,
            },
        }
        if verb == "eval":
            ready = lambda command: heard.append(command.model) or (lambda *_: {})  # noqa: E731
            opened = lambda *_: contextlib.nullcontext((None, {}))  # noqa: E731
            stands_in[evaluate] = {"_tasks": ready, "_opened": opened, "_picture": lambda *_: None}
            monkeypatch.chdir(tmp_path)
        if verb == "serve":
            running = pytest.importorskip("gptj.serve.run", exc_type=ImportError)
            setup = SimpleNamespace(listener=SimpleNamespace(close=lambda: None))
            stands_in[serve] = {"_engine": lambda *_: None}
            stands_in[running] = {
                "set_up": lambda config: heard.append(config) or setup,
                "serve": lambda *_: 0,
            }
        if verb == "plan":
            shown = SimpleNamespace(plain=dict, run=lambda *_: {})
            stands_in[plan] = {"made": lambda job: heard.append(job) or shown}
            stands_in[terminal] = {"show": hear}
        for module, names in stands_in.items():
            for name, function in names.items():
                monkeypatch.setattr(module, name, function)
        assert gptj(*shlex.split(example[1])).code == 0
        kinds = (
            PrepareConfig
            | MixConfig
            | Job
            | TrainConfig
            | PlotConfig
            | ConvertConfig
            | LrFindConfig
            | ServeConfig
            | str
            | Path
        )
        assert isinstance(heard[0], kinds)

    def test_every_training_option_says_what_it_is(self, gptj):
        out = " ".join(gptj("train", "--help").out.split())
        assert "Rows in a step. (default: 16)" in out
        assert "Peak learning rate, reached at the end of the warm-up. (default: 0.0006)" in out
        assert "--mesh.tensor INT" in out


class TestPrepare:
    def test_it_writes_a_store_and_says_what_is_in_it(self, gptj, tiny_text, tmp_path):
        out = tmp_path / "data"
        code, said, err = gptj("prepare", tiny_text, "--out", out, "--tokenizer", "bytes")
        assert (code, err) == (0, "")
        train = package.TokenStore.open(out / "train")
        assert "vocabulary of 257 tokens" in said
        assert f"{train.bytes:,} bytes, {len(train):,} tokens" in said
        assert str(out / "heldout") in said

    def test_without_a_held_out_part_none_is_mentioned(self, gptj, tiny_text, tmp_path):
        words = ("--out", tmp_path / "data", "--tokenizer", "bytes", "--held-out", "0")
        assert "held out" not in gptj("prepare", tiny_text, *words).out


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


class TestGenerate:
    def test_it_writes_on_from_the_prompt(self, gptj, tiny_run):
        code, out, err = gptj("generate", tiny_run, "--prompt", "the ", "--max-tokens", 8)
        assert (code, err) == (0, "")
        assert out.startswith("the ")
        assert out.endswith("\n")
        assert len(out) > len("the \n")

    @pytest.mark.parametrize("sampling", [("--temperature", 0), ("--seed", 5, "--top-k", 20)])
    def test_the_same_seed_the_same_text(self, gptj, tiny_run, sampling):
        command = ("generate", tiny_run, "--prompt", "the ", "--max-tokens", 12, *sampling)
        assert gptj(*command) == gptj(*command)

    def test_another_seed_another_text(self, gptj, tiny_run):
        command = ("generate", tiny_run, "--prompt", "the ", "--max-tokens", 30, "--seed")
        assert gptj(*command, 1).out != gptj(*command, 2).out

    def test_every_sampling_field_arrives(self, gptj, tiny_run):
        command = ("generate", tiny_run, "--prompt", "the ", "--temperature", 0)
        whole = gptj(*command, "--max-tokens", 20).out[4:-1]
        stop = whole[5]
        cut = gptj(*command, "--max-tokens", 20, "--stop", stop).out[4:-1]
        assert cut == whole[: whole.index(stop)]
        assert gptj(*command, "--max-tokens", 3).out[4:-1] == whole[:3]

    def test_the_prompt_may_come_from_standard_input(self, gptj, tiny_run, monkeypatch):
        words = ("--max-tokens", 5, "--temperature", 0)
        given = gptj("generate", tiny_run, "--prompt", "a cat", *words)
        monkeypatch.setattr(sys, "stdin", io.StringIO("a cat"))
        assert gptj("generate", tiny_run, "--prompt", "-", *words) == given

    def test_on_a_mesh_it_writes_the_same(self, gptj, tiny_run):
        command = ("generate", tiny_run, "--prompt", "the ", "--max-tokens", 6, "--temperature", 0)
        assert gptj(*command, "--mesh.data", 2, "--mesh.tensor", 2) == gptj(*command)

    def test_it_reads_the_newest_checkpoint(self, own_run, tiny_run, gptj):
        command = ("--prompt", "the ", "--max-tokens", 40)
        newest = gptj("generate", own_run, *command)
        (own_run / "checkpoints/00000012").rename(own_run / "checkpoints/00000003")
        assert newest == gptj("generate", tiny_run, *command)
        assert newest != gptj("generate", own_run, *command)


class TestPlot:
    def test_it_draws_a_run(self, gptj, tiny_run, tmp_path):
        picture = tmp_path / "deep/curves.png"
        assert gptj("plot", tiny_run, "--out", picture) == (0, f"wrote {picture}\n", "")
        assert picture.read_bytes().startswith(b"\x89PNG\r\n")
        assert picture.stat().st_size > 10_000


class TestDebug:
    @pytest.mark.parametrize("place", [0, 1, -1])
    def test_it_shows_where_an_error_came_from(self, gptj, place):
        words = ["generate", "nowhere", "--prompt", "x"]
        words.insert(place if place >= 0 else len(words), "--debug")
        with pytest.raises(package.UserError, match="no model at nowhere"):
            gptj(*words)

    def test_also_of_an_error_in_the_options_themselves(self, gptj):
        with pytest.raises(package.UserError, match="top_p") as failure:
            gptj("generate", "run", "--prompt", "x", "--top-p", "0", "--debug")
        assert any(entry.name == "__post_init__" for entry in failure.traceback)

    def test_a_terminal_sees_the_traceback(self):
        command = [sys.executable, "-m", "gptj.cli", "plot", "nowhere", "--debug"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" in done.stderr


class TestInterruption:
    def test_ctrl_c_is_one_word_and_130(self, gptj, monkeypatch):
        def interrupted(config):
            raise KeyboardInterrupt

        monkeypatch.setattr(runs, "plot", interrupted)
        assert gptj("plot", "run") == (130, "", "gptj plot: interrupted\n")

    def test_a_reader_that_leaves_ends_it_without_a_word(self, tiny_text, tmp_path):
        command = [sys.executable, "-m", "gptj.cli", "prepare", str(tiny_text)]
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "wb") as nobody:
            words = ("--out", str(tmp_path / "data"), "--tokenizer", "bytes")
            done = subprocess.run([*command, *words], stdout=nobody, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")

    def test_a_terminal_that_cannot_show_a_character(self, tiny_run, tmp_path, monkeypatch):
        plain = io.TextIOWrapper(io.BytesIO(), "ascii")
        monkeypatch.setattr(sys, "stdout", plain)
        assert cli.main(["plot", str(tiny_run), "--out", str(tmp_path / "é.png")]) == 0
        assert plain.buffer.getvalue().endswith(b"?.png\n")

    def test_what_is_no_mistake_of_the_users_is_not_hidden(self, gptj, monkeypatch):
        monkeypatch.setattr(runs, "plot", lambda config: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gptj("plot", "run")
