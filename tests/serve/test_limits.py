"""How much a client may send, and how long it may take: each limit where it lies."""

import asyncio
import json

import pytest

from gptj.serve.limits import Limits
from gptj.serve.refusal import ClientGone


class Ours:
    """An application behind the limits, that answers with the body it was given."""

    def __init__(self, most=10, seconds=0.2, pause=0.0, app=None):
        self.limits, self.pause = Limits(app or self.app, most, seconds), pause
        self.sent, self.read, self.after = [], None, []

    async def app(self, scope, receive, send):
        self.read = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.read["body"]})
        self.after.append(await receive())

    async def send(self, message):
        await asyncio.sleep(self.pause)
        self.sent.append(message)

    def ask(self, *pieces, length=None, path="/v1/completions"):
        """What a client is answered that sends a body in these pieces, and then leaves."""
        messages = [
            {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
            for number, piece in enumerate(pieces)
        ]

        async def receive():
            if not messages:
                return {"type": "http.disconnect"}
            message = messages.pop(0)
            await asyncio.sleep(message["body"] == b"late" and 1.0)
            return message

        headers = [] if length is None else [(b"content-length", str(length).encode())]
        self.scope = {"type": "http", "path": path, "headers": headers, "state": {"note": {}}}
        asyncio.run(self.limits(self.scope, receive, self.send))
        self.left = len(messages)
        return self.sent[0]["status"] if self.sent else None

    @property
    def error(self):
        return json.loads(self.sent[1]["body"])["error"]


@pytest.mark.parametrize("pieces", [(b"0123456789",), (b"01234", b"", b"56789"), (b"",)], ids=str)
def test_a_body_comes_in_one_piece_however_it_was_sent(pieces):
    ours = Ours()
    assert ours.ask(*pieces) == 200
    assert ours.read == {"type": "http.request", "body": b"".join(pieces), "more_body": False}
    assert ours.after == [{"type": "http.disconnect"}]  # what comes then is passed on


@pytest.mark.parametrize(
    ("pieces", "left"), [((b"01234567890",), 0), ((b"012345", b"67890", b"more"), 1)], ids=str
)
def test_one_that_is_too_long_is_not_read_to_its_end(pieces, left):
    ours = Ours()
    assert ours.ask(*pieces) == 413
    assert ours.left == left
    assert ours.read is None
    assert ours.error["message"] == "the body is longer than 10 bytes"
    assert ours.error["code"] == "body_too_long"
    assert (b"connection", b"close") in ours.sent[0]["headers"]


@pytest.mark.parametrize(("length", "status"), [(10, 200), (11, 413), ("1" * 50, 413), ("x", 200)])
def test_one_that_says_that_it_is_too_long_is_not_read_at_all(length, status):
    ours = Ours()
    assert ours.ask(b"short", length=length) == status
    assert ours.left == (status == 413)


def test_one_that_comes_too_slowly():
    ours = Ours(seconds=0.05)
    assert ours.ask(b"a", b"late") == 408
    assert ours.error["message"] == "the body took longer than 0.05 seconds to come"
    assert ours.error["code"] == "too_slow"


def test_it_is_refused_in_the_shape_of_its_protocol():
    ours = Ours()
    assert ours.ask(b"01234567890", path="/api/v1/generate") == 413
    assert json.loads(ours.sent[1]["body"])["detail"]["msg"].startswith("the body is longer")


def test_a_client_that_leaves_in_the_midst_of_it_is_answered_nothing():
    ours = Ours()
    ours.limits = Limits(ours.app, 10, 0.2)
    assert ours.ask() is None
    assert ours.read is None


def test_a_client_that_takes_no_more_of_its_answer_is_let_go():
    ours = Ours(seconds=0.05, pause=1.0)
    assert ours.ask(b"a") is None
    assert ours.scope["state"]["note"] == {"gone": True}


def test_so_is_one_that_has_left():
    async def app(scope, receive, send):
        raise ClientGone

    ours = Ours(app=app)
    assert ours.ask(b"a") is None
    assert ours.scope["state"]["note"] == {"gone": True}


def test_what_is_no_request_is_passed_on():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope, receive, send))

    asyncio.run(Limits(app, 0, 0.0)({"type": "lifespan"}, "receive", "send"))
    assert seen == [({"type": "lifespan"}, "receive", "send")]
