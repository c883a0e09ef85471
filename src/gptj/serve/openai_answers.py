"""OpenAI's answers."""

from __future__ import annotations

from typing import Literal

from gptj.serve.fields import Said

Finish = Literal["stop", "length"]


class Usage(Said):
    """How many tokens it took."""

    prompt_tokens: int
    """Read, each prompt once."""
    completion_tokens: int
    """Drawn, of all answers that are given."""
    total_tokens: int
    """Both together."""

    @classmethod
    def of(cls, read: int, drawn: int) -> Usage:
        """So many tokens read and drawn."""
        return cls(prompt_tokens=read, completion_tokens=drawn, total_tokens=read + drawn)


class CompletionLogprobs(Said):
    """A list entry for each token."""

    tokens: list[str]
    r"""As text, or `bytes:\xf0\x9f` where a token is not whole characters."""
    token_logprobs: list[float | None]
    """In nats; null for the first token of a prompt."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens', and always the token's own."""
    text_offset: list[int]
    """Where the token begins in `text`, in characters."""


class CompletionChoice(Said):
    """One answer, or a piece of it."""

    index: int
    """The prompt's number times `n`, and the answer's."""
    text: str
    """What was written."""
    logprobs: CompletionLogprobs | None
    """Where asked for."""
    finish_reason: Finish | None
    """`stop`: the model ended it, or a stop string did; `length`: there was no more room."""
    seed: int
    """With this seed the prompt gives this answer again."""


class CompletionResponse(Said):
    """Answers to prompts, or with `stream` a piece of one."""

    id: str
    """Also the request's id in the server's log."""
    object: Literal["text_completion"] = "text_completion"
    """What this is."""
    created: int
    """Seconds since 1970."""
    model: str
    """Its name."""
    system_fingerprint: str
    """Equal fingerprints give equal answers to equal requests."""
    seed: int
    """The first prompt's."""
    choices: list[CompletionChoice]
    """In order; one in a piece of a stream, none in its last with the usage."""
    usage: Usage | None = None
    """The tokens it took."""


class TopLogprob(Said):
    """A token and its log-probability."""

    token: str
    r"""As text, or `bytes:\xf0\x9f` where it is not whole characters."""
    logprob: float
    """In nats."""
    bytes: list[int]
    """What it stands for in UTF-8."""


class ChatLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]
    """The likeliest in its place."""


class ChatLogprobs(Said):
    """Of an answer or a piece of it."""

    content: list[ChatLogprob]
    """One for each token."""


class ChatMessage(Said):
    """What the model says."""

    role: Literal["assistant"]
    """The model."""
    content: str
    """What it says."""


class ChatChoice(Said):
    """One answer."""

    index: int
    """Its number."""
    message: ChatMessage
    """It."""
    logprobs: ChatLogprobs | None
    """Where asked for."""
    finish_reason: Finish
    """`stop`: the model ended it, or a stop string did; `length`: there was no more room."""
    seed: int
    """With this seed the chat gives this answer again."""


class ChatResponse(Said):
    """Answers in a chat."""

    id: str
    """Also the request's id in the server's log."""
    object: Literal["chat.completion"] = "chat.completion"
    """What this is."""
    created: int
    """Seconds since 1970."""
    model: str
    """Its name."""
    system_fingerprint: str
    """Equal fingerprints give equal answers to equal requests."""
    seed: int
    """What it was drawn with."""
    choices: list[ChatChoice]
    """In order."""
    usage: Usage
    """The tokens it took."""


class ChatDelta(Said):
    """What is new of an answer."""

    role: Literal["assistant"] | None = None
    """With the first piece."""
    content: str | None = None
    """The text that follows."""


class ChatPieceChoice(Said):
    """A piece of one answer."""

    index: int
    """The answer's number."""
    delta: ChatDelta
    """What is new."""
    logprobs: ChatLogprobs | None
    """Where asked for."""
    finish_reason: Finish | None
    """With the last piece."""
    seed: int
    """With this seed the chat gives this answer again."""


class ChatPiece(Said):
    """A piece of a streamed chat."""

    id: str
    """The same for all pieces."""
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    """What this is."""
    created: int
    """Seconds since 1970."""
    model: str
    """Its name."""
    system_fingerprint: str
    """Equal fingerprints give equal answers to equal requests."""
    seed: int
    """What it was drawn with."""
    choices: list[ChatPieceChoice]
    """One, or none in the last piece with the usage."""
    usage: Usage | None = None
    """With `include_usage`: null but in the last piece."""
