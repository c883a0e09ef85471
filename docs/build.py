"""Write docs/reference.md, the verbs' help and the public names, from the program itself.

make docs
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
from pathlib import Path

REFERENCE = Path(__file__).parent / "reference.md"


def reference() -> str:
    """The page: what `gptj --help` and every verb's help print, and each public docstring."""
    from gptj import __all__ as names
    from gptj.cli import VERBS

    parts = [
        "# Reference",
        "Made by `make docs` from the program; a test fails when it is out of date.",
        "## The command",
        block(printed([])),
        *(f"### gptj {verb}\n\n{block(printed([verb]))}" for verb in VERBS),
        "## The Python package",
        *(entry(name) for name in names),
    ]
    return "\n\n".join(parts) + "\n"


def printed(words: list[str]) -> str:
    """What `gptj WORDS --help` prints on a terminal of 100 columns."""
    from gptj.cli import main

    os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def entry(name: str) -> str:
    """A public name's signature and docstring, and for a class those of its own methods."""
    import gptj

    thing = getattr(gptj, name)
    title = f"### gptj.{name}"
    if not callable(thing):
        return f"{title}\n\n`{type(thing).__name__}` with {', '.join(f'`{key}`' for key in thing)}."
    parts = [title, block(inspect.getdoc(thing) or "")]
    for method, function in vars(thing).items() if inspect.isclass(thing) else ():
        if not method.startswith("_") and inspect.isroutine(function) and function.__doc__:
            parts.append(f"#### gptj.{name}.{method}\n\n{block(inspect.getdoc(function) or '')}")
    return "\n\n".join(parts)


def block(text: str) -> str:
    """Text as it stands."""
    return f"```text\n{text.strip()}\n```"


if __name__ == "__main__":
    REFERENCE.write_text(reference())
    print(f"wrote {REFERENCE.relative_to(Path.cwd())}; start reading at README.md")
