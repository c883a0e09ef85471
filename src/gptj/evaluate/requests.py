"""From text to what is scored: where a context ends, and what is cut where the window is short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from gptj.data.clean import by_ftfy
from gptj.engine.packing import Asked
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

Style = Literal["today", "gptj-2021"]
"""How prompts become tokens: as the harness's own adapter does today; or as GPT-J's did in 2021,
which began every context with end-of-text and ran ftfy's NFKC over the text."""

STYLES: tuple[Style, ...] = ("today", "gptj-2021")


class Reader:
    """Turns pairs of texts into tokens, in one style, for a window of so many tokens."""

    def __init__(self, tokenizer: Tokenizer, window: int, style: Style = "today") -> None:
        """`window`: how many tokens the model sees at once.

        Raises:
          UserError: the style needs ftfy, which is not installed.
        """
        self.tokenizer, self.window, self.style = tokenizer, window, style
        self._shortened: set[str] = set()
        self._fix = mender(style)

    @property
    def shortened(self) -> int:
        """How many contexts lost their beginning so far, for the window to hold what follows."""
        return len(self._shortened)

    def tokens(self, text: str) -> list[int]:
        """The ids of a text; `<|endoftext|>` in it is the token, as in the harness."""
        return self.tokenizer.encode(self._fix(text) if self._fix else text, special=True)

    def pair(self, context: str, continuation: str) -> Asked:
        """What is scored of a continuation after a context.

        Raises:
          UserError: the continuation has no tokens, or more than the window.
        """
        before, after = self._split(context, continuation)
        if not after:
            raise UserError(
                f"the continuation {continuation!r} has no tokens of its own: leave out the task"
            )
        if len(after) > self.window:
            raise UserError(
                f"a continuation of {len(after)} tokens ({continuation[:40]!r}...) is longer than "
                f"the model's window of {self.window}: evaluate a model of a longer context, or "
                "leave out the task"
            )
        # The last token is only predicted, so the window holds one more; in 2021 it did not.
        room = self.window + (self.style == "today") - len(after)
        if len(before) > room:
            self._shortened.add(context)
        kept = before[-room:] if room else before[-1:]
        return Asked.of(kept, after)

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        eos = [self.tokenizer.eos_id]
        if self._fix:
            return eos + self.tokens(context), self.tokens(continuation)
        if not context:
            after = self.tokens(continuation)
            # A continuation that begins with end-of-text is its own beginning.
            return (eos, after) if after[:1] != eos else (after[:1], after[1:])
        # Spaces belong to the word after them: no vocabulary has the word without.
        stripped = context.rstrip()
        whole = self.tokens(context + continuation)
        before = self.tokens(stripped) if stripped else []
        return (before, whole[len(before) :]) if before else (eos, whole)

    def rolling(self, text: str) -> list[Asked]:
        """The whole of a text in windows, each token scored once, with all the context there is.

        Raises:
          UserError: the style is not today's.
        """
        self._only_today("whole texts")
        return list(windows(self.tokens(text), self.tokenizer.eos_id, self.window, self.window))

    def prompt(self, text: str, room: int) -> list[int]:
        """The end of a prompt to write on from, so that `room` tokens can follow.

        Raises:
          UserError: the window has not so much room, or the style is not today's.
        """
        self._only_today("texts to write on from")
        most = self.window - room
        if most < 1:
            raise UserError(
                f"{room} tokens are to be written and the model's window is {self.window}: "
                "evaluate a model of a longer context, or leave out the task"
            )
        ids = self.tokens(text)
        if len(ids) > most:
            self._shortened.add(text)
        return ids[-most:]

    def _only_today(self, what: str) -> None:
        if self.style != "today":
            raise UserError(
                f"GPT-J's adapter of 2021 knew no tasks of {what}: leave out --as {self.style}, or "
                "the task"
            )


def windows(tokens: ArrayLike, first: int, window: int, stride: int) -> Iterator[Asked]:
    """A text in pieces of `stride` tokens, each scored given as many before it as the window holds.

    The first piece is as long as the window, given `first`, and the last one has the full context
    too. Smaller strides give each token more to go by, at more work.
    """
    line, end = np.append(np.int32(first), np.asarray(tokens, np.int32)), 1
    while end < len(line):
        begin, end = end, min(len(line), end + (window if end == 1 else stride))
        yield Asked(line[max(0, end - 1 - window) : end], end - begin)


def mender(style: Style) -> Callable[[str], str] | None:
    """What a style does to a text before it is tokenized; nothing today.

    Raises:
      UserError: there is no such style, or it needs ftfy, which is not installed.
    """
    if style not in STYLES:
        raise UserError(f"as={style!r} is not one of {', '.join(STYLES)}")
    if style == "today":
        return None
    return by_ftfy("--as gptj-2021", "eval")
