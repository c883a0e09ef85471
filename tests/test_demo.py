"""The demo, from text to samples, shorter and smaller than `make demo`'s."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

import gptj

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.py"
TINY = gptj.ModelConfig(1, 32, 2, 8, 64, 1024, 1024, 64)


@pytest.fixture
def demo(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("demo", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole = module.recipe

    def short(data, out):
        short_run = {"steps": 4, "batch": 2, "seq": 32, "eval_every": 4, "save_every": 4}
        optimizer = gptj.OptimizerConfig(warmup_steps=1)
        return dataclasses.replace(whole(data, out), model=TINY, optimizer=optimizer, **short_run)

    monkeypatch.setattr(module, "recipe", short)
    monkeypatch.chdir(tmp_path)
    return module


def test_the_demo_goes_from_text_to_samples(demo, tmp_path, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(8):
        lines = (f"def add_{n}_{m}(x):\n    return x + {m}\n" for m in range(40))
        (texts / f"{n}.py").write_text("\n".join(lines))
    demo.demo(texts)
    said = capsys.readouterr().out
    assert "gzip -9" in said
    assert said.count("--- p=0.9 ---") == 2
    run = Path("runs/demo-texts")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert len(summary["samples"]) == 3
    assert (run / "curves.png").stat().st_size > 1000
    (texts / "9.py").write_text("x = 1\n" * 200)  # another text: the run is set aside
    demo.demo(texts)
    assert "was trained on another text" in capsys.readouterr().out
    assert len(list(Path("runs").glob("demo-texts*"))) == 2
