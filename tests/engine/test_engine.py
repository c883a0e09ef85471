"""The engine: what a completion holds, where it ends, how it streams, and what texts score."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import model
from gptj.config import ModelConfig
from gptj.engine import engine, programs
from gptj.engine.cache import new_cache
from gptj.engine.engine import Completion, UntilStop, generate, score
from gptj.engine.sampling import SamplingParams, row_seeds
from gptj.errors import UserError
from gptj.sharding import make_mesh
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 32, 4, 8, 128, 257, 384, 64)
BYTES = Tokenizer.bytes()

jitted_forward = jax.jit(model.forward, static_argnums=2)


@pytest.fixture(scope="module")
def params():
    return model.init(jax.random.key(0), CONFIG)


@pytest.fixture
def write(params, monkeypatch):
    """`generate` with a model that writes given texts, a byte at a time, whatever it reads."""

    def run(*texts: str | bytes, on_text=None, prompts=None, **sampling) -> list[Completion]:
        texts = [text.encode() if isinstance(text, str) else text for text in texts]
        script = [[*text, BYTES.eos_id] for text in texts]
        step = iter(range(1000))

        def decode(params, cache, tokens, positions, *draw, config):
            n = next(step)
            return np.array([row[n] if n < len(row) else 33 for row in script]), cache

        monkeypatch.setattr(engine, "decode", decode)
        prompts = prompts or ["p"] * len(texts)
        return generate(params, CONFIG, BYTES, prompts, SamplingParams(**sampling), on_text)

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
            *texts, on_text=lambda row, piece: pieces[row].append(piece), **sampling
        )
        assert ["".join(row) for row in pieces] == [each.text for each in completions]
        assert all(map(all, pieces)), "an empty piece"
        return pieces

    def test_characters_come_whole_and_at_once(self, write):
        assert self.stream(write, "aé🙂", "b") == [["a", "é", "🙂"], ["b"]]

    def test_text_that_may_become_a_stop_string_waits(self, write):
        pieces = self.stream(write, "a E EN END b", stop=("END",))
        assert pieces == [["a", " ", "E ", "EN "]]

    def test_what_waited_comes_at_the_end(self, write):
        assert self.stream(write, "a EN", stop=("END",)) == [["a", " ", "EN"]]

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


class TestTheModelsText:
    PROMPTS = ("", "one", "another, longer", "x" * 63)

    def test_the_same_seed_gives_the_same_text_alone_and_in_a_batch(self, params):
        sampling = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=20, seed=3)
        together = generate(params, CONFIG, BYTES, self.PROMPTS, sampling)
        seeds = row_seeds(3, len(self.PROMPTS)).tolist()
        for seed, prompt, completion in zip(seeds, self.PROMPTS, together, strict=True):
            own = dataclasses.replace(sampling, seed=seed)
            assert generate(params, CONFIG, BYTES, [prompt], own) == [completion]

    def test_rows_with_one_prompt_differ(self, params):
        texts = generate(params, CONFIG, BYTES, ["a"] * 4, SamplingParams(max_tokens=20))
        assert len({each.text for each in texts}) == 4

    def test_an_empty_prompt_is_the_end_of_text(self, params):
        greedy = SamplingParams(temperature=0, max_tokens=1)
        (completion,) = generate(params, CONFIG, BYTES, [""], greedy)
        logits = jitted_forward(params, jnp.array([[BYTES.eos_id]]), CONFIG)
        assert completion.tokens == [int(logits[0, 0, :257].argmax())]

    def test_the_text_is_the_tokens_decoded(self, params):
        for completion in generate(params, CONFIG, BYTES, self.PROMPTS, SamplingParams()):
            assert completion.text == BYTES.decode(completion.tokens)

    def test_no_prompts_no_completions(self, params):
        assert generate(params, CONFIG, BYTES, [], SamplingParams()) == []

    def test_it_computes_in_the_dtype_of_the_weights(self, params, monkeypatch):
        dtypes = []

        def spy(config, batch, dtype, context):
            dtypes.append(dtype)
            return new_cache(config, batch, dtype, context)

        monkeypatch.setattr(engine, "new_cache", spy)
        half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
        (completion,) = generate(half, CONFIG, BYTES, ["a"], SamplingParams(max_tokens=3))
        assert dtypes == [jnp.bfloat16]
        assert len(completion.tokens) == 3


class TestThePrograms:
    @pytest.mark.parametrize("where", ["one device", "another device", "a mesh"])
    def test_each_compiles_once(self, where):
        """Whatever the prompts and the sampling, and wherever the weights are tied to."""
        config = dataclasses.replace(CONFIG, context=100 + len(where))  # compiled by no other test
        with jax.set_mesh(make_mesh(tensor=2)) if where == "a mesh" else contextlib.nullcontext():
            params = model.init(jax.random.key(0), config)
            if where == "another device":
                params = jax.device_put(params, jax.devices()[3])
            before = programs.prefill._cache_size(), programs.decode._cache_size()
            generate(params, config, BYTES, ["a", "b" * 90], SamplingParams(max_tokens=3))
            other = SamplingParams(0, 0.5, 7, 5, 9, ("!",))
            generate(params, config, BYTES, ["", "much longer" * 5], other)
        after = programs.prefill._cache_size(), programs.decode._cache_size()
        assert after == (before[0] + 1, before[1] + 1)

    def test_a_cache_is_consumed(self, params):
        cache, rows = new_cache(CONFIG, 2, jnp.float32, 64), np.zeros(2, np.int32)
        programs.prefill(params, cache, rows[:, None], rows, CONFIG)
        assert cache.keys.is_deleted()
        assert cache.values.is_deleted()

    def test_a_cache_is_written_in_place(self):
        config = dataclasses.replace(CONFIG, layers=16, context=1024)
        cache, rows = new_cache(config, 2, jnp.float32, 1024), np.zeros(2, np.int32)
        lowered = programs.prefill.lower(model.abstract(config), cache, rows[:, None], rows, config)
        memory = lowered.compile().memory_analysis()
        size = cache.keys.nbytes + cache.values.nbytes
        assert memory.alias_size_in_bytes == size
        assert memory.temp_size_in_bytes < size / 2  # a few layers' worth, not a second cache

    def test_a_mesh_that_does_not_divide_the_rows_is_refused(self):
        with jax.set_mesh(make_mesh(data=2)), pytest.raises(UserError, match="3 rows"):
            new_cache(CONFIG, 3, jnp.float32, 64)


class TestScore:
    CONFIG = dataclasses.replace(CONFIG, context=150)
    TEXTS = (
        "short",
        "",
        "x" * 150,
        "y" * 64,
        "é",
        *(f"text number {n}" * (n % 4 + 1) for n in range(15)),
    )

    def test_it_is_the_log_softmax_of_forward(self, params):
        ids = [[BYTES.eos_id, *BYTES.encode(text)] for text in self.TEXTS]
        inputs = np.array([row[:-1] + [0] * (151 - len(row)) for row in ids])
        logits = np.asarray(jitted_forward(params, inputs, self.CONFIG), np.float64)[..., :257]
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        scores = score(params, self.CONFIG, BYTES, self.TEXTS)
        for row, found, own in zip(ids, scores, expected, strict=True):
            assert found.dtype == np.float32
            assert found.shape == (len(row) - 1,)
            np.testing.assert_allclose(found, own[np.arange(len(row) - 1), row[1:]], atol=1e-4)

    def test_the_company_does_not_matter(self, params):
        together = score(params, self.CONFIG, BYTES, self.TEXTS)
        for text, found in zip(self.TEXTS, together, strict=True):
            np.testing.assert_allclose(
                score(params, self.CONFIG, BYTES, [text])[0], found, atol=1e-4
            )

    def test_a_mesh_scores_the_same(self, params):
        expected = score(params, self.CONFIG, BYTES, self.TEXTS[:3])
        with jax.set_mesh(make_mesh(data=2, tensor=4)):
            params = model.init(jax.random.key(0), CONFIG)
            found = score(params, self.CONFIG, BYTES, self.TEXTS[:3])
        for own, row in zip(found, expected, strict=True):
            np.testing.assert_allclose(own, row, atol=1e-4)

    def test_no_texts_no_scores(self, params):
        assert score(params, CONFIG, BYTES, []) == []


class TestMistakes:
    @pytest.mark.parametrize("tokens", [64, 100])
    def test_a_prompt_that_leaves_no_room(self, params, tokens):
        with pytest.raises(UserError, match=rf"prompt 1 has {tokens} .* 64: .* at most 63"):
            generate(params, CONFIG, BYTES, ["fine", "p" * tokens], SamplingParams())

    def test_a_text_longer_than_the_context(self, params):
        with pytest.raises(UserError, match=r"text 1 has 65 .* 64: .* at most 64"):
            score(params, CONFIG, BYTES, ["fine", "t" * 65])

    @pytest.mark.parametrize("call", [score, lambda *to: generate(*to, SamplingParams())])
    def test_a_string_for_a_sequence(self, params, call):
        with pytest.raises(UserError, match="put it in a list"):
            call(params, CONFIG, BYTES, "prompt")

    @pytest.mark.parametrize("call", [score, lambda *to: generate(*to, SamplingParams())])
    def test_another_models_tokenizer(self, params, call):
        config = CONFIG.with_vocab(200)
        with pytest.raises(UserError, match="gives token 256 and the model knows 0 to 199"):
            call(params, config, BYTES, ["prompt"])
