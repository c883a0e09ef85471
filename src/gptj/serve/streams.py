"""Answers while the client waits: dropped when it goes, and in pieces if it asked for that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gptj.serve.refusal import ClientGone, Refused, unforeseen

T = TypeVar("T")

DONE = "data: [DONE]\n\n"
"""How OpenAI's streams end."""


def event(record: BaseModel, name: str = "") -> str:
    """A record as a server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {record.model_dump_json(exclude_unset=True)}\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and drop it as soon as the client has gone.

    Raises:
      ClientGone: it has.
    """
    doing, leaving = asyncio.create_task(work), asyncio.create_task(_leaves(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGone
        return doing.result()
    finally:
        unfinished = [task for task in (doing, leaving) if not task.done()]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, as they come.

    Refused before the first event, it is answered like any request; after it, by an event, as is
    whatever else goes wrong.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[str, None], refusal: Callable[[Refused], str]
    ) -> None:
        """Events that begin (be it with an empty one) once nothing can be refused any more.

        Args:
          refusal: makes an event of what broke the answer off.
        """
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._refusal = events, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them until they end or the client goes."""
        async with contextlib.aclosing(self._events):
            try:
                await unless_gone(receive, self._send(scope, send))
            except ClientGone:
                scope["state"]["note"]["gone"] = True

    async def _send(self, scope: Scope, send: Send) -> None:
        first = await anext(self._events)
        headers = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **headers})
        await self._send_piece(send, first)
        try:
            async for piece in self._events:
                await self._send_piece(send, piece)
        except Refused as refused:
            await self._send_piece(send, self._refusal(refused))
        except ClientGone:
            raise
        except Exception:
            await self._send_piece(send, self._refusal(unforeseen(scope)))
            raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_piece(self, send: Send, piece: str) -> None:
        if piece:
            body = piece.encode("utf-8", "backslashreplace")
            await send({"type": "http.response.body", "body": body, "more_body": True})
