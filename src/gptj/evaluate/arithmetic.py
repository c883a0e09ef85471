"""Mathematics problems in words, made from a seed: the kinds that DeepMind's data set has.

"Analysing Mathematical Reasoning Abilities of Neural Models", arXiv:1904.01557. The problems and
their wording are ours; an answer is one whole number or a short list of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Problem(NamedTuple):
    """A question and the one answer that is right."""

    question: str
    answer: str


def problems(kind: str, count: int, seed: int = 0) -> list[Problem]:
    """So many problems of a kind of `KINDS`, no two alike; the same seed, the same problems."""
    draw, found = random.Random(f"{kind} {seed}"), dict[Problem, None]()
    while len(found) < count:
        found[KINDS[kind](draw)] = None
    return list(found)


def _sum(draw: random.Random) -> Problem:
    a, b = draw.randint(-999, 999), draw.randint(-999, 999)
    if draw.random() < 0.5:
        return Problem(f"What is {a} plus {b}?", str(a + b))
    return Problem(f"What is {a} minus {b}?", str(a - b))


def _product(draw: random.Random) -> Problem:
    a, b = draw.randint(-99, 99), draw.randint(2, 99)
    return Problem(f"Multiply {a} by {b}.", str(a * b))


def _division(draw: random.Random) -> Problem:
    by, times = draw.randint(2, 40), draw.randint(2, 60)
    rest = draw.randrange(by)
    return Problem(f"What is the remainder when {by * times + rest} is divided by {by}?", str(rest))


def _linear(draw: random.Random) -> Problem:
    name = draw.choice("abcdhkmnprstuwxyz")
    x, a, b = draw.randint(-20, 20), draw.randint(2, 30), draw.randint(-99, 99)
    sign = "-" if b < 0 else "+"
    return Problem(f"Solve {a}*{name} {sign} {abs(b)} = {a * x + b} for {name}.", str(x))


def _system(draw: random.Random) -> Problem:
    first, second = draw.sample("cdkmprstvwxy", 2)
    x, y = draw.randint(-9, 9), draw.randint(-9, 9)
    rows: list[tuple[int, int]] = []
    while len(rows) < 2 or rows[0][0] * rows[1][1] == rows[0][1] * rows[1][0]:
        rows = [(draw.randint(2, 30), draw.randint(2, 30)) for _ in range(2)]
    said = [f"{a}*{first} + {b}*{second} = {a * x + b * y}" for a, b in rows]
    return Problem(f"Solve {said[0]} and {said[1]} for {first}.", str(x))


def _sequence(draw: random.Random) -> Problem:
    start, step = draw.randint(-50, 50), draw.choice([n for n in range(-19, 20) if n])
    terms = [start + step * n for n in range(5)]
    return Problem(f"What comes next: {', '.join(map(str, terms[:4]))}?", str(terms[4]))


def _place(draw: random.Random) -> Problem:
    number, places = draw.randint(10_000, 999_999), ("units", "tens", "hundreds", "thousands")
    at = draw.randrange(len(places))
    return Problem(f"What is the {places[at]} digit of {number}?", str(number // 10**at % 10))


def _order(draw: random.Random) -> Problem:
    numbers = draw.sample(range(-99, 100), 4)
    question = f"Sort {', '.join(map(str, numbers))} from the smallest to the largest."
    return Problem(question, ", ".join(map(str, sorted(numbers))))


KINDS: Mapping[str, Callable[[random.Random], Problem]] = {
    "sums": _sum,
    "products": _product,
    "remainders": _division,
    "linear equations": _linear,
    "pairs of equations": _system,
    "sequences": _sequence,
    "digits": _place,
    "sorting": _order,
}
