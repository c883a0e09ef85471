"""KoboldAI's protocol, with KoboldCpp's stream and abort."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Literal

from starlette.requests import Request as HttpRequest

from gptj.engine.request import Completion, Request
from gptj.serve.asked import Asked
from gptj.serve.kobold_models import (
    LENGTH,
    NAMES,
    AbortRequest,
    AbortResponse,
    GenerateRequest,
    GenerateResponse,
    GenerateResult,
    TokenEvent,
)
from gptj.serve.refusal import Refused, broken_off, in_words
from gptj.serve.service import Service
from gptj.serve.streams import event


class Kobold:
    """The requests of this protocol that are under way, for those who want to abort them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._under_way: defaultdict[tuple[str, str], list[Asked]] = defaultdict(list)

    @staticmethod
    def _who(http: HttpRequest, genkey: str | None) -> tuple[str, str]:
        """Nobody aborts what another key asked, or without a genkey what another address did."""
        address = http.client.host if http.client else ""
        return http.state.key.name, f"genkey {genkey}" if genkey else address

    def abort(self, http: HttpRequest, asked: AbortRequest) -> AbortResponse:
        """End requests where they stand; those who wait for them get what was written."""
        found = self._under_way.get(self._who(http, asked.genkey), [])
        for each in found:
            self._service.worker.cut(each)
        said: Literal["true", "false"] = "true" if found else "false"
        return AbortResponse(success=said, done=said)

    async def prepare(self, http: HttpRequest, asked: GenerateRequest) -> Request:
        """The engine's request.

        Raises:
          Refused: 400, it asks for what there is not.
        """
        service = self._service
        service.check_count(asked.n or 1, NAMES)
        given = None if asked.sampler_seed == -1 else asked.sampler_seed
        (seed,) = service.seeds(given, 1)
        context = min(asked.max_context_length or service.positions, service.positions)
        length = asked.max_length or min(LENGTH, max(1, context // 2))
        if length >= context:
            said = f"max_length={length} leaves no room in a context of {context}: lower it"
            raise Refused(400, said, param="max_length")
        with in_words(NAMES):
            sampling = asked.sampling(length, seed, service.positions)
        memory = await service.tail(asked.memory or "", context - length, NAMES)
        prompt = await service.tail(asked.prompt, context - length, NAMES)
        prompt = prompt[max(0, len(memory) + len(prompt) - (context - length)) :]
        (tokens,) = await service.read([memory + prompt], sampling, NAMES)
        http.state.note.update(prompts=1, seed=seed)
        return Request(tokens, sampling)

    @contextlib.asynccontextmanager
    async def _ask(
        self, http: HttpRequest, asked: GenerateRequest, request: Request
    ) -> AsyncIterator[Asked]:
        who = self._who(http, asked.genkey)
        with in_words(NAMES):
            async with self._service.ask(http, [request]) as under_way:
                self._under_way[who].append(under_way)
                try:
                    yield under_way
                finally:
                    self._under_way[who].remove(under_way)
                    if not self._under_way[who]:
                        del self._under_way[who]

    async def whole(
        self, http: HttpRequest, asked: GenerateRequest, request: Request
    ) -> GenerateResponse:
        """All the answers.

        Raises:
          Refused: they are not to be had.
        """
        async with self._ask(http, asked, request) as under_way:
            (found,) = await under_way.completions()
        results = [
            GenerateResult(
                text=each.text,
                finish_reason=self._finish(each),
                prompt_tokens=len(request.prompt),
                completion_tokens=len(each.tokens),
                seed=request.sampling.seed,
            )
            for each in found
        ]
        return GenerateResponse(results=results)

    async def events(
        self, http: HttpRequest, asked: GenerateRequest, request: Request
    ) -> AsyncGenerator[str, None]:
        """The answer in pieces, as they come.

        Raises:
          Refused: before the first event, or after it where the answer is broken off.
        """
        async with self._ask(http, asked, request) as under_way:
            yield ""
            async for _, delta in under_way.deltas():
                reason = self._finish(delta.completion) if delta.completion else None
                if delta.text or reason:
                    yield event(TokenEvent(token=delta.text, finish_reason=reason), "message")

    def _finish(self, completion: Completion) -> Literal["stop", "length", "abort"]:
        reason = completion.finish_reason
        if reason == "cancelled" and self._service.draining:
            raise broken_off()
        assert reason != "error", "nothing is guided here"
        return "abort" if reason == "cancelled" else reason


def check_stream(asked: GenerateRequest) -> None:
    """Refuse several answers in one stream, whose events have no number.

    Raises:
      Refused: 400.
    """
    if (asked.n or 1) > 1:
        raise Refused(400, "n: a stream has one answer: leave it out", param="n")
