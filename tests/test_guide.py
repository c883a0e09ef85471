"""The guide to fine-tuning, run as it is written: every command, on a small model."""

import re
import shlex
import subprocess
from pathlib import Path

import jax
import pytest

import gptj as package
from gptj.convert.convert import write
from gptj.convert.source import from_params

GUIDE = (Path(__file__).parents[1] / "docs" / "finetune.md").read_text()
CONFIG = package.ModelConfig(2, 32, 4, 4, 64, 257, 264, 128)


def commands() -> list[str]:
    """What stands in its blocks of `sh`, one command after the other, here-documents with them."""
    text = "\n".join(re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL))
    command = r"^cat .*?^END$|^gptj (?:[^\"\n]|\"[^\"]*\")*"
    found = re.findall(command, text, re.DOTALL | re.MULTILINE)
    assert len(found) == len(re.findall(r"^(?:gptj|cat) ", text, re.MULTILINE)) > 20
    return found


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Where the reader stands: with a model, and with texts."""
    monkeypatch.chdir(tmp_path)
    params = package.init(jax.random.key(0), CONFIG)
    model = from_params(CONFIG, params, package.Tokenizer.bytes())
    write(model, tmp_path / "models" / "base", "huggingface")
    texts = tmp_path / "my-texts"
    texts.mkdir()
    for number in range(30):
        (texts / f"{number}.txt").write_text(f"Text number {number}. " * 20)
    return tmp_path


def test_every_command_does_what_it_says(place, gptj):
    for command in commands():
        if command.startswith("cat"):
            subprocess.run(["bash", "-ec", command], check=True)
            continue
        code, out, err = gptj(*shlex.split(command)[1:])
        assert code == 0, f"{command}\n{out}\n{err}"
    for left in ("lr.png", "curves.png", "models/mine/config.json", "adapters/mine"):
        assert (place / left).exists()
