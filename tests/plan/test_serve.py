"""Planning the engine: what its weights and cache need, against the real ones."""

import dataclasses
import json

import jax
import pytest

from gptj.attention import KEYS
from gptj.config import ModelConfig, preset
from gptj.convert.load import quantised
from gptj.engine.cache import new_cache
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.errors import UserError
from gptj.model import init
from gptj.plan import serve
from gptj.plan.compiled import Compiled, TooLarge
from gptj.plan.place import find

SMALL = ModelConfig(2, 256, 4, 16, 1024, 500, 512, 256)


def job(on="h100", mesh=(1, 1, 1), model=SMALL, **changes):
    fields = {"slots": 8, "positions": 256} | changes
    return serve.ServeJob(find(on), model, mesh, **fields)


def nbytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("kv_cache", ["model", "int8"])
def test_the_cache_is_as_large_as_the_engines(kv_cache):
    asked = job(kv_cache=kv_cache)
    real = nbytes(new_cache(SMALL, 8, "bfloat16", 256, quantised=kv_cache == "int8"))
    assert serve.position_bytes(asked) * 8 * 256 == real


@pytest.mark.parametrize("quantize", [None, "int8", "int4", "nf4"])
def test_the_weights_are_as_large_as_the_engines(quantize):
    params = init(jax.random.key(0), SMALL)
    if quantize:
        params = quantised(params, SMALL, "bfloat16", quantize)
    else:
        params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    assert serve.weight_bytes(job(quantize=quantize)) == nbytes(params)


@pytest.mark.parametrize(("count", "rank", "quantize"), [(3, 20, None), (1, 1, "int4")])
def test_the_room_for_adapters_is_as_large_as_the_engines(count, rank, quantize):
    params = init(jax.random.key(0), SMALL)
    if quantize:
        params = quantised(params, SMALL, "bfloat16", quantize)
    else:
        params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    options = EngineConfig(1, max_adapters=count, max_adapter_rank=rank)
    real = nbytes(Engine(params, SMALL, None, options).device.params)
    asked = job(adapters=count, adapter_rank=rank, quantize=quantize)
    assert serve.weight_bytes(asked) + serve.adapter_bytes(asked) == real


def test_adapters_take_room_from_slots_and_are_read_at_every_step():
    model = preset("gpt-j-6b")
    none, some = (serve.made(job(model=model, positions=2048, adapters=n)) for n in (0, 8))
    # Of rank 1, but 16 columns are kept: 28 layers' in and out dims, of q, k, v, out and of two.
    room = 2 * 8 * 16 * 28 * (4 * 2 + 2 * 5) * 4096
    assert some.adapters == pytest.approx(room, rel=0.001)
    assert some.needed - none.needed == some.adapters
    assert some.longest == pytest.approx(none.longest - room / some.of_position, abs=1)
    slower = some.rates[0].seconds - none.rates[0].seconds
    assert slower == pytest.approx(room / 3350e9, rel=0.001)


def test_gpt_j_on_one_gpu():
    """12.1 GB of weights; keys and values of a token 459 KB: 28 layers x 2 x 4096 x 2 bytes."""
    found = serve.made(job(model=preset("gpt-j-6b"), positions=2048))
    assert found.weights == pytest.approx(12.1e9, rel=0.01)
    assert found.of_position == 28 * 2 * 4096 * 2
    assert found.fits
    per_slot = found.of_position * 2048
    assert found.most_slots == int((80e9 * (1 - serve.SPARE) - found.weights) / per_slot)
    assert found.longest == pytest.approx(found.most_slots * 2048, abs=2048)
    first = found.rates[0]
    assert first.seconds == pytest.approx((found.weights + per_slot) / 3350e9)
    assert first.bound == "memory"
    speeds = [each.tokens_per_second for each in found.rates]
    assert speeds == sorted(speeds)
    assert [each.fits for each in found.rates] == [
        each.slots <= found.most_slots for each in found.rates
    ]


def test_slots_have_room_for_a_whole_number_of_what_attention_reads_at_a_time():
    model = preset("gpt-j-6b")
    assert serve.made(job(model=model, positions=300)).cache == (
        serve.made(job(model=model, positions=512)).cache
    )


