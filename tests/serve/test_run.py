"""`gptj serve` as a process: where it listens, and how it ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from gptj.serve.config import ServeConfig

GPTJ = ("-m", "gptj.cli")
BREAKABLE = """
import signal, sys
from gptj.cli import main
from gptj.engine.engine import Engine
signal.signal(signal.SIGUSR1, lambda *_: setattr(Engine, "step", lambda engine: 1 / 0))
sys.exit(main())
"""
"""`gptj` with an engine that fails at a signal."""

LONG = {"prompt": "", "max_tokens": 120, "ignore_eos": True, "seed": 1}


class Process:
    """A server in a process of its own."""

    def __init__(self, model: Path, *words: object, program: Sequence[str] = GPTJ) -> None:
        environment = {**os.environ, "XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "true"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(model.parent / "programs")
        command = [sys.executable, *program, "serve", model, "--port", 0, *words]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.url = self.process.stdout.readline().strip()

    def until_ready(self) -> None:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            time.sleep(0.1)
        raise AssertionError("it did not become ready")

    def end(self) -> tuple[int, list[dict]]:
        """Its exit status, and its log."""
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, [json.loads(line) for line in said.splitlines()]


@pytest.fixture
def start(tiny_saved) -> Iterator:
    with contextlib.ExitStack() as stack:

        def run(*words: object, **options) -> Process:
            found = Process(
                tiny_saved, "--slots", 2, "--chunk", 16, "--burst", 1, *words, **options
            )
            stack.callback(found.process.communicate)
            stack.callback(found.process.kill)
            return found

        yield run


def ask_in_background(url: str, found: list, answers: int) -> threading.Thread:
    body = {**LONG, "n": answers, "stream": True}

    def ask() -> None:
        pieces = []
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as answer:
            for line in answer.iter_lines():
                pieces.append(line)
                found[:] = [answer.status_code, pieces]

    asking = threading.Thread(target=ask)
    asking.start()
    end = time.monotonic() + 20
    while not found and time.monotonic() < end:
        time.sleep(0.005)
    assert found, "no answer began"
    return asking


class TestTheEnd:
    def test_lets_what_is_under_way_finish_and_refuses_the_rest(self, start):
        server = start()
        server.until_ready()
        found: list = []
        asking = ask_in_background(server.url, found, 8)
        server.process.send_signal(signal.SIGTERM)
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503
        assert "draining" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) > 0
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
        asking.join()
        assert found[1][-2:] == ["data: [DONE]", ""]
        code, log = server.end()
        assert code == 0
        events = [line["event"] for line in log]
        assert [event for event in events if event != "request"] == [
            *("listening", "ready", "draining", "drained")
        ]
        assert (log[-1]["event"], log[-1]["cut"]) == ("drained", 0)

    def test_cuts_off_what_takes_too_long(self, start):
        server = start("--drain-seconds", 2.2)
        server.until_ready()
        found: list = []
        asking = ask_in_background(server.url, found, 100)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code, log = server.end()
        assert time.monotonic() - begun < 5
        asking.join()
        assert (code, log[-1]["event"], log[-1]["cut"]) == (0, "drained", 1)
        assert "broke the answer off" in "".join(found[1])

    def test_comes_at_once_at_a_second_signal_and_tells_who_waits(self, start):
        server = start()
        server.until_ready()
        found: list = []
        asking = ask_in_background(server.url, found, 100)
        for _ in range(2):
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        asking.join(5)
        code, log = server.end()
        assert (code, log[-1]["event"]) == (0, "drained")
        assert log[-1]["cut"] == 1
        assert "broke the answer off" in "".join(found[1])

    def test_comes_at_once_when_the_engine_fails_meanwhile(self, start):
        server = start(program=("-c", BREAKABLE))
        server.until_ready()
        found: list = []
        asking = ask_in_background(server.url, found, 100)
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/ready").status_code == 200:
            time.sleep(0.01)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGUSR1)
        code, log = server.end()
        assert time.monotonic() - begun < 5
        asking.join()
        assert "the engine has stopped" in "".join(found[1])
        assert code == 1
        assert "ZeroDivisionError" in next(line["error"] for line in log if "error" in line)
        assert log[-1]["event"] == "drained"

    def test_comes_in_the_middle_of_the_warm_up_as_well(self, start):
        server = start("--drain-seconds", 3)
        server.process.send_signal(signal.SIGTERM)
        code, log = server.end()
        assert code == 0
        assert "ready" not in [line["event"] for line in log]


def test_adapters_that_are_named_answer_from_the_start(start, tiny_saved, saved_adapters):
    server = start("--adapters", f"a={saved_adapters / 'one'}", f"b={saved_adapters / 'two'}")
    server.until_ready()
    found = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [(each["id"], each.get("parent")) for each in found] == [
        (tiny_saved.name, None), ("a", tiny_saved.name), ("b", tiny_saved.name)
    ]  # fmt: skip
    for name in ("a", "b", tiny_saved.name):
        asked = {"model": name, "prompt": "a", "max_tokens": 2}
        assert httpx.post(f"{server.url}/v1/completions", json=asked).status_code == 200
    assert httpx.post(f"{server.url}/v1/load_lora_adapter", json={}).status_code == 404


class TestTheAddress:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
    def test_that_others_reach_needs_a_key(self, refused, tiny_saved, host, monkeypatch):
        monkeypatch.delenv("GPTJ_API_KEYS", raising=False)
        words = ("serve", tiny_saved, "--host", host, "--port", 0)
        refused(*words, said=("can be reached by others", "--keys", "--insecure"))

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.8.8"])
    def test_of_this_machine_alone_needs_none(self, host):
        from gptj.serve.run import set_up

        set_up(ServeConfig(host=host, port=0)).listener.close()

    def test_that_others_reach_is_taken_with_a_key_or_insecurely(self, monkeypatch):
        from gptj.serve.run import set_up

        set_up(ServeConfig(host="0.0.0.0", port=0, insecure=True)).listener.close()
        monkeypatch.setenv("GPTJ_API_KEYS", "ann key-a")
        set_up(ServeConfig(host="0.0.0.0", port=0)).listener.close()

    def test_that_is_taken_or_none_is_said_before_a_model_is_loaded(self, gptj, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            code, _, err = gptj("serve", tmp_path / "no-model", "--port", port)
        assert (code, "already in use" in err) == (2, True)
        code, _, err = gptj("serve", tmp_path / "no-model", "--host", "no.such.host.invalid")
        assert (code, "is no address" in err) == (2, True)


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--port", 70000), "port=70000"),
            (("--queue-tokens", 0), "queue_tokens=0"),
            (("--client-seconds", 0), "client_seconds=0"),
            (("--drain-seconds", -1), "drain_seconds=-1"),
            (("--cors", "*"), "cors=* must be the origin"),
            (("--cors", "https://a.example/"), "without a path"),
            (("--cors", "a.example"), "such as https://example.org"),
            (("--keys", "no/such/file"), "keys=no/such/file cannot be read"),
            (("--chat-template", "no/such/file"), "chat_template=no/such/file"),
            (("--slots", 0), "slots=0"),
        ],
    )
    def test_are_told_in_a_sentence(self, refused, tmp_path, words, said):
        refused("serve", tmp_path / "no-model", "--port", 0, *words, said=(said,))

    def test_a_model_that_is_not_there(self, refused, tmp_path):
        refused("serve", tmp_path / "no-model", "--port", 0, said=("no-model",))

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("lonely", "line 1 of the API keys must be NAME KEY"),
            ("a=b c", "must be NAME KEY"),
            ("ann k concurrency=0", "'concurrency'"),
            ("ann k speed=5", "'speed'"),
            ("ann k\nann l", "line 2 of the API keys has the name 'ann' a second time"),
            ("# nothing", "holds no key"),
        ],
    )
    def test_a_line_of_keys(self, refused, tmp_path, line, said):
        (tmp_path / "keys").write_text(line)
        words = ("serve", "no-model", "--port", 0, "--keys", tmp_path / "keys")
        assert "k speed" not in refused(*words, said=(said,))

    def test_without_the_extra_it_says_what_to_install(self, refused, monkeypatch, tmp_path):
        monkeypatch.delitem(sys.modules, "gptj.serve.run", raising=False)
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        refused("serve", tmp_path, "--port", 0, said=("uvicorn", "pip install 'gptj-jax[serve]'"))
