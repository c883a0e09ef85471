"""The server as a process: where it listens, how it starts, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptj.errors import UserError
from gptj.serve.app import build_app
from gptj.serve.asked import Answering
from gptj.serve.config import KEYS_VARIABLE, ServeConfig
from gptj.serve.keys import Keys, read_keys
from gptj.serve.logs import LOG, say, set_up_logs
from gptj.serve.metrics import Metrics
from gptj.serve.service import Service
from gptj.serve.transcript import Transcript, read_transcript

BACKLOG = 2048
"""Connections that may wait to be accepted."""

MOST_HEAD_BYTES = 64 << 10
"""Of a request line and its headers."""

CUT_SECONDS, TELL_SECONDS = 2.0, 0.5
"""So long before the end of the time to drain what is left is cut off; so long it takes to say."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is made ready, and found wrong, before a model is loaded."""

    config: ServeConfig
    keys: Keys
    transcript: Transcript
    listener: socket.socket


def set_up(config: ServeConfig) -> Setup:
    """Read the keys and the template, and take the address.

    Raises:
      UserError: one of them is wrong, or others could reach the address without a key.
      OSError: the address is taken, or not ours.
    """
    keys, transcript = read_keys(config, os.environ), read_transcript(config)
    return Setup(config, keys, transcript, _listener(config, bool(keys)))


def _listener(config: ServeConfig, with_keys: bool) -> socket.socket:
    """A socket that has the address and does not listen yet, so that nobody waits on it."""
    try:
        found = socket.getaddrinfo(config.host or None, config.port, type=socket.SOCK_STREAM,
                                   flags=socket.AI_PASSIVE)  # fmt: skip
    except socket.gaierror as error:
        raise UserError(f"host={config.host!r} is no address: {error.strerror}") from error
    public = [each[4][0] for each in found if not _is_loopback(str(each[4][0]))]
    if public and not with_keys and not config.insecure:
        raise UserError(
            f"host={config.host!r} can be reached by others and there are no API keys: give --keys "
            f"or {KEYS_VARIABLE}, or --insecure to let anyone in"
        )
    if public and not with_keys and config.adapter_loading:
        raise UserError(
            f"host={config.host!r} can be reached by others, and adapter_loading would let anyone "
            "have folders read: give --keys"
        )
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"port {config.port} of {address[0]} cannot be had ({error.strerror}): choose another "
            "with --port, or end what has it"
        ) from error
    return listener


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def serve(make: Callable[[Metrics], Answering], name: str, setup: Setup) -> int:
    """Answer requests until told to stop. Returns the exit status: 1 if the engine failed.

    Args:
      make: makes what draws, which counts in the metrics.
      name: what clients call the model.
    """
    set_up_logs()
    metrics = Metrics()
    worker = make(metrics)
    service = Service(worker, name, setup.config, setup.transcript)
    app = build_app(service, setup.keys, metrics)
    code = asyncio.run(_Process(app, service, setup).run())
    if not worker.stop(TELL_SECONDS):  # it compiles, or makes a very long step
        say("stopped in the middle of a step")
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


class _Server(uvicorn.Server):
    """uvicorn's server, but for the signals: those are the process's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def http_server(app: Any, client_seconds: float) -> uvicorn.Server:
    """The server of an application: HTTP/1.1, and nothing of uvicorn's that ours does itself."""
    config = uvicorn.Config(
        app,
        http=_impatient(client_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=max(5, int(client_seconds)),
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MOST_HEAD_BYTES,
    )
    return _Server(config)


class _Process:
    """One server from start to end."""

    def __init__(self, app: Any, service: Service, setup: Setup) -> None:
        self._service, self._setup = service, setup
        self._server = http_server(app, setup.config.client_seconds)
        self._signals = 0

    async def run(self) -> int:
        """Serve until a signal, or until the engine fails."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        self._service.worker.start(self._on_change)
        self._setup.listener.listen(BACKLOG)  # who reads the address may connect at once
        host, port = self._setup.listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}", flush=True)
        say("listening", host=host, port=port, model=self._service.name,
            fingerprint=self._service.fingerprint, keys=len(self._setup.keys))  # fmt: skip
        await self._server.serve(sockets=[self._setup.listener])
        return 1 if self._service.worker.failure else 0

    def _on_change(self) -> None:
        """The engine is warm, or has failed."""
        if error := self._service.worker.failure:
            LOG.error("the engine failed", exc_info=error)
            self._begin_drain("failure", 0.0)
        else:
            say("ready", programs=self._service.worker.warm_compilations)

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self._begin_drain("signal", self._setup.config.drain_seconds)

    def _begin_drain(self, why: str, seconds: float) -> None:
        if not self._service.draining:
            self._service.draining = True
            say("draining", why=why, seconds=seconds)
            self._drain_task = asyncio.create_task(self._drain(seconds))

    async def _drain(self, seconds: float) -> None:
        """Let requests under way finish, as long as there is time and an engine to finish them.

        A second signal ends that.
        """
        end, worker = time.monotonic() + seconds, self._service.worker
        await self._until(lambda: self._signals > 1 or bool(worker.failure), end - CUT_SECONDS)
        cut = len(self._server.server_state.tasks)
        if cut:
            worker.cut()
            await self._until(lambda: False, time.monotonic() + TELL_SECONDS)
        say("drained", cut=cut)
        self._server.should_exit = True

    async def _until(self, enough: Callable[[], bool], end: float) -> None:
        worker, state = self._service.worker, self._server.server_state
        while (worker.busy or state.tasks) and not enough() and time.monotonic() < end:
            await asyncio.sleep(0.02)


class Gathering:
    """A transport that sends what is written in one turn of the loop as one packet.

    An answer is its head and its body: to send each alone costs a refusal a quarter of its time.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._held = transport, loop, list[bytes]()

    def write(self, data: bytes) -> None:
        """Send it at the end of this turn."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def close(self) -> None:
        """Send what is left, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _impatient(seconds: float) -> type[H11Protocol]:
    """The protocol of uvicorn, but for those who take too long to say what they want."""

    class Impatient(H11Protocol):
        """Closes a connection whose request line and headers do not come in time."""

        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Begin to wait."""
            gathering: Any = Gathering(transport, self.loop)
            super().connection_made(gathering)
            self._wait()

        def data_received(self, data: bytes) -> None:
            """Stop waiting once there is a request."""
            super().data_received(data)
            self._wait()

        def on_response_complete(self) -> None:
            """Wait for the next one."""
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            """Wait no longer."""
            if self._waiting:
                self._waiting.cancel()
            super().connection_lost(exc)

        def _wait(self) -> None:
            is_between = self.cycle is None or self.cycle.response_complete
            if is_between and self._waiting is None and not self.transport.is_closing():
                self._waiting = self.loop.call_later(seconds, self.transport.close)
            elif not is_between and self._waiting:
                self._waiting.cancel()
                self._waiting = None

    return Impatient