def test_tensor_splits_the_cache_and_costs_an_all_reduce_a_layer():
    model = preset("gpt-j-6b")
    whole, split = (serve.made(job(f"h100:{n}", (1, 1, n), model)) for n in (1, 8))
    assert split.weights == pytest.approx(whole.weights / 8, rel=0.01)
    assert split.cache == whole.cache / 8
    assert split.of_position == whole.of_position
    read = (split.weights + split.cache / 8) / 3350e9
    waiting = split.rates[0].seconds - read
    assert waiting == pytest.approx(29 * 2 * 4e-6, rel=0.01)


def test_data_splits_the_slots():
    found = serve.made(job("h100:8", (8, 1, 1), slots=16))
    assert found.cache == serve.position_bytes(found.job) * 256 * 2
    assert found.rates[0].slots == 8
    with pytest.raises(UserError, match="slots=9 cannot be split over data x fsdp = 8"):
        job("h100:8", (8, 1, 1), slots=9)


def test_what_does_not_fit_says_so():
    large = serve.made(job("t4", model=preset("gpt-j-6b"), slots=64, positions=2048))
    assert not large.fits
    assert large.most_slots < 64


def test_the_decode_step_itself_is_compiled():
    """Beside weights and cache it needs little: its working set, and what is known of slots."""
    found = serve.made(job("cpu:2", (1, 1, 2), dtype="float32", adapters=64))
    assert "JAX" in found.versions
    assert 0 < found.temporaries < 64 * 2**20
    assert found.adapters > 16 * 2**20
    assert found.fits
    plain = dataclasses.asdict(found.job.of(found.job.plain()))
    assert plain == dataclasses.asdict(found.job)


class TestTheRoofline:
    """Of a decode step, by hand: two layers of 786,432 numbers, the output's 131,072."""

    PRODUCTS = 2 * 786_432 + 131_072

    def rates(self, per_part, mesh=(1, 1, 1), adapters=0.0, rate=None, **changes):
        asked = job(f"h100:{mesh[0] * mesh[2]}", mesh, **changes)
        rates = {"tensor": rate} if rate else {}
        return serve._rates(asked, 1e6, adapters, per_part, rates)

    def test_slots_double_up_to_twice_what_fits(self):
        assert [each.slots for each in self.rates(0)] == [1]
        assert [each.slots for each in self.rates(1)] == [1, 2]
        assert [each.slots for each in self.rates(3)] == [1, 2, 4]
        assert [each.slots for each in self.rates(4)] == [1, 2, 4, 8]
        assert [each.fits for each in self.rates(4)] == [True, True, True, False]
        split = self.rates(3, (4, 1, 1))
        assert [(each.slots, each.fits) for each in split] == [(4, True), (8, True), (16, False)]

    def test_weights_are_read_once_and_keys_and_values_of_each_slot(self):
        kept = 2 * 2 * 256 * 2 * 200  # of both, two layers of width 256, two bytes, 200 positions
        found = self.rates(4, positions=200)
        assert [each.seconds for each in found] == [
            pytest.approx((1e6 + kept * each.slots) / 3350e9) for each in found
        ]
        assert {each.bound for each in found} == {"memory"}
        assert found[1].tokens_per_second == pytest.approx(2 / found[1].seconds)

    def test_many_slots_are_bound_by_products(self):
        attention = 2 * 2 * 256 * 2 * 128
        (*_, last) = self.rates(2**20, positions=128, kv_cache="int8")
        flops = (2 * self.PRODUCTS + attention) * last.slots
        kept = 2 * 2 * (256 + 4 * 4) * 128 * last.slots
        assert last.seconds == pytest.approx(max(flops / 989e12, (1e6 + kept) / 3350e9))

    def test_all_adapters_are_read_and_multiplied(self):
        """At so short a context a slot has few keys, so that products bind in the end."""
        plain, beside = (self.rates(4, adapters=each, positions=1) for each in (0.0, 1e6))
        for one, other in zip(plain, beside, strict=True):
            assert other.seconds - one.seconds == pytest.approx(1e6 / 3350e9)
        room = 1e9
        (*_, last) = self.rates(2**13, adapters=room, positions=1)
        assert last.bound == "compute"
        flops = 2 * self.PRODUCTS + 2 * 2 * 256 * 2 * 1 + 2 * room / 2
        assert last.seconds == pytest.approx(last.slots * flops / 989e12)

    def test_tensor_waits_for_an_all_reduce_a_layer_and_one_more(self):
        """Two devices exchange 2 x 256 bytes a slot three times: a microsecond each way at
        least, and a slow link binds."""
        alone, quick, slow = (self.rates(4, (1, 1, 2), rate=each) for each in (1e30, 1e12, 1e6))
        for one, other in zip(alone, quick, strict=True):
            assert (one.seconds, one.bound) == (other.seconds, other.bound)
        for each in slow:
            own = self.rates(4, (1, 1, 2), rate=1e30)[0].seconds
            assert each.seconds == pytest.approx(3 * 512 * each.slots / 1e6, rel=0.01)
            assert each.seconds > own
            assert each.bound == "interconnect"


