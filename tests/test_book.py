"""The book: its programs print what it says they print, and its pictures are those they draw."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def program(path):
    """A program outside the package, as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BOOK = program(ROOT / "docs" / "book.py")
CHAPTERS = {name: BOOK.BOOK / f"{name}.md" for name in BOOK.CHAPTERS}


@pytest.mark.parametrize("name", CHAPTERS)
def test_programs_print_what_the_chapter_says(name):
    text = CHAPTERS[name].read_text()
    assert BOOK.executed(text) == text, "run `make docs`"


@pytest.mark.parametrize("name", CHAPTERS)
def test_pictures_are_those_that_are_drawn(name):
    pictures = dict(BOOK.drawn(CHAPTERS[name]))
    shown = re.findall(r"!\[[^\]]+\]\(\.\./images/understand/([^)]+)\)", CHAPTERS[name].read_text())
    assert sorted(shown) == sorted(pictures)
    for picture, text in pictures.items():
        assert (BOOK.PICTURES / picture).read_text() == text, "run `make docs`"


def test_every_chapter_is_in_the_book():
    assert {page.stem for page in BOOK.BOOK.glob("*.md")} == set(BOOK.CHAPTERS)


def test_what_a_program_prints_is_written_below_it():
    first, second = "```python\nx = 1\n```\n", "```python\nprint(x + 1)\n```\n\n```text\nold\n```\n"
    page = f"Text\n\n{first}\nmore\n\n{second}end\n"
    assert BOOK.executed(page) == page.replace("old", "2")
    with pytest.raises(ZeroDivisionError):
        BOOK.executed("```python\n1 / 0\n```\n")
