"""`gptj plan` for training: from a command to everything its reports show."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import jax

from gptj.adapters import trained
from gptj.errors import UserError
from gptj.model import count_parameters
from gptj.plan import estimate, remote
from gptj.plan.compiled import Compiled, Exchange, TooLarge
from gptj.plan.job import Job, mesh_words
from gptj.plan.roofline import Times, Utilisation, times, utilisation
from gptj.remat import Remat

DAY = 86400


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device, by what they are for."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    """What the layers keep for the backward pass."""
    temporaries: float
    """All else: what is needed while a layer or the loss is computed, and padding."""
    available: float

    @property
    def needed(self) -> float:
        """All of it."""
        kinds = (self.weights, self.optimizer, self.gradients, self.activations)
        return sum(kinds) + self.temporaries

    def kinds(self) -> dict[str, float]:
        """By name, without what is available."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "available"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a training step on some hardware."""

    job: Job
    parameters: int
    """Of the model."""
    trained: int
    """How many of them are trained, or of adapters beside them."""
    is_compiled: bool
    fits: bool
    memory: Memory
    activations: dict[str, float]
    """Bytes a device keeps for the backward pass under each policy of `remat`."""
    found: Compiled
    """Of a program that does not fit, by formula."""
    times: Times
    used: Utilisation
    refusal: str | None = None
    """What the compiler said of a program that does not fit."""

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.job.tokens / self.times.predicted

    def days(self, tokens: float) -> float:
        """To train on so many tokens."""
        return tokens / self.tokens_per_second / DAY

    def cost(self, tokens: float, price: float) -> float:
        """Money for so many tokens, at a price of one chip for an hour."""
        return self.days(tokens) * 24 * self.job.place.chips * price

    def run(self, tokens: float, price: float | None) -> dict[str, float]:
        """What it takes to train on so many tokens, and what it costs at a price a chip-hour."""
        days, place = self.days(tokens), self.job.place
        hours = {"device_hours": 24 * days * place.devices, "chip_hours": 24 * days * place.chips}
        cost = {"cost": self.cost(tokens, price)} if price else {}
        return {"tokens": tokens, "days": days, **hours, **cost}

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "job": self.job.plain(),
            "devices": self.job.place.devices,
            "chips": self.job.place.chips,
            "device_kind": self.job.place.accelerator.kind,
            "parameters": self.parameters,
            "trained": self.trained,
            "compiled": self.is_compiled,
            "versions": self.found.versions,
            "compile_seconds": self.found.seconds,
            "attention": self.found.attention,
            "fits": self.fits,
            "refusal": self.refusal,
            "memory": dataclasses.asdict(self.memory) | {"needed": self.memory.needed},
            "activations_by_remat": self.activations,
            "traffic": self.found.traffic,
            "exchanges": [dataclasses.asdict(each) for each in self.found.exchanges],
            "seconds": dataclasses.asdict(self.times) | {"bound": self.times.bound},
            "tokens_per_second": self.tokens_per_second,
            "utilisation": dataclasses.asdict(self.used),
        }


def made(job: Job) -> Plan:
    """The plan of one step: compiled where its hardware's compiler is, else by formula.

    Raises:
      UserError: the hardware's compiler is not installed.
    """
    found = None if job.place.platform == "gpu" else remote.compile_step(job)
    if isinstance(found, Compiled):
        return plan_of(job, found)
    (rates,) = remote.axis_rates(job.place, [job.mesh])
    formula = estimate.estimated(job, rates)
    return plan_of(job, found or formula, formula)


def plan_of(job: Job, found: Compiled | TooLarge, formula: Compiled | None = None) -> Plan:
    """The plan, from what the compiler said or a formula.

    Args:
      formula: stands in for a program that does not fit.
    """
    available, refusal = job.place.accelerator.memory, None
    if isinstance(found, TooLarge):
        assert formula is not None
        facts, needed = formula, found.needed
        available, refusal = found.available, found.words
    else:
        facts, needed = found, float(found.memory)
    step, learnt = times(job, facts), trained(job.model, job.compute.lora)
    return Plan(
        job=job,
        parameters=count_parameters(job.model),
        trained=sum(math.prod(x.shape) for x in jax.tree.leaves(learnt)),
        is_compiled=found.seconds > 0,
        fits=refusal is None and needed <= available,
        memory=_memory(job, needed, facts, available),
        activations={remat: estimate.activations(job, remat) for remat in get_args(Remat)},
        found=facts,
        times=step,
        used=utilisation(job, step.predicted),
        refusal=refusal,
    )


def _memory(job: Job, needed: float, facts: Compiled, available: float) -> Memory:
    """What is needed, by kind: gradients and activations by formula, and the rest what is left."""
    left = max(0.0, needed - facts.weights - facts.optimizer)
    gradients = min(left, estimate.gradients(job))
    kept = min(left - gradients, estimate.activations(job))
    rest = left - gradients - kept
    return Memory(facts.weights, facts.optimizer, gradients, kept, rest, available)


@dataclasses.dataclass(frozen=True)
class Saving:
    """What the parallel block saves over one whose halves follow each other."""

    parallel: float
    """Bytes of activations that a device all-reduces over tensor in a step."""
    sequential: float
    seconds: float
    """What the other block would exchange longer, in a step."""
    parallel_times: int
    """How many of these all-reduces there are."""
    sequential_times: int


def check_comparable(job: Job) -> None:
    """Refuse a job of which no other block's exchanges could be told.

    Raises:
      UserError: nothing is split over tensor, or nothing is compiled for its hardware.
    """
    if job.axis("tensor") < 2:
        raise UserError(
            f"the mesh {mesh_words(job.mesh)} splits nothing over tensor, so no block "
            "exchanges anything: compare on a mesh with tensor above 1"
        )
    if job.place.platform == "gpu":
        raise UserError(f"nothing is compiled for {job.place.name}: compare on a TPU or CPU")


def saving(plan: Plan) -> Saving:
    """Compile the same step with GPT-3's block, and compare what travels over tensor.

    Raises:
      UserError: they cannot be compared, or one of them does not fit.
    """
    check_comparable(plan.job)
    theirs = dataclasses.replace(plan.job, sequential=True)
    other = None if plan.refusal else remote.compile_step(theirs)
    if other is None or isinstance(other, TooLarge):
        raise UserError("only programs that fit can be compared: choose a mesh on which it fits")
    both = [_over_tensor(each) for each in (plan.found, other)]
    sizes = [math.fsum(x.bytes * x.times for x in each) for each in both]
    seconds = [math.fsum(x.seconds for x in each) for each in both]
    counts = [sum(x.times for x in each) for each in both]
    return Saving(sizes[0], sizes[1], seconds[1] - seconds[0], counts[0], counts[1])


def _over_tensor(found: Compiled) -> list[Exchange]:
    """The all-reduces of whole streams of activations."""
    over = [x for x in found.exchanges if x.kind == "all-reduce" and x.axes == ("tensor",)]
    largest = max((x.bytes * x.times for x in over), default=0)
    return [x for x in over if x.bytes * x.times > largest / 100]
