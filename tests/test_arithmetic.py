"""The arithmetic recipe: its problems are right, read as they are written, and kept apart."""

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import pytest

from gptj.errors import UserError

RECIPE = Path(__file__).parents[1] / "recipes" / "arithmetic.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("arithmetic", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first(recipe, count=500, signs="+-*", held_out=False, **more):
    return list(itertools.islice(recipe.drawn(signs, 0, held_out, **more), count))


def test_a_drawn_problem_has_its_answer(recipe):
    found = first(recipe, sizes=(1, 2, 3, 4, 5))
    assert {each.sign for each in found} == {*"+-*"}
    assert all(each.result == eval(f"{each.a} {each.sign} {each.b}") for each in found)
    assert all(each.b < 10 for each in found if each.sign == "*")
    assert found == first(recipe, sizes=(1, 2, 3, 4, 5))


def test_digits_are_read_as_they_are_written(recipe):
    lengths = {"+": set(), "-": set(), "*": set()}
    for problem in first(recipe):
        asked, answer = recipe.digits(problem)
        a, sign, b = re.fullmatch(r"(\d{3})([-+*])(\d{3})=", asked).groups()
        assert (int(a), sign, int(b)) == problem
        minus, shown = re.fullmatch(r"([-+]?)(\d+)", answer).groups()
        assert bool(minus) == (sign == "-")
        assert int(minus + shown[::-1]) == problem.result
        lengths[sign].add(len(answer))
    assert all(len(found) == 1 for found in lengths.values())


def test_words_are_read_as_they_are_written(recipe):
    signs = {name: sign for sign, name in recipe.NAMES.items()}
    for problem in first(recipe, sizes=(2, 5)):
        asked, answer = recipe.words(problem)
        form = r"Question: What is (\d+) (\w+) (\d+)\?\nAnswer:"
        a, name, b = re.fullmatch(form, asked).groups()
        assert (int(a), signs[name], int(b)) == problem
        assert answer == f" {problem.result}"


def test_a_tenth_of_the_pairs_is_held_out_and_never_trained_on(recipe):
    shown, kept = ({each[::2] for each in first(recipe, 3000, held_out=x)} for x in (False, True))
    assert not shown & kept
    pairs = itertools.product(range(100), repeat=2)
    share = sum(recipe.Problem(a, "+", b).is_held_out for a, b in pairs) / 100**2
    assert 0.09 < share < 0.115  # 26 of 256, four deviations on either side
    products = itertools.product(range(1000), "*", range(10))
    assert sum(recipe.Problem(*each).is_held_out for each in products) >= 900  # as `exact` wants


def test_the_problems_of_a_set_are_found_in_its_file(recipe, tmp_path):
    problems, path = first(recipe, 20, "+-"), tmp_path / "set.jsonl"
    lines = (json.dumps({"context": recipe.words(each)[0]}) + "\n" for each in problems)
    path.write_text("".join(lines))
    assert list(recipe.pairs_in(path)) == [each[::2] for each in problems]
    for text in ("{", "{}", "[]", '{"context": "1 plus"}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"set\.jsonl is no file of GPT-3's arithmetic sets"):
            list(recipe.pairs_in(path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits", "more"], "arithmetic: digits takes no 'more': leave it out"),
        (["words", "--steps"], "arithmetic: words takes no '--steps'"),
        (["sums"], "arithmetic: no 'sums': choose one of digits, words, article"),
        (["article"], "arithmetic: no problems to leave out"),
        (["article", "nowhere.jsonl"], "nowhere.jsonl is no file of GPT-3's arithmetic sets"),
    ],
)
def test_what_cannot_be_done_is_refused(words, said, recipe, monkeypatch, capsys):
    for name in ("proof", "in_words", "prepare"):
        monkeypatch.setattr(recipe, name, lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(sys, "argv", ["arithmetic.py", *words])
    assert recipe.main() == 2
    assert said in capsys.readouterr().err
