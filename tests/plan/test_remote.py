"""The process that compiles: how it is asked, and what becomes of what it says."""

import dataclasses
import io
import json
import os
import sys

import pytest

from gptj.errors import UserError
from gptj.plan import remote, worker
from gptj.plan.compiled import Compiled, Exchange, TooLarge
from gptj.plan.place import find

EXCHANGE = Exchange("all-gather", ("data", "fsdp"), 4, 100, 3, 0.5, True, ("bf16[2,3]",))
FACTS = Compiled(2.0, 10, 20, 6, 4, 1e3, (EXCHANGE, EXCHANGE), 1, "JAX 9", "xla")
TOO_LARGE = TooLarge(1.0, 3.0, 2.0, "no room")
CPU = dataclasses.replace(find("h100:8"), name="cpu:8", platform="cpu")


@pytest.mark.parametrize("found", [FACTS, TOO_LARGE])
def test_facts_come_back_as_they_were(found):
    answer = {"kind": type(found).__name__, "facts": dataclasses.asdict(found)}
    assert remote.facts(json.loads(json.dumps(answer))) == found


class TestItsEnvironment:
    @pytest.fixture(autouse=True)
    def flags(self, monkeypatch):
        monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=3 --b=2")
        monkeypatch.setenv("JAX_PLATFORMS", "tpu")
        for name in ("TPU_ACCELERATOR_TYPE", "TPU_SKIP_MDS_QUERY"):
            monkeypatch.delenv(name, raising=False)

    def test_has_the_devices_of_a_cpu(self):
        found = remote.environment(CPU)
        assert found["XLA_FLAGS"].split() == [
            *("--a=1", "--b=2", "--xla_force_host_platform_device_count=8")
        ]
        assert "TPU_ACCELERATOR_TYPE" not in found

    def test_asks_no_tpu_that_is_here(self):
        found = remote.environment(find("v5e-8"))
        assert found["XLA_FLAGS"].split() == ["--a=1", "--b=2"]
        assert (found["TPU_SKIP_MDS_QUERY"], found["ALLOW_MULTIPLE_LIBTPU_LOAD"]) == ("1", "1")

    def test_runs_on_a_cpu_keeps_no_program_and_finds_what_we_find(self):
        for place in (CPU, find("v5e-8"), find("h100")):
            found = remote.environment(place)
            assert found["JAX_PLATFORMS"] == "cpu"
            assert found["JAX_ENABLE_COMPILATION_CACHE"] == "false"
            assert found["PYTHONPATH"].split(os.pathsep) == [path for path in sys.path if path]
            assert found["PATH"] == os.environ["PATH"]


@pytest.fixture
def process(tmp_path, monkeypatch):
    """A shell script in the process's place."""

    def put(script: str) -> None:
        file = tmp_path / "python"
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(file))

    return put


