"""The engine: what a completion holds, who joins and leaves when, what it compiles and keeps."""

import contextlib
import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import model
from gptj.config import ModelConfig
from gptj.engine import programs
from gptj.engine.cache import new_cache
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.errors import UserError
from gptj.sharding import make_mesh
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 32, 4, 8, 128, 257, 384, 64)
BYTES = Tokenizer.bytes()
SMALL = EngineConfig(slots=4, chunk=16, burst=3)

jitted_forward = jax.jit(model.forward, static_argnums=2)


def held() -> int:
    """Bytes of all arrays that are there, those that share memory counted once."""
    gc.collect()
    shards = [shard.data for x in jax.live_arrays() for shard in x.addressable_shards]
    ranges = sorted((x.unsafe_buffer_pointer(), x.nbytes) for x in shards)
    total = end = 0
    for begin, size in ranges:
        total += max(0, begin + size - max(begin, end))
        end = max(end, begin + size)
    return total


@pytest.fixture(scope="module")
def params():
    return model.init(jax.random.key(0), CONFIG)


@pytest.fixture
def engine(params) -> Engine:
    return Engine(params, CONFIG, BYTES, SMALL)


class TestTheModelsText:
    PROMPTS = ("", "one", "another, longer", "x" * 63)

    def test_the_text_is_the_tokens_decoded(self, engine):
        for (completion,) in engine.run([Request(p) for p in self.PROMPTS]):
            assert completion.text == BYTES.decode(completion.tokens)

    def test_an_empty_prompt_is_the_end_of_text(self, engine, params):
        greedy = SamplingParams(temperature=0, max_tokens=1)
        ((completion,),) = engine.run([Request("", greedy)])
        logits = jitted_forward(params, jnp.array([[BYTES.eos_id]]), CONFIG)
        assert completion.tokens == [int(logits[0, 0, :257].argmax())]

    def test_no_prompts_no_completions(self, engine):
        assert engine.run([]) == []

    def test_more_prompts_than_slots(self, engine):
        prompts = [f"prompt {n}" for n in range(11)]
        found = engine.run([Request(p, SamplingParams(max_tokens=9, seed=5)) for p in prompts])
        for prompt, choices in zip(prompts, found, strict=True):
            again = engine.run([Request(prompt, SamplingParams(max_tokens=9, seed=5))])
            assert again == [choices]

    def test_token_ids_for_a_prompt_and_no_tokenizer(self, params, engine):
        bare = Engine(params, CONFIG, None, SMALL)
        sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        ((by_id,),) = bare.run([Request([104, 105], sampling)])
        ((by_text,),) = engine.run([Request("hi", sampling)])
        assert (by_id.text, by_id.tokens) == ("", by_text.tokens)


class TestSeveralCompletions:
    def test_each_choice_draws_for_itself_and_the_first_as_if_alone(self, engine):
        sampling = SamplingParams(n=3, max_tokens=12, seed=1)
        (choices,) = engine.run([Request("once", sampling)])
        assert len({each.text for each in choices}) == 3
        ((alone,),) = engine.run([Request("once", dataclasses.replace(sampling, n=1))])
        assert alone == choices[0]

    def test_the_best_are_those_of_the_highest_mean_log_probability(self, engine):
        sampling = SamplingParams(n=5, max_tokens=6, logprobs=0, ignore_eos=True)
        (all_five,) = engine.run([Request("once", sampling)])
        mean = lambda c: np.mean([each.logprob for each in c.logprobs])  # noqa: E731
        deltas = []
        best_two = dataclasses.replace(sampling, n=2, best_of=5)
        (found,) = engine.run([Request("once", best_two)], deltas.append)
        assert found == sorted(all_five, key=mean, reverse=True)[:2]
        assert [(d.choice, d.text) for d in deltas] == [(n, c.text) for n, c in enumerate(found)]


