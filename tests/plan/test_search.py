"""The search: what it tries, how it ranks, and what it says of the losers."""

import dataclasses

import pytest

from gptj.adapters import LoRAConfig
from gptj.config import preset
from gptj.errors import UserError
from gptj.plan import plan, remote, search
from gptj.plan.compiled import TooLarge
from gptj.plan.place import find


@pytest.fixture
def job(small_job):
    model = preset("gpt-j-6b")
    return small_job("h100:8", (1, 1, 8), model=model, batch=64, accumulate=64, seq=2048)


def test_meshes_are_those_that_divide_the_devices_and_the_model():
    found = search.meshes(preset("gpt-j-6b"), find("h100:8"))
    assert len(found) == len(set(found)) == 10
    assert all(a * b * c == 8 for a, b, c in found)
    few_heads = dataclasses.replace(preset("125m"), heads=6, d_model=768)
    assert {tensor for _, _, tensor in search.meshes(few_heads, find("h100:8"))} == {1, 2}


def test_by_formula_the_fastest_that_fits_wins_and_losers_are_told_why(job):
    said = []
    found = search.search(job, said.append)
    best = found[0].plan
    assert best.fits
    assert found[0].reason == ""
    fit = [each for each in found if each.plan.fits]
    assert [x.plan.times.predicted for x in fit] == sorted(x.plan.times.predicted for x in fit)
    assert all("slower, most of it" in x.reason for x in fit[1:])
    unfit = [each for each in found if not each.plan.fits]
    assert unfit
    assert all(each.reason.startswith("needs ") for each in unfit)
    assert f"{len(found)} combinations by formula, {len(fit)} of them fit" in said[0]
    assert {each.plan.job.compute.remat for each in found} == set(search.POLICIES)
    assert {each.plan.job.batch for each in found} == {64}


def test_the_default_mesh_is_the_fastest_that_fits(job):
    found = search.fastest_mesh(job, None)
    assert found.rows == 1
    assert found.compute == job.compute
    others = [
        dataclasses.replace(job, mesh=mesh, accumulate=job.batch // (mesh[0] * mesh[1]))
        for mesh in search.meshes(job.model, job.place)
    ]
    plans = [plan.made(each) for each in (found, *others)]
    assert plans[0].fits
    assert plans[0].times.predicted == min(x.times.predicted for x in plans if x.fits)


def test_the_default_mesh_divides_the_batch_into_the_parts_asked_for(job):
    small = dataclasses.replace(job, batch=8, accumulate=8)
    found = search.fastest_mesh(small, 2)
    assert found.accumulate == 2
    assert found.ways <= 4
    with pytest.raises(UserError, match="of 8 rows in accumulate=3 parts"):
        search.fastest_mesh(small, 3)


def test_a_mesh_that_cannot_have_the_adapters_is_not_tried(job):
    lora = LoRAConfig(rank=4, quantize="nf4")
    beside = dataclasses.replace(job, mesh=(8, 1, 1), accumulate=8,
                                 compute=dataclasses.replace(job.compute, lora=lora))  # fmt: skip
    tried = {each.plan.job.mesh for each in search.search(beside, lambda _: None)}
    assert {tensor for _, _, tensor in tried} == {1, 2, 4}
    with pytest.raises(UserError, match="tensor=8 does not divide lora-rank=4"):
        dataclasses.replace(beside, mesh=(1, 1, 8))
    small = dataclasses.replace(job.model, d_model=256, heads=8, rotary_dims=16, d_ff=128)
    with pytest.raises(UserError, match=r"splits 128 weights of a sum 4 ways.*nf4 keeps"):
        dataclasses.replace(beside, model=small, mesh=(2, 1, 4))


def test_where_nothing_fits_nothing_is_the_best(small_job):
    found = search.search(
        small_job("t4", (1, 1, 1), model=preset("gpt-j-6b"), batch=1, accumulate=1, seq=2048),
        lambda _: None,
    )
    assert all(each.reason.startswith("needs ") for each in found)


def test_the_finalists_are_compiled_until_some_fit(job, monkeypatch, small_job):
    """Here the compiler finds every program that recomputes nothing too large."""
    compiled = []

    def compile_step(job):
        compiled.append(job)
        if job.compute.remat == "none":
            return TooLarge(1.0, 20e9, 16e9, "no room")
        (rates,) = remote.axis_rates(job.place, [job.mesh])
        return dataclasses.replace(
            search.estimate.estimated(job, rates), versions="compiled", seconds=1.0
        )

    monkeypatch.setattr(remote, "compile_step", compile_step)
    small = small_job("cpu:8", (8, 1, 1), dtype="float32")
    found = search.search(small, lambda _: None)
    assert found[0].plan.fits
    assert found[0].plan.found.versions == "compiled"
    assert search.FINALISTS <= len(compiled) <= search.MOST_COMPILED
    lost = [each for each in found if each.plan.refusal]
    assert all(each.reason == "needs 18.6 of 14.9 GiB" for each in lost)
    assert len(found) == len({each.plan.job for each in found})


def test_a_batch_that_nothing_divides(job):
    odd = dataclasses.replace(job.model, vocab_size=50401, padded_vocab_size=50401)
    with pytest.raises(UserError, match="no mesh of the 8 devices of h100:8 divides both"):
        search.anywhere(job.place, odd, 7, 2048, job.optimizer, job.compute)
