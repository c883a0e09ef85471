"""What GPT-J's article shows a model do, measured: the kinds of its prompts, asked of any model.

"GPT-J-6B: 6B JAX-Based Transformer", Aran Komatsuzaki, 2021. The prompts are ours. Each has one
short right answer, so that a completion is right or wrong: greedy ones, and draws from the
likeliest 90 %, side by side.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from gptj.engine.request import SamplingParams
from gptj.engine.scoring import Score
from gptj.evaluate.arithmetic import KINDS, problems
from gptj.evaluate.requests import Reader
from gptj.evaluate.scorer import Scorer

TOP_P = 0.9
SHOTS, PROBLEMS = 4, 50
"""Solved problems before each problem, and problems of each kind."""

BEYOND = 4
"""Tokens that may follow an answer, to see where it ends."""


class Item(NamedTuple):
    """A prompt, and the one right way to go on; with the space before it, if there is one."""

    kind: str
    prompt: str
    answer: str


class Share(NamedTuple):
    """A mean over items, with its standard error."""

    value: float
    error: float | None
    """`None` for a single item."""


@dataclass(frozen=True)
class Behaviour:
    """How a model did on the items of one kind."""

    kind: str
    items: int
    nats: Share
    """The right answer's log-probability."""
    likeliest: Share
    """Items where each token of the right answer is the likeliest, as the harness's `acc`."""
    greedy: Share
    """Items that the greedy completion gets right."""
    nucleus: Share
    """Draws of an item that get it right."""
    advantage: Share
    """Greedy less nucleus, item by item."""


class Answered(NamedTuple):
    """What a model wrote after one prompt."""

    item: Item
    greedy: str
    nucleus: list[str]


def items(seed: int, limit: int | None = None) -> list[Item]:
    """The suite's own prompts; `limit` keeps the first so many of each kind."""
    texts = json.loads(resources.files(__package__).joinpath("prompts.json").read_text("utf-8"))
    found: list[Item] = []
    for kind in KINDS:
        solved, asked = problems(kind, SHOTS, seed), problems(kind, PROBLEMS, seed + 1)
        shots = "".join(f"Q: {each.question}\nA: {each.answer}\n\n" for each in solved)
        found += [Item(kind, f"{shots}Q: {each.question}\nA:", f" {each.answer}") for each in asked]
    found += [
        Item("reading", f"{text['passage']}\n\nQ: {question}\nA:", f" {answer}")
        for text in texts["reading"]
        for question, answer in text["questions"]
    ]
    found += [Item(kind, *pair) for kind in ("code", "facts") for pair in texts[kind]]
    return _first(found, limit)


def _first(found: Sequence[Item], limit: int | None) -> list[Item]:
    kinds = dict.fromkeys(item.kind for item in found)
    return [each for kind in kinds for each in [i for i in found if i.kind == kind][:limit]]


def ask(
    scorer: Scorer, reader: Reader, asked: Sequence[Item], draws: int
) -> tuple[list[Behaviour], list[Answered]]:
    """Score the right answers, and have the model write its own: greedily, and `draws` times."""
    pairs = [reader.pair(item.prompt, item.answer) for item in asked]
    scores = scorer.score(pairs)
    rooms = [len(pair.continuation) + BEYOND for pair in pairs]
    prompts = [reader.prompt(item.prompt, room) for item, room in zip(asked, rooms, strict=True)]

    greedy = scorer.write(prompts, [_sampling(room, temperature=0) for room in rooms])
    counts = Counter[str]()
    nucleus = []
    for item, room in zip(asked, rooms, strict=True):  # a prompt's seed is its number of its kind
        nucleus.append(_sampling(room, top_p=TOP_P, n=draws, seed=counts[item.kind]))
        counts[item.kind] += 1
    drawn = scorer.write(prompts, nucleus)
    answered = [
        Answered(item, first[0], texts)
        for item, first, texts in zip(asked, greedy, drawn, strict=True)
    ]
    found = []
    for kind in dict.fromkeys(item.kind for item in asked):
        numbers = [n for n, item in enumerate(asked) if item.kind == kind]
        found.append(_behaviour(kind, [answered[n] for n in numbers], [scores[n] for n in numbers]))
    return found, answered


def _sampling(room: int, **how: Any) -> SamplingParams:
    return SamplingParams(max_tokens=room, stop=("\n",), **how)


def is_right(text: str, answer: str) -> bool:
    """Whether a completion begins with the answer, and the answer ends where a word or number does.

    "143", "143." and "143 apples" give the answer 143; "1430", "143.5" and "about 143" do not.
    """
    text, answer = text.strip().lower(), answer.strip().lower()
    rest = text.removeprefix(answer)
    inside = rest[:1].isalnum() or (rest[:1] in (".", ",") and rest[1:2].isdigit())
    return text.startswith(answer) and not (answer[-1:].isalnum() and inside)


def _behaviour(kind: str, answered: Sequence[Answered], scores: Sequence[Score]) -> Behaviour:
    greedy = [float(is_right(each.greedy, each.item.answer)) for each in answered]
    nucleus = [
        statistics.fmean(is_right(text, each.item.answer) for text in each.nucleus)
        for each in answered
    ]
    return Behaviour(
        kind=kind,
        items=len(answered),
        nats=_share([each.logprob for each in scores]),
        likeliest=_share([float(each.greedy) for each in scores]),
        greedy=_share(greedy),
        nucleus=_share(nucleus),
        advantage=_share([a - b for a, b in zip(greedy, nucleus, strict=True)]),
    )


def _share(values: Sequence[float]) -> Share:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Share(statistics.fmean(values), error)


def show(found: Sequence[Behaviour], draws: int, console: Console) -> None:
    """The results as a table, in percent."""

    def percent(share: Share) -> str:
        error = "" if share.error is None else f" ± {100 * share.error:.1f}"
        return f"{100 * share.value:.1f}{error}"

    table = Table("% right", "items", "likeliest", "greedy", f"p={TOP_P}", "difference", box=None)
    for each in found:
        shares = (each.likeliest, each.greedy, each.nucleus, each.advantage)
        table.add_row(each.kind, str(each.items), *map(percent, shares))
    console.print(table)
    console.print(
        f"± one standard error, 0 where all items are alike; p={TOP_P}: the mean of {draws} draws; "
        "difference: greedy less that; likeliest: the right answer is, token by token",
        highlight=False,
    )
