"""`gptj plan --search`: meshes, rematerialisation and microbatches, and the best of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from gptj.adapters import NO_LORA, LoRAConfig
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.plan import estimate, remote
from gptj.plan.compiled import Compiled
from gptj.plan.job import Job, Mesh, check_adapters, check_mesh, check_split, mesh_words
from gptj.plan.place import Place
from gptj.plan.plan import Plan, plan_of
from gptj.remat import Remat
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig

POLICIES: tuple[Remat, ...] = ("none", "dots", "block")
FINALISTS, MOST_COMPILED, AT_ONCE = 3, 8, 2
SLACK = 1.15
"""A formula may be that much too high: what it says needs a little too much is compiled all the
same, if it would be among the fastest."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run the step, and why it is not the one to take."""

    plan: Plan
    reason: str
    """Empty for the best."""


def meshes(model: ModelConfig, place: Place, lora: LoRAConfig = NO_LORA) -> list[Mesh]:
    """All that the hardware and the model can have, with adapters if there are any."""
    found = []
    for tensor in _divisors(place.devices):
        for fsdp in _divisors(place.devices // tensor):
            mesh = (place.devices // tensor // fsdp, fsdp, tensor)
            try:
                check_mesh(model, mesh, place)
                check_split(model, mesh, lora)
            except UserError:
                continue
            found.append(mesh)
    return found


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def candidates(job: Job, among: Sequence[Mesh]) -> Iterator[Job]:
    """The job on every mesh, under every policy, with microbatches of 1, 2, 4, ... rows."""
    for mesh in among:
        ways = mesh[0] * mesh[1]
        if job.batch % ways:
            continue
        for policy in POLICIES:
            rows = 1
            while rows <= job.batch // ways:
                if job.batch // ways % rows == 0:
                    compute = dataclasses.replace(job.compute, remat=policy)
                    often = job.batch // ways // rows
                    yield dataclasses.replace(job, mesh=mesh, accumulate=often, compute=compute)
                rows *= 2


def estimated(
    job: Job, among: Sequence[Mesh], every: Callable[[Job, Sequence[Mesh]], Iterator[Job]]
) -> list[tuple[Plan, Compiled]]:
    """The plans by formula, the fastest first, those that fit before those that do not."""
    found = []
    rates = remote.axis_rates(job.place, list(among))
    of = dict(zip(among, rates, strict=True))
    for each in every(job, among):
        formula = estimate.estimated(each, of[each.mesh])
        found.append((plan_of(each, formula), formula))
    return sorted(found, key=lambda pair: _order(pair[0]))


def _order(plan: Plan) -> tuple[bool, float]:
    return not plan.fits, plan.times.predicted if plan.fits else plan.memory.needed


def fastest_mesh(job: Job, accumulate: int | None) -> Job:
    """The same job on the fastest mesh, by formula, of those on which it fits; or needs least.

    Args:
      accumulate: parts a batch is computed in; a row a device at a time without.

    Raises:
      UserError: no mesh divides the batch into so many parts.
    """

    def on_each(job: Job, among: Sequence[Mesh]) -> Iterator[Job]:
        for mesh in among:
            ways = mesh[0] * mesh[1]
            if job.batch % (ways * (accumulate or 1)) == 0:
                often = accumulate or job.batch // ways
                yield dataclasses.replace(job, mesh=mesh, accumulate=often)

    found = estimated(job, meshes(job.model, job.place, job.compute.lora), on_each)
    if not found:
        raise UserError(
            f"no mesh of {job.place.name} divides a batch of {job.batch} rows in "
            f"accumulate={accumulate} parts: choose another batch or accumulate"
        )
    return found[0][0].job


def anywhere(
    place: Place,
    model: ModelConfig,
    batch: int,
    seq: int,
    optimizer: OptimizerConfig,
    compute: StepConfig,
) -> Job:
    """The job on one of the meshes it can have.

    Raises:
      UserError: there is none.
    """
    check_adapters(model, optimizer, compute.lora)
    for mesh in meshes(model, place, compute.lora):
        ways = mesh[0] * mesh[1]
        if batch % ways == 0:
            return Job(place, model, mesh, batch, batch // ways, seq, optimizer, compute)
    raise UserError(
        f"no mesh of the {place.devices} devices of {place.name} divides both the model and a "
        f"batch of {batch} rows: choose another batch"
    )


def search(job: Job, say: Callable[[str], None]) -> list[Candidate]:
    """The best ways to run the job's step, the best first, and all the others.

    By formula first; the fastest that then seem to fit are compiled, until some of them do.

    Args:
      say: is told what is being done.
    """
    ranked = estimated(job, meshes(job.model, job.place, job.compute.lora), candidates)
    say(f"{len(ranked)} combinations by formula, {sum(p.fits for p, _ in ranked)} of them fit")
    finals: list[Plan] = []
    if job.place.platform != "gpu":
        finals = _compiled(ranked, say)
    done = {plan.job for plan in finals}
    rest = [plan for plan, _ in ranked if plan.job not in done]
    finals.sort(key=_order)
    fit = [plan for plan in finals if plan.fits]
    plans = [*fit, *rest, *(plan for plan in finals if not plan.fits)]
    best = plans[0]
    return [
        Candidate(plan, "" if plan is best and plan.fits else why_not(plan, best)) for plan in plans
    ]


def _compiled(ranked: list[tuple[Plan, Compiled]], say: Callable[[str], None]) -> list[Plan]:
    """The fastest by formula, compiled: until enough fit, or too many have been tried."""
    hopeful = [
        (plan, formula)
        for plan, formula in ranked
        if plan.memory.needed <= SLACK * plan.memory.available
    ]
    hopeful.sort(key=lambda pair: pair[0].times.predicted)
    found: list[Plan] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while hopeful and len(found) < MOST_COMPILED:
            fit = sum(plan.fits for plan in found)
            if fit >= FINALISTS:
                break
            some, hopeful = hopeful[:AT_ONCE], hopeful[AT_ONCE:]
            made = list(pool.map(remote.compile_step, [plan.job for plan, _ in some]))
            for (plan, formula), each in zip(some, made, strict=True):
                found.append(plan_of(plan.job, each, formula))
                say(f"compiled {words(plan.job)}: {outcome(found[-1])}")
    return found


def words(job: Job) -> str:
    """What tells a candidate from the others."""
    return f"{mesh_words(job.mesh)}, remat {job.compute.remat}, {job.rows} x {job.accumulate} rows"


def outcome(plan: Plan) -> str:
    """What became of it, in a few words."""
    if not plan.fits:
        return f"needs {_gib(plan.memory.needed)} of {_gib(plan.memory.available)} GiB"
    return f"{plan.times.predicted:.3g} s a step"


def why_not(plan: Plan, best: Plan) -> str:
    """Why a candidate lost."""
    if not plan.fits:
        return outcome(plan)
    more = {name: value - _parts(best)[name] for name, value in _parts(plan).items()}
    most = max(more, key=lambda name: more[name])
    slower = plan.times.predicted / best.times.predicted - 1
    if slower <= 0:
        return "faster by formula, which is not compiled"
    return f"{100 * slower:.0f} % slower, most of it {most} ({more[most]:+.2g} s)"


def _parts(plan: Plan) -> dict[str, float]:
    """What a step's predicted seconds are made of."""
    computing = plan.times.compute / plan.times.share
    return {
        "computing again": computing,
        "memory traffic": max(0.0, plan.times.memory - computing),
        "interconnect": plan.times.exposed,
    }


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"
