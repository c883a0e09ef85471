"""The original's own protocol: `/complete` of its server, and the queue pair of its container."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from typing import Annotated

from pydantic import Field
from starlette.requests import Request as HttpRequest

from gptj.engine.request import Request, SamplingParams
from gptj.serve.asked import Asked
from gptj.serve.completions import finish
from gptj.serve.fields import Probability, Said, Strict, Temperature
from gptj.serve.logs import say
from gptj.serve.refusal import Refused, in_words
from gptj.serve.service import Service

NAMES = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "length",
    "prompt": "context",
}
"""From the engine's names of parameters to those here."""

LENGTH = 512
"""Tokens that `/complete` writes."""

KEPT, KEPT_SECONDS = 1000, 600.0
"""Predictions that nobody has fetched, and for how long they wait."""

QIDS = 1 << 53
"""Numbers of predictions, drawn by chance; larger ones JavaScript would round."""


class CompleteRequest(Strict):
    """A text to go on with."""

    context: str
    """The text; of a long one the end that the model has room for is read."""
    top_p: Probability = 0.9
    """Draw from the likeliest tokens that together have this probability."""
    temp: Temperature = 1.0
    """The temperature; 0 always takes the likeliest token."""


class CompleteResponse(Said):
    """What follows."""

    completion: str
    """At most 512 tokens, past the context as well: it slides."""


class PredictRequest(CompleteRequest):
    """A text to go on with, the answer to be fetched later."""

    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = 50
    """Draw from this many likeliest tokens; 0 is off."""
    length: Annotated[int, Field(ge=1, lt=1 << 31)] | None = 256
    """Longest answer, in tokens."""


class PredictResponse(Said):
    """Where the answer will be."""

    qid: int
    """For /model/get_prediction."""


class PredictionRequest(Strict):
    """Which prediction."""

    qid: Annotated[int, Field(ge=0, lt=QIDS)]
    """What /model/predict said."""


class PredictionResponse(Said):
    """A prediction."""

    context: str
    """The text that was given."""
    completion: str
    """What follows."""
    time: float
    """Seconds it took, in the queue and drawing."""


@dataclasses.dataclass
class _Prediction:
    """One that was asked for and not fetched yet."""

    key: str
    since: float
    task: asyncio.Task[PredictionResponse]


class Original:
    """Answers `/complete` at once, and predictions when they are fetched."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: dict[int, _Prediction] = {}

    async def _request(self, http: HttpRequest, context: str, sampling: SamplingParams) -> Request:
        """The engine's request: as there, the end of a long context, and sliding past its end."""
        positions = self._service.positions
        slides = positions == self._service.model.context
        most = positions if slides else max(1, positions - sampling.max_tokens)
        overflow = dataclasses.replace(sampling, overflow="slide" if slides else "stop")
        tokens = await self._service.tail(context, most, NAMES)
        (tokens,) = await self._service.read([tokens], overflow, NAMES)
        http.state.note.update(prompts=1, seed=sampling.seed)
        return Request(tokens, overflow)

    async def complete(self, http: HttpRequest, asked: CompleteRequest) -> CompleteResponse:
        """What follows a text.

        Raises:
          Refused: it is not to be had.
        """
        (seed,) = self._service.seeds(None, 1)
        with in_words(NAMES):
            sampling = SamplingParams(asked.temp, asked.top_p, max_tokens=LENGTH, seed=seed)
            request = await self._request(http, asked.context, sampling)
            async with self._service.ask(http, [request]) as under_way:
                ((found,),) = await under_way.completions()
        finish(found)
        return CompleteResponse(completion=found.text)

    async def predict(self, http: HttpRequest, asked: PredictRequest) -> PredictResponse:
        """Begin a prediction.

        Raises:
          Refused: it will not be had.
        """
        self._drop_old()
        (seed,) = self._service.seeds(None, 1)
        async with contextlib.AsyncExitStack() as stack:
            with in_words(NAMES):
                length = asked.length or 256
                sampling = SamplingParams(
                    asked.temp, asked.top_p, asked.top_k or 0, max_tokens=length, seed=seed
                )
                request = await self._request(http, asked.context, sampling)
                under_way = await stack.enter_async_context(self._service.ask(http, [request]))
            rest = stack.pop_all()  # it goes on when this request is answered
        qid = secrets.randbelow(QIDS)
        task = asyncio.create_task(self._finish(http, under_way, rest, asked.context))
        self._kept[qid] = _Prediction(http.state.key.name, time.monotonic(), task)
        return PredictResponse(qid=qid)

    async def _finish(
        self, http: HttpRequest, under_way: Asked, rest: contextlib.AsyncExitStack, context: str
    ) -> PredictionResponse:
        try:
            async with rest:
                ((found,),) = await under_way.completions()
        finally:  # the line of the request that began it was written long ago
            seconds, state = time.perf_counter() - under_way.arrived, http.state
            known = {"id": state.id, "key": state.key.name, "seconds": round(seconds, 4)}
            say("prediction", **known, **state.note)
        finish(found)
        return PredictionResponse(context=context, completion=found.text, time=seconds)

    async def fetch(self, http: HttpRequest, asked: PredictionRequest) -> PredictionResponse:
        """A prediction, once it is there; it can be fetched once.

        Raises:
          Refused: 404, there is none of this number; or it was broken off.
        """
        self._drop_old()
        kept = self._kept.get(asked.qid)
        if kept is None or kept.key != http.state.key.name:
            said = f"qid={asked.qid} is no prediction, or was fetched, or is too old"
            raise Refused(404, said, param="qid")
        await asyncio.wait([kept.task])  # a client that leaves may come back for it
        self._kept.pop(asked.qid, None)
        return kept.task.result()

    def _drop_old(self) -> None:
        """Let go of what nobody fetched; what is still being drawn stays."""
        now = time.monotonic()
        done = [(qid, each) for qid, each in self._kept.items() if each.task.done()]
        surplus = len(self._kept) - KEPT
        for n, (qid, each) in enumerate(done):
            if n < surplus or each.since < now - KEPT_SECONDS:
                del self._kept[qid]
                each.task.exception()  # looked at, so that nothing is said about it
