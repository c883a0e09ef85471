"""HTML out of nested calls: every text is escaped, every tag is closed, because no one else can."""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = {"input", "meta"}


class Html(str):
    """Text that is markup already. Only this module and the files beside it make it."""


def tag(name: str, /, *children: str, **attributes: object) -> Html:
    """An element. Children that are not `Html` are escaped, and so is every attribute.

    `class_` and `data_x` mean `class` and `data-x`; an attribute that is `None` is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Parts one after the other, those that are not `Html` escaped."""
    return Html(
        "".join(part if isinstance(part, Html) else html.escape(part, False) for part in parts)
    )


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], class_: str) -> Html:
    """A table; without a head where `head` is empty, and each row's first cell is then its head."""
    first = "td" if head else "th"
    body = [
        tag("tr", *(tag("td" if i else first, cell) for i, cell in enumerate(row))) for row in rows
    ]
    top = [tag("thead", tag("tr", *(tag("th", name) for name in head)))] if head else []
    return tag("table", *top, tag("tbody", *body), class_=class_)
