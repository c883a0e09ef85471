"""A small training step to plan, each way of it compiled once."""

from collections.abc import Callable

import pytest

from gptj.adapters import NO_LORA
from gptj.config import ModelConfig
from gptj.plan import compiled, remote
from gptj.plan.job import Job
from gptj.plan.place import find
from gptj.train.optimizer import OptimizerConfig
from gptj.train.step import StepConfig

SMALL = ModelConfig(2, 256, 4, 16, 1024, 500, 512, 256)


@pytest.fixture(scope="session")
def small_job() -> Callable[..., Job]:
    """A step of the small model; changes are fields of `Job`, or of its `compute`."""

    def job(on: str, mesh: tuple[int, int, int], **changes: object) -> Job:
        of_compute = {
            **{"dtype": "bfloat16", "remat": "block", "attention": None},
            **{"lora": NO_LORA, "dpo_beta": None},
        }
        compute = StepConfig(**{k: changes.pop(k, value) for k, value in of_compute.items()})
        optimizer = changes.pop("optimizer", OptimizerConfig()).for_run(1000)
        fields = {"model": SMALL, "batch": 16, "accumulate": 2, "seq": 256} | changes
        return Job(place=find(on), mesh=mesh, optimizer=optimizer, compute=compute, **fields)

    return job


@pytest.fixture(scope="session")
def compile_once(small_job) -> Callable[..., compiled.Compiled]:
    """The small step compiled, each only once for all tests."""
    done: dict[object, compiled.Compiled] = {}

    def compile(on: str, mesh: tuple[int, int, int], **changes: object) -> compiled.Compiled:
        job = small_job(on, mesh, **changes)
        if job not in done:
            done[job] = remote.compile_step(job)
        return done[job]

    return compile
