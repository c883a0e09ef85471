"""Tokens to text: what may be shown, piece by piece, and where it ends."""

import pytest

from gptj.engine.text import TextWriter, UntilStop
from gptj.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()


def pushed(stops, *pieces: str) -> list[str]:
    """What each piece makes sure, and last of all what was held back."""
    until = UntilStop(stops)
    return [*(until.push(piece) for piece in pieces), until.push("", last=True)]


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        ((), ("ab", "c"), ["ab", "c", ""]),
        (("END",), ("a", "E", "N", "D"), ["a", "", "", "", ""]),
        (("END",), ("aE", "NE", "x"), ["a", "EN", "Ex", ""]),
        (("END",), ("EN",), ["", "EN"]),
        (("END",), ("xENDy",), ["x", ""]),
        (("END",), ("xEND", ), ["x", ""]),
        (("aab",), ("aa", "a", "b"), ["", "a", "", ""]),
        (("x",), ("abc", "x"), ["abc", "", ""]),
        (("bc", "abcd"), ("abc", ), ["a", ""]),  # complete first
        (("abc", "bc"), ("abc", ), ["", ""]),  # at once: the longer, which begins before
        (("ab", "bcd"), ("x", "b", "c"), ["x", "", "", "bc"]),
    ],
)  # fmt: skip
def test_what_may_become_a_stop_string_waits(stops, pieces, shown):
    assert pushed(stops, *pieces) == shown


def test_of_two_in_one_piece_the_first_complete_counts():
    until = UntilStop(("late", "b"))
    assert until.push("a late b") == "a "
    assert until.found
    until = UntilStop(("a..........z", "b"))
    assert until.push("a...b......z") == "a..."


class TestWriter:
    def test_a_character_comes_with_its_last_byte(self):
        writer = TextWriter(BYTES, ())
        assert [writer.push(byte) for byte in "é!".encode()] == ["", "é", "!"]
        assert writer.finish() == ""
        assert writer.text == ["é", "!"]
        assert not writer.stopped

    def test_a_character_without_its_last_byte_is_shown_as_such(self):
        writer = TextWriter(BYTES, ())
        writer.push("é".encode()[0])
        assert writer.finish() == "\ufffd"
        assert writer.text == ["\ufffd"]

    def test_a_stop_string_is_none_of_the_text(self):
        writer = TextWriter(BYTES, ("END",))
        assert "".join(writer.push(byte) for byte in b"x EN") == "x "
        assert not writer.stopped
        assert writer.push(ord("D")) == ""
        assert writer.stopped
        assert (writer.finish(), "".join(writer.text)) == ("", "x ")

    def test_without_a_tokenizer_there_is_no_text(self):
        writer = TextWriter(None, ())
        assert (writer.push(5), writer.finish(), writer.text) == ("", "", [])
