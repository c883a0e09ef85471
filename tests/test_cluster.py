"""The launch files in examples/cluster, run as far as one machine can."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gptj.train.metrics import read_metrics

CLUSTER = Path(__file__).parents[1] / "examples" / "cluster"

GPTJ = "import sys; from gptj.cli import main; sys.exit(main())"

# What srun does, with two tasks on this machine: SLURM's variables, and the worst status.
SRUN = """\
shift
export SLURM_STEP_NODELIST=$(hostname) SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
wait $first; a=$?
wait $second; b=$?
exit $((a > b ? a : b))
"""
# What mpirun of Open MPI 4 does, likewise.
MPIRUN = """\
export OMPI_MCA_orte_hnp_uri="$((4096 * 77)).0;tcp://127.0.0.1:34911" OMPI_COMM_WORLD_SIZE=2
OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_LOCAL_RANK=0 "$@" & first=$!
OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 "$@" & second=$!
wait $first && wait $second
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Makes a program of a shell script, found before any other of its name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")

    def program(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)

    program("gptj", f'exec {sys.executable} -W error -c "{GPTJ}" "$@"')
    return program


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True)


@pytest.mark.parametrize("script", sorted(CLUSTER.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash(script):
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script).stderr == ""


def test_python_compiles():
    compile((CLUSTER / "ray_train.py").read_text(), "ray_train.py", "exec")


def test_jobset_gives_each_pod_its_place():
    yaml = pytest.importorskip("yaml")
    (hosts,) = yaml.safe_load((CLUSTER / "jobset.yaml").read_text())["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    words = job["template"]["spec"]["containers"][0]["command"]
    assert job["completionMode"] == "Indexed"
    assert f"--hosts.count={job['completions']}" in words
    assert job["completions"] == job["parallelism"]
    assert "--hosts.index=$(JOB_COMPLETION_INDEX)" in words
    assert f"--hosts.coordinator=gptj-{hosts['name']}-0-0.gptj:8476" in words


def test_a_tpu_pod_gets_the_words_as_they_are(programs):
    programs("gcloud", 'printf "%s\\n" "$@"')
    said = run(CLUSTER / "tpu_pod.sh", "pod", "zone", "--data", "a b", "--out", "$HOME/run")
    words = said.stdout.splitlines()
    assert " ".join(words[:8]) == "compute tpus tpu-vm ssh pod --zone zone --worker=all"
    assert words[8:] == ["--command", r"gptj train --data a\ b --out \$HOME/run "]


class TestFound:
    """JAX finds two processes by the variables of what starts them."""

    @pytest.mark.slow
    def test_slurm(self, programs, train_flags, tmp_path, monkeypatch):
        try:
            socket.gethostbyname(socket.gethostname())
        except OSError:
            pytest.skip(f"this machine's name, {socket.gethostname()}, has no address")
        programs("srun", SRUN)
        monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))
        flags = [*train_flags(tmp_path / "run"), "--mesh.data", "2"]
        ended = run(CLUSTER / "slurm.sh", *flags)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert read_metrics(tmp_path / "run")[-1]["step"] == 12

    def test_slurm_queues_again_when_a_host_was_lost(self, programs, monkeypatch):
        programs("srun", "exit $CODE")
        programs("scontrol", 'echo "scontrol $*"')
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        for code, said in ((0, ""), (2, ""), (75, "scontrol requeue 77\n"), (137, "scontrol re")):
            monkeypatch.setenv("CODE", str(code))
            ended = run(CLUSTER / "slurm.sh")
            assert ended.returncode == code
            assert ended.stdout.startswith(said)
            assert bool(ended.stdout) == bool(said)

    @pytest.mark.slow
    def test_open_mpi(self, programs, train_flags, tmp_path):
        programs("mpirun", MPIRUN)
        flags = [*train_flags(tmp_path / "run"), "--mesh.data", "2"]
        ended = run("mpirun", "gptj", "train", *flags)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert read_metrics(tmp_path / "run")[-1]["step"] == 12
