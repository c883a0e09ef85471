"""One completion on its way through the engine, and the scores of its prompt."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array

from gptj.engine.adapters import Loaded
from gptj.engine.guide import Guide
from gptj.engine.request import Completion, Delta, FinishReason, SamplingParams, TokenLogprob
from gptj.engine.step import LogProbs
from gptj.engine.text import TextWriter


class State(enum.Enum):
    """Where a job stands."""

    WAITING = enum.auto()
    READING = enum.auto()
    """It has a slot, and its prompt is read chunk by chunk."""
    DRAWING = enum.auto()
    DONE = enum.auto()


@dataclasses.dataclass(eq=False)
class Job:
    """What the host knows of one completion."""

    request: int
    choice: int
    prompt: list[int]
    """At least one token. The last is read by the first decode step, the others by chunks."""
    sampling: SamplingParams
    score_from: int
    room: int
    """The most tokens it may draw; at 0 the prompt is only read, for its scores."""
    names: list[bytes]
    """Of the prompt's chunks in the prefix cache."""
    ends: frozenset[int]
    writer: TextWriter
    guide: Guide | None = None
    leader: Job | None = None
    """Another of the same prompt, to be read first."""
    guesses: bool = False
    """Whether several of its tokens may be drawn in one step."""
    adapter: Loaded | None = None
    state: State = State.WAITING
    slot: int = -1
    read: int = 0
    """Tokens of the prompt that are in the cache."""
    steps: int = 0
    """In which its tokens were drawn."""
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    completion: Completion | None = None
    _fresh: tuple[list[str], list[int]] = dataclasses.field(default_factory=lambda: ([], []))

    @property
    def to_read(self) -> int:
        """Tokens of the prompt that are read by chunks."""
        return len(self.prompt) - 1

    @property
    def is_read(self) -> bool:
        """Whether the prompt is in the cache."""
        return self.read >= self.to_read

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state is State.DONE

    @property
    def is_scored(self) -> bool:
        """Whether log-probabilities of the prompt are wanted."""
        return self.sampling.prompt_logprobs is not None

    @property
    def wants_logprobs(self) -> bool:
        """Whether those of the drawn tokens are, if only to choose the best."""
        return self.sampling.logprobs is not None or self.sampling.drawn > self.sampling.n

    def push_scores(self, found: LogProbs, size: int) -> None:
        """Take the log-probabilities of the chunk of the prompt that was just read."""
        top = self.sampling.prompt_logprobs or 0
        for at in range(self.read + 1, min(self.read + size, self.to_read) + 1):
            if at >= self.score_from:
                place = at - self.read - 1
                self.prompt_logprobs.append(logprob_at(found, place, self.prompt[at], top))

    def push(self, token: int, logprob: TokenLogprob | None) -> None:
        """Take a token drawn, and decide whether it was the last."""
        if token in self.ends:
            return self.finish("stop")
        pieces, tokens = self._fresh
        tokens.append(token)
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        pieces.append(self.writer.push(token))
        if self.guide:
            self.guide.push(token)
        if self.guide and self.guide.is_lost:
            self.finish("error")
        elif self.writer.stopped or (self.guide and self.guide.is_over):
            self.finish("stop")
        elif len(self.tokens) == self.room:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """End the completion; what its text held back is shown unless a stop string is found."""
        if not self.writer.stopped:
            self._fresh[0].append(self.writer.finish())
            if self.writer.stopped:
                reason = "stop"
        self.state = State.DONE
        self.completion = Completion(
            "".join(self.writer.text),
            self.tokens,
            reason,
            self.logprobs if self.sampling.logprobs is not None else None,
            self.prompt_logprobs if self.is_scored else None,
        )

    def news(self) -> Delta | None:
        """What has come since it was last asked for."""
        pieces, tokens = self._fresh
        self._fresh = ([], [])
        if not tokens and not self.completion:
            return None
        wanted = self.sampling.logprobs is not None and tokens
        logprobs = tuple(self.logprobs[-len(tokens) :]) if wanted else ()
        return Delta(
            self.request, self.choice, "".join(pieces), tuple(tokens), logprobs, self.completion
        )

    def mean_logprob(self) -> float:
        """In nats a token; an empty completion, which is sure of its end, has 0."""
        return float(np.mean([each.logprob for each in self.logprobs])) if self.logprobs else 0.0


@dataclasses.dataclass
class Burst:
    """What a dispatch will have drawn, and for whom."""

    tokens: Array
    found: LogProbs
    owners: list[Job | None]


def best(jobs: Sequence[Job], n: int) -> list[Delta]:
    """The likeliest `n` of a request's completions, each in one piece."""
    ranked = sorted(jobs, key=Job.mean_logprob, reverse=True)[:n]
    found = [job.news() for job in ranked]
    return [dataclasses.replace(delta, choice=n) for n, delta in enumerate(found) if delta]


def logprob_at(found: LogProbs, at: int, token: int, top: int) -> TokenLogprob:
    """A token's, and the likeliest `top`, of what a program found at a place."""
    ids, values = found.top_tokens[at][:top].tolist(), found.top[at][:top].tolist()
    return TokenLogprob(token, float(found.own[at]), tuple(zip(ids, values, strict=True)))
