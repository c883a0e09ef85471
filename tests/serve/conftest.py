"""A server of a tiny model in a thread of this process, asked over real connections."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

from gptj import adapters, model
from gptj.adapters import LoRAConfig
from gptj.api import Model
from gptj.config import ModelConfig
from gptj.convert import peft
from gptj.convert.adapted import Adapter
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Completion, Request, SamplingParams
from gptj.serve.config import ServeConfig
from gptj.tokenizer import Tokenizer

WANTED = ("fastapi", "uvicorn", "prometheus_client", "httpx", "llguidance")
collect_ignore_glob = [] if all(map(find_spec, WANTED)) else ["test_*.py"]

SHAPE = ModelConfig(2, 32, 4, 8, 128, 257, 384, 128)
BYTES = Tokenizer.bytes()
OPTIONS = EngineConfig(slots=4, chunk=16, burst=3)
DEFAULTS, NAME = ServeConfig(), "tiny"


@dataclasses.dataclass
class Served:
    """A server that is running, and an engine like its own that nobody else asks."""

    url: str
    port: int
    service: object
    alone: Engine

    def http(self, **options):
        """A client."""
        import httpx

        return httpx.Client(base_url=self.url, timeout=30, **options)

    def post(self, path: str, body: object, **options):
        """A request, and the answer."""
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        with self.http() as client:
            return client.post(path, content=json.dumps(body), headers=headers, **options)

    def pieces(self, path: str, body: object) -> list:
        """The events of a stream; what is not JSON as text."""
        found = []
        with self.http() as client, client.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    data = line.removeprefix("data: ")
                    found.append(json.loads(data) if data[0] == "{" else data)
        return found

    def own(self, prompt, **sampling) -> list[Completion]:
        """What the engine itself answers."""
        return self.alone.run([Request(prompt, SamplingParams(**sampling))])[0]

    def figure(self, name: str, default: float | None = None) -> float:
        """One of the server's figures; `default` before it has any value."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        found = [line.split()[-1] for line in lines if line.startswith(f"{name} ")]
        assert found or default is not None, f"no figure {name}"
        return float(found[0]) if found else default

    def until(self, condition, seconds: float = 10.0) -> None:
        """Wait for something to be so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not come to be"
            time.sleep(0.005)

    @contextlib.contextmanager
    def connected(self, request: bytes = b"") -> Iterator[socket.socket]:
        """A connection, to say anything at all on."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as line:
            line.sendall(request)
            yield line


@contextlib.contextmanager
def running(
    params,
    config: ServeConfig = DEFAULTS,
    options: EngineConfig = OPTIONS,
    keys: str = "",
    wait: tuple[str, ...] = ("ready",),
) -> Iterator[Served]:
    """A server of these weights, in one of the states that are waited for."""
    from gptj.serve.app import build_app
    from gptj.serve.keys import Keys
    from gptj.serve.metrics import Metrics
    from gptj.serve.run import http_server
    from gptj.serve.service import Service
    from gptj.serve.transcript import read_transcript
    from gptj.serve.worker import Worker

    metrics = Metrics()
    worker = Worker(Engine(params, SHAPE, BYTES, options), metrics)
    service = Service(worker, NAME, config, read_transcript(config))
    app = build_app(service, Keys(keys.splitlines(), config), metrics)
    server = http_server(app, config.client_seconds)

    async def serve() -> None:
        worker.start()
        await server.serve(sockets=[listener])

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        served = Served(
            f"http://127.0.0.1:{port}", port, service, Engine(params, SHAPE, BYTES, options)
        )
        served.until(lambda: service.state in wait, 60)
        yield served
    finally:
        server.should_exit = True
        thread.join()
        assert worker.stop(10)
        listener.close()


@pytest.fixture(scope="session")
def params():
    return model.init(jax.random.key(0), SHAPE)


@pytest.fixture(scope="session")
def served(params) -> Iterator[Served]:
    """A server that every test may ask."""
    with running(params) as found:
        yield found


@pytest.fixture(scope="session")
def serve(params):
    """Servers of the same weights, otherwise configured."""

    def start(config: ServeConfig = DEFAULTS, weights=params, **options):
        return running(weights, config, **options)

    return start


@pytest.fixture(scope="session")
def tiny_saved(params, tmp_path_factory) -> Path:
    """The model in a folder, for `gptj serve`."""
    path = tmp_path_factory.mktemp("serve") / NAME
    Model(SHAPE, params, BYTES).save(path)
    return path


@pytest.fixture(scope="session")
def saved_adapters(tmp_path_factory) -> Path:
    """Adapters of the model as PEFT keeps them, each in a folder of this one."""
    root = tmp_path_factory.mktemp("adapters")
    for name, rank in {"one": 4, "two": 8, "wide": 9}.items():
        lora, draw = LoRAConfig(rank=rank, alpha=12.0), np.random.default_rng(rank)
        found = {
            field: [draw.normal(size=w.shape, scale=0.2).astype("f4") for w in (pair.down, pair.up)]
            for field, pair in adapters.table(SHAPE, lora).items()
        }
        (root / name).mkdir()
        read = lambda f, n, found=found: tuple(half[n] for half in found[f])  # noqa: E731
        peft.write(Adapter(name, lora, read, None), SHAPE, "a base", root / name)
    return root
