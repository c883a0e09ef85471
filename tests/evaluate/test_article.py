"""The suite: problems whose answers are right, and shares that are counted right."""

import math
import re

import pytest

import gptj
from gptj.evaluate import article
from gptj.evaluate.arithmetic import KINDS, problems
from gptj.evaluate.requests import Reader
from gptj.evaluate.scorer import Scorer


@pytest.mark.parametrize("kind", KINDS)
def test_problems_follow_from_the_seed_and_differ(kind):
    found = problems(kind, 40, 1)
    assert found == problems(kind, 40, 1) != problems(kind, 40, 2)
    assert len(set(found)) == 40


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r"-?\d+", text)]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("sums", lambda q, a, b: a + b if "plus" in q else a - b),
        ("products", lambda q, a, b: a * b),
        ("remainders", lambda q, a, b: a % b),
        ("sequences", lambda q, *terms: 2 * terms[3] - terms[2]),
        ("sorting", lambda q, *all_of: sorted(all_of)),
    ],
)
def test_the_answers_are_right(kind, answer):
    for problem in problems(kind, 60):
        right = answer(problem.question, *numbers(problem.question))
        assert numbers(problem.answer) == (right if isinstance(right, list) else [right])


def test_the_equations_hold():
    for problem in problems("linear equations", 60):
        a, b, c = numbers(problem.question.replace("- ", "-"))
        assert a * int(problem.answer) + b == c
    for problem in problems("pairs of equations", 60):
        a, b, c, d, e, f = numbers(problem.question)
        assert (c * e - b * f) / (a * e - b * d) == int(problem.answer)


def test_the_digits_are_those():
    places = ("units", "tens", "hundreds", "thousands")
    for problem in problems("digits", 60):
        place, number = re.fullmatch(
            r"What is the (\w+) digit of (\d+)\?", problem.question
        ).groups()
        assert number[-1 - places.index(place)] == problem.answer


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (" 143", "143", True),
        (" 143.", "143", True),
        ("143 apples", "143", True),
        ("1430", "143", False),
        ("143.5", "143", False),
        ("143,000", "143", False),
        ("about 143", "143", False),
        ("", "143", False),
        (" the Rain, she said", " the rain", True),
        (" Parisian", "Paris", False),
        ("-1]", "-1]", True),
        ("read()[:3]", "read()", True),
    ],
)
def test_when_a_completion_is_right(text, answer, right):
    assert article.is_right(text, answer) is right


def test_every_prompt_has_one_answer_of_its_own():
    found = article.items(0)
    kinds = {item.kind for item in found}
    assert kinds == {*KINDS, "reading", "code", "facts"}
    assert len({item.prompt for item in found}) == len(found)
    assert all(item.answer.strip() and article.is_right(item.answer, item.answer) for item in found)
    reading = [item for item in found if item.kind == "reading"]
    assert all(item.answer.strip().lower() in item.prompt.lower() for item in reading)
    assert {item.kind for item in article.items(0, 1)} == kinds
    assert len(article.items(0, 1)) == len(kinds)


def test_a_prompt_that_is_cut_counts_once(tiny_run):
    model = gptj.load(tiny_run)
    scorer = Scorer(model.params, model.config, model.tokenizer)
    reader = Reader(model.tokenizer, model.config.context)
    asked = [article.Item("a", f"{'x' * 70}{n}", " y") for n in range(3)]
    (found,), _ = article.ask(scorer, reader, asked[:1], draws=1)
    assert found.greedy.error is None
    article.ask(scorer, reader, asked, draws=1)
    assert reader.shortened == 3


def test_shares_are_counted(tiny_run, monkeypatch):
    model = gptj.load(tiny_run)
    scorer = Scorer(model.params, model.config, model.tokenizer)
    asked = [article.Item("a", f"{n}+{n}=", f" {2 * n}") for n in range(4)]
    texts = [["0"], [" 2"], ["4."], ["7"]], [["0", "1"], ["2", "2"], ["x", ""], ["6", "5"]]
    drawn = iter(texts)
    monkeypatch.setattr(scorer, "write", lambda prompts, sampling: next(drawn))
    reader = Reader(model.tokenizer, model.config.context)
    (found,), answered = article.ask(scorer, reader, asked, draws=2)
    assert (found.kind, found.items) == ("a", 4)
    assert found.greedy == pytest.approx((0.75, 0.25))
    assert found.nucleus == pytest.approx((0.5, math.sqrt((0 + 0.25 + 0.25 + 0) / 3 / 4)))
    assert found.advantage.value == pytest.approx(0.25)
    assert [each.greedy for each in answered] == ["0", " 2", "4.", "7"]
    assert found.nats.value < 0
