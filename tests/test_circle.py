"""The roll and the talk of hosts: each here is a thread."""

import re
import socket
import threading
import time
from collections.abc import Callable

import pytest

from gptj import hosts
from gptj.circle import Circle, arrive
from gptj.errors import UserError


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def together(*calls: Callable[[], object]) -> list[object]:
    """What each call gives or raises, all at the same time."""
    results: list[object] = [None] * len(calls)

    def call(index: int) -> None:
        try:
            results[index] = calls[index]()
        except UserError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def host(port: int, count: int, index: int, timeout: float = 10.0) -> Callable[[], object]:
    return lambda: arrive(f"127.0.0.1:{port}", count, index, timeout)


class TestCircle:
    @pytest.fixture
    def three(self):
        port = free_port()
        circles, services = zip(*together(*(host(port, 3, i) for i in range(3))), strict=True)
        assert len(set(services)) == 1
        yield circles
        for circle in circles:
            circle.close()

    def test_all_hear_what_each_says_in_the_order_of_hosts(self, three):
        said = together(
            *(lambda c=c: [c.gather("count", [c.index, n]) for n in range(50)] for c in three)
        )
        assert said == [[[[0, n], [1, n], [2, n]] for n in range(50)]] * 3

    def test_hosts_at_different_places_are_told(self, three):
        said = together(*(lambda c=c: c.gather("begin" if c.index else "end") for c in three))
        words = r"host 0 \(.*\) has come to 'end' and host 1 \(.*\) to 'begin': start the same .*"
        assert len(set(said)) == 1
        assert re.fullmatch(words, said[0])

    def test_hosts_have_names(self, three):
        assert {c.label(1) for c in three} == {f"host 1 ({socket.gethostname()} at 127.0.0.1)"}

    def test_each_helper(self, three, monkeypatch):
        def on(circle: Circle, call: Callable[[], object]) -> object:
            mine.circle = circle
            return call()

        class Here(threading.local):
            circle: Circle

            def __getattr__(self, name):
                return getattr(self.circle, name)

        mine = Here()
        monkeypatch.setattr(hosts, "_circle", mine)

        def everywhere(call: Callable[[], object]) -> list[object]:
            return together(*(lambda c=c: on(c, call) for c in three))

        assert everywhere(hosts.is_leader) == [True, False, False]
        assert everywhere(lambda: hosts.agree(mine.index == 2)) == [True] * 3
        assert everywhere(lambda: hosts.agree(False)) == [False] * 3
        assert everywhere(lambda: hosts.told({"step": mine.index})) == [{"step": 0}] * 3
        assert everywhere(lambda: hosts.barrier("here")) == [None] * 3
        assert everywhere(lambda: hosts.same_everywhere({"seed": 1, "shape": (1, 2)})) == [None] * 3
        (said,) = set(everywhere(lambda: hosts.same_everywhere({"a": 1, "seed": mine.index // 2})))
        assert re.fullmatch(r"seed is 0 on host 0 \(.*\) and 1 on host 2 \(.*\): start .*", said)

    def test_who_is_missing_is_said_by_all_that_came(self):
        port = free_port()
        said = together(host(port, 4, 0, 1), host(port, 4, 2))
        assert len(set(said)) == 1
        assert said[0].startswith("hosts 1, 3 of 4, counted from 0, did not arrive within 1 s: ")

    def test_host_0_is_missing(self):
        (said,) = together(host(port := free_port(), 2, 1, 0.5))
        assert said.startswith(f"host 0 did not answer at 127.0.0.1:{port} within 0.5 s (")

    def test_counts_differ(self):
        port = free_port()
        said = together(host(port, 3, 0), host(port, 2, 1))
        assert all(re.match(r"hosts.count is 3 on host 0 .* and 2 on host 1 ", s) for s in said)

    def test_two_say_they_are_the_same(self):
        port = free_port()
        said = together(host(port, 3, 0), host(port, 3, 1), host(port, 3, 1))
        assert all(s.startswith("two hosts have hosts.index=1, the second is ") for s in said)

    def test_the_port_is_taken(self):
        with socket.create_server(("", 0)) as server:
            (said,) = together(host(port := server.getsockname()[1], 2, 0))
        assert said.startswith(f"host 0 cannot listen at port {port} (Address already in use): ")

    @pytest.mark.parametrize(
        "words", [b"", b"GET / HTTP/1.1\r\n\r\n", b'["hello", 3]\n', b"\xff\n"]
    )
    def test_a_stranger_is_shown_the_door(self, words):
        port = free_port()

        def stranger() -> None:
            knock(port, words)

        ended = together(
            host(port, 2, 0), stranger, lambda: (time.sleep(0.3), host(port, 2, 1)())[1]
        )
        for circle, _ in (ended[0], ended[2]):
            circle.close()

    def test_a_host_stopped_while_it_waited_may_come_again(self):
        port = free_port()
        hello = b'["hello", {"index": 1, "count": 3, "name": "gone"}]\n'

        def first() -> None:
            knock(port, hello)

        def late(index: int) -> Callable[[], object]:
            return lambda: (time.sleep(0.1 * (4 - index)), host(port, 3, index)())[1]

        ended = together(host(port, 3, 0), first, late(1), late(2))
        for circle, _ in (ended[0], *ended[2:]):
            circle.close()


def knock(port: int, words: bytes) -> None:
    """Say something to whoever will listen there, and leave."""
    for _ in range(500):
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                return connection.sendall(words)
        except ConnectionRefusedError:
            time.sleep(0.01)
    pytest.fail(f"nobody listens at port {port}")
