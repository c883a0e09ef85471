"""`gptj plan` from end to end: what it says, what it writes, and what it refuses."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from gptj.plan import remote

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
GPUS = ("plan", "gpt-j-6b", "--on", "h100:8")


def test_a_plan_by_formula(gptj, tmp_path):
    out, page = tmp_path / "plan.json", tmp_path / "plan.html"
    code, said, err = gptj(
        *GPUS, "--mesh", "fsdp=8", "--batch", 64, "--tokens", "1e9", "--price", 2,
        "--json", out, "--html", page,
    )  # fmt: skip
    assert (code, err) == (0, "")
    words = (
        *("it fits", "weights", "optimizer", "gradients", "activations", "temporaries"),
        *(
            "all-gather",
            "reduce-scatter",
            "the bound",
            "tokens/s",
            "chip-hours",
            "at 2 a chip-hour",
        ),
        *("as gptj train measures", "as in the PaLM paper", "as in GPT-J's article"),
    )
    assert [word for word in words if word not in " ".join(said.split())] == []
    found = json.loads(out.read_text())
    assert found["job"]["mesh"] == [1, 8, 1]
    assert found["memory"]["needed"] == pytest.approx(
        sum(v for k, v in found["memory"].items() if k not in ("available", "needed"))
    )
    run = found["run"]
    assert run["cost"] == pytest.approx(2 * run["chip_hours"]) == pytest.approx(384 * run["days"])
    assert run["device_hours"] == run["chip_hours"]
    assert set(found["activations_by_remat"]) == {"none", "dots", "block", "offload"}
    html = page.read_text()
    words = ("it fits", "Collectives in a step", "reduce-scatter", "The whole run", "chip hours")
    assert [word for word in words if word not in html] == []
    assert "default-src &#x27;none&#x27;" in html


def test_a_search_by_formula(gptj, tmp_path):
    out, page = tmp_path / "search.json", tmp_path / "search.html"
    options = ("--batch", 64, "--tokens", "1e9", "--json", out, "--html", page)
    code, said, _ = gptj(*GPUS, "--search", *options)
    assert code == 0
    assert "combinations by formula" in said
    assert "the best" in said
    ranked = json.loads(out.read_text())["ranked"]
    assert ranked[0]["reason"] == ""
    assert ranked[0]["fits"]
    assert ranked[0]["run"]["days"] <= ranked[1]["run"]["days"]
    assert all(word in page.read_text() for word in ("What was tried", "The whole run"))


def test_serving_by_formula(gptj, tmp_path):
    out, page = tmp_path / "serve.json", tmp_path / "serve.html"
    code, said, _ = gptj(
        "plan", "--serve", "gpt-j-6b", "--on", "h200", "--quantize", "int8", "--kv-cache", "int8",
        "--slots", 32, "--max-adapters", 4, "--json", out, "--html", page,
    )  # fmt: skip
    assert code == 0
    assert all(
        word in said for word in ("keys and values", "adapters", "slots fit", "memory", "32 slots")
    )
    found = json.loads(out.read_text())
    assert found["weights"] < 7e9
    assert found["job"]["adapter_rank"] == 16
    assert all(word in page.read_text() for word in ("Slots that fit", "adapters"))


def test_a_recipe_is_planned_as_it_trains_and_a_flag_wins(gptj, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import gptj\n"
        "def recipe():\n"
        "    return gptj.TrainConfig(data='d', out='o', model='1.3b', batch=32, accumulate=4,\n"
        "        seq=1024, optimizer=gptj.OptimizerConfig('lion'))\n"
    )
    out = tmp_path / "plan.json"
    assert gptj("plan", recipe, "--on", "h100:4", "--mesh", "data=4", "--json", out).code == 0
    job = json.loads(out.read_text())["job"]
    assert (job["batch"], job["accumulate"], job["seq"]) == (32, 4, 1024)
    assert (job["optimizer"]["kind"], job["compute"]["dtype"]) == ("lion", "float32")
    flags = ("--accumulate", 2, "--optimizer", "adamw", "--moments", "bfloat16", "--remat", "dots")
    assert gptj("plan", recipe, "--on", "h100:4", *flags, "--json", out).code == 0
    job = json.loads(out.read_text())["job"]
    assert (job["accumulate"], job["compute"]["remat"]) == (2, "dots")
    assert (job["optimizer"]["kind"], job["optimizer"]["b2"]) == ("adamw", 0.95)


@pytest.mark.parametrize("option", ["json", "html"])
def test_what_is_written_has_a_folder_made_for_it_or_says_why_not(gptj, refused, tmp_path, option):
    words, out = ("plan", "125m", "--on", "t4", f"--{option}"), tmp_path / "new" / f"plan.{option}"
    assert gptj(*words, out).code == 0
    assert out.read_text()
    refused(*words, out / "under", said=(f"{option}={out / 'under'} cannot be written (", "choose"))


def test_adapters_by_formula_and_by_a_recipe(gptj, tmp_path):
    out, page, recipe = tmp_path / "plan.json", tmp_path / "plan.html", tmp_path / "mine.py"
    words = ("--on", "t4", "--batch", 1, "--json", out)
    flags = ("--lora-rank", 8, "--lora-base", "nf4", "--lora-targets", "q", "v")
    code, said, _ = gptj("plan", "gpt-j-6b", *words, *flags, "--html", page)
    assert code == 0
    assert "3.67M in adapters of rank 8 beside nf4 weights" in " ".join(said.split())
    assert "3.67M in adapters of rank 8 beside nf4 weights" in page.read_text()
    found = json.loads(out.read_text())
    assert (found["trained"], found["fits"]) == (28 * 2 * 8 * 8192, True)
    recipe.write_text(
        "import gptj\n"
        "def recipe():\n"
        "    lora = gptj.LoRAConfig(rank=4, quantize='int8')\n"
        "    return gptj.TrainConfig(data='d', out='o', from_='m', model='1.3b', batch=1,\n"
        "        compute=gptj.StepConfig(lora=lora))\n"
    )
    for more, expected in [((), (4, "int8")), (("--lora-rank", 2), (2, None))]:
        assert gptj("plan", recipe, *words, *more).code == 0
        lora = json.loads(out.read_text())["job"]["compute"]["lora"]
        assert (lora["rank"], lora["quantize"]) == expected


def test_preferences_by_formula_and_by_a_recipe(gptj, tmp_path):
    out, recipe = tmp_path / "plan.json", tmp_path / "mine.py"
    words = ("--on", "h100", "--lora-rank", 8, "--batch", 4, "--json", out)
    code, said, _ = gptj("plan", "gpt-j-6b", *words, "--preferences")
    assert code == 0
    assert "4 pairs of rows of 2048 tokens (16.4k) a step" in " ".join(said.split())
    assert json.loads(out.read_text())["job"]["compute"]["dpo_beta"] == 0.1
    recipe.write_text(
        "import gptj\n"
        "def recipe():\n"
        "    compute = gptj.StepConfig(dpo_beta=0.3)\n"
        "    return gptj.TrainConfig(data='d', out='o', from_='m', model='1.3b', compute=compute)\n"
    )
    code, said, _ = gptj("plan", recipe, *words)
    assert (code, "pairs of rows" in said) == (0, True)
    assert json.loads(out.read_text())["job"]["compute"]["dpo_beta"] == 0.3


@pytest.mark.slow
def test_measured_beside_predicted(gptj, tmp_path, tiny_model):
    out, page = tmp_path / "plan.json", tmp_path / "plan.html"
    code, said, _ = gptj(
        "plan", tiny_model, "--on", "cpu:2", "--mesh", "data=2", "--batch", 4, "--measure",
        "--json", out, "--html", page,
    )  # fmt: skip
    assert code == 0
    assert "measured" in said
    assert "Measured here" in page.read_text()
    found = json.loads(out.read_text())
    assert found["compiled"]
    assert 0 < found["measured"]["seconds"] < 60


def outside(*words):
    """A program in a process of its own, which may look for TPUs."""
    own = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment | own, check=False
    )


@needs_libtpu
def test_a_plan_for_a_tpu_is_quiet(tiny_model):
    """Nothing of libtpu's own reaches the terminal."""
    words = ("plan", tiny_model, "--on", "v3-8", "--mesh", "data=2,tensor=4", "--batch", 8)
    done = outside("-m", "gptj.cli", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("libtpu") == 1  # its version, and nothing else of it
    assert "it fits" in done.stdout


def test_libtpu_is_quiet_in_every_verb():
    """Where it is installed, and JAX looks for a TPU that is not there."""
    program = "import jax; from gptj.cli import guarded; guarded('x', lambda: print(jax.devices()))"
    assert outside("-c", program).stderr == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--on", "v9-4"), ("no hardware 'v9-4'", "v3-8|32|64", "cpu:N")),
        (("--on", "h100:8", "--mesh", "data=3"), ("data=3 is of 3 devices", "h100:8 has 8")),
        (("--on", "h100:32", "--mesh", "tensor=32"), ("tensor=32 does not divide", "heads=16")),
        (("--on", "h100:8", "--mesh", "rows=8"), ("'rows=8' is not like data=32,tensor=8",)),
        (("--on", "h100:8", "--mesh", "data=8", "--batch", 12), ("batch of 12 rows", "multiple")),
        (("--on", "h100:8", "--seq", 4096), ("seq=4096", "context of 2048")),
        (("--on", "h100:8", "--batch", 0), ("batch=0 must be at least 1",)),
        (("--on", "h100:8", "--price", 2), ("price=2.0 says nothing without tokens",)),
        (("--on", "h100:8", "--tokens", -1), ("tokens=-1.0 must be above 0",)),
        (("--on", "h100:8", "--slots", 4), ("slots is not looked at", "training")),
        (("--on", "h100:8", "--attention", "cudnn"), ("attention=cudnn", "by formula: leave it")),
        (("--on", "h100:8", "--serve", "--attention", "xla"), ("attention is not looked at",)),
        (("--on", "h100:8", "--serve", "--remat", "dots"), ("remat is not looked at", "serve")),
        (("--on", "h100:8", "--search", "--mesh", "data=8"), ("search tries every mesh",)),
        (("--on", "h100:8", "--search", "--measure"), ("leave out sequential and measure",)),
        (("--on", "h100:8", "--mesh", "tensor=8", "--sequential"), ("nothing is compiled",)),
        (("--on", "h100:8", "--measure"), ("nothing can be measured for h100:8",)),
        (("--on", "cpu:64", "--measure"), ("measured for cpu:64", "device_count=64")),
        (("--on", "h100:8", "--mesh", "data=4,data=2"), ("not like data=32,tensor=8", "once")),
        (("--on", "h100:8", "--batch", 8, "--accumulate", 3), ("8 rows in accumulate=3 parts",)),
        (("--on", "h100", "--lora-base", "nf4"), ("--lora options are of adapters",)),
        (("--on", "h100", "--lora-rank", 8192), ("lora-rank=8192 is above 4096",)),
        (("--on", "h100:8", "--mesh", "tensor=8", "--lora-rank", 4), ("tensor=8 does not divide",)),
        (
            ("--on", "h100", "--lora-rank", 4, "--optimizer", "gptj-2021"),
            ("gptj-2021 trains no adapters",),
        ),
        (("--on", "h100", "--preferences"), ("learnt by adapters", "give --lora-rank")),
        (("--on", "h100", "--serve", "--preferences"), ("preferences is not looked at", "serve")),
        (("--on", "h100", "--serve", "--lora-rank", 4), ("lora is not looked at", "serve")),
        (("--on", "h100:8", "--serve", "--mesh", "fsdp=8"), ("fsdp=8 would gather all weights",)),
        (("--on", "h100", "--max-adapters", 4), ("max_adapters is not looked at", "training")),
        (("--on", "h100", "--serve", "--max-adapters", -1), ("max_adapters=-1 must be",)),
        (("--on", "h100", "--serve", "--max-adapter-rank", 4), ("no room", "give max_adapters")),
        (
            (
                "--on",
                "h100:8",
                "--serve",
                "--mesh",
                "data=8",
                "--max-adapters",
                1,
                "--max-adapter-rank",
                0,
            ),
            ("max_adapter_rank=0 must be",),
        ),
        (("--on", "h100", "--serve", "--positions", 4096), ("positions=4096", "context of 2048")),
    ],
)
def test_mistakes(refused, words, said):
    refused("plan", "gpt-j-6b", *words, said=said)


def test_a_model_that_is_not_there(refused):
    refused("plan", "gpt-9", "--on", "h100", said=("'gpt-9' is neither a preset", "gpt-j-6b"))


def test_without_the_tpus_compiler(refused, monkeypatch):
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda _: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    words = ("--on", "v3-8", "--mesh", "tensor=8")
    refused(
        "plan", "gpt-j-6b", *words, said=("needs the TPU compiler", "pip install 'gptj-jax[tpu]'")
    )
