"""The tasks' questions in files, for machines without a network.

A folder DIR has one folder for each data set, named as below, with files in the form that the data
set's authors, or the harness's own data set, gave them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptj.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Where a task's questions are."""

    folder: str
    fields: tuple[tuple[str, ...], ...]
    """What each row must have: one of these sets of names."""
    file: str = "*"
    """The file's name without its suffix, or a pattern that one file of the folder matches."""


HELLASWAG = (
    ("ctx_a", "ctx_b", "activity_label", "endings", "label"),
    ("query", "choices", "label"),
    ("query", "choices", "gold"),
)
"""As its authors have it; or as the harness makes of that what it asks."""

DATA: Mapping[str, Data] = {
    "lambada_openai": Data("lambada", (("text",),)),
    "winogrande": Data("winogrande", (("sentence", "option1", "option2", "answer"),)),
    "hellaswag": Data("hellaswag", HELLASWAG),
    "piqa": Data("piqa", (("goal", "sol1", "sol2", "label"),)),
    "wikitext": Data("wikitext2", (("page",),), "*pages*"),
}

ARITHMETIC = {
    "1dc": "single_digit_three_ops",
    "2da": "two_digit_addition",
    "2ds": "two_digit_subtraction",
    "2dm": "two_digit_multiplication",
    "3da": "three_digit_addition",
    "3ds": "three_digit_subtraction",
    "4da": "four_digit_addition",
    "4ds": "four_digit_subtraction",
    "5da": "five_digit_addition",
    "5ds": "five_digit_subtraction",
}
"""GPT-3's arithmetic sets by the harness's names for them, `arithmetic_2da` and so on."""


def place(task: str) -> Data:
    """Where a task's questions are.

    Raises:
      UserError: no form of its data in files is known.
    """
    name = task.removeprefix("arithmetic_")
    if task != name and name in ARITHMETIC:
        return Data("gpt3_arithmetic", (("context", "completion"),), ARITHMETIC[name])
    if task not in DATA:
        raise UserError(
            f"--local knows no files for the task {task!r}, only for {', '.join(DATA)} and "
            f"arithmetic_{', _'.join(ARITHMETIC)}: leave out the task, or --local to download it"
        )
    return DATA[task]


def rows(task: str, folder: Path) -> list[Row]:
    """A task's questions from the files under `folder`.

    Raises:
      UserError: they are not there, or are not what they should be; names the file and line.
    """
    data = place(task)
    path = _file(task, folder / data.folder, data.file)
    found = _arrow(path) if path.suffix == ".arrow" else _json_lines(path)
    if not found:
        raise UserError(f"{path} is empty: it must hold the questions of {task}")
    if task == "piqa" and "label" not in found[0]:
        _label(found, path)
    fields = next((each for each in data.fields if set(each) <= set(found[0])), data.fields[0])
    for number, row in enumerate(found):
        if missing := [field for field in fields if row.get(field) is None]:
            raise UserError(
                f"{path}: question {number + 1} of {task} has no {', '.join(missing)}: get the "
                "file anew"
            )
        if wrong := [field for field in fields if not _is_right(field, row)]:
            raise UserError(
                f"{path}: question {number + 1} of {task} has {wrong[0]}={row[wrong[0]]!r:.40}, "
                "which is no such thing: get the file anew"
            )
    return [{field: row[field] for field in fields} for row in found]


def _is_right(field: str, row: Row) -> bool:
    """Whether a field holds what the task's prompts and metrics are made of."""
    value, options = row[field], row.get("endings", row.get("choices"))
    match field:
        case "endings" | "choices":
            return isinstance(value, list) and all(isinstance(each, str) for each in value)
        case "label" | "gold":
            return str(value) in map(str, range(len(options) if isinstance(options, list) else 2))
        case "answer":
            return value in ("1", "2")
    return isinstance(value, str)


def _file(task: str, folder: Path, name: str) -> Path:
    paths = sorted(folder.glob(f"{name}.jsonl")) + sorted(folder.glob(f"{name}.arrow"))
    if len(paths) == 1:
        return paths[0]
    if paths:
        raise UserError(
            f"{folder} has {len(paths)} files that could be {task}'s ({paths[0].name}, "
            f"{paths[1].name}, ...): leave one"
        )
    raise UserError(
        f"no questions of {task}: there is no {folder}/{name}.jsonl or .arrow; put the file there, "
        "or leave out --local to download it"
    )


def _json_lines(path: Path) -> list[Row]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file") from error
    found = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}:{number + 1} is not a line of JSON ({error}): get the file anew"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number + 1} is not a JSON object: get the file anew")
        found.append(row)
    return found


def _arrow(path: Path) -> list[Row]:
    import datasets

    try:
        return list(datasets.Dataset.from_file(str(path)))
    except Exception as error:  # pyarrow's failures share no base class
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read ({reason}): get the file anew") from error


def _label(found: Sequence[Row], path: Path) -> None:
    """PIQA's answers lie in a file of their own."""
    labels = path.with_name(f"{path.stem}-labels.lst")
    try:
        words = labels.read_text().split()
    except (OSError, ValueError) as error:
        raise UserError(f"{labels}, the answers to {path}, cannot be read ({error})") from error
    if len(words) != len(found) or not set(words) <= {"0", "1"}:
        raise UserError(
            f"{labels} has {len(words)} answers to the {len(found)} questions of {path}, each to "
            "be 0 or 1: get both files anew"
        )
    for row, word in zip(found, words, strict=True):
        row["label"] = int(word)