class TestAsked:
    def test_it_reads_the_request_and_answers(self, process, tmp_path):
        process(f'echo "$@" > {tmp_path}/words; cat > {tmp_path}/asked; echo \'{{"n": 1}}\'')
        assert remote.ask({"what": "x", "of": [1]}, CPU) == {"n": 1}
        assert json.loads((tmp_path / "asked").read_text()) == {"what": "x", "of": [1]}
        assert (tmp_path / "words").read_text() == "-m gptj.plan.worker\n"

    def test_a_mistake_of_the_users_is_theirs(self, process):
        process('cat > /dev/null; echo \'{"mistake": "choose another"}\'')
        with pytest.raises(UserError, match=r"^choose another$"):
            remote.ask({}, CPU)

    @pytest.mark.parametrize("end", ["echo '{}'; exit 3", "exit 0"])
    def test_a_failure_is_told_with_its_last_words(self, process, end):
        process(f"cat > /dev/null; seq 101 150 >&2; {end}")
        with pytest.raises(RuntimeError, match=r"compiling for cpu:8 failed \([03]\)") as failed:
            remote.ask({}, CPU)
        assert str(failed.value).splitlines()[1:] == [str(line) for line in range(131, 151)]

    def test_who_interrupts_leaves_no_process(self, process, monkeypatch, tmp_path):
        process(f"echo $$ > {tmp_path}/pid; exec sleep 60")

        def interrupted(popen, _):
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                pass
            raise KeyboardInterrupt

        monkeypatch.setattr(remote.subprocess.Popen, "communicate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remote.ask({}, CPU)
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)

    def test_what_is_compiled_comes_back_as_a_record(self, small_job, monkeypatch):
        asked = []
        answer = {"kind": "TooLarge", "facts": dataclasses.asdict(TOO_LARGE)}
        monkeypatch.setattr(remote, "ask", lambda *words: asked.append(words) or answer)
        job = small_job("v5e-8", (2, 2, 2))
        assert remote.compile_step(job) == TOO_LARGE
        assert asked == [({"what": "step", "job": job.plain()}, job.place)]

    def test_of_the_rates_only_those_of_tpus_are(self, monkeypatch):
        """Where its chips stand, a TPU's compiler knows."""
        asked = []
        answer = {"rates": [{"data": 1.0}, {"fsdp": 2.0}]}
        monkeypatch.setattr(remote, "ask", lambda *words: asked.append(words) or answer)
        meshes, tpu = [(8, 1, 1), (1, 8, 1)], find("v5e-8")
        assert remote.axis_rates(find("h100:8"), meshes) == [{"data": 450e9}, {"fsdp": 450e9}]
        assert remote.axis_rates(tpu, []) == []
        assert asked == []
        assert remote.axis_rates(tpu, meshes) == answer["rates"]
        assert asked == [({"what": "rates", "place": "v5e-8", "meshes": meshes}, tpu)]


class TestWithoutTheTpusCompiler:
    @pytest.fixture(autouse=True)
    def absent(self, monkeypatch):
        monkeypatch.setattr(remote.importlib.util, "find_spec", lambda _: None)
        monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)

    def test_a_tpu_is_refused_and_nothing_else(self, monkeypatch):
        for place in (find("h100:8"), CPU):
            remote.check_compiler(place)
        with pytest.raises(UserError, match=r"for v5e-8 needs .*pip install 'gptj-jax\[tpu\]'"):
            remote.check_compiler(find("v5e-8"))
        monkeypatch.setenv("TPU_LIBRARY_PATH", "/lib/libtpu.so")
        remote.check_compiler(find("v5e-8"))


class TestTheWorker:
    def answer(self, monkeypatch, capfd, request):
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
        worker.main()
        said, complaints = capfd.readouterr()
        return json.loads(said), complaints

    @pytest.fixture(autouse=True)
    def able(self, monkeypatch):
        def chatty(request):
            os.write(1, b"from a library\n")
            if request["n"] < 0:
                raise UserError("n=-1 must be above 0")
            return {"double": 2 * request["n"]}

        monkeypatch.setitem(worker.CAN, "chatty", chatty)

    def test_answers_and_what_else_is_printed_goes_where_errors_go(self, monkeypatch, capfd):
        found = self.answer(monkeypatch, capfd, {"what": "chatty", "n": 4})
        assert found == ({"double": 8}, "from a library\n")

    def test_says_what_the_users_mistake_is(self, monkeypatch, capfd):
        found = self.answer(monkeypatch, capfd, {"what": "chatty", "n": -1})
        assert found[0] == {"mistake": "n=-1 must be above 0"}

    def test_finds_the_rates_of_every_mesh(self):
        found = worker.rates({"place": "h100:16", "meshes": [[16, 1, 1], [2, 1, 8]]})
        assert found["rates"] == [
            {"data": 400e9}, {"data": 50e9, "tensor": 450e9, "data+tensor": 400e9}
        ]  # fmt: skip

    @pytest.mark.parametrize("found", [FACTS, TOO_LARGE])
    def test_what_it_compiles_can_be_told(self, monkeypatch, small_job, found):
        job = small_job("h100:8", (2, 2, 2))
        monkeypatch.setattr("gptj.plan.compiled.compile_step", lambda it: it == job and found)
        assert remote.facts(json.loads(json.dumps(worker.step({"job": job.plain()})))) == found
