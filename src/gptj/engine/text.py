"""From drawn tokens to text that may be shown: whole characters, and stop strings never."""

from __future__ import annotations

from collections.abc import Sequence

from gptj.tokenizer import Tokenizer


class UntilStop:
    """Lets text through up to a stop string, holding back what may still become one.

    The stop string that is complete first counts, however the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = stops
        self._held = ""

    def push(self, piece: str, last: bool = False) -> str:
        """The text that is now sure to stay; all that is left with `last`."""
        text = self._held + piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        held = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        sure = len(text) - held
        self._held = text[sure:]
        return text[:sure]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


class TextWriter:
    """One completion's text as its tokens come; there is none without a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str]) -> None:
        self.text: list[str] = []
        self._stream = tokenizer.stream() if tokenizer else None
        self._until = UntilStop(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._until.found

    def push(self, token: int) -> str:
        """The text that `token` makes sure."""
        return self._add(self._until.push(self._stream.push(token) if self._stream else ""))

    def finish(self) -> str:
        """What was held back, now that no token follows."""
        rest = self._stream.finish() if self._stream else ""
        return self._add(self._until.push(rest, last=True))

    def _add(self, piece: str) -> str:
        if piece:
            self.text.append(piece)
        return piece
