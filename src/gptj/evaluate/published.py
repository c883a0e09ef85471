"""The zero-shot table that GPT-J was published with, as data: `published.json` names its source."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple


class Heading(NamedTuple):
    """A column of the table, and the harness's metric that it is."""

    key: str
    title: str
    task: str
    metric: str


COLUMNS = (
    Heading("lambada_ppl", "LAMBADA ppl", "lambada_openai", "perplexity"),
    Heading("lambada_acc", "LAMBADA acc %", "lambada_openai", "acc"),
    Heading("winogrande", "Winogrande acc %", "winogrande", "acc"),
    Heading("hellaswag", "HellaSwag norm %", "hellaswag", "acc_norm"),
    Heading("piqa", "PIQA acc %", "piqa", "acc"),
    Heading("piqa", "PIQA norm %", "piqa", "acc_norm"),
)
"""Whether the table's PIQA is acc or acc_norm is not known, so it stands beside both."""

TASKS = tuple(dict.fromkeys(column.task for column in COLUMNS))


class Model(NamedTuple):
    """A row of the table; shares in percent."""

    name: str
    training_flops: float | None
    reported: bool
    """Whether its own authors gave the numbers, and not the harness."""
    values: Mapping[str, float]
    """By a column's key; what the table leaves open is not there."""


@functools.cache
def published() -> tuple[Model, ...]:
    """The table's rows in its order, roughly from the worst to the best."""
    keys = {column.key for column in COLUMNS}
    return tuple(
        Model(
            row["name"],
            row.get("training_flops"),
            row.get("reported", False),
            {key: float(value) for key, value in row.items() if key in keys},
        )
        for row in _table()["models"]
    )


def source() -> str:
    """Where the numbers are from."""
    return str(_table()["source"])


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("published.json").read_text("utf-8"))
