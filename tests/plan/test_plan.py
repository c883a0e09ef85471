"""From what a program needs to what is said of it: memory by kind, times, days and money."""

import dataclasses
import json

import pytest

from gptj.adapters import LoRAConfig
from gptj.errors import UserError
from gptj.flops import flops_per_token, hardware_flops_per_token
from gptj.plan import estimate, plan, remote, roofline
from gptj.plan.compiled import Compiled, Exchange, TooLarge
from gptj.plan.place import find

H100 = 989e12
FACTS = Compiled(3.0, 5_000_000, 30_000_000, 4_000_000, 900_000, 1e9, (), 0, "JAX 9")


@pytest.fixture
def job(small_job):
    return small_job("h100:8", (2, 2, 2))


def exchange(seconds, is_hidden, axes=("tensor",), size=100, times=2):
    return Exchange("all-reduce", axes, 2, size, times, seconds, is_hidden)


class TestMemory:
    def test_of_what_is_needed_each_kind_has_its_part(self, job):
        found = plan.plan_of(job, FACTS).memory
        gradients, kept = estimate.gradients(job), estimate.activations(job)
        assert (found.weights, found.optimizer) == (4_000_000, 900_000)
        assert (found.gradients, found.activations) == (gradients, kept)
        assert found.temporaries == 35_000_000 - 4_900_000 - gradients - kept
        assert found.needed == 35_000_000
        assert found.available == 80e9
        assert list(found.kinds()) == [
            *("weights", "optimizer", "gradients", "activations", "temporaries")
        ]
        assert sum(found.kinds().values()) == found.needed

    @pytest.mark.parametrize("left", [0, 1_000_000, 2_779_136, 2_779_137, 3_000_000])
    def test_a_compiler_that_needs_less_than_the_formulas_is_believed(self, job, left):
        """Of what is left the gradients come first, then what the layers keep."""
        facts = dataclasses.replace(FACTS, arguments=4_900_000, temporaries=left)
        found = plan.plan_of(job, facts).memory
        assert found.needed == 4_900_000 + left
        assert found.gradients == min(left, 2_779_136)  # by hand in test_estimate.py
        assert found.activations == left - found.gradients
        assert found.temporaries == 0

    def test_arguments_that_are_less_than_the_state_leave_nothing(self, job):
        facts = dataclasses.replace(FACTS, arguments=4_000_000, temporaries=0)
        found = plan.plan_of(job, facts).memory
        assert (found.gradients, found.activations, found.temporaries) == (0, 0, 0)

    def test_a_device_that_is_exactly_full_fits(self, job):
        room = dataclasses.replace(job.place.accelerator, memory=35_000_000)
        full = dataclasses.replace(job, place=dataclasses.replace(job.place, accelerator=room))
        assert plan.plan_of(full, FACTS).fits
        more = dataclasses.replace(FACTS, temporaries=FACTS.temporaries + 1)
        assert not plan.plan_of(full, more).fits

    def test_each_policy_says_what_it_keeps(self, job):
        found = plan.plan_of(job, FACTS).activations
        assert found == {
            r: estimate.activations(job, r) for r in ("none", "dots", "block", "offload")
        }


class TestRefused:
    """By the hardware's compiler, for want of memory."""

    SAID = TooLarge(2.0, 90e9, 76e9, "no room")

    def test_what_the_compiler_says_of_memory_wins_and_the_rest_is_by_formula(self, job):
        found = plan.plan_of(job, self.SAID, FACTS)
        assert not found.fits
        assert found.is_compiled
        assert found.refusal == "no room"
        assert (found.memory.needed, found.memory.available) == (90e9, 76e9)
        assert found.found == FACTS

    def test_even_where_its_figures_would_fit(self, job):
        small = dataclasses.replace(self.SAID, needed=1e9)
        assert not plan.plan_of(job, small, FACTS).fits

    @pytest.mark.parametrize("answer", [FACTS, SAID])
    def test_a_compiler_that_is_there_is_asked(self, small_job, monkeypatch, answer):
        asked = []
        monkeypatch.setattr(remote, "compile_step", lambda job: asked.append(job) or answer)
        monkeypatch.setattr(remote, "axis_rates", lambda place, meshes: [RATES] * len(meshes))
        on_tpu = small_job("v5e-8", (2, 2, 2))
        found = plan.made(on_tpu)
        assert asked == [on_tpu]
        assert found.is_compiled
        if answer is FACTS:
            assert (found.found, found.refusal) == (FACTS, None)
        else:
            assert (found.found, found.refusal) == (estimate.estimated(on_tpu, RATES), "no room")

    def test_of_a_gpu_none_is(self, job, monkeypatch):
        monkeypatch.setattr(remote, "compile_step", pytest.fail)
        assert not plan.made(job).is_compiled


