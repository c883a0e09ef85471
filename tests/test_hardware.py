"""How fast devices are: the best of what is timed, by a clock that stands still."""

import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gptj import hardware


@pytest.fixture
def clock(monkeypatch):
    """Each look at it takes the next of these seconds, and then a hundred."""
    waits: list[float] = []
    now = [1000.0]

    def look():
        now[0] += waits.pop(0) if waits else 100
        return now[0]

    monkeypatch.setattr(hardware, "time", SimpleNamespace(perf_counter=look))
    return waits


# The begin; then of every product a look before and one after it, and one that finds the end.
LOOKS = [0, 0.1, 4.0, 0.1, 2.0, 0.1, 8.0]


class TestWhatIsMeasured:
    def test_a_rate_of_products_is_of_the_quickest(self, clock):
        clock += LOOKS
        found = hardware.measured_flops.__wrapped__(8, seconds=50)
        assert found == pytest.approx(2 * 8**3 / 2.0)

    def test_it_is_measured_for_as_long_as_asked(self, clock):
        clock += LOOKS
        found = hardware.measured_flops.__wrapped__(8, seconds=4.15)
        assert found == pytest.approx(2 * 8**3 / 4.0)  # the quickest came too late

    def test_each_product_is_waited_for_and_the_first_compiles_it(self, clock, monkeypatch):
        waited = []
        result = SimpleNamespace(block_until_ready=lambda: waited.append(len(clock)))
        monkeypatch.setattr(hardware.jax, "jit", lambda _: lambda square: result)
        clock += LOOKS
        hardware.measured_flops.__wrapped__(8, seconds=50)
        assert waited == [7, 5, 3, 1]  # before any look, and then within each pair

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_products_are_of_the_type_asked_for(self, dtype, monkeypatch):
        seen = []

        def ones(shape, kind):
            seen.append((shape, str(kind)))
            return np.ones(shape, "float32")

        monkeypatch.setattr(hardware.jnp, "ones", ones)
        hardware.measured_flops.__wrapped__(4, 0.001, dtype)
        assert seen == [((4, 4), dtype)]

    def test_a_rate_of_reading_is_of_the_quickest(self, clock):
        clock += LOOKS
        assert hardware.measured_bandwidth.__wrapped__(1 << 16, 50) == pytest.approx(2**16 / 2.0)

    def test_an_accelerator_reads_by_a_program_of_its_own(self, monkeypatch, clock):
        read, device = [], jax.local_devices()[0]
        monkeypatch.setattr(
            hardware.jax, "local_devices", lambda: [SimpleNamespace(platform="gpu")]
        )
        monkeypatch.setattr(hardware, "_reading", lambda size: _once(read, size))
        clock += LOOKS
        assert hardware.measured_bandwidth.__wrapped__(4096, 50) == pytest.approx(4096 / 2.0)
        assert read == [4096] * 4  # the first of which compiles and is not timed
        assert device.platform == "cpu"


class _once:
    """A reading that is only counted."""

    def __init__(self, read, size):
        self.read, self.size = read, size

    def __enter__(self):
        return lambda: self.read.append(self.size)

    def __exit__(self, *_):
        pass


def test_every_byte_is_read_once_by_each_core_its_part(monkeypatch):
    seen, largest = [], np.max

    def counted(part):
        seen.append(part.nbytes)
        return largest(part)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5})
    monkeypatch.setattr(hardware.np, "max", counted)
    with hardware._reading_on_a_cpu(40_000) as once:
        assert once() == [1.0] * 3
    assert sorted(seen) == [13_332, 13_332, 13_336]
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, parts in ((2, 2), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        with hardware._reading_on_a_cpu(4000) as once:
            assert len(once()) == parts


def test_on_a_device_too(monkeypatch):
    made, ones = [], hardware.jnp.ones

    def counted(shape, dtype):
        made.append(ones(shape, dtype))
        return made[-1]

    monkeypatch.setattr(hardware.jnp, "ones", counted)
    with hardware._reading(1 << 14) as once:
        np.testing.assert_array_equal(np.asarray(once()), np.ones(1024))
    assert [each.nbytes for each in made] == [1 << 14]


class TestThePeak:
    @pytest.mark.parametrize(
        ("kind", "platform", "count", "processes", "peak"),
        [
            ("NVIDIA H100 80GB HBM3", "gpu", 4, 1, 4 * 989e12),
            ("TPU v3", "tpu", 8, 2, 8 * 61.5e12),
            ("cpu", "cpu", 8, 1, 7e9),  # eight that JAX makes of one
            ("cpu", "cpu", 8, 2, 2 * 7e9),
            ("Some GPU", "gpu", 4, 1, 4 * 7e9),
        ],
    )
    def test_it_is_the_makers_or_else_measured_of_all_devices(
        self, monkeypatch, kind, platform, count, processes, peak
    ):
        device = SimpleNamespace(device_kind=kind, platform=platform)
        monkeypatch.setattr(hardware.jax, "devices", lambda: [device] * count)
        monkeypatch.setattr(hardware.jax, "process_count", lambda: processes)
        monkeypatch.setattr(hardware, "measured_flops", lambda: 7e9)
        assert hardware.peak_flops() == peak


NAMES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES")


@pytest.mark.parametrize(("skips", "hushed"), [("1", True), ("0", False), (None, False)])
def test_a_library_for_tpus_is_hushed_where_there_is_none(monkeypatch, skips, hushed):
    for name in (*NAMES, "TPU_SKIP_MDS_QUERY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if skips:
        monkeypatch.setenv("TPU_SKIP_MDS_QUERY", skips)
    hardware.hush_libtpu()
    assert [name in os.environ for name in NAMES] == [hushed] * 2
    if hushed:
        os.environ[NAMES[0]] = "v5e-4"  # what a person says stands
        hardware.hush_libtpu()
        assert (os.environ[NAMES[0]], os.environ[NAMES[1]]) == ("v5e-4", "localhost")
