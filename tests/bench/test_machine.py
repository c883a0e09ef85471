"""What is noted of the machine beside its figures."""

import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from gptj.bench import machine


@pytest.fixture
def cpuinfo(monkeypatch, tmp_path):
    """The file in which Linux tells of its processors."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "Path", lambda _: file)
    return file


def test_it_is_the_first_processor_s_name(cpuinfo: Path):
    cpuinfo.write_text("processor\t: 0\nmodel name\t: A Fast One @ 3 GHz\nmodel name\t: Another\n")
    assert machine.describe_machine()["processor"] == "A Fast One @ 3 GHz"


@pytest.mark.parametrize("text", [None, "", "processor : 0\n"])
def test_where_it_is_not_told_the_platform_says_it(cpuinfo, text, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    if text is not None:
        cpuinfo.write_text(text)
    assert machine.describe_machine()["processor"] == "arm"


def test_versions_are_of_what_is_here_alone(monkeypatch):
    monkeypatch.setattr(machine, "VERSIONS", ("numpy", "no-such-package", "jax"))
    found = machine.describe_machine()
    assert (found["numpy"], found["jax"]) == (version("numpy"), version("jax"))
    assert {*found} == {"processor", "threads", "python", "numpy", "jax"}
    assert found["python"] == platform.python_version()
