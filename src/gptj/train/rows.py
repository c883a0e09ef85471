"""Which rows of the data an update trained on, and what they say.

RUN/data.json     where the run's data are: {"path": FOLDER}, and what it began "from"
RUN/skips.json    batches that were passed over: [{"step": S, "batches": K}, ...]
RUN/events.jsonl  what happened; an event may name the rows it is about, as "rows"
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptj.checkpoint import COURSE, DATA
from gptj.data.batches import TrainBatches
from gptj.data.mixture import Mixture, is_data
from gptj.data.store import ids_of
from gptj.errors import UserError
from gptj.tokenizer import END_OF_TEXT, Tokenizer
from gptj.train.metrics import METRICS

SKIPS, EVENTS = "skips.json", "events.jsonl"
_PASSED_OVER = "named in the log, of a batch passed over since"


@dataclasses.dataclass(frozen=True)
class Skip:
    """From update number `step` on, counted from 0, `batches` more batches are passed over."""

    step: int
    batches: int


@dataclasses.dataclass(frozen=True)
class TextRow:
    """A row of the training data."""

    id: int
    tokens: range
    """Where it lies in the data; the last of them is only a target."""
    sources: tuple[str, ...]
    """The files its documents came from."""
    text: str
    """Its text, each end of a document written as `END_OF_TEXT`."""
    note: str = ""
    """What the run's log has to do with it, if anything."""

    def __str__(self) -> str:
        about = [f"tokens {self.tokens[0]} to {self.tokens[-1]}", f"of {', '.join(self.sources)}"]
        about += [self.note] if self.note else []
        return f"--- row {self.id}: {', '.join(about)}\n{visible(self.text)}"


def batch_index(update: int, skips: Sequence[Skip] = ()) -> int:
    """The batch that update number `update`, counted from 0, trains on.

    That of its own number, unless batches were passed over before it.
    """
    return update + sum(skip.batches for skip in skips if skip.step <= update)


def read_skips(run: Path) -> list[Skip]:
    """The batches that a run passed over; none where nothing is recorded.

    Raises:
      UserError: the record is damaged.
    """
    path = run / SKIPS
    try:
        found = json.loads(path.read_text()) if path.is_file() else []
        skips = [Skip(**skip) for skip in found]
        if not all(type(n) is int and n >= 0 for skip in skips for n in (skip.step, skip.batches)):
            raise ValueError("a number is below 0 or not whole")
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, so which rows came when is not known: copy the run's folder again"
        ) from error
    return skips


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines that have a number `step`; none where there is no file.

    A line that is none, as a crash leaves behind, is passed over.
    """
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            yield row


def rows_of(
    run: Path, step: int, data: Path | None = None, row: int | None = None
) -> list[TextRow]:
    """The rows that the update after which the metrics say `step` trained on, in their order.

    Rows that the log names at that step come last where the update, done again since the run went
    back, trained on others.

    Args:
      run: Folder of the run.
      step: Updates done, this one included: the first update is step 1.
      data: Folder of the run's prepared data, where it is no longer at its recorded place.
      row: The one row of them to give, by its id.

    Raises:
      UserError: `step` is below 1, the folder holds no run, the data are not found or not the
        run's own, or `row` is none of the rows.
    """
    if step < 1:
        raise UserError(f"step={step} must be at least 1: the first update's metrics say step 1")
    course = _course(run)
    known = [row["step"] for name in (METRICS, EVENTS) for row in json_rows(run / name)]
    if step > (last := max(known, default=step)):
        raise UserError(f"step={step} is beyond the run's last so far, {last:g}: choose up to that")
    found = _data(run, course["data"], data)
    batches = TrainBatches(found, course["seq"], course["batch"], course["seed"])
    ids = batches.row_ids(batch_index(step - 1, read_skips(run))).tolist()
    named = [row for row in _named(run, step) if row in range(batches.n_rows)]
    notes = {each: "named in the log" if each in named else "" for each in ids}
    notes |= {each: _PASSED_OVER for each in named if each not in notes}
    if row is not None and row not in notes:
        raise UserError(
            f"row={row} is none of step {step}'s: choose one of {', '.join(map(str, notes))}"
        )
    shown = [*ids, *list(notes)[len(set(ids)) :]] if row is None else [row]
    return [_row(batches, each, notes[each]) for each in shown]


def _row(batches: TrainBatches, row: int, note: str) -> TextRow:
    store, tokens = batches.place(row)
    text = _text(store.tokenizer, ids_of(store.tokens[tokens.start : tokens.stop]).tolist())
    first, last = store.document_at(tokens[0]), store.document_at(tokens[-1])
    sources = tuple(
        source.name
        for source in store.sources
        if source.first_document <= last and first < source.first_document + source.documents
    )
    return TextRow(row, tokens, sources, text, note)


def _named(run: Path, step: int) -> list[int]:
    """The rows that the log names at this step, each once."""
    events = [event.get("rows") for event in json_rows(run / EVENTS) if event["step"] == step]
    rows = [row for rows in events if isinstance(rows, list) for row in rows]
    return list(dict.fromkeys(row for row in rows if type(row) is int))


def visible(text: str) -> str:
    """The text with what cannot be seen written out: control and formatting characters as escapes.

    Line ends and tabs stay. A terminal is thus safe from what the data may tell it to do.
    """
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char)[0] != "C"
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The ids decoded in the stretches between ends of documents, which decode to nothing."""
    texts, start = [], 0
    for index, token in enumerate(ids):
        if token == tokenizer.eos_id:
            texts.append(tokenizer.decode(ids[start:index]))
            start = index + 1
    return END_OF_TEXT.join([*texts, tokenizer.decode(ids[start:])])


def _course(run: Path) -> dict[str, Any]:
    path = run / COURSE
    if not path.is_file():
        raise UserError(f"{run} holds no run: give the folder of a `gptj train` run")
    try:
        course = json.loads(path.read_text())
        whole = all(type(course[name]) is int for name in ("seq", "batch", "seed"))
        damaged = not whole or not isinstance(course["data"], str)
    except (ValueError, KeyError, TypeError):
        damaged = True
    if damaged:
        raise UserError(
            f"{path} is damaged, so which rows came when is not known: copy the run's folder again"
        )
    return dict(course)


def _data(run: Path, fingerprint: str, data: Path | None) -> Mixture:
    """The run's own data."""
    folder = _recorded(run) if data is None else data
    if not is_data(folder):
        raise UserError(f"{folder} holds no prepared data: give the folder of {run}'s as --data")
    found = Mixture.open(folder)
    if found.fingerprint != fingerprint:
        raise UserError(
            f"{folder} holds other data (fingerprint {found.fingerprint[:12]}) than {run} trained "
            f"on ({fingerprint[:12]}): give the folder of those as --data"
        )
    return found


def _recorded(run: Path) -> Path:
    try:
        return Path(json.loads((run / DATA).read_text())["path"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{run} does not say where its data are: give their folder as --data"
        ) from None
