"""The groups that data are divided into by a field, and where each lies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from gptj.data.read import Document
from gptj.data.split import Split, SplitPlan
from gptj.errors import UserError

StoreKey = tuple[str, bool]
"""What a store is for: a group of the data, and whether it is held out."""

LONGEST = 255
"""Bytes of a folder's name, where file systems end."""


def folder_of(group: str) -> str:
    """A name for a group's folder, of characters that every system takes."""
    return re.sub(r"[^\w.()-]+", "-", group).strip("-.") or ("-" if group else "")


def place_of(group: str, held: bool, folder: Path) -> Path:
    """Where in prepared data a store lies."""
    return folder / folder_of(group) / ("heldout" if held else "train")


def plan_groups(
    documents: Iterable[Document], held_out: float, seed: int, split_by: str | None, is_whole: bool
) -> dict[str, Split]:
    """What is held out of each group; `is_whole`: no document is ever cut.

    Raises:
      UserError: a group cannot have a folder, or two would have one.
    """
    if not held_out and not split_by:
        return {"": Split("nothing", 0, seed)}
    plans: dict[str, SplitPlan] = {}
    folders: dict[str, str] = {}
    for document in documents:
        group = document.group
        if group not in plans:
            if split_by:
                _check_name(split_by, group, document.source)
            plans[group] = SplitPlan(held_out, seed, is_whole)
            other = folders.setdefault(folder_of(group), group)
            if other != group:
                raise UserError(
                    f"{split_by} is {other!r} and {group!r}, which would be one folder: rename one "
                    "of them, or leave out --split-by"
                )
        plans[group].add(document)
    return {name: plan.decide() for name, plan in plans.items()}


def _check_name(split_by: str, group: str, source: str) -> None:
    folder = folder_of(group)
    if folder in ("", "train", "heldout"):
        raise UserError(
            f"{split_by} is {group!r} in {source}, which cannot be the name of a folder of OUT: "
            "change it there"
        )
    if len(folder.encode()) > LONGEST:
        raise UserError(
            f"{split_by} is {group[:40]!r}... in {source}, too long for the name of a folder of "
            "OUT: name a field of few, short values"
        )
