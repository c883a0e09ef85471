"""Whatever is sent: it is refused or served, and never hung."""

import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptj.serve.config import ServeConfig

URL = "/v1/completions"
PATHS = [URL, "/v1/chat/completions", "/tokenize", "/detokenize", "/complete", "/model/predict"]
PATHS += ["/model/get_prediction", "/api/v1/generate", "/api/extra/generate/stream"]
PATHS += ["/api/extra/abort"]
FINE = (200, 400, 404, 413)


def answer_to(line: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    pieces = []
    while piece := line.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def request(body: bytes, path: str = URL, extra: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{extra}"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def send(served, body: bytes, path: str = URL) -> int:
    with served.connected(request(body, path)) as line:
        return int(answer_to(line).split(b" ", 2)[1])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = ["prompt", "max_tokens", "stop", "n", "logprobs", "echo", "seed", "logit_bias", "messages"]
NAMES += ["context", "tokens", "qid", "temp", "temperature", "stream", "genkey", "top_p", "length"]
NAMES += ["guided_json", "guided_regex", "guided_grammar", "response_format", "max_length"]


class TestBodies:
    @given(body=st.binary(max_size=60), path=st.sampled_from(PATHS))
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def test_of_any_bytes(self, served, body, path):
        assert send(served, body, path) in FINE

    @given(body=st.dictionaries(st.sampled_from(NAMES), json_values, max_size=4),
           path=st.sampled_from(PATHS))  # fmt: skip
    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    def test_of_any_json(self, served, body, path):
        assert send(served, json.dumps(body).encode(), path) in FINE

    @pytest.mark.parametrize(
        "text",
        [
            rb"\ud83d",
            rb"\ude00 \ud83d",
            b"\xff\xfe",
            b"\xed\xa0\xbd",
            b"\xf0\x9f\x99",
            b"\xc0\x80",
            b"\xf4\x90\x80\x80",
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("field", ["prompt", "stop", "user", "model", "guided_regex", "é"])
    def test_with_text_that_is_none(self, served, field, text):
        body = b'{"prompt": "a", "max_tokens": 2, "%s": "%s"}' % (field.encode(), text)
        status = send(served, body)
        assert status in FINE
        assert field in ("stop", "user") or status != 200

    def test_with_a_surrogate_pair_are_served(self, served):
        body = json.dumps({"prompt": "🙂", "echo": True, "max_tokens": 1, "seed": 1})
        assert "\\ud83d\\ude42" in body
        with served.connected(request(body.encode())) as line:
            found = json.loads(answer_to(line).split(b"\r\n\r\n", 1)[1])
        assert found["choices"][0]["text"].startswith("🙂")

    def test_with_a_megabyte_of_stop_strings(self, served):
        for stops in (["ab"] * 250_000, ["a" * 1_000_000], [""] * 300_000, [5] * 300_000):
            begun = time.monotonic()
            assert send(served, json.dumps({"prompt": "a", "stop": stops}).encode()) == 400
            assert time.monotonic() - begun < 5

    @pytest.mark.parametrize(
        "body",
        [
            b"[" * 100_000,
            b'{"prompt":' + b"[" * 100_000,
            b'{"prompt": "a", "guided_json": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
            b'{"prompt": "a", "max_tokens": ' + b"9" * 10_000 + b"}",
            b'{"prompt": "a", "temperature": 1e999}',
            b'{"prompt": "a", "temperature": NaN}',
            b'{"prompt": "a", "temperature": 1e-320, "max_tokens": 2}',
            json.dumps({f"k{n}": 0 for n in range(300_000)}).encode(),
            json.dumps({"prompt": [None] * 500_000}).encode(),
            json.dumps({"prompt": [""] * 500_000}).encode(),
            json.dumps({"prompt": "a", "logit_bias": {f"{n}": 1 for n in range(90_000)}}).encode(),
            b"null", b"1", b'"a"', b"", b"{", b"\x00",
        ],
        ids=lambda body: repr(body[:40]),
    )  # fmt: skip
    def test_that_are_nested_huge_or_nothing(self, served, body):
        begun = time.monotonic()
        assert send(served, body) in FINE
        assert time.monotonic() - begun < 5

    def test_that_are_long_lists_of_wrong_messages(self, served):
        for messages in ([{}] * 500_000, [{"role": "user", "content": [{}] * 500_000}]):
            begun = time.monotonic()
            body = json.dumps({"messages": messages}).encode()
            assert send(served, body, "/v1/chat/completions") == 400
            assert time.monotonic() - begun < 5

    def test_that_are_too_long(self, serve):
        with serve(ServeConfig(max_body_bytes=1000)) as served:
            assert send(served, b" " * 1001) == 413
            chunked = (
                f"POST {URL} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()
            )
            with served.connected(chunked) as line:
                for _ in range(100):
                    try:
                        line.sendall(b"64\r\n" + b" " * 100 + b"\r\n")
                    except OSError:
                        break
                    time.sleep(0.001)
                assert answer_to(line).startswith(b"HTTP/1.1 413")


class TestSlowness:
    def test_of_a_body_ends_it(self, serve):
        with serve(ServeConfig(client_seconds=0.5)) as served:
            head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n".encode()
            with served.connected(head) as line:
                begun = time.monotonic()
                for _ in range(30):
                    try:
                        line.sendall(b" ")
                    except OSError:
                        break
                    time.sleep(0.05)
                assert b"HTTP/1.1 408" in answer_to(line)
                assert time.monotonic() - begun < 3

    @pytest.mark.parametrize("begin", [b"", b"POST /v1", b"POST /v1/completions HTTP/1.1\r\nhost"])
    def test_of_a_head_ends_it(self, serve, begin):
        with serve(ServeConfig(client_seconds=0.5)) as served, served.connected(begin) as line:
            begun = time.monotonic()
            assert answer_to(line) == b""
            assert time.monotonic() - begun < 3

    def test_of_a_second_head_ends_it(self, serve):
        two = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea"
        with serve(ServeConfig(client_seconds=0.5)) as served, served.connected(two) as line:
            begun = time.monotonic()
            assert answer_to(line).count(b"HTTP/1.1 200") == 1
            assert time.monotonic() - begun < 3

    def test_of_one_hundred_hangs_nobody_else(self, served):
        head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n ".encode()
        lines = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
        for line in lines:
            line.sendall(head)
        assert served.post(URL, {"prompt": "a", "max_tokens": 2}).status_code == 200
        for line in lines:
            line.close()

    def test_of_a_reader_ends_the_answer(self, serve):
        """A client that takes nothing of a long stream: buffers fill, and then it is let go."""
        with serve(ServeConfig(client_seconds=1)) as served:
            body = json.dumps({"prompt": ["a"] * 100, "logprobs": 20, "stream": True,
                               "ignore_eos": True, "max_tokens": 100}).encode()  # fmt: skip
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", served.port))
            line.sendall(request(body))
            served.until(lambda: served.service.worker.busy)
            served.until(lambda: not served.service.worker.busy, 30)
            gone = f'gptj_http_requests_total{{route="{URL}",status="499"}}'
            served.until(lambda: served.figure(gone, 0) == 1)
            assert served.service.queue.tokens == 0
            line.close()


class TestHeaders:
    @pytest.mark.parametrize("size", [1, 5, 50, 500])
    def test_ten_thousand_lines_of_them(self, served, size):
        lines = b"".join(b"x%d: %s\r\n" % (n, b"y" * size) for n in range(10_000))
        try:
            with served.connected(b"GET /health HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n") as line:
                line.settimeout(5)
                assert line.recv(20).split(b" ")[1] in (b"200", b"400", b"431")
        except ConnectionError:
            pass  # closed while we were still sending
        with served.http() as client:
            assert client.get("/health").status_code == 200

    @pytest.mark.parametrize(
        "head",
        [
            b"GET /health HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999\r\n\r\n",
            b"GET /%ff%fe/\xff HTTP/1.1\r\nhost: x\r\n\r\n",
            b"GET " + b"/a" * 50_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        ],
        ids=lambda head: repr(head[:40]),
    )
    def test_that_are_none(self, served, head):
        with served.connected(head) as line:
            line.settimeout(5)
            line.shutdown(socket.SHUT_WR)
            try:
                found = answer_to(line)
            except ConnectionError:
                found = b""
            assert found == b"" or found.split(b" ")[1] in (b"200", b"400", b"404", b"413", b"431")


def test_connections_dropped_at_any_moment(served):
    """Of three hundred clients that go at random, none leaves anything behind."""
    body = json.dumps({"prompt": "once", "max_tokens": 60, "ignore_eos": True, "stream": True})
    whole, draw = request(body.encode()), random.Random(0)

    def come_and_go(seed: int) -> None:
        mine = random.Random(seed)
        with served.connected(whole[: mine.randrange(len(whole) + 40)]) as line:
            time.sleep(mine.random() * 0.1)
            if mine.random() < 0.5:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with ThreadPoolExecutor(30) as pool:
        list(pool.map(come_and_go, (draw.randrange(1 << 30) for _ in range(300))))
    served.until(lambda: not served.service.worker.busy)
    assert served.service.queue.tokens == 0
    own = served.own("once", max_tokens=9, seed=2)
    found = served.post(URL, {"prompt": "once", "max_tokens": 9, "seed": 2}).json()
    assert found["choices"][0]["text"] == own[0].text
