"""Log-probabilities as OpenAI writes them: each token in its place, and none shown too soon."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.engine.request import TokenLogprob
from gptj.serve.logprobs import (
    Placed,
    Placer,
    alternatives,
    place_prompt,
    spelling,
    token_text,
)
from gptj.tokenizer import END_OF_TEXT, Tokenizer

BYTES = Tokenizer.bytes()
EOS = BYTES.eos_id
ANY = st.text("aé日😀", max_size=6)


def scored(*tokens) -> list[TokenLogprob]:
    return [TokenLogprob(token, -float(n), ((token, -float(n)),)) for n, token in enumerate(tokens)]


class TestTexts:
    @pytest.mark.parametrize(
        ("token", "piece", "text"),
        [
            (97, b"a", "a"),
            (0xC3, b"\xc3", "bytes:\\xc3"),
            (EOS, END_OF_TEXT.encode(), END_OF_TEXT),
            (BYTES.vocab_size, b"", ""),  # a row that only fills up the model's
            (10**6, b"", ""),
        ],
    )
    def test_a_token_is_its_bytes(self, token, piece, text):
        assert spelling(BYTES, token) == piece
        assert token_text(BYTES, token) == text

    def test_the_likeliest_are_told_by_text_and_the_own_among_them(self):
        top = ((97, -0.1), (98, -0.2))
        assert alternatives(BYTES, Placed(98, 0, -0.2, top)) == {"a": -0.1, "b": -0.2}
        assert alternatives(BYTES, Placed(99, 0, -5.0, top)) == {"a": -0.1, "b": -0.2, "c": -5.0}
        assert alternatives(BYTES, Placed(99, 0, -5.0)) == {"c": -5.0}
        assert alternatives(BYTES, Placed(99, 0, None)) is None

    def test_of_two_with_one_text_the_likelier_is_told(self):
        top = ((300, -0.1), (400, -0.2))
        assert alternatives(BYTES, Placed(500, 0, -3.0, top)) == {"": -0.1}


class TestPrompts:
    @given(ANY)
    @settings(max_examples=30, deadline=None)
    def test_each_token_begins_where_the_text_before_it_ends(self, text):
        tokens = BYTES.encode(text)
        placed = place_prompt(BYTES, tokens, scored(*tokens[1:]))
        assert [each.token for each in placed] == tokens
        for index, each in enumerate(placed):  # whole characters so far
            assert each.offset == len(bytes(tokens[:index]).decode("utf-8", "ignore"))

    def test_the_first_has_no_probability(self):
        first, second = place_prompt(BYTES, [97, 98], scored(98))
        assert (first.logprob, first.top) == (None, ())
        assert (second.logprob, second.top) == (0.0, ((98, 0.0),))
        assert place_prompt(BYTES, [], []) == []


class TestPieces:
    @given(ANY, st.lists(st.integers(0, 24), max_size=5))
    @settings(max_examples=50, deadline=None)
    def test_in_whatever_pieces_they_come_they_are_placed_as_in_one(self, text, cuts):
        tokens = BYTES.encode(text)
        found = scored(*tokens)
        whole = Placer(BYTES).push(found, text, last=True)
        assert [each.token for each in whole] == tokens

        placer, stream, pieces = Placer(BYTES), BYTES.stream(), []
        edges = sorted({0, len(tokens), *(cut for cut in cuts if cut <= len(tokens))})
        for first, past in itertools.pairwise(edges):
            sure = "".join(stream.push(token) for token in tokens[first:past])
            pieces += placer.push(found[first:past], sure)
            assert all(each.offset < placer._shown for each in pieces)
        pieces += placer.push((), "", last=True)
        assert pieces == whole

    def test_a_text_after_another_begins_where_that_ends(self):
        placed = Placer(BYTES, begin=7).push(scored(97, 98), "ab", last=True)
        assert [each.offset for each in placed] == [7, 8]

    def test_of_a_stop_string_nothing_is_shown(self):
        placer = Placer(BYTES)
        assert [each.token for each in placer.push(scored(97, 98), "a")] == [97]
        assert placer.push(scored(99), "", last=True) == []  # `bc` ended it

    def test_one_that_only_began_is_shown_in_the_end(self):
        placer = Placer(BYTES)
        placer.push(scored(97, 98), "a")
        assert [each.token for each in placer.push(scored(100), "bd", last=True)] == [98, 100]

    def test_half_a_character_at_the_end_is_shown_with_what_stands_for_it(self):
        placer = Placer(BYTES)
        assert [each.token for each in placer.push(scored(97, 0xC3), "a")] == [97]
        assert [each.token for each in placer.push((), "\ufffd", last=True)] == [0xC3]
