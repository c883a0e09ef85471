"""Texts to tokens: boundaries, windows, truncation, and the style of 2021."""

import sys
from types import SimpleNamespace

import pytest

from gptj.engine.packing import Asked
from gptj.errors import UserError
from gptj.evaluate.requests import Reader, windows
from gptj.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()
EOS = BYTES.eos_id


def ids(text: str) -> tuple[int, ...]:
    return tuple(BYTES.encode(text))


def parts(asked: Asked) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(asked.context.tolist()), tuple(asked.continuation.tolist())


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 8, 9, 17])
def test_each_token_is_scored_once_with_as_much_context_as_fits(length, stride):
    window, tokens = 4, list(range(length))
    found = list(windows(tokens, -1, window, stride))
    assert [token for each in found for token in each.continuation] == tokens
    for number, each in enumerate(found):
        whole = each.tokens
        assert len(each.context) >= 1
        assert len(whole) <= window + 1
        assert number == 0 or len(whole) == window + 1
        assert len(each.continuation) <= (stride if number else window)


def test_a_long_context_loses_its_beginning():
    reader = Reader(BYTES, 8)
    assert parts(reader.pair("abcdefgh", "xyz")) == (ids("cdefgh"), ids("xyz"))
    assert reader.prompt("abcdefgh", 3) == list(ids("defgh"))
    assert reader.shortened == 1  # the same context
    assert parts(reader.pair("ab", "xyz")) == (ids("ab"), ids("xyz"))
    assert parts(reader.pair("abc", "12345678")) == (ids("c"), ids("12345678"))
    assert reader.shortened == 2
    with pytest.raises(UserError, match=r"continuation of 9 tokens .* window of 8: evaluate"):
        reader.pair("a", "123456789")


def test_spaces_belong_to_what_follows():
    reader = Reader(BYTES, 32)
    assert parts(reader.pair("ab  ", "c")) == (ids("ab"), ids("  c"))
    assert parts(reader.pair("  ", "c")) == ((EOS,), ids("  c"))


def test_an_empty_context_is_end_of_text():
    reader = Reader(BYTES, 32)
    assert parts(reader.pair("", "ab")) == ((EOS,), ids("ab"))
    assert parts(reader.pair("", "<|endoftext|>ab")) == ((EOS,), ids("ab"))
    with pytest.raises(UserError, match="'' has no tokens of its own"):
        reader.pair("ab", "")


class TestAs2021:
    @pytest.fixture
    def reader(self, monkeypatch):
        mended = SimpleNamespace(fix_text=lambda text, normalization: text.replace("’", "'"))
        monkeypatch.setitem(sys.modules, "ftfy", mended)
        return Reader(BYTES, 8, "gptj-2021")

    def test_every_context_begins_with_end_of_text_and_is_mended(self, reader):
        assert parts(reader.pair("it’s", " a")) == ((EOS, *ids("it's")), ids(" a"))
        assert parts(reader.pair("", "’a")) == ((EOS,), ids("'a"))

    def test_both_parts_are_read_apart_with_the_space_where_it_is(self, reader):
        assert parts(reader.pair("ab ", "c")) == ((EOS, *ids("ab ")), ids("c"))

    def test_the_window_held_one_token_fewer(self, reader):
        assert parts(reader.pair("abcdefgh", "xy")) == (ids("cdefgh"), ids("xy"))

    def test_it_knew_no_whole_texts_nor_completions(self, reader):
        for ask in (lambda: reader.rolling("a"), lambda: reader.prompt("a", 2)):
            with pytest.raises(UserError, match="leave out --as gptj-2021"):
                ask()

    def test_without_ftfy_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "ftfy", None)
        with pytest.raises(UserError, match=r"pip install 'gptj-jax\[eval\]'"):
            Reader(BYTES, 8, "gptj-2021")

    def test_on_lambada_it_alters_1993_prompts(self, real_data):
        pytest.importorskip("ftfy")
        from gptj.evaluate.local import rows

        reader = Reader(BYTES, 2048, "gptj-2021")
        prompts = [row["text"].rpartition(" ")[0] for row in rows("lambada_openai", real_data)]
        altered = sum(reader.tokens(prompt) != BYTES.encode(prompt) for prompt in prompts)
        assert (altered, len(prompts)) == (1993, 5153)


def test_an_unknown_style_is_refused():
    with pytest.raises(UserError, match="as='gptj-2020' is not one of today, gptj-2021"):
        Reader(BYTES, 8, "gptj-2020")
