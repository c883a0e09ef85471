"""The law: what is predicted for cpu:8 is what the runtime allocates, within a tenth."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from gptj.adapters import LoRAConfig
from gptj.config import preset
from gptj.convert.load import quantised
from gptj.model import count_parameters, init
from gptj.plan import estimate, plan, remote
from gptj.plan.compiled import TooLarge, too_large
from gptj.sharding import make_mesh
from gptj.train.state import new_state

LARGE = {"batch": 64, "dtype": "float32", "remat": "none"}  # as in test_compiled.py

# Runs the step and says what was allocated: the bytes of the arrays given to it, and how far the
# process's memory rose above them while it ran. The most of a few steps: on a busy machine one of
# the eight devices may be done, and its memory freed, before another has used all of its own.
RUN = """
import ctypes, json, re, sys
from pathlib import Path
import jax, numpy as np
from gptj.plan.job import Job
from gptj.sharding import make_mesh, place
from gptj.train.state import new_state
from gptj.train.step import train_step

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

job = Job.of(json.loads(sys.argv[1]))
with jax.set_mesh(make_mesh(*job.mesh)):
    state = new_state(jax.random.key(0), job.model, job.optimizer)
    shape = (job.accumulate, job.batch // job.accumulate, job.seq + 1)
    tokens = place(np.ones(shape, np.int32), None, "batch", None)
    rises = []
    for _ in range(5):
        jax.block_until_ready(state)
        arrays = jax.tree.leaves((state, tokens))
        given = sum(part.data.nbytes for x in arrays for part in x.addressable_shards)
        ctypes.CDLL(None).malloc_trim(0)  # what was freed is not to be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory("VmRSS")
        state, _ = jax.block_until_ready(
            train_step(state, tokens, model=job.model, optimizer=job.optimizer, config=job.compute)
        )
        rises.append(memory("VmHWM") - before)  # the first compiles too
print(json.dumps({"given": given, "risen": max(rises[1:])}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_what_is_predicted_is_what_is_allocated(small_job, compile_once):
    job, predicted = (make("cpu:8", (2, 2, 2), **LARGE) for make in (small_job, compile_once))
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(job.plain())],
        env=remote.environment(job.place), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert 8 * predicted.arguments == pytest.approx(found["given"], rel=0.01)
    allocated = found["given"] + found["risen"]
    assert 8 * predicted.memory == pytest.approx(allocated, rel=0.1)


@pytest.mark.parametrize(
    ("mesh", "remat"),
    [
        ((2, 2, 2), "none"),
        pytest.param((1, 8, 1), "block", marks=pytest.mark.slow),
        pytest.param((1, 8, 1), "none", marks=pytest.mark.slow),
        pytest.param((8, 1, 1), "none", marks=pytest.mark.slow),
    ],
)
def test_the_formulas_are_near_what_the_compiler_says(mesh, remat, small_job, compile_once):
    """Near enough to choose by: what they leave out is what the compiler makes of the rest."""
    options = LARGE | {"remat": remat}
    job, compiled = (make("cpu:8", mesh, **options) for make in (small_job, compile_once))
    (rates,) = remote.axis_rates(job.place, [mesh])
    formula = estimate.estimated(job, rates)
    assert formula.arguments == pytest.approx(compiled.arguments, rel=0.02)
    assert formula.weights == compiled.weights
    assert formula.memory == pytest.approx(compiled.memory, rel=0.35)


def test_the_state_is_that_of_the_optimizer(small_job):
    def stored(**options):
        job = small_job("cpu:1", (1, 1, 1))
        optimizer = dataclasses.replace(job.optimizer, b1=None, b2=None, **options)
        return estimate.stored(dataclasses.replace(job, optimizer=optimizer.for_run(1000)))

    weights, adam = stored()
    assert weights == 4 * count_parameters(small_job("cpu:1", (1, 1, 1)).model)
    assert adam == pytest.approx(2 * weights, rel=1e-4)
    assert stored(moments="bfloat16")[1] == pytest.approx(weights, rel=1e-4)
    assert stored(kind="lion")[1] == pytest.approx(weights, rel=1e-4)
    assert stored(kind="adafactor")[1] < weights / 2


def test_a_stricter_policy_keeps_less(small_job):
    job = small_job("cpu:8", (2, 2, 2))
    kept = [estimate.activations(job, remat) for remat in ("none", "dots", "block", "offload")]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 0
    assert kept[2] == 2 * job.rows * 256 * 256 * 2  # of each layer its input


BESIDE = {kind: LoRAConfig(rank=16, quantize=kind) for kind in (None, "int8", "int4", "nf4")}


@pytest.mark.parametrize(
    ("kind", "remat"),
    [
        (None, "none"),
        ("nf4", "none"),
        pytest.param("int4", "none", marks=pytest.mark.slow),
        pytest.param("int8", "block", marks=pytest.mark.slow),
        pytest.param("nf4", "dots", marks=pytest.mark.slow),
    ],
)
def test_a_run_of_adapters_is_compiled_and_near_its_formula(kind, remat, small_job, compile_once):
    options = LARGE | {"remat": remat, "lora": BESIDE[kind]}
    job, compiled = (make("cpu:8", (2, 2, 2), **options) for make in (small_job, compile_once))
    (rates,) = remote.axis_rates(job.place, [job.mesh])
    formula = estimate.estimated(job, rates)
    assert formula.weights == compiled.weights
    assert formula.optimizer == compiled.optimizer
    assert formula.arguments == pytest.approx(compiled.arguments, rel=0.02)
    assert formula.memory == pytest.approx(compiled.memory, rel=0.35)
    # All layers' matrices made dense at a time would be more than a base in few bits saves.
    dense = compile_once("cpu:8", (2, 2, 2), **options | {"lora": BESIDE[None]})
    assert compiled.temporaries <= 1.1 * dense.temporaries


@pytest.mark.slow
def test_a_run_on_preferences_is_compiled_and_grows_as_its_formula(small_job, compile_once):
    """Of as many rows as without it: in memory not much, in traffic by the passes that read."""

    def both(**options):
        options |= {"remat": "block", "lora": BESIDE[None], "accumulate": 2}
        job, compiled = (make("cpu:8", (2, 2, 2), **options) for make in (small_job, compile_once))
        (rates,) = remote.axis_rates(job.place, [job.mesh])
        return estimate.estimated(job, rates), compiled

    def gathered(found):
        kinds = [x for x in found.exchanges if x.kind == "all-gather" and x.axes == ("fsdp",)]
        return sum(each.bytes * each.times for each in kinds)

    rows, pairs = both(batch=32), both(batch=16, dpo_beta=0.1)
    for fact in (lambda found: found.memory, lambda found: found.traffic, gathered):
        formula, compiled = (fact(pairs[n]) / fact(rows[n]) for n in (0, 1))
        assert formula == pytest.approx(compiled, rel=0.1)
    assert pairs[0].arguments == pytest.approx(pairs[1].arguments, rel=0.02)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("kind", [None, "int8"])
def test_all_weights_are_as_large_as_the_trainers(kind, mesh, small_job):
    job = small_job(f"cpu:{math.prod(mesh)}", mesh, lora=BESIDE[kind])
    with jax.set_mesh(make_mesh(*mesh)):
        state = new_state(jax.random.key(0), job.model, job.optimizer, job.compute.lora)
        base = init(jax.random.key(0), job.model)
        if kind:
            base = quantised(base, job.model, jnp.bfloat16, kind)
        else:
            base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    own = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    assert estimate.stored(job) == (own((state.params, base)), own(state.opt_state))


SIXTEEN = 16e9
"""Bytes of the GPUs of 16 GB."""


def qlora(small_job, on, kind):
    """GPT-J-6B's step beside weights in few bits, one row of 2,048 tokens."""
    options = {"model": preset("gpt-j-6b"), "batch": 1, "accumulate": 1, "seq": 2048}
    return small_job(on, (1, 1, 1), lora=BESIDE[kind], **options)


@pytest.mark.parametrize("kind", ["int4", "nf4"])
def test_gpt_j_learns_beside_few_bits_in_8_gb(kind, small_job):
    """By hand: 5.6 G numbers in layers of 4.5 bits, the output of 8, the embedding of 16; 33 M in
    adapters, each with a gradient and two moments."""
    job = qlora(small_job, "t4", kind)
    found = plan.made(job)
    layers, vocab = 28 * 12 * 4096**2, 4096 * 50400
    own = 28 * 16 * (4 * 8192 + 2 * (4096 + 16384))
    assert found.memory.weights == pytest.approx(
        layers * 4.5 / 8 + vocab * (1 + 2) + 4 * own, rel=0.001
    )
    assert found.memory.optimizer == pytest.approx(8 * own, rel=0.001)
    assert found.memory.gradients == 4 * own
    assert found.fits
    assert found.memory.needed < SIXTEEN / 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_so_says_the_tpus_compiler(small_job):
    job = qlora(small_job, "v5e-1", "nf4")
    found, formula = plan.made(job), estimate.estimated(job, {})
    assert found.is_compiled
    assert found.fits
    assert found.memory.needed < SIXTEEN / 2
    assert formula.memory == pytest.approx(found.memory.needed, rel=0.35)


@pytest.mark.parametrize(
    ("words", "needed", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (112.85G) exceeds available HBM (15.48G).",
            112.85 * 2**30,
            15.48 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 16.02G of 15.48G hbm. Exceeded hbm capacity by 552.5M.",
            16.02 * 2**30,
            15.48 * 2**30,
        ),
    ],
)
def test_the_compilers_complaints(words, needed, available):
    found = too_large(words, 3.0)
    assert isinstance(found, TooLarge)
    assert (found.needed, found.available) == (pytest.approx(needed), pytest.approx(available))


def test_another_complaint_is_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="INTERNAL"):
        too_large("INTERNAL: something else", 1.0)
