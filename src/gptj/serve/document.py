"""The OpenAPI document: what every route may answer, with examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from gptj.serve.fields import Said
from gptj.serve.keys import OPEN

ABOUT = """\
One GPT-J model, asked in OpenAI's protocol, the original's own, or KoboldAI's. The same request
with the same seed gets the same answer, bit for bit, alone or in any company. A parameter that is
not known, or not supported, is refused by name."""


class OpenAIFault(Said):
    """What is wrong."""

    message: str
    """One sentence."""
    type: str
    """Its kind."""
    param: str | None
    """The parameter at fault, if it is one's."""
    code: str | None
    """A word for programs, for some."""


class OpenAIError(Said):
    """A refusal, as OpenAI writes it."""

    error: OpenAIFault
    """What is wrong."""


class KoboldFault(Said):
    """What is wrong."""

    msg: str
    """One sentence."""
    type: str
    """Its kind."""


class KoboldError(Said):
    """A refusal, as KoboldAI writes it."""

    detail: KoboldFault
    """What is wrong."""


class OriginalError(Said):
    """A refusal, as the original wrote it."""

    error: str
    """One sentence."""


MEANINGS = {
    400: "A parameter is unknown, unsupported or out of range; the message names it.",
    401: "An API key is needed.",
    404: "There is no such thing here.",
    408: "The body took too long to come.",
    409: "There is one of this name already, or no room.",
    413: "The body is too long.",
    429: "The queue is full or the key's budget used up; Retry-After says for how many seconds.",
    500: "The engine has stopped.",
    503: "The server is warming up, or draining.",
}

EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
"""An event of a stream; its data is JSON, or the word [DONE]."""

ALWAYS = (401, 408, 413)
"""What any route may answer."""

ASKING = (400, 404, 429, 500, 503)
"""What one that draws may answer as well."""

LOADING = (400, 404, 409, 500, 503)
"""And one that loads."""


def refusals(kind: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The document's entries for refusals with these statuses and those of every route."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *ALWAYS}):
        found[status] = {"model": kind, "description": MEANINGS[status]}
        if status == 429:
            seconds = {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
            found[status]["headers"] = {"Retry-After": seconds}
    return found


def answer(
    model: type[BaseModel], said: str, example: Any, stream: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """The document's entry for an answer, and for its events where it can be a stream."""
    content: dict[str, Any] = {"application/json": {"example": example}}
    if stream:
        content["text/event-stream"] = {"itemSchema": EVENT, "example": stream}
    return {200: {"model": model, "description": said, "content": content}}


def events(said: str, example: str) -> dict[int | str, dict[str, Any]]:
    """The document's entry for an answer that is a stream of events."""
    content = {"text/event-stream": {"itemSchema": EVENT, "example": example}}
    return {200: {"description": said, "content": content}}


def text(said: str, kind: str, example: str) -> dict[int | str, dict[str, Any]]:
    """The document's entry for an answer that is not JSON."""
    content = {kind: {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": said, "content": content}}


def document(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    """The document. FastAPI's own 422 is not in it: what does not validate is a 400 here."""
    made = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    for path, operations in made["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if with_keys and path not in OPEN:
                operation["security"] = [{"key": []}]
            else:
                operation["responses"].pop("401", None)
    schemas = made.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if with_keys:
        bearer = {"type": "http", "scheme": "bearer"}
        made.setdefault("components", {})["securitySchemes"] = {"key": bearer}
    return made
