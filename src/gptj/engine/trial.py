"""Whether completions are worth a draft model: it reads their prompts too, before it can guess."""

from __future__ import annotations

EVERY = 16
"""A draft that was given up is tried again on one group of completions in so many."""

ENOUGH = 32
"""Steps that must have been seen before a draft is given up,"""

LATELY = 64
"""and steps a slot that are looked back on."""


class Trial:
    """Gives up a draft model while what it guessed for draws too few tokens a step.

    A step asks it no longer where it loses (see `step.guessing_step`), but for each completion it
    has to lose again first. What a request is given does not depend on it, so it is only for where
    guesses do not show in a request's bits.
    """

    def __init__(self, slots: int) -> None:
        """For an engine of so many slots: alone in a full one, a guesser is not guessed for."""
        self._slots, self._asked = slots, 0
        self._tokens = self._steps = 0.0

    def begins(self, break_even: float) -> bool:
        """Whether one more completion is guessed for, where steps must draw so many tokens."""
        group, self._asked = self._asked // self._slots, self._asked + 1
        loses = self._steps >= ENOUGH and self._tokens < break_even * self._steps
        return not loses or group % EVERY == 0

    def ended(self, tokens: int, steps: int) -> None:
        """Learn that a completion guessed for drew so many tokens in so many steps."""
        self._tokens, self._steps = self._tokens + tokens, self._steps + steps
        excess = self._steps / (LATELY * self._slots)
        if excess > 1:
            self._tokens, self._steps = self._tokens / excess, self._steps / excess