class TestWhereItsCompilerIs:
    def made(self, monkeypatch, answer, **changes):
        asked = []
        monkeypatch.setattr(serve.remote, "ask", lambda *words: asked.append(words[0]) or "said")
        monkeypatch.setattr(serve.remote, "facts", lambda said: answer)
        monkeypatch.setattr(serve.remote, "axis_rates", lambda place, meshes: [{}])
        return serve.made(job("v5e-1", **changes)), asked

    def test_what_the_step_needs_beside_weights_and_cache_is_the_compilers(self, monkeypatch):
        facts = Compiled(1.0, 50_000_000, 1_000_000, 0, 0, 0.0, (), 0, "JAX 9")
        found, asked = self.made(monkeypatch, facts)
        assert [each["what"] for each in asked] == ["decode"]
        assert asked[0]["job"] == found.job.plain()
        cache = 2 * 2 * 256 * 2 * 256 * 8
        assert found.cache == cache
        assert found.temporaries == 51_000_000 - found.weights - cache
        assert (found.versions, found.available) == ("JAX 9", 16 * 2**30)
        less, _ = self.made(monkeypatch, dataclasses.replace(facts, arguments=0, temporaries=9))
        assert less.temporaries == 0

    @pytest.mark.parametrize("needed", [1e9, 12e9])
    def test_where_it_has_no_room_it_says_how_much_there_is(self, monkeypatch, needed):
        found, _ = self.made(monkeypatch, TooLarge(1.0, needed, 10e9, "no room"))
        spare = max(0.08 * 16 * 2**30, needed - found.weights - found.cache)
        assert (found.available, found.temporaries) == (10e9, spare)
        assert found.versions == "by formula, not compiled"

    def test_it_is_not_asked_of_weights_in_few_bits(self, monkeypatch):
        found, asked = self.made(monkeypatch, None, quantize="int8")
        assert asked == []
        assert found.temporaries == pytest.approx(0.08 * 16 * 2**30)


def test_a_plan_has_parts_that_are_what_is_needed_and_plain_json():
    found = serve.made(job(adapters=2, positions=100))
    assert list(found.parts) == ["weights", "adapters", "keys and values", "temporaries"]
    assert list(serve.made(job()).parts) == ["weights", "keys and values", "temporaries"]
    assert found.needed == sum(found.parts.values())
    plain = json.loads(json.dumps(found.plain()))
    assert (plain["needed"], plain["fits"]) == (found.needed, True)
    assert plain["rates"][1]["tokens_per_second"] == found.rates[1].tokens_per_second
    assert plain["job"] == json.loads(json.dumps(found.job.plain()))
    assert not dataclasses.replace(found, available=found.needed - 1).fits
    assert dataclasses.replace(found, available=found.needed).fits


@pytest.mark.parametrize(
    ("mesh", "changes", "said"),
    [
        ((4, 2, 1), {}, "mesh fsdp=2 would gather all weights for every token: serve on data and"),
        ((1, 1, 8), {}, "tensor=8 does not divide the model's heads=4"),
        ((8, 1, 1), {"positions": 257}, "positions=257 is more than the model's context of 256"),
        ((8, 1, 1), {"slots": 12}, "slots=12 .* data x fsdp = 8 devices: use a multiple of 8"),
    ],
)
def test_what_no_engine_can_have(mesh, changes, said):
    with pytest.raises(UserError, match=said):
        job("h100:8", mesh, **changes)
    assert job("h100:8", (8, 1, 1), positions=256, slots=16).kept == 256
    assert job(positions=1).kept == KEYS
