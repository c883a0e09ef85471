"""An answer that goes from replica to replica comes to its client as from one."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.engine.request import Completion, Delta, Request, SamplingParams, TokenLogprob
from gptj.serve.asked import Asked
from gptj.serve.course import Course
from gptj.serve.refusal import Refused

TOKENS = [7, 1, 1, 5, 9, 2]
LOGPROBS = [TokenLogprob(token, -0.5 * n) for n, token in enumerate(TOKENS)]
TEXT = "to be or not"
WHOLE = Completion(TEXT, TOKENS, "length", LOGPROBS)


class Counted:
    """Metrics that only remember what they were told."""

    def __init__(self):
        self.read, self.came_with = 0, []
        self.prompt_tokens = SimpleNamespace(inc=self.inc)

    def inc(self, count):
        self.read += count

    def came(self, asked, index, delta, now):
        self.came_with.append((index, delta.choice))


async def course(n=1, requests=1):
    started, metrics = [], Counted()
    asks = [Request([3, 4, 5], SamplingParams(n=n)) for _ in range(requests)]
    asked = Asked(asks, started.append)
    return Course(asked, metrics), asked, metrics, started


def pieces(tokens, texts, choice=0):
    """The answer in pieces that end at these tokens and letters, as one replica sends them."""
    ends = list(zip([*tokens, len(TOKENS)], [*texts, len(TEXT)], strict=True))
    begins = [(0, 0), *ends[:-1]]
    return [
        Delta(
            0, choice, TEXT[b:d], tuple(TOKENS[a:c]), tuple(LOGPROBS[a:c]),
            WHOLE if n == len(ends) - 1 else None,
        )
        for n, ((a, b), (c, d)) in enumerate(zip(begins, ends, strict=True))
    ]  # fmt: skip


def cuts(of):
    return st.lists(st.integers(0, of), min_size=3, max_size=3).map(sorted)


@settings(deadline=None)
@given(
    sent=st.lists(
        st.tuples(cuts(len(TOKENS)), cuts(len(TEXT)), st.integers(0, 3)), min_size=0, max_size=3
    ),
    last=st.tuples(cuts(len(TOKENS)), cuts(len(TEXT))),
)
def test_each_token_and_letter_comes_once_however_often_it_is_begun(sent, last):
    """Some replicas are lost after so many pieces, and the last one sends all of them."""

    async def run():
        under_way, asked, _, _ = await course()
        for tokens, texts, count in [*sent, (*last, 4)]:
            under_way.begin("all alike")
            under_way.take("accepted", None)
            for piece in pieces(tokens, texts)[:count]:
                under_way.take("delta", (0, piece))
        return [delta async for _, delta in asked.deltas()]

    came = asyncio.run(run())
    assert "".join(delta.text for delta in came) == TEXT
    assert [token for delta in came for token in delta.tokens] == TOKENS
    assert [each for delta in came for each in delta.logprobs] == LOGPROBS
    assert [delta.completion for delta in came] == [None] * (len(came) - 1) + [WHOLE]
    assert all(delta.tokens or delta.text or delta.completion for delta in came)


def test_a_replica_unlike_the_first_may_begin_only_what_nobody_has_a_part_of():
    async def run():
        under_way, *_ = await course()
        under_way.begin("one kind")
        assert not under_way.has_begun
        under_way.begin("another kind")
        under_way.take("delta", (0, pieces([2, 2, 2], [0, 0, 0])[0]))
        assert under_way.has_begun
        under_way.begin("another kind")
        with pytest.raises(Refused, match="not like it") as caught:
            under_way.begin("one kind")
        return caught.value

    refused = asyncio.run(run())
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"


def test_what_is_counted_is_counted_once():
    async def run():
        under_way, asked, metrics, started = await course(n=2, requests=2)
        for _ in range(2):
            under_way.begin("all alike")
            under_way.take("accepted", None)
            under_way.take("starts", 1)
            for piece in pieces([1, 2, 3], [1, 2, 3], choice=1)[:2]:
                under_way.take("delta", (0, piece))
        return asked.used, metrics.read, metrics.came_with, started, under_way.running

    used, read, came, started, running = asyncio.run(run())
    assert (used, read) == (6 + 2, 6)
    assert came == [(0, 1)] * 2
    assert (started, running) == ([1, 0], {0, 1})


def test_what_is_cut_ends_with_what_the_client_has():
    async def run():
        under_way, asked, *_ = await course(n=2)
        under_way.begin("all alike")
        under_way.take("accepted", None)
        under_way.take("delta", (0, pieces([2, 3, 4], [4, 5, 6])[0]))
        for piece in pieces([0, 0, 0], [0, 0, 0], choice=1):
            under_way.take("delta", (0, piece))
        under_way.cut()
        under_way.take("delta", (0, pieces([2, 3, 4], [4, 5, 6])[1]))  # which comes too late
        return await asked.completions()

    ((cut, whole),) = asyncio.run(run())
    assert cut == Completion(TEXT[:4], TOKENS[:2], "cancelled", LOGPROBS[:2])
    assert whole == WHOLE


def test_what_no_replica_has_accepted_is_refused():
    async def run():
        under_way, asked, *_ = await course()
        under_way.cut()
        await asked.accepted

    with pytest.raises(Refused):
        asyncio.run(run())
