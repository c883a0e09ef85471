"""Sides in turns: who goes when and on what, what is kept of it, and how a process ends."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptj.bench import own, peers, turns
from gptj.bench.config import DataBench, LoadBench, TrainBench
from gptj.bench.records import Limits, Side, Unavailable, Work
from gptj.errors import UserError

OURS, PEER, PROBE = Side("gptj", "float32"), Side("transformers", "float32"), Side("limits")
LIMITS = Limits("cpu", 10e9, {"float32": 100e9})
ALONE = (1, 1, 1)


class Workers:
    """Stand-ins for processes: what was asked of which, and what they say."""

    def __init__(self) -> None:
        self.limits = [LIMITS] * 4
        self.fails: dict[Side, Exception] = {}
        self.log: list[tuple[object, ...]] = []
        self.said: list[str] = []

    def __call__(self, side, bench, config, mesh):
        if side in self.fails:
            raise self.fails[side]
        self.log.append(("begin", side, mesh))
        return SimpleNamespace(
            side=side,
            run=lambda case: self._run(side, case),
            limits=lambda: self.limits.pop(0),
            close=lambda: self.log.append(("end", side)),
        )

    def _run(self, side, case):
        self.log.append(("run", side, case))
        return float(len(self.log)), 100 * len(self.log)

    def ran(self):
        return [entry[1:] for entry in self.log if entry[0] == "run"]


@pytest.fixture
def workers(monkeypatch):
    made = Workers()
    monkeypatch.setattr(turns, "Worker", made)
    return made


def measure(workers, *sides: Side, cases=("a",), rounds=1, mesh=ALONE, bench=None):
    works = {side: {case: Work("tokens", 1.0) for case in cases} for side in sides}
    bench = TrainBench() if bench is None else bench
    return turns.measure(bench, works, None, rounds, mesh, workers.said.append)


class TestMeasuring:
    def test_within_a_turn_each_case_is_done_by_every_side_before_the_next(self, workers):
        _, figures, _ = measure(workers, OURS, PEER, cases=("a", "b"), rounds=2)
        turn = [(OURS, "a"), (PEER, "a"), (OURS, "b"), (PEER, "b")]
        assert workers.ran() == turn * 3
        assert [(each.side, each.case, len(each.seconds)) for each in figures] == [
            (*who, 2) for who in turn
        ]

    def test_the_first_turn_is_not_counted_and_the_newest_peak_is_kept(self, workers):
        _, (figure,), _ = measure(workers, OURS, rounds=2)
        said = [n for n, entry in enumerate(workers.log, 1) if entry[0] == "run"]
        assert figure.seconds == said[1:]
        assert figure.peak_bytes == 100 * said[-1]

    def test_each_figure_knows_its_own_side_s_work(self, workers):
        works = {OURS: {"a": Work("tokens", 1.0)}, PEER: {"a": Work("tokens", 2.0)}}
        _, figures, _ = turns.measure(TrainBench(), works, None, 1, ALONE, lambda _: None)
        assert [each.work.amount for each in figures] == [1.0, 2.0]

    def test_it_is_told_how_far_it_is(self, workers):
        measure(workers, OURS, PEER, rounds=2)
        assert workers.said == [
            "starting gptj float32", "starting transformers float32", "warming up", "turn 1 of 2",
            "turn 2 of 2",
        ]  # fmt: skip

    def test_a_side_that_is_not_to_be_had_is_left_out_of_the_turns(self, workers):
        workers.fails[PEER] = Unavailable("no such type here")
        _, figures, left_out = measure(workers, OURS, PEER)
        assert left_out == ["no such type here"]
        assert [each.side for each in figures] == [OURS]

    def test_whatever_goes_wrong_every_process_is_ended(self, workers):
        workers.fails[PEER] = UserError("not installed")
        with pytest.raises(UserError, match="not installed"):
            measure(workers, OURS, PEER)
        assert ("end", OURS) in workers.log

    def test_every_process_ends_and_on_an_accelerator_the_probe_before_the_next_begins(
        self, workers
    ):
        """Where two would share the device, its rates would be too low."""
        workers.limits = [Limits("H100", 10e9, {"float32": 100e9})] * 2
        measure(workers, OURS, Side("gptj", "int8"), rounds=3)
        begun = [entry[1] for entry in workers.log if entry[0] == "begin"]
        assert begun == [PROBE, OURS, Side("gptj", "int8"), PROBE]
        alive: set[Side] = set()
        for what, side, *_ in workers.log:
            alive ^= {side} if what != "run" else set()
            assert PROBE not in alive or alive == {PROBE}
        assert alive == set()

    def test_on_a_cpu_the_probe_comes_before_all_and_after_each_counted_turn(self, workers):
        measure(workers, OURS, PEER, rounds=2)
        turn = [("run", OURS), ("run", PEER)]
        probe = [("begin", PROBE), ("end", PROBE)]
        assert [entry[:2] for entry in workers.log] == [
            *probe, ("begin", OURS), ("begin", PEER), *turn, *turn, *probe, *turn, *probe,
            ("end", PEER), ("end", OURS),
        ]  # fmt: skip

    def test_an_accelerator_s_limits_are_the_better_of_before_and_after(self, workers):
        workers.limits = [
            Limits("H100", 10e9, {"float32": 100e9}), Limits("H100", 30e9, {"float32": 50e9}),
        ]  # fmt: skip
        limits, _, _ = measure(workers, OURS, rounds=3)
        assert limits == Limits("H100", 30e9, {"float32": 100e9})

    def test_a_cpu_s_are_the_median_of_those_between_the_turns(self, workers):
        """One good moment of the memory's is not what a run can have."""
        workers.limits = [Limits("cpu", rate * 1e9, {"float32": 9}) for rate in (33, 54, 31, 32)]
        limits, _, _ = measure(workers, OURS, rounds=3)
        assert limits == Limits("cpu", 33e9, {"float32": 9})

    @pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("TPU v4", 8)])
    def test_the_mesh_is_ours_and_so_are_all_its_devices(self, workers, device, times):
        """Of a CPU they are one device, however many JAX makes of it."""
        workers.limits = [Limits(device, 10e9, {"float32": 100e9})] * 2
        limits, _, _ = measure(workers, OURS, mesh=(4, 1, 2))
        assert limits == Limits(device, times * 10e9, {"float32": times * 100e9})
        meshes = [entry[2] for entry in workers.log if entry[0] == "begin"]
        assert meshes == [ALONE, (4, 1, 2), ALONE]


