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
    found = search.anywhere(job.place, job.model, 16, 2048, job.optimizer, job.compute)
    assert (found.mesh, found.rows, found.accumulate) == ((8, 1, 1), 1, 2)
    with pytest.raises(UserError, match="no mesh of the 8 devices of h100:8 divides both"):
        search.anywhere(job.place, odd, 7, 2048, job.optimizer, job.compute)


def test_candidates_are_every_policy_and_every_power_of_two_of_rows(small_job):
    """A batch of 24 in two parts leaves 12 rows a device: 1, 2 or 4 at a time, not 8."""
    job = small_job("h100:4", (2, 1, 2), batch=24, accumulate=12)
    found = list(search.candidates(job, [(2, 1, 2)]))
    assert [(each.compute.remat, each.rows, each.accumulate) for each in found] == [
        (policy, rows, 12 // rows) for policy in search.POLICIES for rows in (1, 2, 4)
    ]
    assert all(each.batch == 24 and each.mesh == (2, 1, 2) for each in found)
    # As many rows as there are is one of them, and a mesh that does not divide them none.
    alone = dataclasses.replace(job, batch=4, accumulate=1)
    assert {each.rows for each in search.candidates(alone, [(2, 1, 2)])} == {1, 2}
    three = dataclasses.replace(job, batch=6, accumulate=1)
    assert list(search.candidates(three, [(4, 1, 1), (2, 2, 1)])) == []


def facts_of(job, **changes):
    (rates,) = remote.axis_rates(job.place, [job.mesh])
    return dataclasses.replace(search.estimate.estimated(job, rates), **changes)


def planned(job, **changes):
    return plan.plan_of(job, facts_of(job, **changes))


class TestOrder:
    """Those that fit by their seconds, then those that do not by how little they lack."""

    def test_fits_come_first_the_fastest_before_the_others(self, small_job):
        job = small_job("h100:8", (2, 2, 2))
        slow = planned(job, traffic=1e13)
        fast = planned(job, temporaries=10**10)
        larger, large = (planned(job, temporaries=size, traffic=0) for size in (10**12, 10**11))
        ordered = sorted([larger, slow, large, fast], key=search._order)
        assert ordered == [fast, slow, large, larger]

    def test_among_those_that_need_too_much_the_default_mesh_needs_least(self, small_job):
        job = small_job("t4:8", (8, 1, 1), model=preset("20b"), batch=8, accumulate=1)
        found = search.fastest_mesh(job, None)
        meshes = search.meshes(job.model, job.place)
        others = [dataclasses.replace(job, mesh=m, accumulate=8 // (m[0] * m[1])) for m in meshes]
        needs = {each.mesh: plan.made(each).memory.needed for each in others}
        assert not any(plan.made(each).fits for each in others)
        assert needs[found.mesh] == min(needs.values())


class TestWhyNot:
    @pytest.fixture
    def best(self, small_job):
        return planned(small_job("h100:8", (2, 2, 2)), exchanges=())

    def test_it_needs_too_much(self, best):
        large = planned(best.job, arguments=0, temporaries=100 * 2**30)
        assert search.why_not(large, best) == "needs 100.0 of 74.5 GiB"
        assert search.outcome(large) == "needs 100.0 of 74.5 GiB"
        assert search.outcome(dataclasses.replace(best, times=of(best, predicted=0.12345))) == (
            "0.123 s a step"
        )

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            (
                {"exposed": 0.25, "predicted": 1.25},
                "25 % slower, most of it interconnect (+0.25 s)",
            ),
            ({"memory": 3.0, "predicted": 3.0}, "200 % slower, most of it memory traffic (+2 s)"),
            # Twice the products, which then take longer than what is read and written.
            ({"compute": 1.0, "predicted": 2.0}, "100 % slower, most of it computing again (+1 s)"),
            # What the products hide costs nothing.
            (
                {"memory": 0.9, "exposed": 0.5, "predicted": 1.5},
                "50 % slower, most of it interconnect (+0.5 s)",
            ),
            ({"predicted": 1.0}, "faster by formula, which is not compiled"),
            ({"predicted": 0.5}, "faster by formula, which is not compiled"),
        ],
    )
    def test_it_is_slower_and_by_what(self, best, changes, said):
        quick = {"compute": 0.5, "memory": 0.5, "exposed": 0.0, "predicted": 1.0, "share": 0.5}
        first = dataclasses.replace(best, times=of(best, **quick))
        assert search.why_not(
            dataclasses.replace(best, times=of(best, **quick | changes)), first
        ) == (said)


def of(found, **changes):
    return dataclasses.replace(found.times, **changes)


class TestWhatIsCompiled:
    """On hardware whose compiler is here: as few as will do, the most hopeful first."""

    @pytest.fixture
    def asked(self, monkeypatch):
        """The jobs that were compiled; set `refuse` to say which have no room."""
        jobs = []

        def compile_step(job):
            jobs.append(job)
            if compile_step.refuse(job):
                return TooLarge(1.0, 9e12, 8e12, "no room")
            return facts_of(job, seconds=1.0, versions="compiled")

        compile_step.refuse = lambda job: False
        monkeypatch.setattr(remote, "compile_step", compile_step)
        monkeypatch.setattr(remote, "axis_rates", lambda place, meshes: [RATES] * len(meshes))
        jobs.append(compile_step)
        return jobs

    @pytest.fixture
    def small(self, small_job):
        return small_job("v5e-8", (2, 2, 2))

    def test_two_at_a_time_until_three_fit(self, asked, small):
        said = []
        found = search.search(small, said.append)
        compiled = asked[1:]
        assert len(compiled) == 4
        assert [each.plan.is_compiled for each in found] == [True] * 4 + [False] * (len(found) - 4)
        by_formula = search.estimated(
            small, search.meshes(small.model, small.place), search.candidates
        )
        assert set(compiled) == {plan.job for plan, _ in by_formula[:4]}
        assert len(said) == 5
        assert said[1].startswith("compiled data=")
        assert search.words(small) == "data=2,fsdp=2,tensor=2, remat block, 2 x 2 rows"

    def test_eight_at_most_and_the_refused_come_last(self, asked, small):
        asked[0].refuse = lambda job: True
        found = search.search(small, lambda _: None)
        assert len(asked) - 1 == search.MOST_COMPILED == 8
        assert [bool(each.plan.refusal) for each in found] == [False] * (len(found) - 8) + [
            True
        ] * 8
        assert found[0].reason == ""
        assert not found[0].plan.is_compiled
        assert found[-1].reason == "needs 8381.9 of 7450.6 GiB"

    def test_a_little_too_large_by_formula_is_compiled_and_much_is_not(self, asked, small):
        needs = [plan.memory.needed for plan, _ in search.estimated(
            small, search.meshes(small.model, small.place), search.candidates)]  # fmt: skip
        for share, some in ((0.99, False), (1.01, True)):
            room = min(needs) / 1.15 * share
            unit = dataclasses.replace(small.place.accelerator, memory=room)
            tight = dataclasses.replace(
                small, place=dataclasses.replace(small.place, accelerator=unit)
            )
            del asked[1:]
            search.search(tight, lambda _: None)
            assert bool(asked[1:]) == some


RATES = dict.fromkeys(
    ("data", "fsdp", "tensor", "data+fsdp", "data+tensor", "fsdp+tensor", "data+fsdp+tensor"), 1e10
)
