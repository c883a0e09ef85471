"""`gptj serve --ray` on a cluster of two nodes, and a replica killed under load."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec

import httpx
import pytest

from gptj.engine.engine import Engine
from gptj.engine.request import Completion, Delta, Request
from gptj.errors import UserError
from gptj.serve.asked import Asked
from gptj.serve.config import RayConfig
from gptj.serve.course import Course
from gptj.serve.metrics import Metrics
from gptj.serve.refusal import Refused

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


class TestConfig:
    def test_says_how_many_and_on_what(self):
        assert RayConfig.parse("replicas=2,gpus=0.5") == RayConfig(2, gpus=0.5)
        assert RayConfig.parse("replicas=1,address=head:6379").address == "head:6379"

    @pytest.mark.parametrize("said", ["2", "replicas=two", "slots=3", "replicas=2;gpus=1", ""])
    def test_refuses_anything_else(self, said):
        with pytest.raises(UserError, match="replicas=N"):
            RayConfig.parse(said)

    def test_there_is_one_at_least(self):
        with pytest.raises(UserError, match="replicas=0 must be at least 1"):
            RayConfig.parse("replicas=0")


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
nodes = Cluster()
for _ in range(2):
    nodes.add_node(num_cpus=1, include_dashboard=False)
print(nodes.address, flush=True)
sys.stdin.read()
nodes.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes on this machine."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        yield process.stdout.readline().strip()


@pytest.fixture(scope="module")
def url(cluster, tiny_saved) -> Iterator[str]:
    """A server with a replica on each node."""
    command = [
        sys.executable, "-m", "gptj.cli", "serve", tiny_saved, "--port", "0", "--slots", "4",
        "--chunk", "16", "--burst", "1", "--ray", f"replicas=2,address={cluster}",
    ]  # fmt: skip
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONWARNINGS": ""}
    log = tiny_saved.parent / "ray.log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE, stderr=file, text=True, env=environment,
        ) as process,
    ):  # fmt: skip
        try:
            found = process.stdout.readline().strip()
            assert found, log.read_text()
            until(lambda: is_ready(found))
            yield found
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/ready").status_code == 200
    return False


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.05)


def replicas() -> list:
    """The processes that draw."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.info["cmdline"] and "ServeReplica:gptj" in process.info["cmdline"][0]:
                found.append(process)
    return found


def body(seed: int, **more) -> dict:
    return {"prompt": f"once {seed % 5}", "max_tokens": 90, "seed": seed, "ignore_eos": True,
            "logprobs": 1, **more}  # fmt: skip


def answer(url: str, seed: int) -> dict:
    found = httpx.post(f"{url}/v1/completions", json=body(seed), timeout=120)
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]


def stream(url: str, seed: int) -> tuple[str, list[str]]:
    text, tokens = "", []
    asked = {"json": body(seed, stream=True), "timeout": 120}
    with httpx.stream("POST", f"{url}/v1/completions", **asked) as found:
        assert found.status_code == 200
        for line in found.iter_lines():
            if line.startswith("data: {"):
                piece = json.loads(line.removeprefix("data: "))
                assert "error" not in piece, piece
                choice = piece["choices"][0]
                text += choice["text"]
                tokens += choice["logprobs"]["tokens"]
    assert line == "" or line == "data: [DONE]"
    return text, tokens


class TestWhatAnotherReplicaGoesOnWith:
    @staticmethod
    async def course():
        """A completion of which its client has two tokens, and what the client gets."""
        asked = Asked([Request([1])], lambda _: None)
        found = Course(asked, Metrics())
        found.begin("a")
        found.take("accepted", None)
        found.take("delta", (0, Delta(7, 0, "on", (5, 6))))
        return found, asked

    def test_is_what_the_client_does_not_have_yet(self):
        async def goes_on():
            course, asked = await self.course()
            course.begin("a")
            course.take("delta", (0, Delta(3, 0, "o", (5,))))  # in other pieces, as it may come
            whole = Completion("once", [5, 6, 8], "length")
            course.take("delta", (0, Delta(3, 0, "nce", (6, 8), (), whole)))
            return [delta async for _, delta in asked.deltas()]

        first, second = asyncio.run(goes_on())
        assert (first.text + second.text, first.tokens + second.tokens) == ("once", (5, 6, 8))
        assert second.completion.text == "once"

    def test_is_told_that_there_is_none_where_no_replica_took_it_on(self):
        async def cut():
            asked = Asked([Request([1])], lambda _: None)
            Course(asked, Metrics()).cut()
            await asked.accepted

        with pytest.raises(Refused, match="broke the answer off"):
            asyncio.run(cut())

    def test_is_an_error_where_it_would_draw_other_bits(self):
        async def goes_on():
            course, _ = await self.course()
            course.begin("b")

        with pytest.raises(Refused, match="lost, and the others are not like it") as refused:
            asyncio.run(goes_on())
        assert refused.value.status == 503


@needs_ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, as it is imported
def test_whatever_goes_wrong_is_told():
    from gptj.serve.replicas import Replicas

    async def goes_wrong():
        course, asked = await TestWhatAnotherReplicaGoesOnWith.course()
        replicas = object.__new__(Replicas)
        replicas._ask = lambda _: 1 / 0
        await replicas._run(course)
        return [delta async for delta in asked.deltas()]

    with pytest.raises(ZeroDivisionError):
        asyncio.run(goes_wrong())


@needs_ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_replica_whose_engine_has_failed_ends(params, served, monkeypatch, capsys):
    from gptj.serve.replicas import Replica

    alone = served.alone
    engine = Engine(params, alone.config, alone.tokenizer, alone.options)
    replica = Replica(lambda: contextlib.nullcontext(engine))
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    monkeypatch.setattr(os, "_exit", sys.exit)

    async def ask():
        return [piece async for piece in replica.run([Request([1])])]

    with pytest.raises(SystemExit):
        asyncio.run(ask())
    assert "ZeroDivisionError" in capsys.readouterr().err


@needs_ray
def test_both_answer_as_one_engine_would(url, served):
    for seed in range(4):
        found, (own,) = (
            answer(url, seed),
            served.own(f"once {seed % 5}", max_tokens=90, seed=seed, ignore_eos=True, logprobs=1),
        )
        assert found["text"] == own.text
        assert found["logprobs"]["token_logprobs"] == [each.logprob for each in own.logprobs]


@needs_ray
def test_a_mistake_is_refused_by_name(url):
    refused = httpx.post(f"{url}/v1/completions", json=body(1, guided_regex="("))
    assert refused.status_code == 400
    assert "guided_regex" in refused.json()["error"]["message"]


@needs_ray
def test_a_replica_killed_under_load_loses_nothing(url):
    expected = {seed: answer(url, seed) for seed in range(16)}
    before = replicas()
    assert len(before) == 2
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        whole = {seed: pool.submit(answer, url, seed) for seed in expected}
        pieces = {seed: pool.submit(stream, url, seed) for seed in expected}
        time.sleep(0.3)
        before[0].send_signal(signal.SIGKILL)
        for seed, choice in expected.items():
            assert whole[seed].result() == choice
            text, tokens = pieces[seed].result()
            assert text == choice["text"]
            assert tokens == choice["logprobs"]["tokens"]
    until(lambda: len(replicas()) == 2)  # Ray has put another in its place
