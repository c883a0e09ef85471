"""OpenAI's completions: prompts to go on from, all of its parameters but `suffix`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest

from gptj.engine.request import Completion, Delta, Request, SamplingParams
from gptj.serve.asked import Asked
from gptj.serve.logprobs import Placed, Placer, alternatives, place_prompt, token_text
from gptj.serve.openai_answers import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    Finish,
    Usage,
)
from gptj.serve.openai_requests import NAMES, CompletionRequest
from gptj.serve.refusal import Refused, broken_off, in_words
from gptj.serve.service import Service
from gptj.serve.streams import DONE, event


def finish(completion: Completion) -> Finish:
    """Why a completion ended, in OpenAI's words.

    Raises:
      Refused: it was not brought to an end.
    """
    if completion.finish_reason == "error":
        raise Refused(400, "the answer's grammar became too complex to follow: simplify it")
    if completion.finish_reason == "cancelled":
        raise broken_off()
    return completion.finish_reason


def check(asked: CompletionRequest) -> None:
    """Refuse what does not go together.

    Raises:
      Refused: 400.
    """
    asked.check_stream()
    if asked.max_tokens == 0 and not asked.echo:
        raise Refused(400, "max_tokens=0 draws nothing: add echo=true", param="max_tokens")
    if asked.stream and asked.best_of is not None and asked.best_of > (asked.n or 1):
        raise Refused(400, "best_of is known at the end: leave out stream", param="best_of")


@dataclasses.dataclass
class _Prompt:
    """A prompt under way."""

    tokens: list[int]
    text: str
    seed: int
    echoed: bool = False
    """Whether a stream has shown it, or is not to."""
    held: list[Delta] = dataclasses.field(default_factory=list)
    """What was drawn before that."""


class Job:
    """One request for completions: what is asked of the engine, and what is made of it.

    The engine's requests are one for each prompt to draw from, and where log-probabilities of the
    prompts are wanted that cannot come with those, first one for each prompt to read.
    """

    def __init__(self, service: Service, http: HttpRequest, asked: CompletionRequest) -> None:
        """A job that is to be prepared.

        Raises:
          Refused: 400, the parameters do not go together; 404, another model.
        """
        check(asked)
        self._service, self._http, self._asked = service, http, asked
        self._voice = service.voice(asked.model)
        self._n, self._most = asked.n or 1, 16 if asked.max_tokens is None else asked.max_tokens
        self._scored = bool(asked.echo) and asked.logprobs is not None
        apart = bool(asked.stream) or (asked.best_of or self._n) > 1
        self._reads_apart = not self._most or (self._scored and apart)
        self._prompts: list[_Prompt] = []
        self._drawn, self._created = 0, int(time.time())

    async def prepare(self) -> None:
        """Read the prompts.

        Raises:
          Refused: 400, the engine would not take them.
        """
        given = [""] if self._asked.prompt is None else self._asked.prompt
        self._service.check_count(len(given) * (self._asked.best_of or self._n), NAMES)
        with in_words(NAMES):
            sampling = self._drawing(0) if self._most else self._reading()
        read = await self._service.read(given, sampling, NAMES)
        seeds = self._service.seeds(self._asked.seed, len(read))
        decode = self._service.tokenizer.decode
        self._prompts = [
            _Prompt(tokens, decode(tokens) if self._asked.echo else "", seed, not self._scored)
            for tokens, seed in zip(read, seeds, strict=True)
        ]
        self._http.state.note.update(
            model=self._voice.name, stream=bool(self._asked.stream), prompts=len(read),
            seed=seeds[0], user=self._asked.user,
        )  # fmt: skip

    def _drawing(self, seed: int) -> SamplingParams:
        asked = self._asked
        with_prompt = self._scored and not self._reads_apart
        return asked.sampling(
            max_tokens=self._most,
            seed=seed,
            stop=asked.stop or (),
            best_of=asked.best_of,
            logprobs=asked.logprobs,
            prompt_logprobs=asked.logprobs if with_prompt else None,
        )

    def _reading(self) -> SamplingParams:
        return SamplingParams(max_tokens=0, prompt_logprobs=self._asked.logprobs or 0)

    def _requests(self) -> list[Request]:
        requests = []
        for each in self._prompts if self._reads_apart else ():
            score_from = 1 if self._scored else len(each.tokens)
            requests.append(self._request(each, self._reading(), score_from))
        for each in self._prompts if self._most else ():
            requests.append(self._request(each, self._drawing(each.seed)))
        return requests

    def _request(self, prompt: _Prompt, sampling: SamplingParams, score_from: int = 1) -> Request:
        return Request(prompt.tokens, sampling, score_from, self._voice.adapter)

    async def whole(self) -> CompletionResponse:
        """All the answers.

        Raises:
          Refused: they are not to be had.
        """
        with in_words(NAMES):
            async with self._service.ask(self._http, self._requests()) as asked:
                found = await asked.completions()
        count = len(self._prompts)
        read = [choices[0] for choices in found[:count]]
        drawn = found[-count:] if self._most else [[each] * self._n for each in read]
        choices = [
            self._choice(p, n, completion, read[p])
            for p, completions in enumerate(drawn)
            for n, completion in enumerate(completions)
        ]
        return self._response(choices, usage=self._usage())

    def _choice(self, p: int, n: int, completion: Completion, read: Completion) -> CompletionChoice:
        """The answer to a prompt, whose own scores are in `read`."""
        prompt, placed = self._prompts[p], list[Placed]()
        echoed = prompt.text if self._asked.echo else ""
        if self._scored:
            scores = read.prompt_logprobs or []
            placed += place_prompt(self._service.tokenizer, prompt.tokens, scores)
        placer = Placer(self._service.tokenizer, len(echoed))
        placed += placer.push(completion.logprobs or (), completion.text, last=True)
        self._drawn += len(completion.tokens)
        return self._piece(p, n, echoed + completion.text, placed, finish(completion))

    def _piece(
        self, p: int, n: int, text: str, placed: Sequence[Placed], reason: Finish | None
    ) -> CompletionChoice:
        wanted = self._asked.logprobs is not None
        return CompletionChoice(
            index=p * self._n + n,
            text=text,
            logprobs=self._logprobs(placed) if wanted else None,
            finish_reason=reason,
            seed=self._prompts[p].seed,
        )

    def _logprobs(self, placed: Sequence[Placed]) -> CompletionLogprobs:
        tokenizer = self._service.tokenizer
        return CompletionLogprobs(
            tokens=[token_text(tokenizer, each.token) for each in placed],
            token_logprobs=[each.logprob for each in placed],
            top_logprobs=[alternatives(tokenizer, each) for each in placed],
            text_offset=[each.offset for each in placed],
        )

    def _response(self, choices: list[CompletionChoice], **more: Any) -> CompletionResponse:
        return CompletionResponse(
            id=f"cmpl-{self._http.state.id}",
            object="text_completion",
            created=self._created,
            model=self._voice.name,
            system_fingerprint=self._voice.fingerprint,
            seed=self._prompts[0].seed,
            choices=choices,
            **more,
        )

    def _usage(self) -> Usage:
        return Usage.of(sum(len(prompt.tokens) for prompt in self._prompts), self._drawn)

    async def events(self) -> AsyncGenerator[str, None]:
        """The answers in pieces, as they come.

        Raises:
          Refused: before the first event, or after it where the answers are broken off.
        """
        blank = {"usage": None} if self._asked.with_usage else {}
        with in_words(NAMES):
            async with self._service.ask(self._http, self._requests()) as asked:
                yield ""
                async for choice in self._pieces(asked):
                    yield event(self._response([choice], **blank))
        if self._asked.with_usage:
            yield event(self._response([], usage=self._usage()))
        yield DONE

    async def _pieces(self, asked: Asked) -> AsyncGenerator[CompletionChoice, None]:
        count = len(self._prompts)
        tokenizer, echo = self._service.tokenizer, bool(self._asked.echo)
        placers = {
            (p, n): Placer(tokenizer, len(prompt.text) if echo else 0)
            for p, prompt in enumerate(self._prompts)
            for n in range(self._n)
        }
        if echo and not self._scored and self._most:
            for p, n in placers:
                yield self._piece(p, n, self._prompts[p].text, [], None)
        async for index, delta in asked.deltas():
            p = index % count
            prompt, ready = self._prompts[p], [delta]
            if self._reads_apart and index < count:
                for piece in self._echo(p, delta):
                    yield piece
                prompt.echoed, ready, prompt.held = True, prompt.held, []
            elif not prompt.echoed:
                prompt.held.append(delta)
                continue
            for each in ready:
                for piece in self._news(p, each, placers[p, each.choice]):
                    yield piece

    def _echo(self, p: int, delta: Delta) -> Iterable[CompletionChoice]:
        """The prompt, once it has been read; the whole of the answer where none is drawn."""
        prompt, completion = self._prompts[p], delta.completion
        assert completion, "a request that only reads has one delta"
        scores = completion.prompt_logprobs or []
        placed = (
            place_prompt(self._service.tokenizer, prompt.tokens, scores) if self._scored else []
        )
        reason = None if self._most else finish(completion)
        return [self._piece(p, n, prompt.text, placed, reason) for n in range(self._n)]

    def _news(self, p: int, delta: Delta, placer: Placer) -> Iterable[CompletionChoice]:
        """What a delta shows, if anything."""
        ended = delta.completion
        placed = placer.push(delta.logprobs, delta.text, last=ended is not None)
        self._drawn += len(delta.tokens)
        reason = finish(ended) if ended else None
        if delta.text or placed or reason:
            yield self._piece(p, delta.choice, delta.text, placed, reason)
