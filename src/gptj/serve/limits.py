"""How much a client may send, and how long it may take over it."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptj.serve.refusal import ClientGone, Refused

CLOSE = {"connection": "close"}
"""What is left of the body will not be read."""


class Limits:
    """Reads a request's body before anything else sees it, and passes it on in one piece.

    So a body that is too long, or comes too slowly, costs no more than the memory it is allowed.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, seconds: float) -> None:
        """At most so many bytes of a body, and so many seconds for it or to take an answer's piece.

        A client that takes no more of its answer is let go.
        """
        self._app, self._most, self._seconds = app, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 or 408, or pass on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            body = await self._read(scope, receive)
        except ClientGone:
            return
        except Refused as refused:
            return await refused.response(scope["path"])(scope, receive, send)
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return first.pop() if first else await receive()

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError as error:
                raise ClientGone from error

        try:
            await self._app(scope, receive_again, send_in_time)
        except ClientGone:
            scope["state"]["note"]["gone"] = True

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length[:20]) > self._most:
            raise self._too_long()
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._seconds):
                message: dict[str, Any] = {"more_body": True}
                while message.get("more_body"):
                    message = dict(await receive())
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > self._most:
                        raise self._too_long()
        except TimeoutError as error:
            said = f"the body took longer than {self._seconds:g} seconds to come"
            raise Refused(408, said, code="too_slow", headers=CLOSE) from error
        return b"".join(pieces)

    def _too_long(self) -> Refused:
        said = f"the body is longer than {self._most} bytes"
        return Refused(413, said, code="body_too_long", headers=CLOSE)
