"""What clients have of their answers, so that another replica can go on where one was lost."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from gptj.engine.request import Completion, Delta, TokenLogprob
from gptj.serve.asked import Asked
from gptj.serve.metrics import Metrics
from gptj.serve.refusal import Refused, broken_off


@dataclasses.dataclass
class _Handed:
    """What a completion's client has of it, and how much of that the replica has said again."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    text: str = ""
    is_whole: bool = False
    said_tokens: int = 0
    said_text: int = 0

    def rest(self, delta: Delta) -> Delta | None:
        """What is new in a delta, if anything."""
        if self.is_whole:
            return None
        known = max(0, len(self.tokens) - self.said_tokens)
        read = max(0, len(self.text) - self.said_text)
        self.said_tokens += len(delta.tokens)
        self.said_text += len(delta.text)
        new = dataclasses.replace(
            delta,
            tokens=delta.tokens[known:],
            logprobs=delta.logprobs[known:],
            text=delta.text[read:],
        )
        self.tokens += new.tokens
        self.logprobs += new.logprobs
        self.text += new.text
        self.is_whole = new.completion is not None
        return new if new.tokens or new.text or self.is_whole else None

    def cut(self, choice: int) -> Delta:
        """Its end, where it stands."""
        self.is_whole = True
        whole = Completion(self.text, self.tokens, "cancelled", self.logprobs or None)
        return Delta(0, choice, "", (), (), whole)


class Course:
    """How some requests are doing, from replica to replica."""

    def __init__(self, asked: Asked, metrics: Metrics) -> None:
        self.asked, self._metrics = asked, metrics
        self.fingerprint: str | None = None
        """Of the replica that began to answer."""
        self.is_accepted, self.running = False, set[int]()
        self.handed = {
            (index, choice): _Handed()
            for index, request in enumerate(asked.requests)
            for choice in range(request.sampling.n)
        }

    @property
    def has_begun(self) -> bool:
        """Whether the client has any of it."""
        return any(each.tokens or each.text for each in self.handed.values())

    def begin(self, fingerprint: str) -> None:
        """A replica begins, from the start.

        Raises:
          Refused: it is not like the one before it, and the client has a part of the answer.
        """
        if self.has_begun and fingerprint != self.fingerprint:
            raise lost("and the others are not like it")
        self.fingerprint = fingerprint
        for each in self.handed.values():
            each.said_tokens = each.said_text = 0

    def take(self, kind: str, what: Any) -> None:
        """A piece that a replica has sent."""
        if kind == "accepted" and not self.is_accepted:
            self.is_accepted = True
            self._metrics.prompt_tokens.inc(sum(len(each.prompt) for each in self.asked.requests))
            self.asked.accept()
        elif kind == "starts":
            self._starts(what)
        elif kind == "delta":
            index, delta = what
            self._starts(index)
            if new := self.handed[index, delta.choice].rest(delta):
                self._metrics.came(self.asked, index, new, time.perf_counter())
                self.asked.push(index, new)

    def _starts(self, index: int) -> None:
        if index not in self.running:
            self.running.add(index)
            self.asked.start(index)

    def cut(self) -> None:
        """End what is left of it, and tell."""
        if not self.is_accepted:
            return self.asked.refuse(broken_off())
        for (index, choice), each in self.handed.items():
            if not each.is_whole:
                self.asked.push(index, each.cut(choice))


def lost(why: str) -> Refused:
    """The end of an answer that no other replica can go on with."""
    headers = {"retry-after": "1"}
    return Refused(
        503, f"the replica that answered was lost, {why}", code="replica_lost", headers=headers
    )
