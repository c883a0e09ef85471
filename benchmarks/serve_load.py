"""Load a server: two hundred clients for a minute, and then ten times what it can take.

    .venv/bin/python benchmarks/serve_load.py

The model is the demo's shape with random weights. Every answer is compared with that of the same
request asked when nobody else was there, log-probabilities included: the promise of docs/engine.md,
over HTTP. Then requests arrive at ten times the rate at which the server answered, and are not
asked again: what is let in must be answered in time, and the rest refused with 429 and a time to
come back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any, Self, cast

import httpx
import jax
import numpy as np
from figures import RESULTS, write

from gptj.api import Model
from gptj.config import preset
from gptj.model import init
from gptj.tokenizer import Tokenizer

SLOTS, DISTINCT = 16, 60
TOO_MUCH = 10
"""Times what the server can take."""
OVERLOAD_QUEUE = 4000
"""Tokens that may wait while the server is asked ten times too much."""

Body = dict[str, Any]


def requests() -> list[Body]:
    """What is asked: short and long prompts, every way of drawing, in one piece or streamed."""
    draw = np.random.default_rng(0)
    ways: list[Body] = [
        {"temperature": 0},
        {"top_p": 0.9},
        {"top_k": 40, "temperature": 0.8, "repetition_penalty": 1.1},
        {"min_p": 0.05, "n": 2},
        {"frequency_penalty": 0.5, "stop": ["e"]},
    ]
    return [
        {
            "prompt": draw.integers(0, 256, int(draw.integers(1, 200))).tolist(),
            "max_tokens": int(draw.integers(8, 65)),
            "seed": number,
            "logprobs": 1,
            "stream": number % 3 == 0,
            **ways[number % len(ways)],
        }
        for number in range(DISTINCT)
    ]


class Server:
    """`gptj serve` in a process of its own."""

    def __init__(self, model: Path, *words: object) -> None:
        command = [sys.executable, "-m", "gptj.cli", "serve", model, "--port", 0, *words]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return self
            time.sleep(0.1)
        self.process.terminate()
        raise SystemExit("the server did not become ready")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0 or kind

    def figures(self) -> dict[str, float]:
        """Its metrics that have no labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        pairs = (line.split() for line in lines if line[0] != "#" and "{" not in line)
        return {name.removeprefix("gptj_"): float(value) for name, value in pairs}

    def memory(self) -> int:
        """Bytes of memory that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])


class Connection(asyncio.Protocol):
    """A connection that costs next to nothing: one request at a time, answered with raw bytes."""

    transport: asyncio.Transport
    answer: asyncio.Future[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        self.heard, self.answer = bytearray(), asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if is_whole(self.heard):
            self.answer.set_result(bytes(self.heard))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(error or ConnectionResetError("closed before the answer"))


def is_whole(heard: bytearray) -> bool:
    """Whether all of an answer is there, in one piece or in chunks."""
    head = heard.find(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", heard[: max(0, head)])
    if length:
        return len(heard) == head + 4 + int(length[1])
    return heard.endswith(b"\r\n0\r\n\r\n")


class Client:
    """Asks on connections that are kept.

    It shares the processor with the server, so requests are made before, and answers read after,
    what is timed.
    """

    def __init__(self, server: Server) -> None:
        self._port, self._free = int(server.url.rpartition(":")[2]), list[Connection]()

    async def ask(self, request: bytes) -> tuple[bytes, float]:
        """The raw answer, and the seconds it took."""
        begin = time.perf_counter()
        free = self._free.pop() if self._free else await self._connect()
        answer = await free.ask(request)
        self._free.append(free)
        return answer, time.perf_counter() - begin

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, "127.0.0.1", self._port))[1]


def written(body: Body) -> bytes:
    """A request as it is sent."""
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + text


def read(answer: bytes) -> tuple[int, Any]:
    """The status, and what was answered; of a refusal, when to come back."""
    response = HTTPResponse(cast(socket.socket, _Heard(answer)))
    response.begin()
    if response.status != 200:
        return response.status, response.getheader("retry-after")
    body = response.read()
    if response.getheader("content-type") != "application/json":
        return 200, joined(body.decode().splitlines())
    return 200, {each["index"]: part(each) for each in json.loads(body)["choices"]}


class _Heard:
    """What the standard library takes for a socket."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self._answer)


def part(choice: Body) -> list[Any]:
    """What of an answer must always be the same."""
    return [choice["text"], choice["finish_reason"], *choice["logprobs"]["token_logprobs"]]


def joined(lines: list[str]) -> dict[int, list[Any]]:
    """The answers of a stream, as if they had come in one piece."""
    assert "data: [DONE]" in lines, "a stream broke off"
    found: dict[int, list[Any]] = {}
    for line in lines:
        if line.startswith("data: {"):
            for each in json.loads(line.removeprefix("data: "))["choices"]:
                text, reason, *logprobs = part(each)
                kept = found.setdefault(each["index"], ["", None])
                kept[0] += text
                kept[1] = reason or kept[1]
                kept += logprobs
    return found


async def alone(server: Server, asked: list[bytes]) -> tuple[list[Any], list[float]]:
    """Each request's answer and time when nobody else is there."""
    client = Client(server)
    found = [await client.ask(request) for request in asked]
    answers = [read(answer) for answer, _ in found]
    assert {status for status, _ in answers} == {200}, answers
    return [answer for _, answer in answers], [took for _, took in found]


