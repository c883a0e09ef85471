"""The model itself, and text to tokens and back, with vLLM's names."""

from __future__ import annotations

from typing import Literal

from gptj.serve.facts import Voice
from gptj.serve.fields import Ids, Said, Strict
from gptj.serve.openai_requests import NAMES
from gptj.serve.refusal import Refused, in_words
from gptj.serve.service import Service


class TokenizeRequest(Strict):
    """A text."""

    prompt: str
    """What to tokenize; the name of a special token in it is plain text."""
    model: str | None = None
    """The name of the model."""


class Tokenized(Said):
    """Its tokens."""

    count: int
    """How many."""
    max_model_len: int
    """How many the context has room for, with the answer."""
    tokens: list[int]
    """Their ids."""


class DetokenizeRequest(Strict):
    """Token ids."""

    tokens: Ids
    """They."""
    model: str | None = None
    """The name of the model."""


class Detokenized(Said):
    """Their text."""

    prompt: str
    """It; what is not UTF-8 as U+FFFD."""


class Model(Said):
    """A model."""

    id: str
    """Its name."""
    object: Literal["model"] = "model"
    """What this is."""
    created: int
    """When it was loaded, in seconds since 1970."""
    owned_by: str
    """This program."""
    max_model_len: int
    """Tokens that its context has room for."""
    root: str | None = None
    """Of an adapter, where it lies."""
    parent: str | None = None
    """Of an adapter, the name of the model that it is beside."""


class Models(Said):
    """All models."""

    object: Literal["list"] = "list"
    """What this is."""
    data: list[Model]
    """The model, and the adapters beside it."""


class State(Said):
    """How the server is."""

    status: Literal["alive", "ready"]
    """In a word."""


def model_card(service: Service, voice: Voice) -> Model:
    """What answers under a name."""
    more = {"root": voice.place, "parent": service.name} if voice.adapter else {}
    return Model(
        id=voice.name,
        object="model",
        created=voice.since,
        owned_by="gptj",
        max_model_len=service.positions,
        **more,
    )


async def tokenize(service: Service, asked: TokenizeRequest) -> Tokenized:
    """Text to ids.

    Raises:
      Refused: 404, another model; 400, the text holds half of a surrogate pair.
    """
    service.voice(asked.model)
    with in_words(NAMES):
        service.check_characters("the prompt", asked.prompt)
        ids = await service.aside(len(asked.prompt), lambda: service.tokenizer.encode(asked.prompt))
    return Tokenized(count=len(ids), max_model_len=service.positions, tokens=ids)


async def detokenize(service: Service, asked: DetokenizeRequest) -> Detokenized:
    """Ids to text.

    Raises:
      Refused: 404, another model; 400, there is no such token.
    """
    service.voice(asked.model)
    most = service.model.vocab_size
    if wrong := next((token for token in asked.tokens if token >= most), None):
        said = f"tokens has {wrong} and the model knows 0 to {most - 1}"
        raise Refused(400, said, param="tokens")
    text = await service.aside(len(asked.tokens), lambda: service.tokenizer.decode(asked.tokens))
    return Detokenized(prompt=text)
