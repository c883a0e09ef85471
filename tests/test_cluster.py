"""The launch files in examples/cluster, run as far as one machine can; and a Ray cluster's
address, with Ray itself stood in for."""

import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from gptj import cluster
from gptj.errors import UserError
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


class TestAnAddress:
    @pytest.mark.parametrize("address", ["auto", "host:6379", "ray://host:10001", "[::1]:6379"])
    def test_may_be_one(self, address):
        cluster.check_address(address)

    def test_is_no_folder_and_has_a_port(self, tmp_path):
        with pytest.raises(
            UserError, match=r"lies on this machine .* --ray auto, another as --ray"
        ):
            cluster.check_address(str(tmp_path))
        with pytest.raises(
            UserError, match=r"^host is no address of a Ray cluster: give HOST:PORT"
        ):
            cluster.check_address("host")

    @pytest.mark.parametrize("form", ["{}", "ray://{}"])
    def test_is_one_where_somebody_answers(self, form):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            cluster._check_reachable(form.format(f"127.0.0.1:{port}"))
        with pytest.raises(UserError, match=rf"answers at .*127\.0\.0\.1:{port} \(.*check the ad"):
            cluster._check_reachable(form.format(f"127.0.0.1:{port}"))
        with pytest.raises(UserError, match="no Ray cluster answers at 127"):
            cluster._check_reachable("127.0.0.1:70000")  # no port is as high

    def test_of_version_6_stands_in_brackets(self, monkeypatch):
        asked = []
        answer = types.SimpleNamespace(close=lambda: None)
        monkeypatch.setattr(
            cluster.socket, "create_connection", lambda at, timeout: asked.append(at) or answer
        )
        cluster._check_reachable("[::1]:6379")
        assert asked == [("::1", 6379)]
        for other in ("auto", "host", "host:name", ":"):
            cluster._check_reachable(other)
        assert len(asked) == 1


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


@pytest.fixture
def ray(monkeypatch):
    """Ray, as far as it is asked: it does its work here. `ray.fails` is raised by the data."""
    fake = types.ModuleType("ray")
    fake.asked, fake.refuses, fake.fails, fake.left = [], [], None, 0
    context = types.SimpleNamespace(enable_progress_bars=True)

    def init(**options):
        fake.asked.append(options.get("address"))
        if fake.refuses:
            raise fake.refuses.pop()

    class Data:
        def __init__(self, items, override_num_blocks):
            assert override_num_blocks == len(items)
            self.items, self.do = items, None

        def map(self, do):
            self.do = do
            return self

        def iter_rows(self):
            assert not context.enable_progress_bars
            for item in self.items:
                if fake.fails:
                    raise fake.fails
                yield self.do({"item": item})

    fake.init, fake.exceptions = init, types.ModuleType("ray.exceptions")
    fake.exceptions.RayError, fake.exceptions.RayTaskError = RayError, RayTaskError
    fake.data = types.SimpleNamespace(
        from_items=Data,
        DataContext=types.SimpleNamespace(get_current=lambda: context),
    )

    def shutdown():
        fake.left += 1

    fake.shutdown = shutdown
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
    monkeypatch.setattr(cluster, "_check_reachable", lambda address: None)
    monkeypatch.setenv("RAYON_NUM_THREADS", "4")
    return fake


class TestJoining:
    def test_without_ray_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(UserError, match=r"--ray needs Ray: pip install 'gptj-jax\[ray\]'"):
            cluster.connect()

    def test_auto_makes_one_where_there_is_none(self, ray):
        cluster.connect()
        assert ray.asked == ["auto"]
        ray.refuses = [ConnectionError("none here")]
        cluster.connect()
        assert ray.asked == ["auto", "auto", None]

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (ConnectionError("gone"), "no Ray cluster answers at host:1: gone"),
            (ValueError("what?"), "host:1 is no address of a Ray cluster: give HOST:PORT"),
        ],
    )
    def test_another_is_told_where_it_fails(self, ray, error, said):
        ray.refuses = [error]
        with pytest.raises(UserError, match=f"^{said}$"):
            cluster.connect("host:1")
        assert ray.asked == ["host:1"]


class TestWorkOnACluster:
    def test_is_done_of_every_number_and_then_it_is_left(self, ray):
        done = []
        cluster.each("host:1", done.append, range(3, 6))
        assert done == [3, 4, 5]
        assert (ray.asked, ray.left) == (["host:1"], 1)
        assert os.environ["RAYON_NUM_THREADS"] == "1"

    @pytest.mark.parametrize("kind", [UserError, OSError])
    def test_its_own_mistakes_come_back_as_they_are(self, ray, kind):
        def work(number):
            if number == 4:
                raise kind("number 4 is wrong")

        with pytest.raises(kind, match=r"^number 4 is wrong$") as failed:
            cluster.each("host:1", work, range(3, 6))
        assert isinstance(failed.value, UserError) == (kind is UserError)
        assert ray.left == 1

    def test_a_bug_in_it_is_not_hidden(self, ray):
        ray.fails = RayTaskError("a bug")
        with pytest.raises(RayTaskError):
            cluster.each("host:1", print, [1])
        ray.fails = RayError("node lost")
        with pytest.raises(ConnectionError, match="the Ray cluster was lost: node lost"):
            cluster.each("host:1", print, [1])
        assert ray.left == 2