def check(device="cpu", mesh=ALONE, bench=None, sides=(OURS, PEER)):
    limits = Limits(device, 1.0, {"float32": 1.0})
    turns._check(limits, sides, TrainBench() if bench is None else bench, mesh)


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"device": "NVIDIA H100", "sides": [OURS]},
        {"device": "NVIDIA H100", "bench": LoadBench("x")},  # from the disk, whatever comes then
        {"device": "NVIDIA H100", "sides": [OURS, Side(turns.READING)]},
        {"device": "TPU v4", "sides": [OURS], "mesh": (2, 1, 4)},
        {"device": "cpu", "sides": [OURS, Side("gptj", "int8")], "mesh": (8, 1, 1)},
        {"device": "NVIDIA H100", "sides": [OURS, Side("gptj", "int8")]},
        {"bench": DataBench(Path("x")), "sides": [OURS]},
    ],
)
def test_what_can_be_compared_is(right):
    check(**right)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bench": DataBench(Path("x")), "mesh": (1, 2, 1)}, "changes nothing of this: leave it"),
        ({"bench": LoadBench("x"), "mesh": (1, 1, 2)}, "a mesh changes nothing of this"),
        ({"mesh": (1, 1, 2)}, "transformers has one device: leave out the mesh, or the peer"),
        ({"device": "TPU v4"}, "beside our TPU v4: leave it out, or set JAX_PLATFORMS=cpu"),
        ({"device": "TPU v4", "sides": [OURS] * 2}, "name one type in --stored"),
    ],
)
def test_what_cannot_is_refused_with_a_remedy(wrong, said):
    with pytest.raises(UserError, match=said):
        check(**wrong)


