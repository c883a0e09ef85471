"""What every route works with: names, seeds, costs and prompts, without an engine."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.config import ModelConfig
from gptj.engine.adapters import UnknownAdapter
from gptj.engine.request import SEEDS, Request, SamplingParams
from gptj.errors import UserError
from gptj.serve.config import ServeConfig
from gptj.serve.facts import Voice
from gptj.serve.keys import Key
from gptj.serve.refusal import Refused
from gptj.serve.service import Service
from gptj.serve.transcript import read_transcript
from gptj.tokenizer import END_OF_TEXT, Tokenizer
from gptj.transcript import END

SHAPE, BYTES = ModelConfig(1, 8, 2, 2, 12, 257, 264, 64), Tokenizer.bytes()
NAMES = {"n": "best", "max_tokens": "length"}
ADAPTER = Voice("poet", "gptj-2", "poet", "a/folder", 5)


def make(**config) -> Service:
    facts = SimpleNamespace(
        config=SHAPE, tokenizer=BYTES, positions=32, fingerprint="gptj-1", adapters=(ADAPTER,),
        options=SimpleNamespace(slots=2),
    )  # fmt: skip
    worker = SimpleNamespace(facts=facts, failure=None, is_ready=True)
    config = ServeConfig(**config)
    return Service(worker, "tiny", config, read_transcript(config))


class TestTheState:
    def test_is_the_worst_that_is_so(self):
        service = make()
        assert service.state == "ready"
        service.check_open()
        for change, state in (
            (lambda: setattr(service.worker, "is_ready", False), "warming up"),
            (lambda: setattr(service, "draining", True), "draining"),
            (lambda: setattr(service.worker, "failure", ValueError()), "broken"),
        ):
            change()
            assert service.state == state
            with pytest.raises(Refused, match=f"the server is {state}: try again in") as refused:
                service.check_open()
            assert (refused.value.status, refused.value.code) == (503, "not_ready")
            assert refused.value.headers == {"retry-after": "5"}

    def test_a_full_queue_lets_nobody_in(self):
        service = make(queue_tokens=10)
        with service.queue.place([10]), pytest.raises(Refused) as refused:
            service.check_open()
        assert refused.value.status == 429

    def test_the_queue_is_four_times_what_is_drawn_at_once_unless_told(self):
        assert make().queue.most == 4 * 2 * 32
        assert make(queue_tokens=7).queue.most == 7


class TestNames:
    def test_the_model_and_its_adapters_answer_to_theirs(self):
        service = make()
        for name in (None, "tiny"):
            found = service.voice(name)
            assert (found.name, found.fingerprint, found.adapter) == ("tiny", "gptj-1", None)
            assert found.since == service.since
        assert service.voice("poet") == ADAPTER

    def test_to_another_nobody_does(self):
        said = "model='TINY' is not here: this server has 'tiny', 'poet'"
        with pytest.raises(Refused, match=said) as refused:
            make().voice("TINY")
        assert (refused.value.status, refused.value.param) == (404, "model")
        assert refused.value.code == "model_not_found"

    def test_two_of_one_name_are_refused_at_the_start(self):
        service = make()
        with pytest.raises(UserError, match="are both called 'poet': give --name"):
            Service(service.worker, "poet", service.config, service.transcript)


class TestCounts:
    def test_as_many_as_one_request_may_ask_for(self):
        service = make(max_completions=3)
        service.check_count(3, NAMES)
        with pytest.raises(Refused, match=r"best: 4 completions .* may ask for 3: lower it") as no:
            service.check_count(4, NAMES)
        assert (no.value.status, no.value.param) == (400, "best")

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_a_seed_that_was_given_is_every_prompts(self, count):
        assert make().seeds(7, count) == [7] * count

    def test_others_are_drawn_and_follow_one_another(self, monkeypatch):
        monkeypatch.setattr("secrets.randbelow", lambda most: most - 2)
        assert make().seeds(None, 4) == [SEEDS - 2, SEEDS - 1, 0, 1]

    @pytest.mark.parametrize(
        ("prompt", "sampling", "cost"),
        [
            (10, {"max_tokens": 5}, 15),
            (10, {"max_tokens": 22}, 32),
            (10, {"max_tokens": 23}, 32),  # no more than there is room for
            (10, {"max_tokens": 100, "n": 3}, 10 + 3 * 22),
            (10, {"max_tokens": 5, "n": 2, "best_of": 4}, 10 + 4 * 5),
            (32, {"max_tokens": 5}, 32),
            (40, {"max_tokens": 5}, 40),
            (10, {"max_tokens": 100, "overflow": "slide"}, 110),
            (10, {"max_tokens": 0, "prompt_logprobs": 0}, 10),
        ],
        ids=str,
    )
    def test_what_a_request_may_cost_is_what_is_read_and_drawn_at_most(
        self, prompt, sampling, cost
    ):
        assert make()._cost(Request([1] * prompt, SamplingParams(**sampling))) == cost


class TestPrompts:
    def read(self, *prompts, told=False, **config):
        sampling = SamplingParams(max_tokens=4)
        return asyncio.run(make(**config).read(prompts, sampling, NAMES, told))

    def test_text_and_ids(self):
        assert self.read("ab", [5, 6]) == [[97, 98], [5, 6]]

    def test_only_a_transcript_has_ends_of_text(self):
        assert self.read(f"a{END}b", told=True) == [[97, 256, 98]]
        assert self.read(f"{END_OF_TEXT}", told=True) == [[*END_OF_TEXT.encode()]]
        with pytest.raises(Refused, match=r"the prompt holds half of a surrogate pair.* at 1: rem"):
            self.read(f"a{END}b")

    def test_half_a_character_of_several_prompts_is_named_by_number(self):
        with pytest.raises(Refused, match="prompt 1 holds half of a surrogate pair"):
            self.read("a", "b\udfff")

    def test_longer_than_the_server_takes(self):
        assert self.read("abc", max_prompt_tokens=3) == [[97, 98, 99]]
        with pytest.raises(Refused, match="the prompt has 4 tokens: this server takes at most 3"):
            self.read("abcd", max_prompt_tokens=3)

    def test_far_too_long_it_is_not_even_read(self, monkeypatch):
        monkeypatch.setattr("gptj.serve.service.encode", None)
        longest = max(map(len, BYTES.spelling))
        most = longest * 33
        said = f"the prompt has {most + 1} characters, too many for a context of 32 tokens: shorten"
        with pytest.raises(Refused, match=said):
            self.read("x" * (most + 1))

    @settings(max_examples=30, deadline=None)
    @given(st.text("aé日", max_size=40), st.integers(1, 40))
    def test_the_end_of_a_text_is_the_end_of_all_its_tokens(self, text, most):
        assert asyncio.run(make().tail(text, most, NAMES)) == BYTES.encode(text)[-most:]

    @pytest.mark.parametrize(("size", "aside"), [(2000, False), (2001, True)])
    def test_long_ones_are_read_in_another_thread(self, size, aside):
        async def work():
            own = threading.current_thread()
            return await make().aside(size, threading.current_thread) is not own

        assert asyncio.run(work()) == aside


class TestAsking:
    def asked(self, outcome=None, *, drawn=0, key=None, requests=None):
        """What is noted of a request, and what is left of the queue and the key's budget."""
        service, seen = make(), SimpleNamespace(forgotten=[], note={})
        key = key or Key("ann")

        def hand_in(asked):
            seen.waiting = service.queue.tokens
            if outcome:
                asked.refuse(outcome)
            else:
                asked.accept()
                asked.used += drawn

        service.worker.hand_in, service.worker.forget = hand_in, seen.forgotten.append
        http = SimpleNamespace(state=SimpleNamespace(key=key, note=seen.note))

        async def ask():
            async with service.ask(http, requests or [Request([1] * 10, SamplingParams())]) as it:
                seen.running = key.running
                return it

        try:
            seen.found = asyncio.run(ask())
        finally:
            seen.after = service.queue.tokens, service.queue.requests, key.running
            assert len(seen.forgotten) == 1
        return seen

    def test_it_waits_is_counted_and_leaves_nothing_behind(self):
        seen = self.asked(drawn=5)
        assert (seen.waiting, seen.running) == (32, 1)
        assert seen.after == (0, 0, 0)
        assert seen.note == {"tokens": 15, "waited": None}
        assert seen.forgotten == [seen.found]

    def test_what_was_not_used_is_given_back(self):
        key = Key("ann", tokens_per_minute=32, clock=lambda: 0.0)
        self.asked(drawn=6, key=key)
        with key.spending(16):
            pass

    def test_an_adapter_that_is_gone_is_no_model(self):
        with pytest.raises(Refused, match="model: 'poet' is gone") as refused:
            self.asked(UnknownAdapter("'poet' is gone"))
        assert (refused.value.status, refused.value.code) == (404, "model_not_found")

    def test_what_the_engine_refuses_is_passed_on(self):
        with pytest.raises(UserError, match="top_p=0"):
            self.asked(UserError("top_p=0 is wrong"))
