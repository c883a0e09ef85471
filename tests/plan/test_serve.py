"""Planning the engine: what its weights and cache need, against the real ones."""

import dataclasses

import jax
import pytest

from gptj.config import ModelConfig, preset
from gptj.convert.load import quantised
from gptj.engine.cache import new_cache
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.errors import UserError
from gptj.model import init
from gptj.plan import serve
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
