"""One completion: what its tokens make of it, what it tells, and which of several are best."""

from types import SimpleNamespace

import numpy as np
import pytest

from gptj.engine.job import Job, State, best, logprob_at
from gptj.engine.request import SamplingParams, TokenLogprob
from gptj.engine.step import LogProbs
from gptj.engine.text import TextWriter
from gptj.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()
END = BYTES.eos_id


def job(prompt=(1, 2, 3), room=8, score_from=1, stop=(), guide=None, **sampling) -> Job:
    params = SamplingParams(stop=stop, **sampling)
    writer = TextWriter(BYTES, stop)
    ends = frozenset({END})
    return Job(7, 2, list(prompt), params, score_from, room, [], ends, writer, guide)


def write(into: Job, text: str) -> Job:
    for token in text.encode():
        into.push(token, None)
    return into


def found(count: int) -> LogProbs:
    """The `i`-th place: its token at -i, and the likeliest 3 i, 3 i + 1, 3 i + 2 at halves."""
    places = np.arange(count)
    return LogProbs(
        own=-places.astype(np.float32),
        top=-(places[:, None] + np.arange(3) / 2).astype(np.float32),
        top_tokens=3 * places[:, None] + np.arange(3),
    )


class TestReading:
    @pytest.mark.parametrize(("prompt", "chunks"), [([5], 0), ([5, 6], 1), ([5, 6, 7, 8], 3)])
    def test_all_of_a_prompt_but_its_last_token_is_read(self, prompt, chunks):
        one = job(prompt)
        assert one.to_read == chunks
        assert one.is_read == (chunks == 0)
        one.read = chunks
        assert one.is_read

    @pytest.mark.parametrize("size", [1, 2, 3, 8])
    @pytest.mark.parametrize("score_from", [1, 2, 4])
    def test_each_token_but_the_first_is_scored_once_whatever_the_chunks(self, size, score_from):
        prompt = [10, 11, 12, 13, 14]
        one = job(prompt, score_from=score_from, prompt_logprobs=2)
        while not one.is_read:
            one.push_scores(found(size), size)
            one.read += size
        assert [each.token for each in one.prompt_logprobs] == prompt[score_from:]
        for index, each in enumerate(one.prompt_logprobs, score_from):
            place = (index - 1) % size
            assert each.logprob == -place
            assert each.top == ((3 * place, -place), (3 * place + 1, -place - 0.5))

    def test_none_of_the_likeliest_where_none_are_asked_for(self):
        one = job([1, 2], prompt_logprobs=0)
        one.push_scores(found(1), 1)
        assert one.prompt_logprobs == [TokenLogprob(2, 0.0)]
        assert logprob_at(found(2), 1, 9, 1) == TokenLogprob(9, -1.0, ((3, -1.0),))


class TestTheEnd:
    def test_where_there_is_no_more_room(self):
        one = write(job(room=3), "ab")
        assert not one.is_done
        write(one, "c")
        assert (one.completion.text, one.completion.finish_reason) == ("abc", "length")

    def test_at_a_token_that_ends_it_which_is_none_of_it(self):
        one = write(job(), "ab")
        one.push(END, None)
        assert one.completion.tokens == [*b"ab"]
        assert (one.completion.text, one.completion.finish_reason) == ("ab", "stop")
        assert one.state is State.DONE

    def test_at_a_stop_string_even_in_the_last_room(self):
        one = write(job(room=4, stop=("cd",)), "abcd")
        assert (one.completion.text, one.completion.finish_reason) == ("ab", "stop")
        assert one.completion.tokens == [*b"abcd"]

    def test_what_a_stop_string_held_back_is_shown_at_the_end(self):
        one = write(job(stop=("cd",)), "abc")
        assert one.news().text == "ab"
        one.push(END, None)
        assert (one.news().text, one.completion.text) == ("c", "abc")

    def test_a_character_cut_off_may_yet_complete_a_stop_string(self):
        one = job(stop=("\ufffd",))
        one.push("é".encode()[0], None)
        one.finish("cancelled")
        assert (one.completion.text, one.completion.finish_reason) == ("", "stop")

    @pytest.mark.parametrize(
        ("lost", "over", "room", "reason"),
        [
            (True, False, 8, "error"), (False, True, 8, "stop"), (True, True, 8, "error"),
            (False, True, 1, "stop"), (True, False, 1, "error"), (False, False, 1, "length"),
        ],
    )  # fmt: skip
    def test_as_its_guide_says(self, lost, over, room, reason):
        seen = []
        guide = SimpleNamespace(push=seen.append, is_lost=lost, is_over=over)
        one = write(job(room=room, guide=guide), "a")
        assert (one.completion.finish_reason, seen) == (reason, [*b"a"])

    def test_a_guide_hears_nothing_of_an_end(self):
        guide = SimpleNamespace(push=None, is_lost=False, is_over=False)
        one = job(guide=guide)
        one.push(END, None)
        assert one.completion.finish_reason == "stop"


class TestNews:
    def test_is_what_came_since_the_last(self):
        one = job()
        assert one.news() is None
        write(one, "ab")
        delta = one.news()
        assert (delta.request, delta.choice, delta.text, delta.tokens) == (7, 2, "ab", (*b"ab",))
        assert (delta.completion, delta.logprobs) == (None, ())
        assert one.news() is None
        write(one, "c").finish("cancelled")
        last = one.news()
        assert (last.text, last.tokens, last.completion) == ("c", (*b"c",), one.completion)
        assert last.completion.finish_reason == "cancelled"

    def test_an_end_is_news_though_no_token_came(self):
        one = job()
        one.finish("length")
        assert one.news().tokens == ()

    @pytest.mark.parametrize("asked", [None, 0, 2])
    def test_log_probabilities_are_told_only_where_they_were_asked_for(self, asked):
        one, all_of_them = job(logprobs=asked, best_of=2), []
        assert one.wants_logprobs
        for token in b"abc":
            one.push(token, TokenLogprob(token, -1.0))
            all_of_them.append(TokenLogprob(token, -1.0))
            if token == b"a"[0]:
                assert one.news().logprobs == (() if asked is None else tuple(all_of_them))
        assert one.news().logprobs == (() if asked is None else tuple(all_of_them[1:]))
        one.finish("length")
        assert one.news().logprobs == ()
        assert one.completion.logprobs == (None if asked is None else all_of_them)
        assert one.completion.prompt_logprobs is None

    @pytest.mark.parametrize(
        ("params", "wanted"),
        [({}, False), ({"logprobs": 0}, True), ({"n": 2}, False), ({"n": 2, "best_of": 2}, False),
         ({"best_of": 2}, True), ({"prompt_logprobs": 0}, False)],
    )  # fmt: skip
    def test_they_are_wanted_where_asked_for_or_where_completions_compete(self, params, wanted):
        assert job(**params).wants_logprobs == wanted
        assert job(**params).is_scored == ("prompt_logprobs" in params)


def test_the_best_are_those_of_the_highest_mean_and_are_numbered_anew():
    means = {"a": (-3.0, -1.0), "bc": (-1.0,), "d": (-1.5, -1.5, -1.5), "": ()}
    jobs = []
    for text, each in means.items():
        one = write(job(best_of=4), text)
        one.logprobs = [TokenLogprob(0, value) for value in each]
        one.finish("length")
        jobs.append(one)
    assert [one.mean_logprob() for one in jobs] == [-2.0, -1.0, -1.5, 0.0]
    found = best(jobs, 3)
    assert [delta.text for delta in found] == ["", "bc", "d"]
    assert [delta.choice for delta in found] == [0, 1, 2]