class TestLogProbabilities:
    TEXT = "some text to score, of three chunks or so"

    def expected(self, params, ids):
        logits = np.asarray(jitted_forward(params, jnp.array([ids]), CONFIG)[0], np.float64)
        logits = logits[:, :257]
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def test_of_a_prompt(self, params, engine):
        ids = BYTES.encode(self.TEXT)
        only = SamplingParams(max_tokens=0, prompt_logprobs=3)
        ((completion,),) = engine.run([Request(self.TEXT, only)])
        assert (completion.text, completion.finish_reason) == ("", "length")
        expected = self.expected(params, ids)
        assert [each.token for each in completion.prompt_logprobs] == ids[1:]
        for row, each in zip(expected, completion.prompt_logprobs, strict=False):
            assert each.logprob == pytest.approx(row[each.token], abs=1e-4)
            assert [token for token, _ in each.top] == np.argsort(-row)[:3].tolist()
            np.testing.assert_allclose([v for _, v in each.top], -np.sort(-row)[:3], atol=1e-4)

    def test_of_a_completion(self, params, engine):
        sampling = SamplingParams(max_tokens=9, logprobs=2, ignore_eos=True, logit_bias={65: 3.0})
        ((completion,),) = engine.run([Request(self.TEXT, sampling)])
        ids = BYTES.encode(self.TEXT)
        expected = self.expected(params, ids + completion.tokens)[len(ids) - 1 :]
        for row, token, each in zip(expected, completion.tokens, completion.logprobs, strict=False):
            assert each.token == token
            assert each.logprob == pytest.approx(row[token], abs=1e-4)
            assert each.top[0][0] == row.argmax()

    def test_a_context_is_read_once_for_many_continuations(self, params, engine):
        context, only = "c" * 33, SamplingParams(max_tokens=0, prompt_logprobs=0)
        asked = [Request(context + end, only, score_from=33) for end in ("one", "two", "six")]
        found = [choices[0].prompt_logprobs for choices in engine.run(asked)]
        assert [len(each) for each in found] == [3, 3, 3]
        again = engine.run(asked[1:2])[0][0].prompt_logprobs
        assert again == found[1]
        assert engine.prefix.hits >= 2
        whole = engine.run([dataclasses.replace(asked[1], score_from=1)])[0][0].prompt_logprobs
        assert whole[-3:] == found[1]


class TestComingAndGoing:
    def test_a_request_joins_while_another_draws(self, engine):
        long = SamplingParams(max_tokens=40, ignore_eos=True)
        first = engine.submit(Request("first", long))
        seen = [delta.request for _ in range(5) for delta in engine.step()]
        assert first in seen
        second = engine.submit(Request("second", SamplingParams(max_tokens=2)))
        order = []
        while engine.busy:
            order += [delta.request for delta in engine.step() if delta.completion]
        assert order == [second, first]

    def test_one_that_is_cancelled_says_so_and_disturbs_nobody(self, engine):
        long = SamplingParams(max_tokens=30, ignore_eos=True, seed=3)
        ((alone,),) = engine.run([Request("stays", long)])
        stays = engine.submit(Request("stays", long))
        others = [engine.submit(Request("x" * n, long)) for n in (1, 20, 33, 1, 1, 1)]
        done = {}
        for step in range(100):
            if step < len(others):
                engine.cancel(others[step])
            for delta in engine.step():
                if delta.completion:
                    done[delta.request] = delta.completion
        assert not engine.busy
        assert done[stays] == alone
        assert {done[n].finish_reason for n in others} == {"cancelled"}
        engine.cancel(stays)
        engine.cancel(12345)
        assert engine.step() == []

    def test_thousands_may_wait(self, engine):
        one = SamplingParams(max_tokens=1)
        numbers = [engine.submit(Request("p", one)) for _ in range(10_000)]
        for number in numbers[5:]:
            engine.cancel(number)
        done = []
        while engine.busy:
            done += [delta.request for delta in engine.step() if delta.completion]
        assert sorted(done) == numbers
        assert not engine._bursts  # which would keep what came of the last ones

    def test_a_prompt_begun_before_is_not_read_again(self, engine):
        sampling = SamplingParams(max_tokens=4, seed=2)
        first = engine.run([Request("p" * 40, sampling)])
        hits = engine.prefix.hits
        assert engine.run([Request("p" * 40, sampling)]) == first
        assert engine.prefix.hits == hits + 2