RATES = {"tensor": 1e9, "fsdp": 1e9, "data": 1e9}


class TestTimes:
    def of(self, job, **changes):
        return roofline.times(job, dataclasses.replace(FACTS, **changes))

    def test_each_part_alone(self, job):
        waits = (exchange(0.5, True), exchange(0.25, False), exchange(0.125, False))
        found = self.of(job, exchanges=waits, traffic=3350e9 * 2)
        made = 16 * 256 * hardware_flops_per_token(job.model, 256, "block")
        assert found.compute == pytest.approx(made / 8 / H100)
        assert found.memory == pytest.approx(2)
        assert (found.interconnect, found.exposed) == (0.875, 0.375)
        assert found.share == 0.508
        assert "8 x H100" in found.source

    @pytest.mark.parametrize(
        ("traffic", "hidden", "bound", "rest"),
        [(0, 0, "compute", 0), (3350e9, 0, "memory", 1), (3350e9, 2.0, "interconnect", 2)],
    )
    def test_the_longest_of_what_goes_on_together_and_what_is_waited_for(
        self, job, traffic, hidden, bound, rest
    ):
        for exposed in (0.0, 1e-9):
            exchanges = (exchange(hidden, True), exchange(exposed, False))
            found = self.of(job, exchanges=exchanges, traffic=traffic)
            longest = rest or found.compute / 0.508
            assert found.predicted == pytest.approx(longest + exposed, rel=1e-12)
            assert found.bound == bound

    def test_float32_on_a_tpu_is_as_fast_as_bfloat16(self, small_job):
        both = [small_job("v4-8", (1, 1, 4), dtype=each) for each in ("bfloat16", "float32")]
        narrow, wide = (roofline.times(each, FACTS).compute for each in both)
        assert narrow == wide


@pytest.mark.parametrize(
    ("remat", "again"), [("none", False), ("dots", False), ("block", True), ("offload", True)]
)
def test_the_papers_counts_have_another_forward_pass_where_layers_are_made_again(
    small_job, remat, again
):
    """1,839,616 parameters, and attention's 12 x 2 layers x 256 x 256 a token."""
    job = small_job("h100:8", (2, 2, 2), remat=remat)
    parameters, attention = 1_839_616, 12 * 2 * 256 * 256
    found = roofline.utilisation(job, 2.0)
    rate = 16 * 256 / 2.0 / (8 * H100)
    needed = 6 * parameters + attention
    more = 2 * parameters + attention / 3 if again else 0
    assert found.palm_mfu == pytest.approx(rate * needed)
    assert found.palm_hfu == found.article_hfu
    assert found.palm_hfu == pytest.approx(rate * (needed + more), rel=1e-12)
    assert found.article_mfu == pytest.approx(rate * 6 * parameters)
    made = hardware_flops_per_token(job.model, 256, remat)
    assert found.gptj_hfu == pytest.approx(rate * made, rel=1e-12)
    own = flops_per_token(job.model, 256)
    assert found.gptj_mfu == pytest.approx(rate * own, rel=1e-12)


def test_pairs_beside_adapters_in_the_papers_counts(small_job):
    """Four N for the gradient's passes, and two N twice to read: by the model, and what it was."""
    job = small_job("h100:8", (2, 2, 2), lora=LoRAConfig(rank=8), dpo_beta=0.1)
    parameters, attention = 1_839_616, 12 * 2 * 256 * 256
    rate = 16 * 256 * 2 / 2.0 / (8 * H100)
    found = roofline.utilisation(job, 2.0)
    read = 2 * parameters + attention / 3
    assert found.palm_mfu == pytest.approx(rate * (4 * parameters + attention + read))
    assert found.palm_hfu == pytest.approx(rate * (4 * parameters + attention + 3 * read))
    assert found.article_mfu == pytest.approx(rate * 6 * parameters)
    read_by_us = job.model.layers * 4 * 256 * 128 + 2 * (2 * 786_432 + 131_072)
    before = dataclasses.replace(job, compute=dataclasses.replace(job.compute, dpo_beta=None))
    alone = roofline.utilisation(before, 2.0)
    assert found.gptj_mfu / 2 - alone.gptj_mfu == pytest.approx(rate / 2 * read_by_us)
    assert found.gptj_hfu / 2 - alone.gptj_hfu == pytest.approx(rate / 2 * 2 * read_by_us)


