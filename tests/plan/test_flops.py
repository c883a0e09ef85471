"""Predicted operations against a count by hand, and what follows from them."""

import dataclasses

import pytest

from gptj.adapters import LoRAConfig
from gptj.config import preset
from gptj.errors import UserError
from gptj.flops import flops_per_token, forward_flops_per_token, hardware_flops_per_token
from gptj.plan.compiled import Exchange
from gptj.plan.estimate import estimated
from gptj.plan.place import find
from gptj.plan.plan import plan_of
from gptj.plan.roofline import times, utilisation

# GPT-J by hand: 28 layers of 4 square matrices of 4096 and two of 4096 x 16384, and the output
# projection of 4096 x 50400; attention's two products over the causal half of 2048 positions.
IN_LAYERS = 28 * (4 * 4096**2 + 2 * 4096 * 16384)
IN_PRODUCTS = IN_LAYERS + 4096 * 50400
ATTENTION = 2 * 2 * 28 * 4096 * 2048 / 2
NEEDED = 3 * (2 * IN_PRODUCTS + ATTENTION)
AGAIN = 2 * IN_LAYERS + ATTENTION
SCORES = ATTENTION / 2
PARAMETERS = 6_050_882_784


@pytest.fixture
def job(small_job):
    """GPT-J's own step, on the hardware it was trained on, without its compiler."""
    model = preset("gpt-j-6b")
    found = small_job("h100:8", (1, 1, 8), model=model, batch=512, accumulate=512, seq=2048)
    return found


def test_a_count_by_hand(job):
    assert flops_per_token(job.model, 2048) == pytest.approx(NEEDED, rel=0.01)
    assert pytest.approx(3.647e10, rel=1e-3) == NEEDED
    made = NEEDED + AGAIN + SCORES
    assert hardware_flops_per_token(job.model, 2048, "block") == pytest.approx(made, rel=0.01)
    assert hardware_flops_per_token(job.model, 2048, "none") == pytest.approx(NEEDED + SCORES)
    assert forward_flops_per_token(job.model, 2048) == pytest.approx(
        2 * IN_PRODUCTS + 2 * ATTENTION
    )


def plan(job):
    rates = dict.fromkeys(("data", "fsdp", "tensor"), 450e9)
    formula = estimated(job, rates)
    return plan_of(job, formula)


def test_the_plan_divides_them_by_the_peak(job):
    found = plan(job)
    made = 512 * 2048 * (NEEDED + AGAIN + SCORES)
    assert found.times.compute == pytest.approx(made / 8 / 989e12, rel=0.01)
    assert found.parameters == PARAMETERS
    assert found.times.predicted == pytest.approx(
        found.times.compute / found.times.share + found.times.exposed
    )
    assert found.times.bound == "compute"
    assert found.tokens_per_second == pytest.approx(512 * 2048 / found.times.predicted)


def test_the_counts_of_the_papers(job):
    """At the article's speed on its pod: 5.4 PFLOP/s by the GPT-3 count."""
    pod = dataclasses.replace(job.place, devices=256)
    found = utilisation(
        dataclasses.replace(job, place=pod, mesh=(32, 1, 8), accumulate=16),
        job.tokens / 151e3,
    )
    peak = 256 * 989e12
    assert found.article_mfu * peak == pytest.approx(5.4e15, rel=0.02)
    assert found.article_hfu * peak == pytest.approx(8.1e15, rel=0.04)
    assert found.palm_mfu * peak == pytest.approx(151e3 * (6 * PARAMETERS + 12 * 28 * 4096 * 2048))
    assert found.palm_hfu == found.article_hfu
    assert found.gptj_mfu < found.palm_mfu < found.palm_hfu


def test_money_is_for_chips_and_hours(job):
    found = plan(job)
    hours = 24 * found.days(1e9)
    assert hours == pytest.approx(1e9 / found.tokens_per_second / 3600)
    assert found.cost(1e9, price=2.5) == pytest.approx(hours * 8 * 2.5)


def test_what_is_hidden_is_not_waited_for(job):
    formula = estimated(job, {"tensor": 450e9})
    hidden = [dataclasses.replace(each, is_hidden=True) for each in formula.exchanges]
    found = times(job, dataclasses.replace(formula, exchanges=tuple(hidden)))
    assert found.interconnect == pytest.approx(sum(x.seconds for x in hidden))
    assert found.exposed == 0
    slow = times(job, dataclasses.replace(formula, traffic=1e16))
    assert slow.bound == "memory"
    assert slow.predicted > 1e16 / 3350e9


def test_what_is_hidden_can_still_take_longest(job):
    long = Exchange("all-gather", ("fsdp",), 8, 1 << 40, 1, seconds=1e4, is_hidden=True)
    found = times(job, dataclasses.replace(estimated(job, {"tensor": 450e9}), exchanges=(long,)))
    assert found.predicted == pytest.approx(1e4)


@pytest.mark.parametrize(("on", "slower"), [("h100:8", 2), ("t4:1", 65 / 8.1), ("cpu:8", 1)])
def test_float32_has_its_own_peak(job, on, slower):
    place = find(on)
    wide = dataclasses.replace(job.compute, dtype="float32")
    job = dataclasses.replace(job, place=place, mesh=(1, 1, place.devices))
    both = [dataclasses.replace(job, compute=each) for each in (job.compute, wide)]
    narrow, found = (times(each, estimated(each, {"tensor": 1e9})).compute for each in both)
    assert found / narrow == pytest.approx(slower)


def test_pairs_are_two_rows_that_are_read_three_times(job):
    """By the model twice, for what it says of them and for the gradient; by what it was once."""
    with pytest.raises(UserError, match="adapters beside the model as it was: give --lora-rank"):
        dataclasses.replace(job, compute=dataclasses.replace(job.compute, dpo_beta=0.1))
    compute = dataclasses.replace(job.compute, lora=LoRAConfig(rank=8))
    rows = dataclasses.replace(job, compute=compute)
    pairs = dataclasses.replace(
        rows, batch=256, accumulate=256, compute=dataclasses.replace(compute, dpo_beta=0.1)
    )
    assert pairs.tokens == rows.tokens
    beside, found = plan(rows), plan(pairs)
    read = 2 * IN_PRODUCTS + ATTENTION
    more = (found.times.compute - beside.times.compute) * 8 * 989e12 / pairs.tokens
    assert more == pytest.approx(2 * read, rel=0.01)
    rate = lambda each: each.tokens_per_second / (8 * 989e12)  # noqa: E731
    needed = [each.used.gptj_mfu / rate(each) for each in (beside, found)]
    assert needed[1] - needed[0] == pytest.approx(read, rel=0.01)
    assert found.used.article_mfu / rate(found) == pytest.approx(6 * PARAMETERS)


def test_weights_beside_adapters_cost_no_product_for_a_gradient(job):
    compute = dataclasses.replace(job.compute, lora=LoRAConfig(rank=8))
    beside = dataclasses.replace(job, compute=compute)
    whole, found = plan(job), plan(beside)
    own = 28 * 8 * (4 * 8192 + 2 * (4096 + 16384))
    assert (whole.trained, found.trained) == (PARAMETERS, own)
    rate = lambda each: each.tokens_per_second / (8 * 989e12)  # noqa: E731
    made = NEEDED + AGAIN + SCORES - 2 * IN_PRODUCTS + 6 * own
    assert found.used.gptj_hfu / rate(found) == pytest.approx(made, rel=0.01)
    assert found.used.article_mfu / rate(found) == 4 * PARAMETERS
    assert whole.used.article_mfu / rate(whole) == pytest.approx(6 * PARAMETERS)
