"""The roll and the talk of hosts: each here is a thread."""

import json
import queue
import re
import socket
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from gptj import circle as module
from gptj import hosts
from gptj.circle import LOST, Circle, Link, arrive
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


@pytest.fixture
def ends():
    """Two ends of a connection: ours as a link, and the other as it is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    link = Link(ours)
    yield link, theirs
    theirs.close()
    link.close()


class TestALink:
    @pytest.mark.parametrize(
        ("words", "read"),
        [
            (b'["value", {"a": 1}]\n', ("value", {"a": 1})),
            *((words, ("lost", None)) for words in (b"x\n", b"3\n", b"[1]\n", b"[1, 2, 3]\n", b"")),
        ],
    )
    def test_what_is_no_kind_and_value_is_nobody_s(self, ends, words, read):
        link, theirs = ends
        theirs.sendall(words)
        theirs.shutdown(socket.SHUT_WR)
        assert link.read() == read
        assert link.read() == ("lost", None)

    def test_lines_go_out_as_they_come_in_and_to_nobody_in_silence(self, ends):
        link, theirs = ends
        link.send("value", ["é", None])
        link.send("bye")
        assert theirs.recv(99) == b'["value", ["\\u00e9", null]]\n["bye", null]\n'
        link.close()
        link.send("bye")

    @pytest.mark.parametrize("left_out", [None, "index", "count", "name"])
    def test_a_host_says_all_of_who_it_is(self, ends, left_out):
        link, theirs = ends
        hello = {"index": 1, "count": 2, "name": "x", "more": 0}
        hello.pop(left_out, None)
        theirs.sendall(f'["hello", {json.dumps(hello)}]\n'.encode())
        assert link.read_hello(1) == (None if left_out else hello)

    def test_another_word_is_no_hello_and_silence_is_none_and_is_waited_for_no_more(self, ends):
        link, theirs = ends
        theirs.sendall(b'["roll", {"index": 1, "count": 2, "name": "x"}]\n')
        assert link.read_hello(1) is None
        assert link.read_hello(0.05) is None
        assert link._socket.gettimeout() is None

    def test_it_is_open_while_the_other_end_is_whatever_that_says(self, ends):
        link, theirs = ends
        assert link.is_open()
        theirs.sendall(b"x")
        assert (link._socket.recv(1, socket.MSG_PEEK), link.is_open()) == (b"x", True)
        assert link._socket.recv(1) == b"x"
        theirs.close()
        link._socket.recv(1)  # until the end has come
        assert not link.is_open()

    def test_the_system_finds_out_in_25_seconds_that_a_host_is_gone(self, ends):
        option = ends[0]._socket.getsockopt
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_NODELAY")
        found = [option(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
        assert found == [10, 5, 3, 25_000, 1]

    def test_one_that_is_left_stands_and_one_that_is_closed_does_not(self, ends):
        link, theirs = ends
        number = link._socket.fileno()
        link.leave()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        socket.socket(fileno=number).close()


class Said:
    """A link to a host that has said these words and no more; what it is told is kept."""

    def __init__(self, *words: tuple[str, object], open_for: int = 0) -> None:
        self.words, self.told, self.open_for = [*words], [], open_for

    def read(self):
        if not self.words:
            threading.Event().wait()
        return self.words.pop(0)

    def send(self, kind, value=None):
        self.told.append((kind, value))

    def is_open(self):
        self.open_for -= 1
        return self.open_for >= 0

    def leave(self):
        self.told.append("left")

    def close(self):
        self.told.append("closed")


class Ended(Exception):
    """The process, with its status."""


class TestAnEnd:
    @pytest.fixture
    def system(self, monkeypatch):
        """The system, which ends no process: its last words, and whether they go to a terminal."""
        said = SimpleNamespace(words=[], terminal=False)

        def leave(status):
            raise Ended(status)

        monkeypatch.setattr(module, "os", SimpleNamespace(
            dup=lambda fd: 9, dup2=lambda *_: None, open=lambda *_: 8, devnull="", O_WRONLY=0,
            isatty=lambda fd: said.terminal, _exit=leave,
            write=lambda fd, words: said.words.append((fd, words.decode())),
        ))  # fmt: skip
        monkeypatch.setattr(module, "_GRACE", 0)
        return said

    def circle(self, index: int, **links: Said) -> Circle:
        """Without threads, which would hear what a test is to."""
        found = object.__new__(Circle)
        found.index, found._names = index, ["zero", "one", "two"]
        found._links = {int(name[1:]): link for name, link in links.items()}
        found._heard = {host: queue.SimpleQueue() for host in found._links}
        found._failing = found._leaving = False
        found._ending = threading.Lock()
        return found

    def ended(self, circle: Circle, host: int) -> int:
        with pytest.raises(Ended) as ended:
            circle._listen(host)
        return ended.value.args[0]

    def test_host_0_s_word_ends_another_which_says_it(self, system):
        link = Said(("value", 1), ("end", "a reason"))
        circle = self.circle(1, h0=link)
        assert self.ended(circle, 0) == LOST == 75
        assert system.words == [(9, "gptj: a reason\n")]
        assert (circle._heard[0].get(), link.told) == (1, [])

    def test_one_that_stops_ends_all_by_host_0_with_its_reason(self, system):
        one, two = Said(), Said(("stopped", "no disk"))
        assert self.ended(self.circle(0, h1=one, h2=two), 2) == 75
        sentence = "host 2 (two) stopped, and so do all: no disk"
        assert system.words == [(9, f"gptj: {sentence}\n")]
        assert one.told == two.told == [("end", sentence)]

    def test_one_that_is_lost_ends_all_with_what_to_do(self, system):
        system.terminal = True
        assert self.ended(self.circle(0, h1=Said(("lost", None))), 1) == 75
        ((_, words),) = system.words
        assert words.startswith("\x1b[?25hgptj: host 1 (one) is lost, so all stop: run the same ")

    @pytest.mark.parametrize(
        ("what", "words"),
        [("_failing", [("stopped", "the same"), ("bye", None)]), ("_leaving", [("lost", None)])],
    )
    def test_who_fails_itself_or_leaves_is_ended_by_nobody(self, system, what, words):
        circle = self.circle(1, h0=Said(*words))
        setattr(circle, what, True)
        circle._listen(0)
        assert system.words == []
        assert not circle._ending.locked()

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (KeyboardInterrupt(), "interrupted"),
            (UserError("no\n  disk"), "no disk"),
            (ValueError(), "ValueError"),
        ],
    )
    def test_who_stops_says_why_and_lets_its_links_stand(self, system, error, words):
        link = Said()
        circle = self.circle(1, h0=link)
        circle.fail(error)
        assert link.told == [("stopped", words), "left"]
        assert circle._failing
        assert circle._leaving

    def test_who_leaves_in_peace_says_so(self):
        link = Said()
        self.circle(1, h0=link).close()
        assert link.told == [("bye", None), "closed"]

    def test_host_0_lets_the_others_end_first_but_not_for_ever(self, monkeypatch):
        link = Said(open_for=2)
        self.circle(1, h0=link)._see_off()
        assert link.open_for == 2
        self.circle(0, h1=link, h2=Said(open_for=3))._see_off()
        assert link.open_for <= -1
        monkeypatch.setattr(module, "_PATIENCE", 0.03)
        self.circle(0, h1=Said(open_for=10**9))._see_off()


@pytest.mark.parametrize(
    ("where", "host", "shown"),
    [("[::1]:80", "::1", "[::1]:80"), ("a.b:80", "a.b", "a.b:80"), ("::1:80", "::1", "[::1]:80")],
)
def test_an_address_may_be_of_either_kind(where, host, shown, monkeypatch):
    asked = []

    class Roll:
        def __init__(self, *given):
            asked.append(given)

        take = answer = lambda self: "arrived"

    monkeypatch.setattr(module, "_Roll", Roll)
    assert arrive(where, 2, 1, 3.0) == "arrived"
    assert asked == [(host, 80, 2, 1, 3.0)]
    assert module._address(host, 80) == shown


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ([3], "host 3 of 30,"),
        ([3, 4], "hosts 3, 4 of 30,"),
        ([*range(1, 21)], f"hosts {', '.join(map(str, range(1, 21)))} of 30,"),
        ([*range(1, 22)], f"hosts {', '.join(map(str, range(1, 21)))}, ... of 30,"),
    ],
)
def test_of_many_that_are_missing_twenty_are_named(missing, said):
    def accept():
        raise TimeoutError

    listener = SimpleNamespace(settimeout=lambda _: None, accept=accept)
    with pytest.raises(UserError) as refusal:
        module._Roll("h", 1, 30, 0, 2.5)._next(listener, missing)
    assert str(refusal.value).startswith(f"{said} counted from 0, did not arrive within 2.5 s: ")
