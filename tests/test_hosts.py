"""Many hosts: processes of this machine that find, follow and miss one another."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from gptj.checkpoint import complete
from gptj.errors import UserError
from gptj.hosts import LOST, HostsConfig, Place, place_of
from gptj.sharding import make_mesh, place_parts
from gptj.train.metrics import read_metrics


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


class Ended(NamedTuple):
    """What a host's process left behind."""

    code: int
    out: str
    err: str


class Hosts:
    """Processes that run one command, each as one host of several."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, []
        folder.mkdir()
        self.env = {
            **{"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache")},
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self, count: int, *words: object, prefix=(), coordinator="127.0.0.1", devices=1):
        """`prefix(index)` may give words to put before the command."""
        port = free_port()
        flag = f"--xla_force_host_platform_device_count={devices}"
        for index in range(count):
            given = {"coordinator": f"{coordinator}:{port}", "count": count, "index": index}
            flags = [word for k, v in given.items() for word in (f"--hosts.{k}", str(v))]
            flags = flags if count > 1 else []
            before = prefix(index) if prefix else []
            command = [*before, sys.executable, "-W", "error", *map(str, words), *flags]
            self.run(command, {"XLA_FLAGS": flag})
        return self

    def run(self, command: list[str], env: dict[str, str]) -> None:
        base = self.folder / f"host-{len(self.running)}"
        with base.with_suffix(".out").open("w") as out, base.with_suffix(".err").open("w") as err:
            process = subprocess.Popen(
                command, stdout=out, stderr=err, env={**os.environ, **self.env, **env}
            )
        self.running.append(process)

    def signal(self, index: int, number: signal.Signals) -> None:
        self.running[index].send_signal(number)

    def finish(self, seconds: float = 120) -> list[Ended]:
        """How each ended, if all did within so many seconds."""
        begin, ended = time.monotonic(), []
        for index, process in enumerate(self.running):
            base = self.folder / f"host-{index}"
            try:
                code = process.wait(max(begin + seconds - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                said = base.with_suffix(".err").read_text()
                pytest.fail(f"host {index} still runs after {seconds} s; it said: {said}")
            texts = (base.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
            ended.append(Ended(code, *texts))
        self.running.clear()
        return ended

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def for_hosts(tmp_path_factory) -> Path:
    """Where all hosts of all tests keep what they have compiled, and each its output."""
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture
def many(for_hosts, tmp_path):
    running = Hosts(for_hosts / tmp_path.name)
    yield running
    running.stop()


def until(happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.02)


def steps_done(run: Path) -> int:
    with contextlib.suppress(UserError):
        return max((int(row["step"]) for row in read_metrics(run)), default=0)
    return 0


SLURM = {
    **{"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_NTASKS": "2"},
    **{"SLURM_PROCID": "1", "SLURM_LOCALID": "0"},
}
OMPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
OMPI_4 = {
    **OMPI,
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}


class TestPlace:
    """Who this host is: from flags, or from what started it."""

    def found(self, monkeypatch, env, **flags):
        for name in list(os.environ):
            if re.match("SLURM_|OMPI_|KUBERNETES_|JOB_|TPU_", name):
                monkeypatch.delenv(name)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return place_of(HostsConfig(**flags))

    def test_alone(self, monkeypatch):
        assert self.found(monkeypatch, {}) is None
        assert self.found(monkeypatch, {}, count=1) is None

    def test_flags(self, monkeypatch):
        place = self.found(monkeypatch, {}, coordinator="a:1", count=3, index=2)
        assert place == Place("a:1", 3, 2)

    def test_slurm(self, monkeypatch):
        place = self.found(monkeypatch, SLURM)
        assert place == Place("node003:61517", 2, 1, [0])

    @pytest.mark.parametrize("change", [{"SLURM_NTASKS": "1"}, {"SLURM_STEP_NODELIST": None}])
    def test_slurm_with_one_task_or_outside_a_step(self, monkeypatch, change):
        env = {k: v for k, v in (SLURM | change).items() if v is not None}
        assert self.found(monkeypatch, env) is None

    def test_open_mpi(self, monkeypatch):
        place = self.found(monkeypatch, OMPI_4)
        assert place == Place("10.96.0.1:62624", 4, 3, [1])

    def test_open_mpi_5_tells_all_but_the_coordinator(self, monkeypatch):
        place = self.found(monkeypatch, OMPI, coordinator="node1:8476")
        assert place == Place("node1:8476", 4, 3)
        with pytest.raises(UserError, match=r"Open MPI started .*: give --hosts.coordinator, or"):
            self.found(monkeypatch, OMPI)

    def test_one_host_if_one_is_asked_for(self, monkeypatch):
        assert self.found(monkeypatch, SLURM, count=1) is None

    def test_a_pod_of_an_indexed_job_never_trains_alone_unasked(self, monkeypatch):
        said = r"Kubernetes started .* package kubernetes, .*: give --hosts.coordinator, --hosts.co"
        monkeypatch.setitem(sys.modules, "kubernetes", None)
        with pytest.raises(UserError, match=said):
            self.found(monkeypatch, POD)

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ({"count": 2}, "hosts.count without hosts.coordinator and hosts.index: give all three"),
            ({"index": 0}, "hosts.index without hosts.coordinator and hosts.count: give"),
            ({"coordinator": "a:1"}, "hosts.coordinator without hosts.count and hosts.index"),
            ({"coordinator": "a:1", "count": 2}, "hosts.coordinator and hosts.count without ho"),
            ({"count": 0}, "hosts.count=0 must be at least 1"),
            ({"timeout": 0}, "hosts.timeout=0 must be at least 1"),
            ({"count": 2, "index": 2}, "hosts.index=2 is not one of the hosts: count them from 0"),
            ({"index": -1}, "hosts.index=-1 is not one of the hosts"),
            ({"coordinator": "node1"}, "hosts.coordinator=node1 is not HOST:PORT: give the name"),
            ({"coordinator": "node1:0"}, "hosts.coordinator=node1:0 is not HOST:PORT"),
            ({"coordinator": ":80"}, "hosts.coordinator=:80 is not HOST:PORT"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, monkeypatch, flags, said):
        with pytest.raises(UserError) as failure:
            self.found(monkeypatch, {}, **flags)
        assert str(failure.value).startswith(said)


WAITING = """
import sys, threading
from gptj.circle import arrive
port, count, index = map(int, sys.argv[1:])
circle, _ = arrive(f"127.0.0.1:{port}", count, index, 60)
circle.gather("begin", index)
print("here", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_host_ends_the_others_which_name_it(many, victim):
    port = free_port()
    for index in range(3):
        many.run([sys.executable, "-c", WAITING, str(port), "3", str(index)], {})
    outs = [many.folder / f"host-{index}.out" for index in range(3)]
    until(lambda: all(out.read_text() for out in outs))
    many.signal(victim, signal.SIGKILL)
    for index, end in enumerate(many.finish(30)):
        if index != victim:
            assert end.code == LOST
            assert re.fullmatch(
                rf"gptj: host {victim} \(.* at 127\.0\.0\.1\) is lost, .*\n", end.err
            )


def test_only_the_parts_of_own_devices_are_read():
    read, whole = [], np.arange(48).reshape(2, 8, 3)
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        placed = place_parts(
            whole.shape, lambda part: read.append(part[1]) or whole[part], None, "batch", None
        )
        assert {rows.indices(8)[:2] for rows in read} == {(0, 2), (2, 4), (4, 6), (6, 8)}
    assert np.array_equal(np.asarray(placed), whole)


def numbers(run: Path) -> list[tuple[float, ...]]:
    """What each step of a run measured, and what the last evaluation did."""
    rows = read_metrics(run)
    steps = [(row["step"], row["loss"], row["grad_norm"], row["lr"]) for row in rows]
    return steps + [(row["heldout_loss"],) for row in rows[-1:] if "heldout_loss" in row]


def on_two(flags: list[str]) -> list[str]:
    """On two devices, with one learning rate for any number of steps: one compiled program."""
    return [*flags, "--anneal-steps", "30", "--mesh.data", "2"]


def train(flags: list[str]) -> tuple[str, ...]:
    return ("-c", "import sys; from gptj.cli import main; sys.exit(main())", "train", *flags)


class TestTraining:
    def test_two_hosts_stop_and_one_goes_on_bit_for_bit(self, many, train_flags, tmp_path):
        def flags(out: str) -> tuple[str, ...]:
            return train(on_two(train_flags(tmp_path / out, steps=40)))

        many.start(1, *flags("one"), devices=2).finish()
        many.start(2, *flags("two"))
        until(lambda: steps_done(tmp_path / "two") >= 5)
        many.signal(1, signal.SIGTERM)
        leader, other = many.finish()
        assert (leader.code, leader.err, other.code, other.err) == (0, "", 0, "")
        assert "saved; the same command goes on from there" in leader.out
        assert "step" not in other.out
        stopped = int(complete(tmp_path / "two/checkpoints")[-1].name)
        assert 5 <= stopped < 40
        assert numbers(tmp_path / "two") == numbers(tmp_path / "one")[:stopped]
        (alone,) = many.start(1, *flags("two"), devices=2).finish()
        assert f"going on from step {stopped}" in alone.out
        assert numbers(tmp_path / "two") == numbers(tmp_path / "one")

    def test_a_host_killed_in_a_step_is_named(self, many, train_flags, tmp_path):
        run = tmp_path / "run"
        many.start(2, *train(on_two(train_flags(run, steps=100_000, save_every=1000))))
        until(lambda: steps_done(run) > 20)
        many.signal(1, signal.SIGKILL)
        leader, _ = many.finish(60)
        assert leader.code == LOST
        assert re.search(r"^gptj: host 1 \(.*\) is lost, so all stop: run the same", leader.err)
        assert "Traceback" not in leader.err

    def test_hosts_started_differently_are_refused(self, many, train_flags, tmp_path):
        port = free_port()
        for index in range(2):
            flags = train_flags(tmp_path / "run", seed=index)
            given = ("--hosts.coordinator", f"localhost:{port}", "--hosts.count", "2")
            command = [*train(flags), *given, "--hosts.index", str(index), "--mesh.data", "2"]
            many.run([sys.executable, *command], {"XLA_FLAGS": ""})
        for end in many.finish():
            assert end.code == 2
            assert re.fullmatch(r"gptj train: seed is 0 on host 0 \(.*\) and 1 on .*\n", end.err)
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    def test_host_0_killed_in_a_step_is_named(self, many, train_flags, tmp_path):
        run = tmp_path / "run"
        many.start(2, *train(on_two(train_flags(run, steps=100_000, save_every=1000))))
        until(lambda: steps_done(run) > 20)
        many.signal(0, signal.SIGKILL)
        _, other = many.finish(60)
        assert other.code == LOST
        assert re.search(
            r"^gptj: host 0 \(.*\) is lost, so all stop: run the same", other.err, re.M
        )
        assert "Traceback" not in other.err

    @pytest.mark.slow
    def test_four_hosts_stop_and_two_go_on(self, many, train_flags, tmp_path):
        def flags(out: str) -> list[str]:
            shape = ["--mesh.fsdp", "2", "--mesh.tensor", "2"]
            return [*train_flags(tmp_path / out, steps=24), *shape]

        many.start(1, *train(flags("one")), devices=4).finish(300)
        many.start(4, *train(flags("many")))
        until(lambda: steps_done(tmp_path / "many") >= 5, 300)
        many.signal(3, signal.SIGTERM)
        assert [(end.code, end.err) for end in many.finish(300)] == [(0, "")] * 4
        many.start(2, *train(flags("many")), devices=2)
        assert [(end.code, end.err) for end in many.finish(300)] == [(0, "")] * 2
        one, some = (read_metrics(tmp_path / name) for name in ("one", "many"))
        assert [row["step"] for row in one] == [row["step"] for row in some]
        for expected, found in zip(one, some, strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert some[-1]["heldout_loss"] == pytest.approx(one[-1]["heldout_loss"], abs=1e-6)


def call(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)


@pytest.fixture
def two_networks():
    """Two network namespaces joined by a cable, each a machine with a name and an address."""
    names = "gptj-a", "gptj-b"
    try:
        for name in names:
            call("ip", "netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        pytest.skip(f"this machine makes no network namespaces: {str(said).strip()}")
    try:
        call("ip", "link", "add", *names[:1], "type", "veth", "peer", "name", names[1])
        for index, name in enumerate(names):
            folder = Path("/etc/netns") / name  # what `ip netns exec` lays over /etc
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(
                "127.0.0.1 localhost\n10.77.0.1 gptj-a\n10.77.0.2 gptj-b\n"
            )
            call("ip", "link", "set", name, "netns", name)
            call("ip", "-n", name, "address", "add", f"10.77.0.{index + 1}/24", "dev", name)
            for link in ("lo", name):
                call("ip", "-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def inside(names: tuple[str, ...]) -> Callable[[int], list[str]]:
    """What runs a command on one of these machines, under its name."""
    named = 'hostname "$0"; exec "$@"'
    return lambda index: [
        *("ip", "netns", "exec", names[index]),
        *("unshare", "--uts", "sh", "-c", named, names[index]),
    ]


@pytest.mark.slow
class TestTwoNetworks:
    def test_two_machines_train_as_one(self, two_networks, many, train_flags, tmp_path):
        def flags(out: str) -> tuple[str, ...]:
            return train(on_two(train_flags(tmp_path / out)))

        many.start(1, *flags("one"), devices=2).finish()
        place = {"prefix": inside(two_networks), "coordinator": "gptj-a"}
        many.start(2, *flags("two"), **place)
        assert [(end.code, end.err) for end in many.finish(300)] == [(0, "")] * 2
        assert numbers(tmp_path / "two") == numbers(tmp_path / "one")

    def test_a_machine_that_vanishes_is_named(self, two_networks, many, train_flags, tmp_path):
        run = tmp_path / "run"
        flags = on_two(train_flags(run, steps=100_000, save_every=1000))
        many.start(2, *train(flags), prefix=inside(two_networks), coordinator="10.77.0.1")
        until(lambda: steps_done(run) > 20)
        call("ip", "-n", "gptj-b", "link", "set", "gptj-b", "down")
        leader, other = many.finish(60)
        assert (leader.code, other.code) == (LOST, LOST)
        lost = r"gptj: host {} \(gptj-{} at 10\.77\.0\.{}\) is lost, so all stop: .*\n"
        assert re.search(lost.format(1, "b", 2), leader.err)
        assert re.search(lost.format(0, "a", 1), other.err)
