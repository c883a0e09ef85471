"""The parts alone: the queue's arithmetic, budgets over time, transcripts, fingerprints."""

import asyncio

import jax
import pytest

from gptj import model
from gptj.config import ModelConfig
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request
from gptj.errors import UserError
from gptj.serve.asked import Asked
from gptj.serve.config import ServeConfig
from gptj.serve.facts import facts, fingerprint
from gptj.serve.keys import Key, Keys
from gptj.serve.metrics import Metrics
from gptj.serve.queue import LONGEST_WAIT, Queue
from gptj.serve.refusal import SHOWN, Refused, translated
from gptj.serve.run import Gathering
from gptj.serve.streams import EventStream
from gptj.serve.transcript import read_transcript
from gptj.serve.worker import Worker
from gptj.tokenizer import END_OF_TEXT, Tokenizer
from gptj.transcript import END, STOPS, plain

BYTES, SHAPE = Tokenizer.bytes(), ModelConfig(2, 32, 4, 8, 128, 257, 384, 128)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestTheQueue:
    def test_takes_what_there_is_room_for(self):
        queue = Queue(100)
        with queue.place([60]) as first:
            with pytest.raises(Refused) as refused, queue.place([41]):
                pass
            assert (refused.value.status, queue.tokens, queue.requests) == (429, 60, 1)
            with queue.place([40]):
                assert (queue.tokens, queue.requests) == (100, 2)
                with pytest.raises(Refused):
                    queue.check()
            first.leave(0)
            first.leave(0)
            assert (queue.tokens, queue.requests) == (0, 0)
        assert (queue.tokens, queue.requests) == (0, 0)

    def test_each_of_several_leaves_by_itself(self):
        queue = Queue(100)
        with queue.place([10, 20, 30]) as place:
            place.leave(1)
            assert (queue.tokens, queue.requests) == (40, 2)

    def test_says_how_long_it_takes_at_the_speed_of_late(self):
        clock = Clock()
        queue = Queue(1000, clock)
        assert queue.seconds() == 1
        with queue.place([100, 300]) as place:
            place.leave(0)
            clock.now = 10.0
            assert queue.seconds() == 30  # 300 tokens at 10 a second
            clock.now = 29.0
            assert queue.seconds() == 87
            with pytest.raises(Refused) as refused, queue.place([800]):
                pass
            assert refused.value.headers["retry-after"] == "87"
        assert queue.seconds() == 1
        with queue.place([10, 990]) as place:
            place.leave(0)
            clock.now += 29.0
            assert queue.seconds() <= LONGEST_WAIT


class TestAKey:
    def test_has_as_many_under_way_as_it_may(self):
        key = Key("ann", concurrency=1)
        many = pytest.raises(Refused, match="1 requests are under way")
        with key.spending(5), many, key.spending(5):
            pass
        with key.spending(5):
            assert key.running == 1

    def test_gets_back_what_it_did_not_use_and_more_with_time(self):
        clock = Clock()
        key = Key("ann", tokens_per_minute=60, clock=clock)
        with key.spending(60) as bill:
            bill.used = 20
        with key.spending(40) as bill:
            bill.used = 40
        with pytest.raises(Refused) as refused, key.spending(30):
            pass
        assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "30")
        clock.now = 30.0
        with key.spending(30) as bill:
            bill.used = 30
        clock.now = 1000.0
        with key.spending(60):
            pass
        with pytest.raises(Refused) as refused, key.spending(61):
            pass
        assert refused.value.status == 400


def test_a_key_of_any_letters_is_found_in_a_header():
    keys = Keys(["ann schlüssel", "bob plain"], ServeConfig())
    sent = "Bearer schlüssel".encode().decode("latin-1")  # as the framework reads a header
    assert keys.find(sent).name == "ann"
    assert keys.find("Bearer schlüssel") is None


@pytest.mark.parametrize("lines", [["ann a", "bob b concurrency=9 tokens_per_minute=900"], []])
def test_a_key_that_names_no_budget_has_the_servers(lines):
    keys = Keys(lines, ServeConfig(key_concurrency=1, key_tokens_per_minute=50))
    key = keys.find("Bearer a")
    with pytest.raises(Refused, match="50 a minute"), key.spending(51):
        pass
    under_way = pytest.raises(Refused, match="1 requests are under way")
    with key.spending(10), under_way, key.spending(10):
        pass
    if lines:
        with keys.find("Bearer b").spending(800), keys.find("Bearer b").spending(100):
            pass


def test_a_stream_that_a_mistake_of_ours_ends_says_so():
    sent = []

    async def events():
        yield "data: 1\n\n"
        raise ZeroDivisionError

    async def waits():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    async def streams():
        stream = EventStream(events(), lambda refused: f"data: {refused.status} {refused}\n\n")
        await stream({"state": {"id": "my-id"}}, waits, send)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(streams())
    assert sent[-1]["body"].startswith(b"data: 500 this should not have happened")
    assert b"see request my-id in the log" in sent[-1]["body"]
    assert sent[-1]["more_body"]  # so the connection is not ended as if all were well


def test_what_is_written_in_one_turn_is_sent_at_once_and_before_a_close():
    sent = []

    class Transport:
        write = staticmethod(sent.append)
        close = staticmethod(lambda: sent.append("closed"))

    async def writes():
        transport = Gathering(Transport(), asyncio.get_running_loop())
        transport.write(b"head, ")
        transport.write(b"body")
        assert sent == []
        await asyncio.sleep(0)
        assert sent == [b"head, body"]
        transport.write(b"end")
        transport.close()
        await asyncio.sleep(0)

    asyncio.run(writes())
    assert sent == [b"head, body", b"end", "closed"]


