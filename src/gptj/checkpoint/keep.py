"""Which of a run's checkpoints stay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gptj.errors import UserError


@dataclass(frozen=True)
class KeepPolicy:
    """A checkpoint stays if it is among the newest, or a milestone, or among the best."""

    last: int = 3
    """The newest that stay; at least one, for the run to go on from."""
    every: int | None = None
    """Those whose step is a multiple of this stay for good."""
    best: int = 0
    """Those of the lowest score that stay, among all that have a score."""

    def __post_init__(self) -> None:
        for name, least in (("last", 1), ("every", 1), ("best", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"{name}={value} checkpoints to keep must be at least {least}")


def kept(scores: Mapping[int, float | None], policy: KeepPolicy) -> set[int]:
    """The steps that stay of these, each with its score: lower is better, `None` or NaN is none.

    Applied after each checkpoint it leaves what it would leave when applied once, to all of them.
    Of equal scores the newer is the better.
    """
    steps = sorted(scores)
    milestones = (step for step in steps if policy.every and step % policy.every == 0)
    ranked = sorted(
        (score, -step)
        for step, score in scores.items()
        if score is not None and not math.isnan(score)
    )
    return {*steps[-policy.last :], *milestones, *(-step for _, step in ranked[: policy.best])}
