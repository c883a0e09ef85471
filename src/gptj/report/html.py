"""HTML out of nested calls: every text is escaped, every tag is closed, because no one else can."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from pathlib import Path

VOID = {"input", "meta"}
HERE = Path(__file__).parent


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


def document(
    title: str, parts: Iterable[Html], name: str, data: object, style: str = "", script: str = ""
) -> str:
    """A page that needs no other file, and carries its data as JSON in an element called `name`.

    Args:
      style: rules beside those of `style.css`.
      script: what runs; nothing else may, and nothing may be fetched, whatever a text contains.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = f"; script-src 'sha256-{digest}'" if script else ""
    policy = f"default-src 'none'; style-src 'unsafe-inline'{runs}"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html((HERE / "style.css").read_text(encoding="utf-8") + style)),
    ]
    # In a script `<` could end it, and escaping would change the JSON.
    values = Html(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
    scripts = [tag("script", values, type="application/json", id=name)]
    scripts += [tag("script", Html(script))] if script else []
    body = tag("body", tag("main", *parts), *scripts)
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), body, lang='en')}\n"