class TestThePrograms:
    @pytest.mark.parametrize("where", ["one device", "another device", "a mesh"])
    def test_each_compiles_once(self, where):
        """Whatever the prompts and the sampling, and wherever the weights are tied to."""
        config = dataclasses.replace(CONFIG, context=100 + len(where))  # compiled by no other test
        with jax.set_mesh(make_mesh(tensor=2)) if where == "a mesh" else contextlib.nullcontext():
            params = model.init(jax.random.key(0), config)
            if where == "another device":
                params = jax.device_put(params, jax.devices()[3])
            engine = Engine(params, config, BYTES, SMALL)
            engine.warm_up()
            before = engine.compilations()
            engine.run([Request("a"), Request("b" * 90, SamplingParams(n=2, max_tokens=3))])
            other = SamplingParams(0.5, 0.5, 7, 5, 9, ("!",), logprobs=2, prompt_logprobs=1)
            number = engine.submit(Request("much longer" * 5, other))
            engine.step()
            engine.cancel(number)
            engine.run([Request("", other), Request("b" * 90, other)])
            assert engine.compilations() == before

    def test_a_cache_is_consumed(self, params):
        cache, rows = new_cache(CONFIG, 2, jnp.float32, 64), np.zeros(1, np.int32)
        programs.prefill(params, cache, np.zeros((1, 5), np.int32), rows, rows, np.int32(0), CONFIG)
        assert all(x.is_deleted() for x in jax.tree.leaves(cache))

    def test_a_cache_is_written_in_place(self, params):
        config = dataclasses.replace(CONFIG, layers=16, context=1024)
        engine = Engine(model.init(jax.random.key(0), config), config, BYTES, SMALL)
        lowered = programs.decode.lower(
            engine.device.params, engine.device.cache, engine.device.slots, np.int32(1), 4, config
        )
        memory = lowered.compile().memory_analysis()
        size = sum(x.nbytes for x in jax.tree.leaves((engine.device.cache, engine.device.slots)))
        assert memory.alias_size_in_bytes == size
        assert memory.temp_size_in_bytes < size / 4  # a few layers' worth, not a second cache

    def test_a_steady_step_uploads_nothing(self, engine):
        engine.submit(Request("a", SamplingParams(max_tokens=60, ignore_eos=True)))
        for _ in range(4):
            engine.step()
        with jax.transfer_guard_host_to_device("disallow"):
            for _ in range(4):
                assert engine.step()
            with pytest.raises(Exception, match="transfer"):  # what the guard would say
                engine.device.set_active(0, True)

    def test_idle_it_holds_the_weights_and_the_cache(self):
        config = ModelConfig(6, 128, 4, 32, 512, 257, 384, 512)
        before = held()
        params = model.init(jax.random.key(0), config)
        engine = Engine(params, config, BYTES, EngineConfig(slots=4))
        engine.warm_up()
        needed = sum(x.nbytes for x in jax.tree.leaves((params, engine.device.cache)))
        assert held() - before <= 1.05 * needed

    @pytest.mark.parametrize(
        ("slots", "speculate", "ways", "expected"),
        [(1, 0, 1, 1), (3, 0, 1, 4), (5, 0, 1, 8), (12, 0, 1, 16), (24, 0, 1, 24), (3, 0, 2, 4),
         (9, 0, 4, 16), (20, 0, 4, 32), (1, 4, 1, 1), (2, 4, 1, 8), (4, 4, 2, 16)],
    )  # fmt: skip
    def test_slots_are_rounded_up_to_what_is_computed_alike(self, slots, speculate, ways, expected):
        assert EngineConfig(slots, speculate=speculate).rounded(ways).slots == expected