@contextlib.contextmanager
def watched(server: Server) -> Iterator[dict[str, list[float]]]:
    """The server's memory, and its queue, once a second."""
    seen: dict[str, list[float]] = {"memory": [], "requests_waiting": [], "tokens_waiting": []}

    async def look() -> None:
        while True:
            figures = await asyncio.to_thread(server.figures)
            seen["memory"].append(server.memory())
            for name in ("requests_waiting", "tokens_waiting"):
                seen[name].append(figures[name])
            await asyncio.sleep(1)

    task = asyncio.create_task(look())
    try:
        yield seen
    finally:
        task.cancel()


class Heard:
    """What clients were answered, and whether it is what they were to be."""

    def __init__(self) -> None:
        self._answers: list[tuple[int, bytes, float]] = []

    async def ask(self, client: Client, asked: list[bytes], which: int) -> None:
        """Ask one of the requests, and keep the answer."""
        self._answers.append((which, *await client.ask(asked[which])))

    def figures(self, expected: list[Any], seconds: float) -> Body:
        """All answers read and compared with those that were `expected`."""
        found = [(which, *read(answer), took) for which, answer, took in self._answers]
        taken = [each for each in found if each[1] == 200]
        took = np.percentile([took for *_, took in taken], (50, 95))
        return {
            "asked_a_second": round(len(found) / seconds, 1),
            "answers_a_second": round(len(taken) / seconds, 2),
            "answers": dict(Counter(status for _, status, *_ in found)),
            "unlike_those_alone": sum(each[2] != expected[each[0]] for each in taken),
            "refused_without_retry_after": sum(
                not (when or "").isdigit() for _, status, when, _ in found if status != 200
            ),
            "answered_in_p50_p95": [round(float(each), 3) for each in took],
        }


async def crowd(
    server: Server, asked: list[bytes], expected: list[Any], clients: int, seconds: float
) -> Body:
    """So many clients, each asking again as soon as it is answered."""
    heard, client = Heard(), Client(server)
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        draw = np.random.default_rng(number)
        while time.perf_counter() < end:
            await heard.ask(client, asked, int(draw.integers(len(asked))))

    with watched(server) as seen:
        await asyncio.gather(*map(one, range(clients)))
    quarter = len(seen["memory"]) // 4
    return {
        "clients": clients,
        "seconds": seconds,
        **heard.figures(expected, seconds),
        "most_requests_waiting": max(seen["requests_waiting"]),
        "memory_mb": [round(x / 1e6) for x in (seen["memory"][quarter], seen["memory"][-1])],
        "recompilations": server.figures()["recompilations_total"],
    }


async def overload(
    server: Server, asked: list[bytes], expected: list[Any], rate: float, seconds: float
) -> Body:
    """Requests at random moments, `rate` a second, none of which is asked again."""
    heard, client = Heard(), Client(server)
    draw = np.random.default_rng(1)
    moments = np.cumsum(draw.exponential(1 / rate, int(rate * seconds)))
    with watched(server) as seen:
        async with asyncio.TaskGroup() as group:
            begin = time.perf_counter()
            for moment in moments:
                await asyncio.sleep(begin + moment - time.perf_counter())
                group.create_task(heard.ask(client, asked, int(draw.integers(len(asked)))))
            took = time.perf_counter() - begin
    return {
        "seconds": round(took, 1),
        **heard.figures(expected, took),
        "most_requests_waiting": max(seen["requests_waiting"]),
        "most_tokens_waiting": max(seen["tokens_waiting"]),
    }


async def measure(model: Path, clients: int, seconds: float) -> Body:
    asked = [written(body) for body in requests()]
    with Server(model, "--slots", SLOTS, "--queue-tokens", 10**6) as server:
        await alone(server, asked)  # a first time, for caches of every kind
        expected, took = await alone(server, asked)
        unloaded = float(np.percentile(took, 95))
        crowded = await crowd(server, asked, expected, clients, seconds)
    print("crowd   ", json.dumps(crowded), flush=True)
    rate = TOO_MUCH * crowded["answers_a_second"]
    with Server(model, "--slots", SLOTS, "--queue-tokens", OVERLOAD_QUEUE) as server:
        overloaded = await overload(server, asked, expected, rate, seconds / 2)
    allowed = 2 * unloaded * max(1.0, overloaded["most_requests_waiting"])
    overloaded |= {"unloaded_p95": round(unloaded, 3), "allowed_p95": round(allowed, 3)}
    print("overload", json.dumps(overloaded), flush=True)
    return {"crowd": crowded, "overload": overloaded}


def check(result: Body) -> None:
    """Refuse figures that break a promise."""
    crowded, overloaded = result["crowd"], result["overload"]
    assert set(crowded["answers"]) == {200}, crowded["answers"]
    assert set(overloaded["answers"]) == {200, 429}, overloaded["answers"]
    assert crowded["unlike_those_alone"] == overloaded["unlike_those_alone"] == 0
    assert overloaded["refused_without_retry_after"] == crowded["recompilations"] == 0
    assert crowded["memory_mb"][1] <= 1.05 * crowded["memory_mb"][0]
    assert overloaded["most_tokens_waiting"] <= OVERLOAD_QUEUE
    assert overloaded["asked_a_second"] >= 0.95 * TOO_MUCH * crowded["answers_a_second"]
    assert overloaded["answered_in_p50_p95"][1] <= overloaded["allowed_p95"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_load.json")
    args = parser.parse_args()
    shape, tokenizer = preset("demo").with_vocab(257), Tokenizer.bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo"
        Model(shape, init(jax.random.key(0), shape), tokenizer).save(path)
        result = asyncio.run(measure(path, args.clients, args.seconds))
    check(result)
    result = {
        "what": "a server of the demo's shape, random weights, under load from this machine",
        "slots": SLOTS,
        **result,
    }
    write(args.out, result)


if __name__ == "__main__":
    main()
