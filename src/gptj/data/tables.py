"""Tables to records: Parquet and Arrow, which folders of `datasets` hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gptj.data.examples import named
from gptj.data.unpack import reading
from gptj.errors import UserError
from gptj.files import File

ROWS = 256
"""Read at a time."""
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""What a stream of Arrow's ends with; one that begins otherwise is of before 2019."""


def records(
    file: File, kind: str, columns: Sequence[str], lack: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row's `columns`, and where it stands; `lack` is what to do where there are none.

    Raises:
      UserError: the file is no such table, or cannot be read; what it needs is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(f"{file.path} needs pyarrow: pip install 'gptj-jax[data]'") from error
    number = 0
    with reading(file), file.open() as opened:
        try:
            for batch in _parquet(opened, columns) if kind == ".parquet" else _arrow(opened):
                held = [name for name in batch.schema.names if name in columns]
                if not held:
                    raise UserError(
                        f"{file.path} has no column {columns[0]!r} (it has "
                        f"{named(_fields(batch.schema))}): {lack}"
                    )
                rows = batch.select(held)
                for begin in range(0, len(rows), ROWS):  # a batch of Arrow's may be of any size
                    for row in rows.slice(begin, ROWS).to_pylist():
                        number += 1
                        yield f"{file.path}:{number}", row
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file.path}, in one of the {ROWS} rows after {number}, holds text that is not "
                f"UTF-8 ({error.reason}): mend the table, or leave it out"
            ) from error
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (error.errno or file.remote):  # not pyarrow's own
                raise
            raise UserError(
                f"{file.path} is no {kind.lstrip('.')} table, or cut short "
                f"({str(error).splitlines()[0]}): fetch it again"
            ) from error


def _fields(schema: Any) -> Iterator[str]:
    """The names of columns, with a dot where one lies in another."""
    for column in schema:
        inner = column.flatten()
        yield from [column.name] if inner == [column] else _fields(inner)


def _parquet(opened: Any, columns: Sequence[str]) -> Iterator[Any]:
    from pyarrow import parquet

    table = parquet.ParquetFile(opened)
    names = [name for name in table.schema_arrow.names if name in columns]
    yield from table.iter_batches(ROWS, columns=names or None)


def _arrow(opened: Any) -> Iterator[Any]:
    """Batches of an Arrow file, or of a stream, which is what `datasets` writes."""
    import pyarrow
    from pyarrow import ipc

    magic = opened.read(6)
    opened.seek(0)
    if magic == b"ARROW1":
        table = ipc.open_file(opened)
        yield from (table.get_batch(number) for number in range(table.num_record_batches))
    else:
        yield from ipc.open_stream(opened)
        end = opened.tell()
        opened.seek(max(0, end - len(_END)))
        # The format allows a stream to just stop, but then nothing tells a part from the whole.
        last = opened.read(len(_END))
        if magic[:4] == _END[:4] and last != _END:
            raise pyarrow.ArrowInvalid("it lacks the end of a stream")
        if opened.read(1):
            raise pyarrow.ArrowInvalid("more follows its end")
