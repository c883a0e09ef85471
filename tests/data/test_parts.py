"""A long text in parts: where it is cut, and what is said of bytes that lie far within it."""

import io
import json
from pathlib import Path

import pytest

from gptj.data import read, unpack
from gptj.data.find import Source
from gptj.data.read import Document, Reader, joined
from gptj.data.unpack import unpacked_as
from gptj.errors import UserError
from gptj.files import file_at


def documents(path: Path, **options) -> list[Document]:
    return list(Reader(**options).documents(Source(file_at(str(path)), "a")))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one two", ["one two"]),  # as long as may be held
        ("one two ", ["one two", " "]),
        ("one a b c", ["one a b", " c"]),  # the last place, so that no more are made than need be
        ("a bcdefgh", ["a", " bcdefgh"]),
        ("abcdefgh", ["abcdefgh"]),
        (" abcdefg", [" abcdefg"]),
        ("a\n\n\n\n\n\n\nb", ["a", "\n\n\n\n\n\n\nb"]),
        ("abcdefgh\tijklmno p", ["abcdefgh\tijklmno", " p"]),
    ],
)
def test_more_than_may_be_held_is_cut_at_the_last_end_of_a_word(text, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "PART_CHARACTERS", 7)
    (tmp_path / "a.txt").write_text(text)
    found = documents(tmp_path / "a.txt")
    assert [each.text for each in found] == parts
    assert [each.continues for each in found] == [True] * (len(parts) - 1) + [False]


def test_parts_are_joined_and_whole_documents_are_left_as_they_are():
    whole = [Document("a", text, number=number) for number, text in enumerate(("b", "cde", ""))]
    parts = [whole[0], *(Document("a", c, continues=True, number=1) for c in "cd")]
    parts += [Document("a", "e", number=1), whole[2]]
    found = list(joined(parts))
    assert [(each.text, each.continues, each.key) for each in found] == [
        ("b", False, ("a", 0)),
        ("cde", False, ("a", 1)),
        ("", False, ("a", 2)),
    ]
    assert (found[0], found[2]) == (whole[0], whole[2])


@pytest.mark.parametrize("chunk", [1, 4, 5, 6, 100])
def test_what_is_no_text_is_told_by_its_place_in_the_file(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "CHUNK_BYTES", chunk)
    (tmp_path / "a.txt").write_bytes(b"caf\xc3\xa9 noir\xe9 x")
    with pytest.raises(UserError, match=r"\(.* at byte 10\)"):
        documents(tmp_path / "a.txt", strict=True)


def test_a_mark_of_byte_order_is_left_out_at_the_beginning_only(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "CHUNK_BYTES", 3)
    (tmp_path / "a.txt").write_bytes("\ufeffone\ufeff".encode())
    assert [each.text for each in documents(tmp_path / "a.txt")] == ["one\ufeff"]


def test_a_field_whose_name_has_a_dot_comes_before_one_within(tmp_path):
    lines = [{"a.b": "own", "a": {"b": "within"}}, {"a": {"b": "within"}}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [each.text for each in documents(tmp_path / "a.jsonl", text_field="a.b")] == [
        "own",
        "within",
    ]


def test_zstandard_with_the_longest_reach_is_read():
    """As `zstd --long=31` writes it, in a frame made by hand: its head, and a block as it is."""
    block = (1 | len(b"hello") << 3).to_bytes(3, "little") + b"hello"
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, (31 - 10) << 3]) + block
    assert b"".join(unpacked_as("a.zst", io.BytesIO(frame))) == b"hello"
