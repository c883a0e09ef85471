"""What every route works with: it reads prompts, lets requests into the queue, and says what is on.

For the event loop alone; the engine itself is the worker's.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TypeVar

import anyio
from starlette.requests import Request as HttpRequest

from gptj.engine.adapters import UnknownAdapter
from gptj.engine.admission import prompt_tokens
from gptj.engine.request import SEEDS, Request, SamplingParams
from gptj.errors import UserError
from gptj.serve.asked import Answering, Asked
from gptj.serve.config import ServeConfig
from gptj.serve.facts import Voice
from gptj.serve.keys import Key
from gptj.serve.metrics import Metrics
from gptj.serve.queue import Queue
from gptj.serve.refusal import Refused, in_words
from gptj.serve.transcript import Transcript
from gptj.transcript import END, encode

T = TypeVar("T")

TOKENIZING = 2
"""Texts that are tokenized at once: it takes a hundred times the memory of the text."""

SHORT = 2000
"""Characters that are tokenized sooner than another thread is asked to."""


class Service:
    """One model, ready to be asked."""

    def __init__(
        self,
        worker: Answering,
        name: str,
        config: ServeConfig,
        transcript: Transcript,
    ) -> None:
        """A service on a worker that is started later.

        Args:
          name: what clients call the model.
        """
        self.worker, self.name, self.config, self.since = worker, name, config, int(time.time())
        self.transcript = transcript
        self.model, self.tokenizer = worker.facts.config, worker.facts.tokenizer
        self.positions, self.fingerprint = worker.facts.positions, worker.facts.fingerprint
        self.adapters = {each.name: each for each in worker.facts.adapters}
        """By name; what they are loaded and unloaded by is `gptj.serve.adapters`."""
        if name in self.adapters:
            raise UserError(f"the model and an adapter are both called {name!r}: give --name")
        self.draining = False
        room = worker.facts.options.slots * self.positions
        self.queue = Queue(config.queue_tokens or 4 * room)
        self._longest = max(map(len, self.tokenizer.spelling))
        self._tokenizing = anyio.CapacityLimiter(TOKENIZING)

    @property
    def state(self) -> str:
        """`ready`, or why it is not: `warming up`, `draining`, `broken`."""
        if self.worker.failure:
            return "broken"
        if self.draining:
            return "draining"
        return "ready" if self.worker.is_ready else "warming up"

    def check_ready(self) -> None:
        """Refuse whoever comes before the warm-up is over, while draining, and after a failure.

        Raises:
          Refused: 503.
        """
        if self.state != "ready":
            said = f"the server is {self.state}: try again in 5 seconds"
            raise Refused(503, said, code="not_ready", headers={"retry-after": "5"})

    def check_open(self) -> None:
        """Refuse whoever comes now if nobody would be let in.

        Raises:
          Refused: 503 if the server is not ready, 429 if the queue is full.
        """
        self.check_ready()
        self.queue.check()

    def voice(self, name: str | None) -> Voice:
        """What answers under a name; the model itself under none.

        Raises:
          Refused: 404, nothing does.
        """
        if name is None or name == self.name:
            return Voice(self.name, self.fingerprint, since=self.since)
        if name in self.adapters:
            return self.adapters[name]
        known = ", ".join(map(repr, (self.name, *self.adapters)))
        said = f"model={name!r} is not here: this server has {known}"
        raise Refused(404, said, param="model", code="model_not_found")

    def check_count(self, completions: int, names: Mapping[str, str]) -> None:
        """Refuse more completions than one request may ask for; `names` as for `in_words`.

        Raises:
          Refused: 400.
        """
        if completions > self.config.max_completions:
            with in_words(names):
                raise UserError(
                    f"n: {completions} completions are asked for, and one request may ask for "
                    f"{self.config.max_completions}: lower it, or send fewer prompts"
                )

    def seeds(self, given: int | None, count: int) -> list[int]:
        """A seed for each of several prompts: the one that was given, or others drawn by chance."""
        first = secrets.randbelow(SEEDS) if given is None else given
        return [(first + n) % SEEDS if given is None else first for n in range(count)]

    async def aside(self, size: int, work: Callable[[], T]) -> T:
        """Tokenize so many characters, or ids: many in another thread, so that nobody waits."""
        if size <= SHORT:
            return work()
        return await anyio.to_thread.run_sync(work, limiter=self._tokenizing)

    async def read(
        self,
        prompts: Sequence[str | list[int]],
        sampling: SamplingParams,
        names: Mapping[str, str],
        told: bool = False,
    ) -> list[list[int]]:
        """The token ids of prompts that are to be gone on from as `sampling` says.

        Args:
          names: see `in_words`.
          told: they are chats' texts, where the transcript may put end-of-text tokens.

        Raises:
          Refused: 400, a prompt is too long, or not text, or has tokens that do not exist.
        """

        def tokens() -> list[list[int]]:
            one = len(prompts) == 1
            return [
                self._tokens("the prompt" if one else f"prompt {n}", each, sampling, told)
                for n, each in enumerate(prompts)
            ]

        with in_words(names):
            return await self.aside(sum(map(len, prompts)), tokens)

    @staticmethod
    def check_characters(what: str, text: str) -> None:
        """Refuse text that holds half of a surrogate pair, as JSON may.

        Raises:
          UserError: naming it.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{what} holds half of a surrogate pair, which is not a character, at "
                f"{error.start}: remove it"
            ) from error

    def _tokens(
        self, what: str, prompt: str | list[int], sampling: SamplingParams, told: bool
    ) -> list[int]:
        most = self.config.max_prompt_tokens
        if isinstance(prompt, str) and len(prompt) > self._longest * (self.positions + 1):
            raise UserError(
                f"{what} has {len(prompt)} characters, too many for a context of "
                f"{self.positions} tokens: shorten the prompt"
            )
        if isinstance(prompt, str):
            self.check_characters(what, prompt.replace(END, "") if told else prompt)
            prompt = encode(prompt, self.tokenizer)
        request = Request(prompt, sampling)
        tokens = prompt_tokens(request, what, self.model, self.tokenizer, self.positions)
        if most is not None and len(tokens) > most:
            raise UserError(f"{what} has {len(tokens)} tokens: this server takes at most {most}")
        return tokens

    async def tail(self, text: str, most: int, names: Mapping[str, str]) -> list[int]:
        """The last `most` tokens of a text of any length, for protocols that cut prompts so."""
        kept = text[-self._longest * (most + 1) :]
        with in_words(names):
            self.check_characters("the prompt", kept)
            return (await self.aside(len(kept), lambda: self.tokenizer.encode(kept)))[-most:]

    @contextlib.asynccontextmanager
    async def ask(self, http: HttpRequest, requests: list[Request]) -> AsyncIterator[Asked]:
        """Requests in the queue or under way; what is left of them ends with the context.

        Raises:
          Refused: 503 if the server is not ready, 429 if the queue is full or the key's budget
            spent, 400 if they may never be let in, 404 if their adapter is gone.
          UserError: the engine refuses them.
        """
        self.check_open()
        key: Key = http.state.key
        costs = [self._cost(request) for request in requests]
        with key.spending(sum(costs)) as bill, self.queue.place(costs) as place:
            asked = Asked(requests, place.leave)
            self.worker.hand_in(asked)
            try:
                try:
                    await asked.accepted
                except UnknownAdapter as error:  # unloaded since its name was looked at
                    said = f"model: {error}"
                    raise Refused(404, said, param="model", code="model_not_found") from error
                yield asked
            finally:
                self.worker.forget(asked)
                bill.used = asked.used
                waited = None if asked.waited is None else round(asked.waited, 4)
                http.state.note.update(tokens=asked.used, waited=waited)

    def _cost(self, request: Request) -> int:
        """Tokens that are read, and drawn at most."""
        read, sampling = len(request.prompt), request.sampling
        room = sampling.max_tokens
        if sampling.overflow == "stop":
            room = min(room, max(0, self.positions - read))
        return read + sampling.drawn * room


def watch(service: Service, metrics: Metrics) -> None:
    """Have the metrics watch what the service and its engine know."""
    worker, queue = service.worker, service.queue
    metrics.watch(
        gauges={
            "requests_waiting": ("Requests that wait for a slot", lambda: queue.requests),
            "tokens_waiting": ("Tokens, to be read and drawn, that they may take",
                               lambda: queue.tokens),
            "requests_running": ("Requests that draw", lambda: worker.running),
            "prefix_cache_hit_rate": ("Of the chunks that prompts began with, those found",
                                      lambda: worker.prefix_hits
                                      / max(1, worker.prefix_hits + worker.prefix_misses)),
            "ready": ("Whether requests are answered", lambda: service.state == "ready"),
        },
        counters={
            "prefix_cache_hits": ("Chunks of prompts that were found", lambda: worker.prefix_hits),
            "prefix_cache_misses": ("Chunks that had to be read", lambda: worker.prefix_misses),
            "recompilations": ("Programs compiled after the warm-up: should stay 0",
                               lambda: worker.recompilations),
        },
    )  # fmt: skip
