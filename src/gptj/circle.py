"""The hosts of a run, linked through host 0: who is there, what they say, and who is lost.

Each host connects to host 0 and says who it is: the roll, which tells who is missing. The
connections stay open and carry the little that hosts must agree on. One that breaks tells which
host was lost. The operating system watches over that, in time however busy Python is; a host that
is there and does nothing, a suspended one say, is not lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from gptj.errors import UserError

LOST = 75
"""Exit status of a host that ends because another did (EX_TEMPFAIL: the same command may work)."""

_SILENCE = 10, 5, 3
"""A connection is probed after so many quiet seconds, then so often, so many times: 25 s."""

_GRACE = 1.0
"""Seconds in which the word that a host is lost overtakes the errors that this causes."""

_PATIENCE = 5.0
"""Seconds that host 0 gives the others to end, and a stranger to say who it is."""


class Link:
    """A connection to another host, on which lines of JSON go both ways."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle, every, times = _SILENCE
        options = {"TCP_KEEPIDLE": idle, "TCP_KEEPINTVL": every, "TCP_KEEPCNT": times}
        options |= {"TCP_USER_TIMEOUT": 1000 * (idle + every * times), "TCP_NODELAY": 1}
        for name, value in options.items():
            if hasattr(socket, name):  # not every system has all
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._socket, self._lines = connection, connection.makefile("r", encoding="utf-8")

    def send(self, kind: str, value: Any = None) -> None:
        """Say something. That nobody is there to hear it, the reader finds."""
        with contextlib.suppress(OSError):
            self._socket.sendall(f"{json.dumps([kind, value])}\n".encode())

    def read(self) -> tuple[str, Any]:
        """What the other end says next; "lost" when it is gone."""
        try:
            kind, value = json.loads(self._lines.readline())
            return kind, value
        except (OSError, ValueError, TypeError):
            return "lost", None

    def read_hello(self, seconds: float) -> dict[str, Any] | None:
        """Who is there, if it is one of us; a stranger may say anything, or nothing."""
        self._socket.settimeout(seconds)
        kind, hello = self.read()
        self._socket.settimeout(None)
        known = (
            kind == "hello" and isinstance(hello, dict) and {"index", "count", "name"} <= {*hello}
        )
        return hello if known else None

    def is_open(self) -> bool:
        """Whether the other end, while it has nothing to say, is there."""
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def leave(self) -> None:
        """Let the connection stand until this process ends, which tells host 0 that it has."""
        self._socket.detach()

    def close(self) -> None:
        """Close the connection, and wake who reads from it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._socket.close()


class Circle:
    """All hosts, with host 0 in the middle: it is linked to every other, the others to it."""

    def __init__(self, index: int, names: list[str], links: dict[int, Link]) -> None:
        self.index, self._names, self._links = index, names, links
        self._heard: dict[int, queue.SimpleQueue[Any]] = {i: queue.SimpleQueue() for i in links}
        self._failing = self._leaving = False
        self._ending = threading.Lock()
        for host in links:
            threading.Thread(target=self._listen, args=(host,), daemon=True).start()

    def label(self, index: int) -> str:
        """A host as a person knows it."""
        return f"host {index} ({self._names[index]})"

    def gather(self, purpose: str, value: Any = None) -> list[Any]:
        """Every host's value, by index, once every host has given one for the same purpose.

        Raises:
          UserError: on every host; another one asks for something else.
        """
        said = [purpose, value]
        if self.index:
            self._links[0].send("value", said)
            everyone = self._heard[0].get()
        else:
            own = json.loads(json.dumps(said))  # as the others will hear it
            everyone = [own, *(self._heard[host].get() for host in sorted(self._links))]
            self._tell("value", everyone)
        for index, (other, _) in enumerate(everyone):
            if other != everyone[0][0]:
                raise UserError(
                    f"{self.label(0)} has come to '{everyone[0][0]}' and {self.label(index)} to "
                    f"'{other}': start the same command on every host"
                )
        return [value for _, value in everyone]

    def fail(self, error: BaseException) -> None:
        """Tell the others that this host stops, unless it is because of one that was lost."""
        self._failing = True
        time.sleep(_GRACE)  # for that verdict, which ends the process
        with self._ending:
            self._leaving = True
        interrupted = isinstance(error, KeyboardInterrupt)
        text = "interrupted" if interrupted else str(error) or type(error).__name__
        self._tell("stopped", " ".join(text.split()))
        self._see_off()
        for link in self._links.values():
            link.leave()

    def close(self) -> None:
        """Leave in peace."""
        with self._ending:
            self._leaving = True
        self._tell("bye")
        for link in self._links.values():
            link.close()

    def _tell(self, kind: str, value: Any = None) -> None:
        for link in self._links.values():
            link.send(kind, value)

    def _listen(self, host: int) -> None:
        kind, value = self._links[host].read()
        while kind != "bye":
            if kind == "value":
                self._heard[host].put(value)
            elif kind == "end":
                self._end(value)
            elif kind == "stopped" and not self._failing:  # else ours is the same, as a rule
                self._end(f"{self.label(host)} stopped, and so do all: {value}")
            elif kind == "lost":
                self._end(
                    f"{self.label(host)} is lost, so all stop: run the same command on the hosts "
                    "that are left (--hosts.count and --mesh to fit), and the run goes on from "
                    "its last checkpoint"
                )
                return
            kind, value = self._links[host].read()

    def _end(self, sentence: str) -> None:
        """Say why, tell the others, and end this process, whatever its main thread waits for.

        Returns where it is leaving anyway.
        """
        self._ending.acquire()  # not given back: who leaves after this waits for the end
        if self._leaving:
            self._ending.release()
            return
        stderr = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # JAX is about to say the same at length
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        cursor = "\x1b[?25h" if os.isatty(stderr) else ""  # a live display hides it
        os.write(stderr, f"{cursor}gptj: {sentence}\n".encode())
        if self.index == 0:
            self._tell("end", sentence)
            self._see_off()
        os._exit(LOST)

    def _see_off(self) -> None:
        """On host 0, let the others end first: JAX aborts them when it misses host 0."""
        last = time.monotonic() + _PATIENCE
        while not self.index and time.monotonic() < last:
            if not any(link.is_open() for link in self._links.values()):
                return
            time.sleep(0.01)


def arrive(coordinator: str, count: int, index: int, timeout: float) -> tuple[Circle, str]:
    """Take the roll. Returns the hosts, and the address for JAX's own service on host 0.

    Raises:
      UserError: a host did not arrive within `timeout` seconds, or does not fit with the others.
    """
    host, _, port = coordinator.rpartition(":")
    roll = _Roll(host.strip("[]"), int(port), count, index, timeout)
    return roll.answer() if index else roll.take()


class _Roll:
    """Host 0 waits for the others at the coordinator's port, and they for it."""

    def __init__(self, host: str, port: int, count: int, index: int, timeout: float) -> None:
        self.host, self.port, self.count, self.index = host, port, count, index
        self.timeout, self.deadline = timeout, time.monotonic() + timeout
        self.name = socket.gethostname()
        self.links: dict[int, Link] = {}

    def take(self) -> tuple[Circle, str]:
        """On host 0."""
        names = [f"{self.name} at {self.host}", *[""] * (self.count - 1)]
        with self._listener() as listener:
            while missing := self._missing():
                connection, address = self._next(listener, missing)
                link = Link(connection)
                hello = link.read_hello(_PATIENCE)
                if hello is None:
                    link.close()
                    continue
                self._admit(hello, link)
                names[hello["index"]] = f"{hello['name']} at {address.removeprefix('::ffff:')}"
        with socket.create_server(("", 0)) as any_free:
            free = any_free.getsockname()[1]
        for link in self.links.values():
            link.send("roll", [free, names])
        return Circle(0, names, self.links), _address(self.host, free)

    def _missing(self) -> list[int]:
        """Who has not come, or has gone again."""
        links = self.links
        return [i for i in range(1, self.count) if i not in links or not links[i].is_open()]

    def _listener(self) -> socket.socket:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            return socket.create_server(
                ("", self.port), family=family, dualstack_ipv6=both, backlog=1024
            )
        except OSError as error:
            raise UserError(
                f"host 0 cannot listen at port {self.port} ({os.strerror(error.errno or 0)}): "
                "choose another port in hosts.coordinator, on every host"
            ) from error

    def _next(self, listener: socket.socket, missing: list[int]) -> tuple[socket.socket, str]:
        """Who comes next, and its address."""
        listener.settimeout(max(self.deadline - time.monotonic(), 0.001))
        try:
            connection, address = listener.accept()
            return connection, address[0]
        except TimeoutError:
            names = [*map(str, missing[:20]), *["..."] * (len(missing) > 20)]
            self._refuse(
                f"host{'s' * (len(missing) > 1)} {', '.join(names)} of {self.count}, counted from "
                f"0, did not arrive within {self.timeout:g} s: start the same command there, or "
                "lower hosts.count, or raise hosts.timeout"
            )

    def _admit(self, hello: dict[str, Any], link: Link) -> None:
        """Refuse who does not fit; a host that was stopped while it waited may come again."""
        index, count, name = hello["index"], hello["count"], hello["name"]
        before = self.links.get(index)
        if count != self.count:
            self._refuse(
                f"hosts.count is {self.count} on host 0 ({self.name}) and {count} on host {index} "
                f"({name}): start the same command on every host",
                link,
            )
        if before is not None:
            if before.is_open():
                self._refuse(
                    f"two hosts have hosts.index={index}, the second is {name}: give each its own",
                    link,
                )
            before.close()
        self.links[index] = link

    def _refuse(self, sentence: str, *more: Link) -> NoReturn:
        """Tell all who have come, too."""
        for link in (*self.links.values(), *more):
            link.send("refused", sentence)
            link.close()
        raise UserError(sentence)

    def answer(self) -> tuple[Circle, str]:
        """On the other hosts."""
        link = self._connect()
        link.send("hello", {"index": self.index, "count": self.count, "name": self.name})
        kind, value = link.read()  # host 0 has its own time-out
        if kind == "roll":
            free, names = value
            return Circle(self.index, names, {0: link}), _address(self.host, free)
        link.close()
        ended = (
            f"host 0 at {_address(self.host, self.port)} ended before all hosts had arrived: see "
            "what it says, and start all hosts again"
        )
        raise UserError(value if kind == "refused" else ended)

    def _connect(self) -> Link:
        where = self.host, self.port
        while True:
            left = self.deadline - time.monotonic()
            try:
                return Link(socket.create_connection(where, timeout=max(min(left, 5), 0.001)))
            except OSError as error:  # it may have no name yet, or not listen yet
                reason = error.strerror or "no answer"
            if left <= 0:
                raise UserError(
                    f"host 0 did not answer at {_address(*where)} within {self.timeout:g} s "
                    f"({reason}): start it, or give in hosts.coordinator the address at which "
                    "this host reaches it"
                )
            time.sleep(0.2)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
