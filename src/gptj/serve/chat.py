"""OpenAI's chats: messages become a prompt by the transcript, and the model goes on from there."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest

from gptj.engine.request import Completion, Request, SamplingParams
from gptj.serve.completions import finish
from gptj.serve.logprobs import Placed, Placer, spelling, token_text
from gptj.serve.openai_answers import (
    ChatChoice,
    ChatDelta,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    ChatPiece,
    ChatPieceChoice,
    ChatResponse,
    Finish,
    TopLogprob,
    Usage,
)
from gptj.serve.openai_requests import NAMES, ChatRequest
from gptj.serve.refusal import Refused, in_words
from gptj.serve.service import Service
from gptj.serve.streams import DONE, event

CHAT_NAMES = {**NAMES, "prompt": "messages"}


def check(asked: ChatRequest) -> None:
    """Refuse what does not go together.

    Raises:
      Refused: 400.
    """
    asked.check_stream()
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refused(400, "top_logprobs goes with logprobs=true", param="top_logprobs")
    both = {asked.max_tokens, asked.max_completion_tokens} - {None}
    if len(both) > 1:
        said = "max_tokens and max_completion_tokens differ: leave out one"
        raise Refused(400, said, param="max_completion_tokens")


class ChatJob:
    """One request for what comes next in a chat."""

    def __init__(self, service: Service, http: HttpRequest, asked: ChatRequest) -> None:
        """A job that is to be prepared.

        Raises:
          Refused: 400, the parameters do not go together.
        """
        check(asked)
        self._service, self._http, self._asked = service, http, asked
        self._voice = service.voice(asked.model)
        self._n, self._created = asked.n or 1, int(time.time())
        self._drawn, self._seed = 0, 0
        self._prompt: list[int] = []

    async def prepare(self) -> None:
        """Make a prompt of the messages, and read it.

        Raises:
          Refused: 400, the engine would not take it, or the template refuses the messages.
        """
        self._service.check_count(self._n, CHAT_NAMES)
        messages = [{"role": each.role, "content": each.text} for each in self._asked.messages]
        (self._seed,) = self._service.seeds(self._asked.seed, 1)
        with in_words(CHAT_NAMES):
            sampling = self._sampling(self._asked.min_tokens or 1)
        prompt = self._service.transcript.render(messages)
        (self._prompt,) = await self._service.read([prompt], sampling, CHAT_NAMES, told=True)
        self._http.state.note.update(
            model=self._voice.name, stream=bool(self._asked.stream), prompts=1, seed=self._seed,
            user=self._asked.user,
        )  # fmt: skip

    def _sampling(self, to_the_end: int) -> SamplingParams:
        """How to draw: at most `to_the_end` tokens where the request does not say."""
        asked = self._asked
        return asked.sampling(
            max_tokens=asked.max_completion_tokens or asked.max_tokens or to_the_end,
            seed=self._seed,
            stop=(*(asked.stop or ()), *self._service.transcript.stops),
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        )

    def _request(self) -> Request:
        sampling = self._sampling(self._service.positions - len(self._prompt))
        return Request(self._prompt, sampling, adapter=self._voice.adapter)

    async def whole(self) -> ChatResponse:
        """All the answers.

        Raises:
          Refused: they are not to be had.
        """
        with in_words(CHAT_NAMES):
            async with self._service.ask(self._http, [self._request()]) as asked:
                (found,) = await asked.completions()
        return ChatResponse(
            object="chat.completion",
            choices=[self._choice(n, each) for n, each in enumerate(found)],
            usage=self._usage(),
            **self._head(),
        )

    def _choice(self, n: int, completion: Completion) -> ChatChoice:
        placer = Placer(self._service.tokenizer)
        placed = placer.push(completion.logprobs or (), completion.text, last=True)
        self._drawn += len(completion.tokens)
        return ChatChoice(
            index=n,
            message=ChatMessage(role="assistant", content=completion.text),
            logprobs=self._logprobs(placed),
            finish_reason=finish(completion),
            seed=self._seed,
        )

    def _logprobs(self, placed: Sequence[Placed]) -> ChatLogprobs | None:
        if not self._asked.logprobs:
            return None
        return ChatLogprobs(
            content=[
                ChatLogprob(
                    **self._spelt(each.token),
                    logprob=each.logprob,
                    top_logprobs=[
                        TopLogprob(**self._spelt(token), logprob=logprob)
                        for token, logprob in each.top
                    ],
                )
                for each in placed
                if each.logprob is not None
            ]
        )

    def _spelt(self, token: int) -> dict[str, Any]:
        tokenizer = self._service.tokenizer
        return {"token": token_text(tokenizer, token), "bytes": list(spelling(tokenizer, token))}

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._http.state.id}",
            "created": self._created,
            "model": self._voice.name,
            "system_fingerprint": self._voice.fingerprint,
            "seed": self._seed,
        }

    def _usage(self) -> Usage:
        return Usage.of(len(self._prompt), self._drawn)

    async def events(self) -> AsyncGenerator[str, None]:
        """The answers in pieces, as they come; each answer begins with its role.

        Raises:
          Refused: before the first event, or after it where the answers are broken off.
        """
        self._blank = {"usage": None} if self._asked.with_usage else {}
        placers = [Placer(self._service.tokenizer) for _ in range(self._n)]
        with in_words(CHAT_NAMES):
            async with self._service.ask(self._http, [self._request()]) as asked:
                for n in range(self._n):
                    yield self._piece(n, ChatDelta(role="assistant", content=""))
                async for _, delta in asked.deltas():
                    n, ended = delta.choice, delta.completion
                    placed = placers[n].push(delta.logprobs, delta.text, last=ended is not None)
                    self._drawn += len(delta.tokens)
                    if delta.text or placed:
                        yield self._piece(n, ChatDelta(content=delta.text), placed)
                    if ended:
                        yield self._piece(n, ChatDelta(), reason=finish(ended))
        if self._asked.with_usage:
            yield self._event([], usage=self._usage())
        yield DONE

    def _piece(
        self,
        n: int,
        delta: ChatDelta,
        placed: Sequence[Placed] = (),
        reason: Finish | None = None,
    ) -> str:
        choice = ChatPieceChoice(
            index=n,
            delta=delta,
            logprobs=self._logprobs(placed) if placed else None,
            finish_reason=reason,
            seed=self._seed,
        )
        return self._event([choice], **self._blank)

    def _event(self, choices: list[ChatPieceChoice], **more: Any) -> str:
        return event(
            ChatPiece(object="chat.completion.chunk", choices=choices, **self._head(), **more)
        )
