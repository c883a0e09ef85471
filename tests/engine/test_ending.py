"""Where the engine ends a completion, and how its text comes before."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import model
from gptj.config import ModelConfig
from gptj.engine import programs
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Completion, Request, SamplingParams
from gptj.engine.text import UntilStop
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 32, 4, 8, 128, 257, 384, 64)
BYTES = Tokenizer.bytes()
SMALL = EngineConfig(slots=4, chunk=16, burst=3)


@pytest.fixture(scope="module")
def params():
    return model.init(jax.random.key(0), CONFIG)


@pytest.fixture
def engine(params) -> Engine:
    return Engine(params, CONFIG, BYTES, SMALL)


@pytest.fixture
def write(engine, monkeypatch):
    """The engine with a model that writes given texts, a byte at a time, whatever it reads."""

    def run(*texts: str | bytes, on_delta=None, prompts=None, **sampling) -> list[Completion]:
        texts = [text.encode() if isinstance(text, str) else text for text in texts]
        script = [iter([*text, BYTES.eos_id]) for text in texts]

        def decode(params, cache, slots, steps, burst, config):
            tokens = np.full((burst, SMALL.slots), -1)
            for row in tokens[:steps]:
                row[: len(script)] = [next(text, -1) for text in script]
            return tokens, None, cache, slots

        monkeypatch.setattr(programs, "decode", decode)
        asked = [Request(p, SamplingParams(**sampling)) for p in prompts or ["p"] * len(texts)]
        return [choices[0] for choices in engine.run(asked, on_delta)]

    return run


class TestWhereItEnds:
    def test_at_the_end_of_text_token_which_is_not_part_of_it(self, write):
        assert write("hello", "") == [
            Completion("hello", list(b"hello"), "stop"),
            Completion("", [], "stop"),
        ]

    def test_after_max_tokens(self, write):
        assert write("hello", max_tokens=3) == [Completion("hel", list(b"hel"), "length")]

    def test_with_the_text_although_there_was_no_room_left(self, write):
        # Reaching the limit decides: nothing is drawn after it that could say the text was over.
        assert write("hello", max_tokens=5)[0].finish_reason == "length"

    @pytest.mark.parametrize("prompt", [1, 60, 63])
    def test_where_prompt_and_completion_fill_the_context(self, write, prompt):
        (completion,) = write("x" * 100, prompts=["p" * prompt])
        assert completion == Completion("x" * (64 - prompt), [120] * (64 - prompt), "length")

    def test_each_row_for_itself(self, write):
        a, b, c = write("a" * 100, "bb", "c. c", prompts=["p" * 62, "p", "p"], stop=(".",))
        assert (a.text, b.text, c.text) == ("aa", "bb", "c")
        assert (a.finish_reason, b.finish_reason, c.finish_reason) == ("length", "stop", "stop")

    def test_before_a_stop_string_that_several_tokens_spell(self, write):
        (completion,) = write("one\n\ntwo", stop=("\n\n",))
        assert completion == Completion("one", list(b"one\n\n"), "stop")

    def test_before_the_stop_string_that_is_complete_first(self, write):
        assert write("abcdef", stop=("bcde", "cd", "f"))[0].text == "ab"

    def test_a_stop_string_cut_off_by_the_end_stays(self, write):
        assert write("one EN", stop=("END",))[0].text == "one EN"
        assert write("one END", stop=("END",), max_tokens=6)[0].text == "one EN"

    def test_a_stop_string_may_be_any_text(self, write):
        assert write("a🙂b", stop=("🙂",))[0].text == "a"
        assert write(b"a\xf0", stop=("\ufffd",))[0] == Completion("a", [97, 0xF0], "stop")


class TestStreaming:
    def stream(self, write, *texts, **sampling):
        pieces = [[] for _ in texts]
        completions = write(
            *texts, on_delta=lambda delta: pieces[delta.request].append(delta.text), **sampling
        )
        assert ["".join(row) for row in pieces] == [each.text for each in completions]
        return [[piece for piece in row if piece] for row in pieces]

    def test_characters_come_whole_and_at_once(self, write):
        (pieces,) = self.stream(write, "aé🙂🙂")
        assert pieces == ["aé", "🙂", "🙂"]

    def test_text_that_may_become_a_stop_string_waits(self, write):
        pieces = self.stream(write, "a E EN END b", stop=("END",))
        assert pieces == [["a ", "E ", "EN "]]

    def test_what_waited_comes_at_the_end(self, write):
        assert self.stream(write, "abc EN", stop=("END",)) == [["abc", " ", "EN"]]

    def test_half_a_character_at_the_end_is_shown_as_such(self, write):
        assert self.stream(write, "é🙂", max_tokens=4) == [["é", "\ufffd"]]

    @given(data=st.data())
    @settings(deadline=None)
    def test_pieces_do_not_matter(self, data):
        some = st.text("ab", min_size=1, max_size=4)
        stops = data.draw(st.lists(some, max_size=3))
        pieces = data.draw(st.lists(st.text("ab", max_size=5), max_size=8))
        whole = "".join(pieces)

        def first_stop() -> int | None:
            for end in range(len(whole) + 1):
                if sizes := [len(stop) for stop in stops if whole[:end].endswith(stop)]:
                    return end - max(sizes)
            return None

        until, shown, read = UntilStop(stops), "", ""
        for piece in pieces:
            shown += until.push(piece)
            read += piece
            if until.found:
                break
            waiting = read[len(shown) :]
            assert read == shown + waiting
            assert not waiting or any(stop.startswith(waiting) for stop in stops)
        else:
            shown += until.push("", last=True)
        assert until.found == (first_stop() is not None)
        assert shown == whole[: first_stop()]