class Pipe:
    """A pipe's end at a side: what comes is given, what goes is kept."""

    def __init__(self, *comes: object) -> None:
        self.comes, self.went = list(comes), []

    def recv(self):
        if not self.comes:
            raise EOFError
        return self.comes.pop(0)

    def send(self, what):
        self.went.append(what)


@pytest.fixture
def here(monkeypatch):
    """A side's process, without one: its memory stays what it is; what it does to its own."""
    done = SimpleNamespace(moved=[], environ={})
    ends = {
        "stderr": SimpleNamespace(fileno=lambda: 2),
        "stdout": SimpleNamespace(fileno=lambda: 1),
    }
    system = SimpleNamespace(dup2=lambda *ends: done.moved.append(ends), environ=done.environ)
    monkeypatch.setattr(turns, "os", system)
    monkeypatch.setattr(turns, "sys", SimpleNamespace(modules=sys.modules, **ends))
    monkeypatch.setattr(turns, "_forget_peak", lambda: None)
    monkeypatch.setattr(turns, "peak_bytes", lambda: 77)
    return done


class TestASidesProcess:
    def work(self, side: Side, *comes: object) -> list[object]:
        pipe = Pipe(*comes)
        turns._work(pipe, side, TrainBench(), None, ALONE)
        return pipe.went

    def test_it_says_that_it_is_ready_and_then_what_each_case_took(self, here, monkeypatch):
        asked = []

        def runs(bench, config, stored):
            asked.append(stored)
            return {"a": lambda: 1.5, "b": lambda: 2.5}

        monkeypatch.setattr(own, "runs", runs)
        went = self.work(OURS, "b", "a", "b")
        assert went == [None, (2.5, 77), (1.5, 77), (2.5, 77)]
        assert asked == ["float32"]
        assert here.moved == [(2, 1)]  # what libraries print stays out of the result
        assert here.environ == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    def test_asked_for_no_case_it_measures_the_device(self, here, monkeypatch):
        monkeypatch.setattr(turns, "_limits", lambda: LIMITS)
        assert self.work(PROBE, None) == [None, LIMITS]

    @pytest.mark.parametrize("error", [UserError("no model"), Unavailable("no type")])
    def test_what_it_refuses_is_sent(self, here, monkeypatch, error):
        def runs(system, bench, config, stored):
            assert (system, stored) == ("transformers", "float32")
            raise error

        monkeypatch.setattr(peers, "runs", runs)
        assert self.work(PEER) == [error]

    def test_the_side_that_reads_reads_the_model_s_files(self, here, monkeypatch):
        monkeypatch.setattr(own, "read_files", lambda model: {"a/model": 9.0}[model])
        pipe = Pipe("from disk")
        turns._work(pipe, Side(turns.READING), LoadBench("a/model"), None, ALONE)
        assert pipe.went == [None, (9.0, 77)]


class TestAWorker:
    def worker(self, *comes: object, status: int = -9):
        found = object.__new__(turns.Worker)
        found.side, found._pipe = OURS, Pipe(*comes)
        self.log: list[object] = []
        found._pipe.close = lambda: self.log.append("closed")
        found._process = SimpleNamespace(
            exitcode=status,
            join=lambda timeout=None: self.log.append(timeout),
            kill=lambda: self.log.append("killed"),
        )
        return found

    def test_it_is_let_go_and_only_then_killed(self):
        self.worker().close()
        assert self.log == ["closed", 10, "killed"]

    def test_what_its_process_refuses_is_raised_here(self):
        for error in (UserError("no model"), Unavailable("no type")):
            with pytest.raises(type(error), match=str(error)):
                self.worker(error).run("a")

    def test_one_that_is_gone_is_named_with_its_status(self):
        said = "gptj float32 ended with status -9: .* the memory may not have sufficed"
        with pytest.raises(UserError, match=said):
            self.worker().run("a")

    def test_one_that_was_gone_before_it_was_asked_too(self):
        worker = self.worker()
        worker._pipe.send = lambda _: os.write(-1, b"")
        with pytest.raises(UserError, match="ended with status"):
            worker.run("a")

    def test_it_is_asked_for_a_case_or_its_limits(self):
        worker = self.worker((1.5, 7), LIMITS)
        assert worker.run("a") == (1.5, 7)
        assert worker.limits() == LIMITS
        assert worker._pipe.went == ["a", None]


