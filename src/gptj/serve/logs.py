"""One line of JSON for each request, under an id that the client is told too.

What was asked and answered is never written down, only how much of it there was.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptj.serve.metrics import Metrics

LOG = logging.getLogger("gptj.serve")

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Ids that are taken over from the header `x-request-id`; others would be trouble in a log."""

GONE = 499
"""The status of a request whose client left before the answer, in the log and the metrics."""

UNKNOWN = "none"
"""The route of a path that is none, in the metrics: one name for all of them."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Its time, level and message, its fields, and the traceback of an error."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up_logs() -> None:
    """Write the server's lines to standard error; uvicorn's own are all said by ours."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def say(event: str, **fields: Any) -> None:
    """Write a line about the server."""
    LOG.info(event, extra={"fields": fields})


class Observed:
    """Gives each request an id, and writes it down and counts it when it is over.

    What the layers within want to have in its line they put into `scope["state"]["note"]`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and the answer back with its id."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state, begin, status = scope.setdefault("state", {}), time.perf_counter(), 0
        given = Headers(scope=scope).get("x-request-id", "")
        state["id"], state["note"] = given if ID.fullmatch(given) else uuid.uuid4().hex, {}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = state["id"]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            status = 500
            LOG.exception("failed", extra={"fields": {"id": state["id"]}})
            raise
        finally:
            if not status or state["note"].pop("gone", False):
                status = GONE
            self._note(scope, status, time.perf_counter() - begin)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        state, route = scope["state"], getattr(scope.get("route"), "path", UNKNOWN)
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.whole.observe(seconds)
        say(
            "request",
            id=state["id"],
            key=state["key"].name if "key" in state else None,
            method=scope["method"],
            path=scope["path"][:200],
            status=status,
            seconds=round(seconds, 4),
            **state["note"],
        )
