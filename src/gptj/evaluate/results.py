"""What an evaluation found: a record, a table beside the published rows, a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from gptj.errors import UserError
from gptj.evaluate.published import COLUMNS, Heading, Model, published

PERCENT = ("acc", "acc_norm")
"""Metrics that are shares, shown in percent."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One metric of one task."""

    task: str
    metric: str
    value: float
    error: float | None
    """The standard error of `value`; `None` where there is no closed form for it."""
    questions: int
    """How many it is the result of."""
    version: str = ""
    """The harness's version of the task."""

    @property
    def figures(self) -> tuple[str, str]:
        """The value and its error as they are shown."""
        if self.metric in PERCENT:
            return (
                f"{100 * self.value:.1f}",
                "" if self.error is None else f"{100 * self.error:.1f}",
            )
        return f"{self.value:.4g}", "" if self.error is None else f"{self.error:.2g}"

    def __str__(self) -> str:
        value, error = self.figures
        unit = " %" if self.metric in PERCENT else ""
        return f"{self.task} {self.metric}: {value}{error and f' ± {error}'}{unit}"


def show(found: Sequence[Measured], name: str, console: Console) -> None:
    """The results: those of the published table beside its rows, the others in a list."""
    values = {column: each for column in COLUMNS if (each := of_column(found, column))}
    if values:
        heads = (column.title.replace(" ", "\n", 1) for column in values)
        table = Table(Column("", no_wrap=True), *heads, box=None)
        for model in published():
            if any(column.key in model.values for column in values):
                table.add_row(model.name, *(_cell(model, column) for column in values))
        table.add_section()
        table.add_row(name, *(each.figures[0] for each in values.values()), style="bold")
        table.add_row("± standard error", *(each.figures[1] for each in values.values()))
        console.print(table)
    for each in found:
        if each not in values.values():
            console.print(str(each), highlight=False, markup=False)


def of_column(found: Sequence[Measured], column: Heading) -> Measured | None:
    """What was measured of a column of the published table, if it was."""
    return next(
        (each for each in found if (each.task, each.metric) == (column.task, column.metric)), None
    )


def _cell(model: Model, column: Heading) -> str:
    return f"{model.values[column.key]:g}" if column.key in model.values else "-"


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose another --out"
        ) from error
