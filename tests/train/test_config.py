"""What a run may be asked for: each bound where it lies, and what would be ignored refused."""

import dataclasses
from pathlib import Path

import pytest

from gptj.adapters import LoRAConfig
from gptj.errors import UserError
from gptj.train.config import TrainConfig
from gptj.train.objective import StepConfig


def config(**changes) -> TrainConfig:
    return TrainConfig(Path("data"), Path("run"), **changes)


COUNTS = (
    *("steps", "seq", "batch", "accumulate", "eval_every", "eval_batches", "save_every"),
    *("keep", "keep_every", "rewind_after", "log_every"),
)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_is_at_least_1(name, value):
    with pytest.raises(UserError, match=f"^{name}={value} must be at least 1$"):
        config(**{name: value})
    assert getattr(config(**{name: 1}), name) == 1


@pytest.mark.parametrize("name", ["seq", "eval_batches", "keep_every"])
def test_a_count_that_may_be_left_out(name):
    assert getattr(config(**{name: None}), name) is None


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 1), (6, 1), (6, 2), (6, 6)])
def test_a_batch_in_equal_parts(batch, accumulate):
    assert config(batch=batch, accumulate=accumulate).batch == batch


@pytest.mark.parametrize(("batch", "accumulate"), [(6, 4), (6, 12), (1, 2)])
def test_a_batch_in_parts_that_are_not_equal(batch, accumulate):
    said = f"batch={batch} .* accumulate={accumulate} equal parts: choose a divisor of the batch"
    with pytest.raises(UserError, match=said):
        config(batch=batch, accumulate=accumulate)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_a_seed_of_32_bits(seed):
    assert config(seed=seed).seed == seed


class TestTheBestCheckpoints:
    @pytest.mark.parametrize(("save", "evaluate"), [(5, 5), (2, 6), (6, 2), (1, 7)])
    def test_those_that_are_saved_are_evaluated_or_the_other_way_round(self, save, evaluate):
        made = config(keep_best=1, save_every=save, eval_every=evaluate)
        assert made.keep_best == 1

    @pytest.mark.parametrize(("save", "evaluate"), [(4, 6), (6, 4), (5, 12)])
    def test_where_they_fall_apart_there_is_no_best(self, save, evaluate):
        said = f"save_every={save} and eval_every={evaluate} a multiple of the other"
        with pytest.raises(UserError, match=f"keep_best=2 needs .*: make one of {said}"):
            config(keep_best=2, save_every=save, eval_every=evaluate)
        assert config(save_every=save, eval_every=evaluate).keep_best == 0

    def test_there_are_none_below_0(self):
        with pytest.raises(UserError, match=r"^keep_best=-1 must be at least 0$"):
            config(keep_best=-1)


class TestProfiles:
    @pytest.mark.parametrize(
        ("asked", "traced"), [(None, []), ("10:13", [10, 11, 12]), ("1:2", [1]), ("9:11", [9, 10])]
    )
    def test_from_the_first_to_before_the_last(self, asked, traced):
        assert [*config(profile=asked).traced()] == traced

    @pytest.mark.parametrize("asked", ["", "13:10", "0:0", "0:1", "0:3", "7:7", "3:4:5", "1.5:3"])
    def test_what_would_trace_nothing_is_refused(self, asked):
        said = f"^profile={asked} is not START:STOP, two steps from 1 on as in 10:13$"
        with pytest.raises(UserError, match=said):
            config(profile=asked)


class TestFreshOptimizers:
    def test_of_a_model_to_start_from(self):
        assert config(fresh_opt=True, from_="models/base").fresh_opt

    def test_adapters_have_none_to_leave_behind(self):
        lora = StepConfig(lora=LoRAConfig(rank=2))
        with pytest.raises(UserError, match="adapters always begin so: leave it out"):
            config(fresh_opt=True, from_="models/base", compute=lora)
        assert not config(from_="models/base", compute=lora).fresh_opt


def test_a_changed_copy_is_checked_again():
    with pytest.raises(UserError, match="seq=0 must be at least 1"):
        dataclasses.replace(config(), seq=0)
