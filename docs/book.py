"""Run the book's chapters: write below each program what it prints, and draw the pictures.

make docs
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BOOK = Path(__file__).parent / "understand"
PICTURES = Path(__file__).parent / "images" / "understand"
EIGHT = "--xla_force_host_platform_device_count=8"

CHAPTERS = ("block", "shardings", "memory", "speed", "exactness", "then-and-now")
"""In their order. Beside each page lies the program that draws its pictures."""

PROGRAM = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)
"""A program of a chapter, with what it printed when it was last run."""

STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#868e96",
    "legend.frameon": False,
    "svg.fonttype": "none",  # letters stay letters: small files, the reader's own font
    "svg.hashsalt": "gptj",  # the same picture is the same file
}


def executed(chapter: str) -> str:
    """A chapter with what its programs print now, run in one namespace from first to last."""
    names: dict[str, Any] = {"__name__": "__book__"}

    def run(found: re.Match[str]) -> str:
        line = chapter.count("\n", 0, found.start("code"))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            # Lines are numbered as the page's, so that an error names its own.
            exec(compile("\n" * line + found["code"], "chapter", "exec"), names)
        said = "\n".join(each.rstrip() for each in out.getvalue().rstrip().splitlines())
        shown = f"\n```text\n{said}\n```\n" if said else ""
        return f"```python\n{found['code']}```\n{shown}"

    return PROGRAM.sub(run, chapter)


def drawn(chapter: Path) -> Iterator[tuple[str, str]]:
    """The pictures of a chapter, as the functions of the program beside it draw them: SVG."""
    import matplotlib as mpl

    path = chapter.with_suffix(".py")
    located = importlib.util.spec_from_file_location("pictures", path)
    assert located and located.loader
    module = importlib.util.module_from_spec(located)
    located.loader.exec_module(module)
    for name, draw in module.PICTURES.items():
        with mpl.rc_context(STYLE):
            yield name, svg(draw())


def svg(figure: Figure) -> str:
    """A figure as a file's text, without the day it was drawn on."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def main() -> None:
    """Bring every chapter and every picture up to date."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for chapter in (BOOK / f"{name}.md" for name in CHAPTERS):
        chapter.write_text(executed(chapter.read_text()))
        for name, picture in drawn(chapter):
            (PICTURES / name).write_text(picture)
        print(f"ran {chapter.name}")


if __name__ == "__main__":
    main()