class TestMistakes:
    @pytest.mark.parametrize("tokens", [64, 100])
    def test_a_prompt_that_leaves_no_room(self, engine, tokens):
        match = rf"prompt 1 has {tokens} .* 64: .* at most 63"
        with pytest.raises(UserError, match=match):
            engine.run([Request("fine"), Request("p" * tokens)])
        assert not engine.busy

    def test_a_text_longer_than_the_context(self, engine):
        only = SamplingParams(max_tokens=0, prompt_logprobs=0)
        ((most,),) = engine.run([Request("t" * 65, only)])
        assert len(most.prompt_logprobs) == 64
        with pytest.raises(UserError, match=r"prompt has 66 .* 64: .* at most 65"):
            engine.submit(Request("t" * 66, only))

    @pytest.mark.parametrize(
        "wrong",
        [
            Request([5, 257]),
            Request([-1]),
            Request("a", SamplingParams(stop_tokens=(300,))),
            Request("a", SamplingParams(logit_bias={257: 1.0})),
        ],
        ids=lambda request: str(request)[:40],
    )
    def test_tokens_that_do_not_exist(self, engine, wrong):
        with pytest.raises(UserError, match=r"has token .* and the model knows 0 to 256"):
            engine.submit(wrong)

    @pytest.mark.parametrize("prompt", [[1.5], ["a"], [None]])
    def test_a_prompt_of_something_else(self, engine, prompt):
        with pytest.raises(UserError, match="must be text or whole numbers"):
            engine.submit(Request(prompt))

    @pytest.mark.parametrize(
        "sampling",
        [
            {"allowed_tokens": (5,), "banned_tokens": (5,), "ignore_eos": True},
            {"allowed_tokens": (256,), "min_tokens": 1},
            {"banned_tokens": tuple(range(257))},
        ],
        ids=str,
    )
    def test_controls_that_leave_nothing_to_draw(self, engine, sampling):
        with pytest.raises(UserError, match="leave no token to draw"):
            engine.submit(Request("a", SamplingParams(**sampling)))

    def test_a_place_to_score_from_that_is_not_in_the_prompt(self, engine):
        with pytest.raises(UserError, match="score_from=9 must be between 1 and the 2 tokens"):
            engine.submit(Request("ab", SamplingParams(prompt_logprobs=0), score_from=9))

    def test_what_needs_a_tokenizer(self, params):
        bare = Engine(params, CONFIG, None, SMALL)
        with pytest.raises(UserError, match="is text and there is no tokenizer: give token ids"):
            bare.submit(Request("text"))
        with pytest.raises(UserError, match="needs a tokenizer: give stop_tokens"):
            bare.submit(Request([1], SamplingParams(stop=("a",))))
        with pytest.raises(UserError, match="is empty: give at least one token id"):
            bare.submit(Request([]))

    @pytest.mark.parametrize("most", [1, 3])
    def test_a_step_reads_so_many_chunks_of_prompts(self, params, most):
        options = EngineConfig(slots=1, chunk=8, chunks_a_step=most)
        engine = Engine(params, CONFIG, None, options)
        engine.submit(Request([1] * 49, SamplingParams(max_tokens=1)))
        steps = 0
        while engine.busy:
            engine.step()
            steps += 1
        assert steps == -(-6 // most) + 1  # which draws

    @pytest.mark.parametrize("field", ["slots", "chunk", "burst", "chunks_a_step"])
    def test_an_engine_of_nothing(self, field):
        with pytest.raises(UserError, match=f"{field}=0 must be at least 1"):
            EngineConfig(**{field: 0})

    @pytest.mark.parametrize(
        "extremes",
        [
            {"temperature": 1e-300, "top_p": 1e-300},
            {"temperature": 3e38, "repetition_penalty": 100, "min_p": 1.0},
            {"typical_p": 1e-300, "repetition_penalty": 0.01},
            {"presence_penalty": 3e38, "frequency_penalty": -3e38, "logit_bias": {7: 3e38}},
        ],
        ids=str,
    )
    def test_the_ends_of_every_control_draw_something(self, engine, extremes):
        sampling = SamplingParams(max_tokens=5, ignore_eos=True, logprobs=0, **extremes)
        ((found,),) = engine.run([Request("a", sampling)])
        assert len(found.tokens) == 5
        assert all(np.isfinite(each.logprob) for each in found.logprobs)

    @pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "temperature"])
    def test_what_32_bits_do_not_hold(self, name):
        with pytest.raises(UserError, match=f"{name}=1e[+]300 must be a finite number"):
            SamplingParams(**{name: 1e300})

    def test_more_positions_than_the_model_has(self, params):
        options = dataclasses.replace(SMALL, positions=65)
        with pytest.raises(UserError, match="positions=65 is more than the model's context of 64"):
            Engine(params, CONFIG, BYTES, options)

    @pytest.mark.parametrize("positions", [-5, 0, 1])
    def test_slots_without_room(self, positions):
        with pytest.raises(UserError, match=f"positions={positions} must be at least 2"):
            EngineConfig(positions=positions)
