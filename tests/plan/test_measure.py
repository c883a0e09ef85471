"""Whether a step can be measured here, and how it then is."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj.adapters import LoRAConfig
from gptj.errors import UserError
from gptj.plan import measure
from gptj.plan.place import find

CPU = types.SimpleNamespace(device_kind="cpu", platform="cpu", memory_stats=lambda: None)
H100 = types.SimpleNamespace(
    device_kind="NVIDIA H100 80GB HBM3",
    platform="gpu",
    memory_stats=lambda: {"peak_bytes_in_use": 123},
)


def on(small_job, name, mesh):
    """A job; of a CPU one whose speed nobody measures."""
    kind, _, count = name.partition(":")
    job = small_job(f"h100:{count}", mesh, accumulate=1)
    if kind == "h100":
        return job
    return dataclasses.replace(
        job, place=dataclasses.replace(find(f"h100:{count}"), name=name, platform=kind)
    )


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("h100:2", [H100] * 2, None),
        ("h100:2", [H100] * 3, None),
        ("cpu:2", [CPU] * 2, None),
        ("h100:2", [H100], "for h100:2: the devices here are 1 x NVIDIA H100 80GB HBM3; leave out"),
        ("h100:2", [CPU] * 2, "the devices here are 2 x cpu; leave out measure"),
        ("cpu:2", [CPU], "are 1 x cpu; set XLA_FLAGS=--xla_force_host_platform_device_count=2"),
        ("cpu:2", [H100] * 2, "2 x NVIDIA H100 80GB HBM3; leave out measure"),
    ],
)
def test_a_step_is_measured_where_its_devices_are(small_job, monkeypatch, name, there, said):
    monkeypatch.setattr(measure.jax, "devices", lambda: there)
    job = on(small_job, name, (2, 1, 1))
    if said is None:
        measure.check_here(job)
    else:
        with pytest.raises(UserError) as refused:
            measure.check_here(job)
        assert said in str(refused.value)


class TestTheBaseOfAdapters:
    """Random weights, here of one number."""

    @pytest.fixture(autouse=True)
    def drawn(self, monkeypatch):
        one = {"w": jnp.ones(1)}
        monkeypatch.setattr(measure, "init", lambda key, model: one)
        monkeypatch.setattr(measure, "quantised", lambda *given: given)
        return one

    def test_is_in_what_the_layers_compute_in(self, small_job):
        base = measure._base(small_job("h100", (1, 1, 1), lora=LoRAConfig(8)))
        assert base["w"].dtype == jnp.bfloat16

    def test_or_in_few_bits(self, small_job, drawn):
        job = small_job("h100", (1, 1, 1), lora=LoRAConfig(8, quantize="int8"))
        assert measure._base(job) == (drawn, job.model, jnp.bfloat16, "int8")

    def test_there_is_none_without_any(self, small_job):
        assert measure._base(small_job("h100", (1, 1, 1))) is None


@pytest.fixture
def steps(monkeypatch):
    """Steps that take 9, 8, 7, ... ticks of a clock that goes one a look, and their arguments."""
    made, now = [], [0.0]

    def step(state, tokens, base, **options):
        made.append((tokens, base, options))
        now[0] += 10 - len(made)
        return state, {}

    def clock():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(measure, "train_step", step)
    monkeypatch.setattr(measure, "new_state", lambda *_: jnp.zeros(()))
    monkeypatch.setattr(measure.time, "perf_counter", clock)
    return made


def test_the_median_of_the_timed_steps_counts(small_job, steps, monkeypatch):
    """Seven steps of 10, 9, 8, 7, 6, 5 and 4 ticks, of which the first two are not timed; all but
    the first are no compiling: from the first tick to the last are 58."""
    monkeypatch.setattr(measure, "check_here", lambda job: None)
    job = on(small_job, "cpu:4", (2, 1, 2))
    found = measure.measure(job)
    assert len(steps) == measure.WARM + measure.TIMED == 7
    assert found.seconds == 6
    assert found.memory == 0
    assert found.devices == "8 x cpu"
    assert found.compile_seconds == 57 - (9 + 8 + 7 + 6 + 5 + 4)
    tokens, base, options = steps[0]
    assert tokens.shape == (1, 16, 257)
    assert tokens.sharding.shard_shape(tokens.shape) == (1, 8, 257)
    assert base is None
    assert options == {"model": job.model, "optimizer": job.optimizer, "config": job.step}
    assert 0 <= np.min(tokens) < 10
    assert 490 < np.max(tokens) < 500


def test_one_device_sets_no_mesh(small_job, steps, monkeypatch):
    """And what is in use is told of the first."""
    first = jax.devices()[0]
    monkeypatch.setattr(measure, "check_here", lambda job: None)
    monkeypatch.setattr(measure.jax, "devices", lambda: [H100, CPU])
    job = on(small_job, "cpu:1", (1, 1, 1))
    found = measure.measure(dataclasses.replace(job, accumulate=4))
    assert found.memory == 123
    assert steps[0][0].shape == (4, 4, 257)
    assert steps[0][0].sharding.device_set == {first}
    assert not isinstance(steps[0][0].sharding, jax.NamedSharding)
