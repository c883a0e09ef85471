"""Answers in pieces: the engine's news in whatever order, and what breaks an answer off."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.engine.request import Completion, Delta, Request, SamplingParams
from gptj.serve import routes
from gptj.serve.completions import Job, finish
from gptj.serve.kobold import Kobold
from gptj.serve.openai_requests import ChatRequest, CompletionRequest
from gptj.serve.refusal import Refused, broken_off
from gptj.serve.streams import EventStream

WRITTEN = Completion("text", [1, 2], "cancelled")


def http():
    state = SimpleNamespace(note={}, id="1", key=SimpleNamespace(name=""))
    return SimpleNamespace(state=state, client=None)


@pytest.fixture(scope="module")
def job(served):
    asked = CompletionRequest(
        prompt=["once", "up"], n=2, max_tokens=3, echo=True, logprobs=1, stream=True, seed=1
    )
    job = Job(served.service, http(), asked)
    asyncio.run(job.prepare())
    return job


@pytest.fixture(scope="module")
def news(served, job):
    """By request, what the engine says of it."""
    numbers = {served.alone.submit(each): n for n, each in enumerate(job._requests())}
    found = {number: [] for number in numbers.values()}
    while served.alone.busy:
        for delta in served.alone.step():
            found[numbers[delta.request]].append(delta)
    assert len(found) == 4
    assert min(map(len, found.values())) > 0
    return found


def pieces(job, order):
    """By choice, its pieces: the texts and log-probabilities in their order."""
    for prompt in job._prompts:
        prompt.echoed, prompt.held = False, []

    async def deltas():
        for each in order:
            yield each

    async def read():
        return [each async for each in job._pieces(SimpleNamespace(deltas=deltas))]

    found = sorted(asyncio.run(read()), key=lambda piece: piece.index)  # which is stable
    return {n: [*some] for n, some in itertools.groupby(found, lambda piece: piece.index)}


@settings(max_examples=30, deadline=None)
@given(draw=st.data())
def test_news_in_any_order_makes_the_same_pieces(job, news, draw):
    """A prompt's echo comes first, though another request may have read it."""
    one_by_one = [(n, delta) for n, deltas in news.items() for delta in deltas]
    turns = draw.draw(st.permutations([n for n, _ in one_by_one]))
    left = {n: iter(deltas) for n, deltas in news.items()}
    expected = pieces(job, one_by_one)
    assert [each[0].text for each in expected.values()] == ["once", "once", "up", "up"]
    assert pieces(job, [(n, next(left[n])) for n in turns]) == expected


def test_an_echo_alone_comes_first_in_each_choice(served):
    body = {"prompt": ["once", "up"], "n": 2, "max_tokens": 6, "echo": True, "seed": 5}
    whole = served.post("/v1/completions", body).json()["choices"]
    *pieces, _ = served.pieces("/v1/completions", body | {"stream": True})
    parts = [piece["choices"][0] for piece in pieces]
    for choice in whole:
        first, *more = (part["text"] for part in parts if part["index"] == choice["index"])
        assert first == ("once", "up")[choice["index"] // 2]
        assert first + "".join(more) == choice["text"]


class TestBrokenOff:
    def test_is_no_way_to_end(self):
        for reason, status in (("cancelled", 503), ("error", 400)):
            with pytest.raises(Refused) as refused:
                finish(Completion("text", [1], reason))
            assert refused.value.status == status
        assert finish(Completion("text", [1], "stop")) == "stop"

    @pytest.mark.parametrize("draining", [False, True])
    def test_for_kobold_it_was_asked_for_unless_the_server_ends(self, draining):
        kobold = Kobold(SimpleNamespace(draining=draining))
        if not draining:
            assert kobold._finish(WRITTEN) == "abort"
            return
        with pytest.raises(Refused) as refused:
            kobold._finish(WRITTEN)
        assert refused.value.message == broken_off().message

    @pytest.mark.parametrize(
        ("fault", "sent"),
        [
            (routes._openai_fault, 'data: {"error":{"message":"'),
            (routes._kobold_fault, 'event: error\ndata: {"detail":{"msg":"'),
        ],
    )
    def test_a_stream_says_so_and_ends_properly(self, fault, sent):
        found, waited = [], []

        async def events():
            yield "data: 1\n\n"
            raise broken_off()

        async def receive():
            waited.append("http.request")  # what else may come while the answer is under way
            await asyncio.sleep(0 if len(waited) < 3 else 60)
            return {"type": waited[-1]}

        async def send(message):
            await asyncio.sleep(0)
            found.append(message)

        asyncio.run(EventStream(events(), fault)({"state": {"note": {}}}, receive, send))
        _, first, fault_sent, end = found
        assert first["body"] == b"data: 1\n\n"
        assert fault_sent["body"].decode().startswith(sent + broken_off().message)
        assert end == {"type": "http.response.body", "body": b"", "more_body": False}


def test_two_of_one_client_under_way_are_both_ended():
    cut, told = [], []

    class Service:
        worker = SimpleNamespace(cut=cut.append)

        @staticmethod
        def ask(http, requests):
            return Under(requests[0])

    class Under:
        def __init__(self, request):
            self.request = request

        async def __aenter__(self):
            return self.request

        async def __aexit__(self, *_):
            told.append(self.request)

    async def ask():
        kobold, asked = Kobold(Service), SimpleNamespace(genkey="k")
        requests = [Request([n], SamplingParams()) for n in range(3)]
        async with kobold._ask(http(), asked, requests[0]):
            async with kobold._ask(http(), asked, requests[1]):
                assert kobold.abort(http(), asked).success == "true"
            assert cut == requests[:2]
            kobold.abort(http(), asked)
            assert cut == [*requests[:2], requests[0]]
        assert kobold.abort(http(), asked).success == "false"
        assert not kobold._under_way

    asyncio.run(ask())
    assert len(told) == 2


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest])
def test_a_schema_nested_beyond_reason(kind):
    deep = {}
    for _ in range(100_000):
        deep = {"items": deep}
    asked = kind.model_construct(guided_json=deep)
    try:
        with pytest.raises(Refused, match="nested too deeply") as refused:
            asked._schema()
        assert (refused.value.status, refused.value.param) == (400, "guided_json")
    finally:
        while deep:  # from the outside: Python itself would recurse
            deep = deep.pop("items")


def test_what_nobody_foresaw_is_answered_in_the_protocols_shape(served, monkeypatch):
    monkeypatch.setattr(served.service, "check_open", lambda: 1 / 0)
    answer = served.post("/v1/completions", {"prompt": "a"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "this should not have happened" in answer.json()["error"]["message"]


def test_the_document_is_written_once(served):
    with served.http() as client:
        first, second = (client.get("/openapi.json") for _ in range(2))
    assert first.json() == second.json()


def test_a_delta_of_nothing_is_no_event():
    """Of a token that only began a letter."""
    deltas = [Delta(0, 0, "", (1,), (), None), Delta(0, 0, "é", (2,), (), WRITTEN)]

    async def events():
        kobold = Kobold(SimpleNamespace(draining=False))

        async def come():
            for each in deltas:
                yield 0, each

        class Under:
            async def __aenter__(self):
                return SimpleNamespace(deltas=come)

            async def __aexit__(self, *_):
                pass

        kobold._service.ask = lambda *_: Under()
        asked = SimpleNamespace(genkey="k")
        return [each async for each in kobold.events(http(), asked, Request([1]))]

    begin, only = asyncio.run(events())
    assert begin == ""
    assert '"token":"é"' in only
