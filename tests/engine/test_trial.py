"""Giving up a draft model that loses, and trying it again."""

from __future__ import annotations

import pytest

from gptj.engine.trial import ENOUGH, EVERY, Trial

BREAK_EVEN = 2.0


def follow(trial: Trial, pace: float, completions: int, slots: int) -> list[bool]:
    """Which of so many completions are guessed for, when guessing draws `pace` tokens a step."""
    asked = []
    for _ in range(completions // slots):
        group = [trial.begins(BREAK_EVEN) for _ in range(slots)]
        for guessed in group:
            if guessed:
                trial.ended(round(pace * 40), 40)
        asked += group
    return asked


@pytest.mark.parametrize("slots", [1, 8])
def test_one_that_pays_is_always_asked(slots):
    assert all(follow(Trial(slots), 2.5, 40 * slots, slots))


@pytest.mark.parametrize("slots", [1, 8])
def test_one_that_loses_is_asked_for_whole_groups_now_and_then(slots):
    asked = follow(Trial(slots), 1.5, 3 * EVERY * slots, slots)
    assert asked == ([True] * slots + [False] * slots * (EVERY - 1)) * 3


@pytest.mark.parametrize("slots", [1, 8])
def test_one_that_pays_by_now_is_asked_again(slots):
    trial = Trial(slots)
    follow(trial, 1.0, 20 * EVERY * slots, slots)
    follow(trial, 4.0, 4 * EVERY * slots, slots)
    assert all(follow(trial, 4.0, EVERY * slots, slots))


def test_a_few_steps_decide_nothing():
    trial = Trial(1)
    trial.begins(BREAK_EVEN)
    trial.ended(ENOUGH - 1, ENOUGH - 1)
    assert trial.begins(BREAK_EVEN)
    trial.ended(1, 1)
    assert not trial.begins(BREAK_EVEN)
