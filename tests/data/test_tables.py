"""Tables: which columns are read, where a record stands, what is said of one that lacks them."""

import errno
import io
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from gptj.data.examples import ExampleConfig, ExampleReader
from gptj.data.find import Source
from gptj.data.read import Reader
from gptj.data.tables import records
from gptj.errors import UserError
from gptj.files import File, file_at
from gptj.tokenizer import Tokenizer

TABLE = pa.table(
    {"text": ["a", "b", "c"], "other": [1, 2, 3], "meta": [{"x": n} for n in range(3)]}
)


def saved(path: Path, table: pa.Table = TABLE) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=2)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.fixture(params=[".parquet", ".arrow"])
def path(request, tmp_path) -> Path:
    return tmp_path / f"a{request.param}"


def rows(path: Path, *columns: str) -> list[tuple[str, dict]]:
    return list(records(file_at(str(path)), path.suffix, columns, "name one"))


def test_records_are_numbered_from_one_and_hold_what_is_asked_for(path):
    expected = [(f"{path}:{n + 1}", {"text": "abc"[n], "meta": {"x": n}}) for n in range(3)]
    assert rows(saved(path), "meta", "absent", "text") == expected


def test_a_record_without_text_is_named_by_its_number(path):
    saved(path, pa.table({"text": ["a", "b", None]}))
    with pytest.raises(UserError, match=rf"{path.name}:3 has no text in a field 'text' but null"):
        list(Reader().documents(Source(file_at(str(path)), "a")))


def test_what_a_table_has_instead_is_said(path):
    with pytest.raises(UserError, match=r"no column 'body' \(it has 'text', 'other', 'meta.x'\): "):
        rows(saved(path), "body", "title")


def test_what_to_do_about_it_is_said_too(path):
    source = Source(file_at(str(saved(path))), "a")
    with pytest.raises(UserError, match=r"no column 'body' .*: name the field with --text-field"):
        list(Reader("body").documents(source))
    reader = ExampleReader(ExampleConfig("completions"), Tokenizer.bytes())
    with pytest.raises(UserError, match=r"no column 'prompt' .*: name its fields as --examples"):
        list(Reader(examples=reader).documents(source))


def test_of_a_parquet_file_no_other_columns_are_read(tmp_path, monkeypatch):
    asked, own = [], parquet.ParquetFile.iter_batches

    def iter_batches(self, *given, columns):
        asked.append(columns)
        return own(self, *given, columns=columns)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", iter_batches)
    rows(saved(tmp_path / "a.parquet"), "text", "absent")
    assert asked == [["text"]]


def test_a_stream_from_before_its_end_was_marked_as_today(tmp_path):
    path = saved(tmp_path / "a.arrow")
    options = pa.ipc.IpcWriteOptions(use_legacy_format=True)
    with pa.ipc.new_stream(path, TABLE.schema, options=options) as writer:
        writer.write_table(TABLE)
    assert [row["text"] for _, row in rows(path, "text")] == ["a", "b", "c"]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_of_a_batch_of_any_size_a_part_is_made_records_at_a_time(count, tmp_path):
    """So that a text that is none is looked for in a few hundred rows."""
    path = tmp_path / "a.arrow"
    texts = pa.StringArray.from_buffers(
        count,
        pa.array(range(count + 1), pa.int32()).buffers()[1],
        pa.py_buffer(b"x" * (count - 1) + b"\xff"),
    )
    table = pa.table({"text": texts})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    found = records(file_at(str(path)), ".arrow", ["text"], "name one")
    before = (count - 1) // 256 * 256
    assert [next(found)[1] for _ in range(before)] == [{"text": "x"}] * before
    with pytest.raises(UserError, match=rf"in one of the 256 rows after {before}, holds text that"):
        next(found)


def test_a_table_that_a_disk_or_a_network_breaks_off_is_no_bad_table(path, monkeypatch):
    near, why = file_at(str(saved(path))), [OSError(errno.EIO, "Input/output error")]
    remote = fsspec.filesystem("memory")
    remote.pipe(f"/broken/{path.name}", path.read_bytes())
    far = file_at(f"memory://broken/{path.name}")

    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise why[-1]

    monkeypatch.setattr(File, "open", lambda self: Broken(path.read_bytes()))
    with pytest.raises(UserError, match=r" cannot be read \(Input/output error\): check it"):
        list(records(near, path.suffix, ["text"], "name one"))
    with pytest.raises(UserError, match=r" cannot be read \(.*output error.*\): check the address"):
        list(records(far, path.suffix, ["text"], "name one"))
    why.append(OSError("odd"))  # as pyarrow's own are, without a number
    with pytest.raises(UserError, match=r" cannot be read \(odd\): check the address"):
        list(records(far, path.suffix, ["text"], "name one"))
    with pytest.raises(UserError, match=rf" is no {path.suffix[1:]} table, or cut short \(odd\): "):
        list(records(near, path.suffix, ["text"], "name one"))
