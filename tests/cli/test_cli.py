"""The command line from end to end: what verbs do, say and leave behind."""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import gptj as package
from gptj import cli
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
from gptj.train.lr_find import LrFindConfig, LrFound

VERBS = (
    *("prepare", "mix", "train", "lr-find", "generate", "eval", "plot", "report", "show-rows"),
    *("verify", "convert", "merge", "inspect", "diff", "serve", "bench", "plan", "doctor"),
)
CONVERTED = Converted(None, Path("out"), ())


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
