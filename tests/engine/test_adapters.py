"""Adapters served hot: each request has its own, whatever else is loaded, unloaded or answered."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import adapters, kernels, model
from gptj.adapters import LoRAConfig
from gptj.config import ModelConfig
from gptj.convert.adapted import Adapter
from gptj.engine.adapters import AdapterConflict, UnknownAdapter
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.engine.step import Draft
from gptj.errors import UserError
from gptj.sharding import make_mesh
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 32, 2, 8, 128, 257, 384, 300)  # of heads that our native attention takes
BYTES = Tokenizer.bytes()
OPTIONS = EngineConfig(4, chunk=16, burst=3)
ROOM = dataclasses.replace(OPTIONS, max_adapters=3, max_adapter_rank=8)
LORAS = {
    "one": LoRAConfig(rank=4),
    "two": LoRAConfig(rank=8, alpha=24.0, rank_stabilised=True),
    "three": LoRAConfig(rank=3, alpha=6.0, targets=("q", "out", "ffn_out")),
}


@functools.cache
def pairs(name: str):
    """Numbers that change something."""
    draw = np.random.default_rng(len(name))
    return jax.tree.map(
        lambda w: draw.normal(size=w.shape, scale=0.2).astype("f4"),
        adapters.table(CONFIG, LORAS[name]),
    )


def adapter(name: str, **changes) -> Adapter:
    """An adapter that is in memory."""
    lora, found = dataclasses.replace(LORAS[name], **changes), pairs(name)

    def read(field: str, layer: int):
        return found[field].down[layer], found[field].up[layer]

    return Adapter(f"the place of {name}", lora, read, None)


@pytest.fixture(scope="module")
def params():
    return model.init(jax.random.key(0), CONFIG)


def loaded(params, *names: str, options=ROOM, **more) -> Engine:
    """An engine with these adapters."""
    engine = Engine(params, CONFIG, BYTES, options, **more)
    for name in names:
        engine.load_adapter(name, adapter(name))
    return engine


@pytest.fixture(scope="module")
def engine(params) -> Engine:
    """One with all of them. Not to be changed."""
    return loaded(params, *LORAS)


def requests(*names: str | None) -> list[Request]:
    """Of all kinds, for each of these adapters; prompts begin alike."""
    kinds = [
        ("once upon a time, and a while", {"temperature": 0}),
        ("once upon a time, and another", {"seed": 5, "n": 2}),
        ("", {"seed": 7, "top_p": 0.9, "frequency_penalty": 0.3}),
        ("once upon a time, and a while, there was", {"max_tokens": 0, "prompt_logprobs": 1}),
        ("y" * 295, {"overflow": "slide", "ignore_eos": True}),
    ]
    return [
        Request(prompt, SamplingParams(**{"max_tokens": 8, "logprobs": 2, **kind}), adapter=name)
        for prompt, kind in kinds
        for name in names
    ]


def bare(asked: list[Request]) -> list[Request]:
    return [dataclasses.replace(each, adapter=None) for each in asked]


def numbers(found) -> np.ndarray:
    """All log-probabilities there are."""
    scores = [
        each.logprob
        for choices in found
        for completion in choices
        for each in [*(completion.logprobs or ()), *(completion.prompt_logprobs or ())]
    ]
    return np.array(scores)


class TestTheModelThatAnswers:
    @pytest.mark.parametrize("name", LORAS)
    def test_is_the_one_with_the_adapter_joined_and_as_good_as_merged(self, params, engine, name):
        asked = requests(name)
        found = engine.run(asked)
        own = jax.tree.map(jnp.asarray, pairs(name))
        joined = adapters.joined(params, own, CONFIG, LORAS[name])
        beside = Engine(joined, CONFIG, BYTES, OPTIONS).run(bare(asked))
        if kernels.available():
            assert found == beside
        np.testing.assert_allclose(numbers(found), numbers(beside), atol=1e-4)
        merged = {}
        for field, pair in pairs(name).items():
            base = np.asarray(getattr(params.blocks, field), np.float64)
            more = pair.down.astype("f8") @ pair.up.astype("f8")
            merged[field] = jnp.asarray(base + LORAS[name].scale * more.reshape(base.shape), "f4")
        whole = dataclasses.replace(params, blocks=dataclasses.replace(params.blocks, **merged))
        alone = Engine(whole, CONFIG, BYTES, OPTIONS).run(bare(asked))
        np.testing.assert_allclose(numbers(found), numbers(alone), atol=1e-4)
        assert [c.tokens for row in found for c in row] == [c.tokens for row in alone for c in row]
        others = Engine(params, CONFIG, BYTES, OPTIONS).run(bare(asked))
        assert np.abs(numbers(others)[:8] - numbers(found)[:8]).max() > 0.1

    def test_is_the_one_without_where_none_is_asked_for(self, params, engine):
        plain = Engine(params, CONFIG, BYTES, OPTIONS).run(requests(None))
        found = engine.run(requests(None))
        if kernels.available():
            assert found == plain
        np.testing.assert_allclose(numbers(found), numbers(plain), atol=1e-4)

    @pytest.mark.parametrize("draft", [False, True])
    def test_is_the_same_where_tokens_are_guessed(self, params, engine, draft):
        options = dataclasses.replace(ROOM, slots=8, speculate=2, break_even=1.0)
        guesser = Draft(model.init(jax.random.key(1), CONFIG), CONFIG) if draft else None
        guessing = loaded(params, *LORAS, options=options, draft=guesser)
        asked = requests(None, *LORAS)
        texts = lambda found: [[each.tokens for each in row] for row in found]  # noqa: E731
        assert texts(guessing.run(asked)) == texts(engine.run(asked))


class TestInCompany:
    @pytest.mark.parametrize(
        "mesh", [None, {"tensor": 2}, pytest.param({"data": 2}, marks=pytest.mark.slow)], ids=str
    )
    def test_several_are_each_as_alone_bit_for_bit_in_any_part_of_the_room(self, mesh):
        with jax.set_mesh(make_mesh(**mesh)) if mesh else contextlib.nullcontext():
            weights = model.init(jax.random.key(0), CONFIG)
            asked = requests(None, *LORAS)
            together = loaded(weights, *LORAS).run(asked)
            for name in (None, *LORAS):
                alone = loaded(weights, *([name] if name else []))
                own = [n for n, each in enumerate(asked) if each.adapter == name]
                assert alone.run([asked[n] for n in own]) == [together[n] for n in own]

    def test_who_draws_sees_nothing_of_those_that_are_loaded_and_unloaded(self, params):
        engine = loaded(params, "one")
        (asked,) = requests("one")[:1]
        asked = dataclasses.replace(
            asked, sampling=dataclasses.replace(asked.sampling, max_tokens=40, ignore_eos=True)
        )
        (alone,) = engine.run([asked])
        engine.prefix.clear()
        number, step, found = engine.submit(asked), 0, []
        while engine.busy:
            name = ("two", "three")[step % 2]
            engine.load_adapter(name, adapter(name))
            found += [d.completion for d in engine.step() if d.completion and d.request == number]
            engine.unload_adapter(name)
            step += 1
        assert step > 5
        assert found == alone

    def test_what_prompts_begin_with_is_not_shared(self, params):
        engine = loaded(params, "one", "two")
        prompt, only = "p" * 40, SamplingParams(max_tokens=1)
        for name in (None, "one", "two"):
            engine.run([Request(prompt, only, adapter=name)])
            assert engine.prefix.hits == 0
        for hits, name in enumerate((None, "one", "two"), 1):
            engine.run([Request(prompt, only, adapter=name)])
            assert engine.prefix.hits == 2 * hits
        engine.unload_adapter("one")
        engine.load_adapter("one", adapter("three"))
        engine.run([Request(prompt, only, adapter="one")])
        assert engine.prefix.hits == 6


class TestComingAndGoing:
    @pytest.mark.parametrize("where", ["one device", "another device", "a mesh"])
    def test_nothing_is_compiled(self, where):
        config = dataclasses.replace(CONFIG, context=310 + len(where))  # compiled by no other test
        mesh = make_mesh(tensor=2) if where == "a mesh" else None
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            weights = model.init(jax.random.key(0), config)
            if where == "another device":
                weights = jax.device_put(weights, jax.devices()[3])
            engine = Engine(weights, config, BYTES, ROOM)
            engine.warm_up()
            before = engine.compilations()
            for name in LORAS:
                engine.load_adapter(name, adapter(name))
                engine.run(requests(None, name)[:4])
            engine.unload_adapter("two")
            engine.load_adapter("again", adapter("two"))
            engine.run(requests("again", "one")[:4])
            assert engine.compilations() == before

    def test_warming_up_leaves_those_there_are(self, params):
        engine = loaded(params, "one", "two")
        before = engine.run(requests("one", "two"))
        engine.warm_up()
        assert engine.run(requests("one", "two")) == before

    def test_one_that_is_unloaded_answers_those_who_asked_before(self, params, engine):
        (asked,) = requests("one")[:1]
        (expected,) = engine.run([asked])
        options = dataclasses.replace(ROOM, max_adapters=1)
        small = loaded(params, "one", options=options)
        numbers = [small.submit(asked) for _ in range(6)]  # of which four have a slot
        small.step()
        small.unload_adapter("one")
        assert list(small.adapters) == []
        with pytest.raises(UnknownAdapter, match="adapter='one' is not here: there is none"):
            small.submit(asked)
        with pytest.raises(AdapterConflict, match="max_adapters=1, is taken: unload one, and wait"):
            small.load_adapter("two", adapter("two"))
        small.cancel(numbers.pop())
        found = {}
        while small.busy:
            found |= {d.request: d.completion for d in small.step() if d.completion}
        assert [found[number] for number in numbers] == expected * 5
        small.load_adapter("two", adapter("two"))
        assert [(each.name, each.index, each.rank) for each in small.adapters] == [("two", 1, 8)]

    def test_a_name_may_come_again_with_other_numbers(self, params, engine):
        other = loaded(params, "one")
        other.unload_adapter("one")
        other.load_adapter("one", adapter("two"))
        asked = requests("two")
        again = [dataclasses.replace(each, adapter="one") for each in asked]
        assert other.run(again) == engine.run(asked)


class TestMistakes:
    def test_names(self, params):
        engine = loaded(params, "one")
        with pytest.raises(AdapterConflict, match="an adapter 'one' already: unload it first"):
            engine.load_adapter("one", adapter("two"))
        for wrong in (
            lambda: engine.submit(Request("a", adapter="eno")),
            lambda: engine.run([Request("a"), Request("a", adapter="eno")]),
            lambda: engine.unload_adapter("eno"),
        ):
            with pytest.raises(UnknownAdapter, match="adapter='eno' is not here: there is 'one'"):
                wrong()
        assert not engine.busy
        with pytest.raises(UserError, match="an adapter needs a name"):
            engine.load_adapter("", adapter("two"))

    def test_no_room(self, params):
        plain = Engine(params, CONFIG, BYTES, OPTIONS)
        with pytest.raises(AdapterConflict, match="no room for adapters: start with max_adapters"):
            plain.load_adapter("one", adapter("one"))
        options = dataclasses.replace(OPTIONS, max_adapter_rank=8)
        with pytest.raises(UserError, match=r"max_adapter_rank=8 is of adapters, .* max_adapters"):
            Engine(params, CONFIG, BYTES, options)
        for wrong in ({"max_adapters": -1}, {"max_adapter_rank": 0}):
            with pytest.raises(UserError, match=f"{next(iter(wrong))}=.* must be at least"):
                EngineConfig(**wrong)

    def test_adapters_that_do_not_fit(self, params, tmp_path):
        engine = loaded(params)
        with pytest.raises(UserError, match="have rank 9, and there is room for 8: raise max_ad"):
            engine.load_adapter("one", adapter("one", rank=9))
        with pytest.raises(UserError, match=r"trained beside weights in int8, .* quantize=int8"):
            engine.load_adapter("one", adapter("one", quantize="int8"))
        with pytest.raises(
            UserError, match=r"the adapter of query has matrices of .* another model"
        ):
            engine.load_adapter("one", adapter("one", rank=5))
        broken = adapter("one")
        read = lambda *at: tuple(np.full_like(x, np.nan) for x in broken.read(*at))  # noqa: E731
        with pytest.raises(UserError, match="hold numbers that are not finite"):
            engine.load_adapter("one", dataclasses.replace(broken, read=read))
        marked = dataclasses.replace(adapter("one"), mark="0", base="runs/other")
        with pytest.raises(UserError, match=r"belong to runs/other, .* give it as base"):
            engine.load_adapter("one", marked)
        with pytest.raises(UserError, match=r"holds no adapters|no model at"):
            engine.load_adapter("one", tmp_path)
        assert list(engine.adapters) == []