class TestTheWholeRun:
    def test_days_hours_and_money_are_of_chips(self, small_job):
        """A chip of v3 has two devices, and is what one pays for."""
        found = plan.plan_of(small_job("v3-8", (2, 2, 2)), FACTS)
        seconds = 1e12 / (16 * 256) * found.times.predicted
        run = found.run(1e12, 2.0)
        assert run["tokens"] == 1e12
        assert run["days"] == pytest.approx(seconds / 86_400)
        assert run["device_hours"] == pytest.approx(8 * seconds / 3600)
        assert run["chip_hours"] == pytest.approx(4 * seconds / 3600)
        assert run["cost"] == pytest.approx(2 * run["chip_hours"])
        assert list(found.run(1e12, None)) == ["tokens", "days", "device_hours", "chip_hours"]

    def test_all_of_it_is_plain_json(self, small_job):
        facts = dataclasses.replace(FACTS, exchanges=(exchange(0.5, True),), attention="xla")
        found = plan.plan_of(small_job("v3-8", (2, 2, 2)), facts)
        plain = json.loads(json.dumps(found.plain()))
        assert (plain["devices"], plain["chips"], plain["device_kind"]) == (8, 4, "TPU v3")
        assert (plain["parameters"], plain["trained"]) == (1_839_616, 1_839_616)
        assert (plain["compiled"], plain["fits"], plain["refusal"]) == (True, True, None)
        assert (plain["compile_seconds"], plain["attention"]) == (3.0, "xla")
        assert plain["memory"]["needed"] == 35_000_000
        assert plain["exchanges"][0]["is_hidden"]
        assert plain["seconds"]["bound"] == "interconnect"
        assert plain["traffic"] == 1e9
        assert plain["tokens_per_second"] == found.tokens_per_second
        assert set(plain["utilisation"]) == {
            f"{count}_{share}" for count in ("gptj", "palm", "article") for share in ("mfu", "hfu")
        }


class TestTheParallelBlock:
    """What it saves over one whose halves follow each other."""

    def on_cpu(self, small_job, mesh=(1, 1, 2)):
        place = dataclasses.replace(find("h100:2"), name="cpu:2", platform="cpu")
        return dataclasses.replace(small_job("h100:2", mesh), place=place)

    def test_only_what_crosses_tensor_counts(self, small_job, monkeypatch):
        ours = (
            exchange(0.5, False, size=100, times=2),
            exchange(0.25, False, size=10, times=3),
            exchange(9.0, False, size=1, times=2),  # no stream: a hundredth of the largest
            exchange(9.0, False, axes=("data",), size=1000, times=7),
            exchange(9.0, False, axes=("data", "tensor"), size=1000, times=7),
        )
        theirs = (exchange(2.0, True, size=100, times=5),)
        job = self.on_cpu(small_job)
        asked = []
        other = dataclasses.replace(FACTS, exchanges=theirs)
        monkeypatch.setattr(remote, "compile_step", lambda job: asked.append(job) or other)
        found = plan.saving(plan.plan_of(job, dataclasses.replace(FACTS, exchanges=ours)))
        assert [each.sequential for each in asked] == [True]
        assert (found.parallel, found.sequential) == (230, 500)
        assert (found.parallel_times, found.sequential_times) == (5, 5)
        assert found.seconds == 1.25

    def test_what_does_not_fit_cannot_be_compared(self, small_job, monkeypatch):
        job = self.on_cpu(small_job)
        too_large = TooLarge(1.0, 9e9, 8e9, "no room")
        monkeypatch.setattr(remote, "compile_step", lambda _: too_large)
        for found in (plan.plan_of(job, FACTS), plan.plan_of(job, too_large, FACTS)):
            with pytest.raises(UserError, match="only programs that fit can be compared: choose"):
                plan.saving(found)

    def test_nor_what_is_not_split_or_not_compiled(self, small_job):
        with pytest.raises(UserError, match=r"data=2 splits nothing over tensor.*tensor above 1"):
            plan.check_comparable(self.on_cpu(small_job, (2, 1, 1)))
        with pytest.raises(UserError, match="nothing is compiled for h100:2: compare on a TPU"):
            plan.check_comparable(small_job("h100:2", (1, 1, 2)))
