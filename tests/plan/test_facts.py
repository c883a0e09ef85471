"""What a compiled program says, put together: programs and hardware are stood in for."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj.plan import compiled, compiled_decode
from gptj.plan.compiled import axis_rates, exchange_seconds
from gptj.plan.place import find
from gptj.plan.program import Collective
from gptj.plan.serve import ServeJob
from gptj.sharding import make_mesh

CUBE = (2, 2, 2)


def memory(**sizes):
    names = ("temp", "output", "alias", "argument")
    fields = {f"{name}_size_in_bytes": sizes.get(name, 0) for name in names}
    return types.SimpleNamespace(**fields, peak_memory_in_bytes=sizes.get("peak", 0))


@pytest.mark.parametrize(
    ("on", "sizes", "beside"),
    [
        ("h100", {"temp": 10, "output": 7, "alias": 4, "argument": 50, "peak": 99}, 10 + 3),
        ("h100", {"temp": 10, "output": 4, "alias": 4}, 10),
        ("h100", {"temp": 10, "output": 4, "alias": 7}, 10),
        ("v5e-8", {"temp": 500, "output": 7, "argument": 50, "peak": 99}, 49),
        ("v5e-8", {"argument": 50, "peak": 40}, 0),
    ],
)
def test_a_tpu_says_its_peak_and_others_what_is_temporary(on, sizes, beside):
    assert compiled._temporaries(memory(**sizes), find(on)) == beside


@pytest.mark.parametrize(
    ("group", "axes", "devices"),
    [
        ((0, 1), ("tensor",), 2),
        ((6, 7), ("tensor",), 2),
        ((0, 2), ("fsdp",), 2),
        ((1, 5), ("data",), 2),
        ((0, 2, 4, 6), ("data", "fsdp"), 4),
        ((0, 3), ("fsdp", "tensor"), 2),
        ((), ("data", "fsdp", "tensor"), 8),  # no group is all
        ((5,), (), 1),
    ],
)
def test_a_group_crosses_the_axes_along_which_its_places_differ(group, axes, devices):
    kind, place = "all-reduce", find("h100:8")
    what = Collective(kind, 10**9, 3, group, ("f32[9]",), True)
    found = compiled._exchange(what, place, CUBE, [])
    assert (found.axes, found.devices) == (axes, devices)
    assert (found.kind, found.bytes, found.times) == (kind, 10**9, 3)
    assert (found.is_hidden, found.arrays) == (True, ("f32[9]",))
    once = 2 * (devices - 1) / devices * 1e9 / 450e9
    assert found.seconds == pytest.approx(3 * once)


def test_every_set_of_axes_has_a_rate_if_it_crosses_any():
    assert axis_rates(CUBE, find("h100:8")).keys() == {
        *("data", "fsdp", "tensor", "data+fsdp", "data+tensor", "fsdp+tensor"),
        "data+fsdp+tensor",
    }
    # Two nodes: tensor and fsdp are within one, and all of it crosses with eight ports.
    rates = axis_rates((2, 2, 4), find("h100:16"))
    assert rates["tensor"] == rates["fsdp"] == rates["fsdp+tensor"] == 450e9
    assert (rates["data"], rates["data+fsdp"]) == (50e9, 2 * 50e9)
    assert rates["data+fsdp+tensor"] == 8 * 50e9
    assert axis_rates((1, 8, 1), find("h100:8")) == {"fsdp": 450e9}


PROGRAM = """
ENTRY %main (x: f32[100]) -> f32[100] {
  %x = f32[100]{0} parameter(0)
  ROOT %sum = f32[100]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
}
"""


def test_all_that_a_program_says(monkeypatch):
    said = types.SimpleNamespace(
        memory_analysis=lambda: memory(temp=10, output=8, alias=8, argument=50),
        as_text=lambda: PROGRAM,
    )
    monkeypatch.setattr(compiled.time, "perf_counter", lambda: 12.5)
    place, mesh = find("h100:2"), make_mesh(1, 1, 2)
    found = compiled.facts(said, place, (1, 1, 2), mesh, 10.0, 7, 5)
    assert (found.seconds, found.arguments, found.temporaries, found.memory) == (2.5, 50, 10, 60)
    assert (found.weights, found.optimizer, found.open_loops) == (7, 5, 0)
    assert found.traffic == 800
    (exchange,) = found.exchanges
    assert (exchange.kind, exchange.axes, exchange.bytes) == ("all-reduce", ("tensor",), 400)
    assert exchange.seconds == exchange_seconds("all-reduce", 400, 2, 450e9)
    assert found.versions == f"JAX {jax.__version__}"
    assert found.attention is None


def device(*coords, core=0):
    return types.SimpleNamespace(coords=coords, core_on_chip=core)


def test_where_the_chips_stand_is_read_in_the_meshs_order():
    found = [device(0, 1, 0), device(0, 1, 0, core=1), device(3, 0, 0)]
    mesh = types.SimpleNamespace(devices=np.array(found, object).reshape(3, 1, 1))
    assert compiled.coordinates(mesh) == [(0, 1, 0, 0), (0, 1, 0, 1), (3, 0, 0, 0)]
    assert compiled.coordinates(make_mesh(8)) == []


@pytest.mark.parametrize(
    ("on", "options"),
    [
        ("v5e-8", {}),
        ("v4-8", {"chip_config_name": "megacore"}),
        ("v5e-1", {"chips_per_host_bounds": (1, 1, 1)}),
    ],
)
def test_a_tpu_is_described_to_its_compiler(monkeypatch, on, options):
    asked = []
    monkeypatch.setattr(
        compiled.topologies,
        "get_topology_desc",
        lambda name, **words: asked.append((name, words)) or types.SimpleNamespace(devices=(1, 2)),
    )
    place = find(on)
    assert compiled.devices(place) == [1, 2]
    assert asked == [(place.topology, {"platform": "tpu", **options})]
    assert compiled.devices(find("h100:8")) == jax.devices()


@pytest.mark.parametrize(
    ("needed", "unit", "size"),
    [("1.5", "K", 1536), ("3", "B", 3), ("2", "M", 2 << 20), ("0.5", "T", 1 << 39)],
)
def test_the_compilers_complaint_in_any_unit(needed, unit, size):
    words = f"Ran out.\nUsed {needed}{unit} of 15.48G hbm. Exceeded"
    found = compiled.too_large(words, 1.5)
    assert (found.needed, found.seconds, found.words) == (size, 1.5, "Ran out.")
    assert found.available == 15.48 * 2**30


def test_bytes_are_of_a_devices_part():
    mesh = make_mesh(fsdp=2, tensor=4)
    shape = lambda dtype, *spec: jax.ShapeDtypeStruct(  # noqa: E731
        (8, 16), dtype, sharding=jax.NamedSharding(mesh, jax.P(*spec))
    )
    tree = {
        "a": shape(jnp.float32, "fsdp", "tensor"),
        "b": [shape(jnp.int8), shape(jnp.int8, "tensor")],
    }
    assert compiled.device_bytes(tree) == 4 * 16 + 128 + 32


class TestTheEnginesOwnArrays:
    """In shapes alone, on the mesh, as its decode step is compiled."""

    def job(self, small_job, **changes):
        options = {"slots": 8, "positions": 200} | changes
        return ServeJob(find("v5e-8"), small_job("h100:8", (8, 1, 1)).model, (4, 1, 2), **options)

    @pytest.mark.parametrize("kv_cache", ["model", "int8"])
    def test_the_cache_is_of_slots_and_heads_and_in_the_devices_own_dtype(
        self, small_job, kv_cache
    ):
        job, mesh = self.job(small_job, kv_cache=kv_cache), make_mesh(4, 1, 2)
        with jax.set_mesh(mesh):
            cache = jax.tree.leaves(compiled_decode._cache(job, mesh))
        dtypes = {str(leaf.dtype) for leaf in cache}
        assert "uint16" not in dtypes  # as a CPU keeps bfloat16
        assert ("int8" in dtypes) == (kv_cache == "int8")
        own = sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in cache
            if leaf.size > 1000
        )
        both = 2 * 2 * 256 * 2 // 2 if kv_cache == "model" else 2 * 2 * (256 + 4 * 4) // 2
        assert own == both * 256 * 8 // 4  # 200 positions have room for 256

    def test_what_is_known_of_slots_is_split_as_they_are(self, small_job):
        job, mesh = self.job(small_job), make_mesh(4, 1, 2)
        with jax.set_mesh(mesh):
            leaves = jax.tree.leaves(compiled_decode._slots(job, mesh))
        assert leaves
        for leaf in leaves:
            assert leaf.shape[0] == 8
            assert leaf.sharding.shard_shape(leaf.shape) == (2, *leaf.shape[1:])