class TestPeak:
    def test_devices_that_count_are_believed_the_largest(self, monkeypatch):
        counts = [{"peak_bytes_in_use": 5}, None, {"peak_bytes_in_use": 9}, {"other": 99}]
        devices = [SimpleNamespace(memory_stats=lambda c=c: c) for c in counts]
        monkeypatch.setattr("jax.local_devices", lambda: devices)
        assert turns.peak_bytes() == 9

    @pytest.mark.parametrize(("text", "size"), [("VmHWM:\t 1234 kB\n", 1234 * 1024), ("", 0)])
    def test_else_it_is_what_the_process_had(self, monkeypatch, tmp_path, text, size):
        status = tmp_path / "status"
        status.write_text(f"Name: x\nVmRSS:\t 99 kB\n{text}Threads: 3\n")
        monkeypatch.setattr("jax.local_devices", list)
        monkeypatch.setattr(turns, "Path", lambda _: status)
        assert turns.peak_bytes() == size
        status.unlink()
        assert turns.peak_bytes() == 0

    @pytest.mark.skipif(
        not os.access("/proc/self/clear_refs", os.W_OK), reason="the system forgets no peak"
    )
    def test_it_grows_with_what_is_held_and_can_be_forgotten(self):
        held = bytearray(64 << 20)
        held[::4096] = b"x" * (len(held) // 4096)
        before = turns.peak_bytes()
        assert before > len(held)
        del held
        turns._forget_peak()
        assert turns.peak_bytes() < before - (32 << 20)


def test_a_mesh_of_one_device_is_none_and_another_is_in_effect():
    import jax

    with turns._on(ALONE):
        assert jax.sharding.get_abstract_mesh().empty
    with turns._on((2, 1, 4)):
        assert dict(jax.sharding.get_abstract_mesh().shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    assert jax.sharding.get_abstract_mesh().empty


def test_limits_are_of_both_types_and_of_a_size_that_suits(monkeypatch):
    asked = []
    device = SimpleNamespace(platform="cpu", device_kind="cpu")
    monkeypatch.setattr("jax.local_devices", lambda: [device])
    monkeypatch.setattr("gptj.hardware.measured_bandwidth", lambda: 5.0)

    def measured(size, seconds, name):
        asked.append((size, name))
        return float(len(asked))

    monkeypatch.setattr("gptj.hardware.measured_flops", measured)
    monkeypatch.setattr("gptj.kernels.available", lambda: False)
    assert turns._limits() == Limits("cpu", 5.0, {"float32": 1.0, "bfloat16": 2.0})
    device.platform, device.device_kind = "gpu", "H100"
    assert turns._limits() == Limits("H100", 5.0, {"float32": 3.0, "bfloat16": 4.0})
    assert asked == [(n, kind) for n in (2048, 8192) for kind in ("float32", "bfloat16")]
    monkeypatch.setattr("gptj.kernels.available", lambda: True)
    for platform, bytes, rates in (
        ("gpu", 50.0, {"float32": 5.0, "bfloat16": 6.0}),
        ("cpu", 50.0, {"float32": 7.0, "bfloat16": 8.0, "int8": 50.0}),
        ("cpu", 5.0, {"float32": 9.0, "bfloat16": 10.0, "int8": 10.0}),  # or as bfloat16
    ):
        device.platform = platform
        monkeypatch.setattr(turns, "_products_of_bytes", lambda size, bytes=bytes: bytes)
        assert turns._limits().flops == rates


def test_products_of_bytes_are_made_and_counted():
    from gptj import kernels

    if not kernels.available():
        pytest.skip("needs the native programs")
    assert 1e7 < turns._products_of_bytes(64) < 1e15
