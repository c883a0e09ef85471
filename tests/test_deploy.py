"""The files in examples/deploy: what they say is what the program takes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from gptj.cli.flags import parse
from gptj.cli.serve import ServeCommand

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "examples" / "deploy"


def served(words: list[str]) -> ServeCommand:
    """The command that `gptj serve WORDS` is."""
    return parse(ServeCommand, "serve", words, "")


def container() -> list[str]:
    return (DEPLOY / "Containerfile").read_text().splitlines()


def test_a_wheel_is_built_of_what_the_container_copies(tmp_path):
    copied = [line.split()[1:] for line in container() if line.startswith("COPY")]
    for *words, into in copied:
        folder = tmp_path / into.strip("/")
        for source in (ROOT / word for word in words):
            if source.is_dir():
                shutil.copytree(source, folder)  # what is in it, as COPY does
            else:
                folder.mkdir(exist_ok=True)
                shutil.copy(source, folder)
    made = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=tmp_path / "build",
        env={**os.environ, "GPTJ_NATIVE": "0"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    assert len(list(tmp_path.glob("build/dist/*.whl"))) == 1


def test_the_container_serves_where_others_reach_it():
    (entry,) = (line.partition(" ")[2] for line in container() if line.startswith("ENTRYPOINT"))
    words = re.findall(r'"([^"]*)"', entry)
    assert words[:2] == ["gptj", "serve"]
    assert served(words[2:]).serve.host == "0.0.0.0"


def test_the_unit_is_one(tmp_path):
    unit = (DEPLOY / "gptj.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    config = served(shlex.split(command.replace("%d", "/run/credentials"))[2:]).serve
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert int(patience) > config.drain_seconds
    if shutil.which("systemd-analyze"):
        here = tmp_path / "gptj.service"
        here.write_text(unit.replace("/opt/gptj/bin/gptj", sys.executable))
        verified = subprocess.run(["systemd-analyze", "verify", here], capture_output=True)
        assert (verified.returncode, verified.stderr) == (0, b"")


def test_the_pods_ask_what_the_server_answers():
    yaml = pytest.importorskip("yaml")
    from gptj.serve.keys import OPEN

    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    config = served(["/model", *container["args"]]).serve
    assert pod["spec"]["terminationGracePeriodSeconds"] > config.drain_seconds
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} == OPEN  # a probe has no key
    assert {probe["port"] for probe in probes} == {config.port}
    assert service["spec"]["ports"][0]["targetPort"] == config.port
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["spec"]["volumes"]}


def test_the_job_has_a_key_and_an_address(tmp_path):
    for name, script in {
        "srun": 'printf "%s\\n" "$GPTJ_API_KEYS" "$@"',
        "hostname": "echo n7",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("GPTJ_API_KEYS", None)
    command = [DEPLOY / "slurm.sh", "runs/a b", "--slots", "4"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    told, key, *words = said.stdout.splitlines()
    assert told == f"the API key is {key.removeprefix('job ')}"
    assert re.fullmatch("job [0-9a-f]{32}", key)
    assert words == ["gptj", "serve", "runs/a b", "--slots", "4", "--host", "n7"]
    assert served(words[2:]).serve.host == "n7"
    own = subprocess.run(
        command, capture_output=True, text=True, env={**environment, "GPTJ_API_KEYS": "me 1"}
    )
    assert own.stdout.splitlines()[0] == "me 1"
