"""The guides, run as they are written: every command and every program, on a small model."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

import gptj as package
from gptj.convert.convert import write
from gptj.convert.source import from_params

DOCS = Path(__file__).parents[1] / "docs"
CONFIG = package.ModelConfig(2, 32, 4, 4, 64, 257, 264, 128)

LEFT = {
    "finetune.md": ("lr.png", "curves.png", "models/mine/config.json", "adapters/mine"),
    "start.md": ("runs/first/report.html",),
    "convert.md": ("half/weights.safetensors", "slim/shard_1", "adapters", "merged/config.json"),
    "quantise.md": (),
    "migrate/mesh-transformer-jax.md": ("runs/tuned", "slim/shard_3", "hf/config.json"),
    "migrate/huggingface.md": ("theirs/config.json",),
}
"""The pages whose blocks of `sh` and `python` are run, and what lies there in the end."""

SHORTER = {"start.md": (("--steps 200", "--steps 2 --warmup-steps 1"),)}
"""What the tests do not wait for."""


class Part(NamedTuple):
    """A command, or a program."""

    kind: str
    text: str


def parts(page: str) -> list[Part]:
    """What is run of a page, one after the other, here-documents with their command."""
    text = (DOCS / page).read_text()
    for long, short in SHORTER.get(page, ()):
        assert long in text
        text = text.replace(long, short)
    found = []
    for kind, block in re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL):
        if kind == "python":
            found.append(Part(kind, block))
            continue
        block = block.replace("\\\n", "")
        command = r"^cat .*?^END$|^gptj (?:[^\"\n]|\"[^\"]*\")*"
        commands = re.findall(command, block, re.DOTALL | re.MULTILINE)
        assert len(commands) == len(re.findall(r"^(?:gptj|cat) ", block, re.MULTILINE)) > 0
        found.extend(Part(kind, each) for each in commands)
    return found


SLOW = {"start.md", "quantise.md"}
"""The pages whose verbs other tests run as well."""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """Where the reader stands: with a model, with texts, and the project's documentation."""
    monkeypatch.chdir(tmp_path)
    params = package.init(jax.random.key(0), CONFIG)
    model = from_params(CONFIG, params, package.Tokenizer.bytes())
    write(model, tmp_path / "models" / "base", "huggingface")
    write(model, tmp_path / "step_383500", "mesh-transformer", 4)
    texts = tmp_path / "my-texts"
    texts.mkdir()
    for number in range(30):
        (texts / f"{number}.txt").write_text(f"Text number {number}. " * 20)
    package.prepare(package.PrepareConfig((str(texts),), Path("data/texts"), "models/base"))
    (tmp_path / "docs").symlink_to(DOCS)
    return tmp_path


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in LEFT]
)
def test_everything_does_what_the_page_says(page, place, gptj, capsys):
    if page == "finetune.md":
        subprocess.run(["rm", "-r", "data"], check=True)  # it prepares them itself
    said = {}
    for kind, text in parts(page):
        if kind == "python":
            capsys.readouterr()
            exec(text, said)
            assert capsys.readouterr().out or "print" not in text
        elif text.startswith("cat"):
            subprocess.run(["bash", "-ec", text], check=True)
        else:
            code, out, err = gptj(*shlex.split(text)[1:])
            assert code == 0, f"{text}\n{out}\n{err}"
    for left in LEFT[page]:
        assert (place / left).exists()
