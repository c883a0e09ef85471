"""Adapters loaded and unloaded while the server runs, with vLLM's names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from gptj.engine.adapters import AdapterConflict, UnknownAdapter
from gptj.errors import UserError
from gptj.serve.facts import Voice
from gptj.serve.fields import Said, Strict
from gptj.serve.refusal import Refused
from gptj.serve.service import Service

Name = Annotated[str, Field(min_length=1, max_length=200)]


class LoadRequest(Strict):
    """An adapter, and what it is to be called."""

    lora_name: Name
    """What requests call it, as their `model`."""
    lora_path: Annotated[str, Field(min_length=1)]
    """A folder of the server's machine: of a run that trained it, or PEFT's."""


class UnloadRequest(Strict):
    """An adapter."""

    lora_name: Name
    """What it is called."""


class Unloaded(Said):
    """An adapter that takes no more requests."""

    id: str
    """Its name."""
    object: Literal["model"] = "model"
    """What it was."""
    deleted: bool
    """That it is gone; its files are left alone."""


async def load(service: Service, asked: LoadRequest) -> Voice:
    """Load an adapter.

    Raises:
      Refused: 400, it is none of this model's; 409, the name is in use, or there is no room; 503,
        the server is not ready.
    """
    service.check_ready()
    name, place = asked.lora_name, asked.lora_path
    with _statuses():
        if name == service.name:
            raise AdapterConflict(f"lora_name={name!r} is the model's own name: use another")
        if not os.path.isdir(place):
            raise UserError(f"lora_path={place!r} is no folder of the server's machine")
        found = await service.worker.load_adapter(name, place)
    service.adapters[name] = found
    return found


async def unload(service: Service, asked: UnloadRequest) -> Unloaded:
    """Unload an adapter.

    Raises:
      Refused: 404, there is none of this name; 503, the server is not ready.
    """
    service.check_ready()
    with _statuses():
        await service.worker.unload_adapter(asked.lora_name)
    service.adapters.pop(asked.lora_name, None)
    return Unloaded(id=asked.lora_name, object="model", deleted=True)


@contextlib.contextmanager
def _statuses() -> Iterator[None]:
    """Refuse what the engine does."""
    try:
        yield
    except UnknownAdapter as error:
        raise Refused(404, str(error), param="lora_name", code="model_not_found") from error
    except AdapterConflict as error:
        raise Refused(409, str(error), param="lora_name") from error
    except (UserError, OSError) as error:
        raise Refused(400, str(error), param="lora_path") from error
