"""The page docs/reference.md: each verb's help, and each public name as its source has it.

make docs
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import itertools
import os
import textwrap
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_suffix(".md")

WIDTH = 100


def page() -> str:
    """What `gptj --help` and every verb's help print, and each public name's documentation."""
    from gptj import __all__ as names
    from gptj.cli import VERBS

    parts = [
        "# Reference",
        "Made by `make docs` from the program; a test fails when it is out of date.",
        "## The command",
        block(printed([])),
        *(part for verb in VERBS for part in helps(verb)),
        "## The Python package",
        *(part for name in names for part in entry(name)),
    ]
    return "\n\n".join(parts) + "\n"


def helps(verb: str) -> Iterator[str]:
    """What a verb's help prints; of `bench` also that of each subject."""
    from gptj.cli.bench import SUBJECTS

    yield f"### gptj {verb}\n\n{block(printed([verb]))}"
    for subject in SUBJECTS if verb == "bench" else ():
        yield f"#### gptj bench {subject}\n\n{block(printed([verb, subject]))}"


def printed(words: list[str]) -> str:
    """What `gptj WORDS --help` prints on a terminal of 100 columns."""
    from gptj.cli import main

    os.environ.update(COLUMNS=str(WIDTH), NO_COLOR="1", TERM="dumb")
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def entry(name: str) -> Iterator[str]:
    """A public name: how it is called and what it says, and for a class each thing it has."""
    import gptj

    thing, title = getattr(gptj, name), f"### gptj.{name}"
    if not callable(thing):
        yield f"{title}\n\n`{type(thing).__name__}` with {', '.join(f'`{key}`' for key in thing)}."
    elif not inspect.isclass(thing):
        yield f"{title}\n\n{block(told(name, thing))}"
    else:
        yield f"{title}\n\n{block(described(name, thing))}"
        for each, member in vars(thing).items():
            asked = member.func if isinstance(member, cached_property) else member
            asked = asked.fget if isinstance(asked, property) else asked
            if not each.startswith("_") and inspect.isroutine(asked) and asked.__doc__:
                said = (told if asked is member else known)(each, asked)
                yield f"#### gptj.{name}.{each}\n\n{block(said)}"


def told(name: str, function: Callable[..., Any]) -> str:
    """A function's signature, and below it its docstring."""
    return f"{signature(name, definition(function))}\n\n{inspect.getdoc(function) or ''}"


def known(name: str, function: Callable[..., Any]) -> str:
    """A property with its type, and below it its docstring."""
    return f"{name}: {spelt(definition(function).returns)}\n\n{inspect.getdoc(function) or ''}"


def described(name: str, thing: type) -> str:
    """A class's docstring, above it how one is made where that is no list of fields, and those."""
    own, below = definition(thing), [*fields(thing)]
    made = [each for each in own.body if getattr(each, "name", "") == "__init__"]
    above = [signature(name, each).removesuffix(" -> None") for each in made]
    return "\n\n".join([*above, inspect.getdoc(thing) or "", *below])


def fields(thing: type) -> Iterator[str]:
    """Of a dataclass each field with its type and default, and what its source says of it."""
    for base in reversed([each for each in thing.__mro__ if each.__module__.startswith("gptj.")]):
        body = definition(base).body if hasattr(thing, "__dataclass_fields__") else []
        for each, after in itertools.pairwise([*body, None]):
            if isinstance(each, ast.AnnAssign) and not spelt(each.target).startswith("_"):
                value = f" = {spelt(each.value)}" if each.value else ""
                line = f"{spelt(each.target)}: {spelt(each.annotation)}{value}"
                match after:
                    case ast.Expr(ast.Constant(str(said))):
                        yield f"{line}\n{textwrap.indent(inspect.cleandoc(said), '    ')}"
                    case _:
                        yield line


def definition(thing: Any) -> Any:
    """The source of a function or a class, as a tree."""
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body[0]


def signature(name: str, function: ast.FunctionDef) -> str:
    """How a function is called: in one line where it fits, else each argument in its own."""
    given = [*arguments(function.args)]
    returns = f" -> {spelt(function.returns)}" if function.returns else ""
    line = f"{name}({', '.join(given)}){returns}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {each}," for each in given), f"){returns}"])


def arguments(args: ast.arguments) -> Iterator[str]:
    """Each argument with its type and default, without `self`."""
    placed = [*args.posonlyargs, *args.args]
    values = [None] * (len(placed) - len(args.defaults)) + args.defaults
    for each, value in zip(placed, values, strict=True):
        if each.arg not in ("self", "cls"):
            yield argument(each, value)
    if args.vararg or args.kwonlyargs:
        yield f"*{argument(args.vararg, None) if args.vararg else ''}"
    for each, value in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield argument(each, value)
    if args.kwarg:
        yield f"**{argument(args.kwarg, None)}"


def argument(found: ast.arg, value: ast.expr | None) -> str:
    """`name: type = default`, as far as it has them."""
    text = spelt(found)
    if value is None:
        return text
    return f"{text} = {spelt(value)}" if found.annotation else f"{text}={spelt(value)}"


class Plain(ast.NodeTransformer):
    """An annotation without what only the command line reads of it."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """`Annotated[T, ...]` and `tyro.conf.Positional[T]` are T."""
        self.generic_visit(node)
        name = ast.unparse(node.value)
        if name == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node.slice if name.startswith("tyro.conf.") else node


def spelt(node: ast.AST) -> str:
    """A part of the source, in one line."""
    return ast.unparse(Plain().visit(node))


def block(text: str) -> str:
    """Text as it stands."""
    return f"```text\n{text.strip()}\n```"