def test_who_comes_as_the_engine_fails_is_told(params):
    class Post:
        def put(self, _):
            worker.failure = ZeroDivisionError()  # and has opened the post for the last time

    async def asks():
        asked = Asked([Request([1])], lambda _: None)
        worker.hand_in(asked)
        await asyncio.wait_for(asked.accepted, 5)

    async def unloads():
        worker._loop = asyncio.get_running_loop()
        await asyncio.wait_for(worker.unload_adapter("poet"), 5)

    for comes in (asks, unloads):
        worker = Worker(Engine(params, SHAPE, BYTES, EngineConfig(slots=2)), Metrics())
        worker._post = Post()
        with pytest.raises(Refused, match="the engine has stopped"):
            asyncio.run(comes())


class TestATranscript:
    def test_is_plain_unless_told(self):
        messages = [{"role": "system", "content": "Be\nbrief."}, {"role": "user", "content": "Hi"}]
        found = read_transcript(ServeConfig())
        assert found.stops == STOPS
        assert found.render(messages) == "System:\nBe\nbrief.\n\nUser:\nHi\n\nAssistant:\n"
        assert plain([], True) == "Assistant:\n"

    def test_is_a_template_of_ones_own(self, tmp_path):
        path = tmp_path / "template.jinja"
        path.write_text(
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
        )
        found = read_transcript(ServeConfig(chat_template=path, chat_stop=("<",)))
        assert found.stops == ("<",)
        assert (
            found.render([{"role": "user", "content": "{{ 1 }}"}]) == "<user>{{ 1 }}\n<assistant>"
        )
        assert read_transcript(ServeConfig(chat_template=path)).stops == ()

    def test_a_template_may_refuse_and_reaches_nothing(self, tmp_path):
        path = tmp_path / "template.jinja"
        for text, said in (
            ("{{ raise_exception('users first') }}", "users first"),
            ("{{ messages.__class__.__mro__ }}", "refuses them"),
            ("{{ messages[0].nothing.more }}", "refuses them"),
        ):
            path.write_text(text)
            with pytest.raises(Refused, match=said):
                read_transcript(ServeConfig(chat_template=path)).render([{"role": "user"}])

    @pytest.mark.parametrize("template", [None, "{{ messages[0].content + eos_token }}"])
    def test_of_messages_that_hold_half_a_character_is_refused(self, tmp_path, template):
        """Or they could hold what stands for the end of text."""
        path = tmp_path / "template.jinja"
        path.write_text(template or "")
        config = ServeConfig(chat_template=template and path)
        with pytest.raises(Refused, match="message 1 holds half of a surrogate pair") as refused:
            read_transcript(config).render([{"role": "user", "content": f"a{END}"}])
        assert (refused.value.status, refused.value.param) == (400, "messages")

    def test_ends_answers_with_the_token(self, serve, tmp_path):
        """At which the next one stops too; what somebody says of it is text."""
        path = tmp_path / "template.jinja"
        path.write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
        talk = [{"role": "user", "content": END_OF_TEXT}, {"role": "assistant", "content": "b"}]
        with serve(ServeConfig(chat_template=path)) as served:
            body = {"messages": talk, "max_tokens": 8, "logit_bias": {str(BYTES.eos_id): 100}}
            found = served.post("/v1/chat/completions", body).json()
            refused = served.post("/v1/completions", {"prompt": END})
        usage, choice = found["usage"], found["choices"][0]
        assert usage["prompt_tokens"] == len(END_OF_TEXT) + 3
        assert (usage["completion_tokens"], choice["finish_reason"]) == (0, "stop")
        assert refused.status_code == 400

    def test_a_template_that_is_none(self, tmp_path):
        path = tmp_path / "template.jinja"
        path.write_text("{% for %}")
        with pytest.raises(UserError, match="cannot be used"):
            read_transcript(ServeConfig(chat_template=path))

    def test_serves_chats(self, serve, tmp_path):
        path = tmp_path / "template.jinja"
        path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}bot: ")
        with serve(ServeConfig(chat_template=path)) as served:
            body = {"messages": [{"role": "user", "content": "hi"}], "seed": 2, "max_tokens": 8}
            found = served.post("/v1/chat/completions", body).json()["choices"][0]
            (own,) = served.own("user: hi\nbot: ", seed=2, max_tokens=8)
        assert found["message"]["content"] == own.text


def test_a_refusal_speaks_the_protocols_words():
    names = {"regex": "guided_regex", "max_tokens": "max_length", "seed": "sampler_seed"}
    found = translated("regex='regex' cannot be followed: regex parse error", names)
    assert found.message == "guided_regex='guided_regex' cannot be followed: regex parse error"
    assert (found.param, found.status) == ("guided_regex", 400)
    assert translated("max_tokens=0 must be at least 1", names).param == "max_length"
    assert translated("it is wrong", names).param is None
    assert len(translated("x" * 10_000, names).message) == SHOWN


def test_a_fingerprint_tells_weights_and_engines_apart(params):
    def of(seed: int = 0, options: EngineConfig = EngineConfig(slots=2)) -> str:
        weights = params if seed == 0 else model.init(jax.random.key(seed), SHAPE)
        return fingerprint(Engine(weights, SHAPE, BYTES, options))

    assert of() == of()
    assert len({of(), of(1), of(options=EngineConfig(slots=4))}) == 3


def test_a_model_without_a_tokenizer_is_not_served(params):
    with pytest.raises(UserError, match="--tokenizer"):
        facts(Engine(params, SHAPE, None, EngineConfig(slots=2)))
