"""What is refused, in one sentence and in the shape that each protocol gives its errors."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from gptj.errors import UserError

SHOWN = 600
"""Characters of a message that are shown: it may quote what the client sent."""

TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}
"""By status what OpenAI calls the kind of an error; any other is `invalid_request_error`."""


ROUTES = {
    404: "there is nothing at this path: /openapi.json lists those there are",
    405: "this path takes another method: /openapi.json says which",
}
"""By status, what those are told who miss a route."""


class Refused(Exception):
    """A request that is not answered, or an answer that is broken off."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A refusal with the status of HTTP, and `param`, the parameter at fault if it is one's."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.message = message if len(message) <= SHOWN else message[: SHOWN - 3] + "..."
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """What OpenAI calls the kind of it."""
        return TYPES.get(self.status, "invalid_request_error")

    def body(self, path: str) -> dict[str, Any]:
        """It as JSON, in the shape of the protocol that `path` belongs to."""
        if path.startswith("/api/"):
            return {"detail": {"msg": self.message, "type": self.type}}
        if path == "/complete" or path.startswith("/model/"):
            return {"error": self.message}
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self, path: str) -> Response:
        """It as an answer to a request for `path`."""
        return Json(self.body(path), self.status, headers=self.headers)


def broken_off() -> Refused:
    """The end of an answer that is cut short because the server stops."""
    headers = {"retry-after": "5"}
    return Refused(503, "the server stops, and broke the answer off", headers=headers)


def unforeseen(scope: Scope) -> Refused:
    """The answer to a request that a mistake of ours has ended."""
    known = scope.get("state", {}).get("id", "unknown")
    return Refused(500, f"this should not have happened: see request {known} in the log")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Json(JSONResponse):
    """A record or a plain value as JSON."""

    def render(self, content: Any) -> bytes:
        """The bytes of it; half a surrogate pair, which UTF-8 has no bytes for, as an escape."""
        if isinstance(content, BaseModel):
            return content.model_dump_json(exclude_unset=True).encode()
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def in_words(names: Mapping[str, str]) -> Iterator[None]:
    """Refuse with 400 what raises a `UserError`, in the words of a protocol.

    Args:
      names: from the engine's names of parameters to the protocol's.
    """
    try:
        yield
    except UserError as error:
        raise translated(str(error), names) from error


def translated(message: str, names: Mapping[str, str]) -> Refused:
    """A sentence of the engine's as a refusal that names the protocol's parameter."""
    words = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    head, colon, rest = message.partition(": ")  # after a colon there may be anyone's words
    message = re.sub(rf"\b({words})\b", lambda found: names[found[1]], head) + colon + rest
    theirs = set(names.values())
    param = next((word for word in re.findall(r"\w+", message[:SHOWN]) if word in theirs), None)
    return Refused(400, message, param=param)


def from_validation(error: RequestValidationError) -> Refused:
    """The first thing that is wrong with a body."""
    first = error.errors()[0]
    where = [part for part in first["loc"][1:] if isinstance(part, str | int)]
    if first["type"] == "json_invalid":
        return Refused(
            400, f"the body is not JSON: {first['ctx']['error']} at character {where[0]}"
        )
    if first["type"] == "unknown_parameter":
        name = first["ctx"]["name"]
        return Refused(400, first["msg"], param=name, code="unknown_parameter")
    if not where:
        return Refused(400, "the body must be a JSON object (with content-type application/json)")
    name = str(where[0])
    path = name + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in where[1:]
    )
    if first["type"] == "missing":
        return Refused(400, f"{path} is missing", param=name, code="missing_parameter")
    said = first["msg"][:1].lower() + first["msg"][1:]
    return Refused(400, f"{path}: {said}", param=name)


def from_http(error: HTTPException) -> Refused:
    """What the framework refuses: no such route, another method, a body it cannot parse."""
    said = ROUTES.get(error.status_code, str(error.detail))
    return Refused(error.status_code, said, headers=error.headers)
