"""The verb about hardware that is not there: `gptj plan`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from gptj.adapters import NO_LORA, LoRAConfig
from gptj.attention import Backend
from gptj.cli.flags import parse
from gptj.config import ModelConfig, named
from gptj.engine.adapters import RANK
from gptj.engine.config import EngineConfig, KVCache
from gptj.errors import UserError
from gptj.plan import search as searching
from gptj.plan import serve as serving
from gptj.plan import terminal
from gptj.plan.config import TOKENS, mesh_from
from gptj.plan.job import Job, Mesh
from gptj.plan.measure import check_here, measure
from gptj.plan.place import Place, find
from gptj.plan.plan import Plan, check_comparable, made, saving
from gptj.quantised import Quantisation
from gptj.remat import Remat
from gptj.train.objective import DPO_BETA, StepConfig
from gptj.train.optimizer import Kind, OptimizerConfig


@dataclasses.dataclass(frozen=True)
class PlanCommand:
    """Say what a run would need on some hardware, how fast it would be, and why, without it.

    The step that `gptj train` runs is compiled for the hardware by its own compiler, which needs
    none of it: memory and what travels between devices are the compiler's, times a prediction. For
    GPUs, whose compiler needs one, all is by formula.
    """

    model: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RECIPE|PRESET|FILE")]]
    """A recipe, a preset, or a JSON file with a model's shape."""
    on: str
    """Hardware by its cloud name: v3-256, v5e-16, h100:8, cpu:8, or a TPU's arrangement as
    v5p:4x4x8."""
    mesh: Annotated[str | None, tyro.conf.arg(metavar="data=N,fsdp=N,tensor=N")] = None
    """How the devices are arranged, as data=32,tensor=8. Default: the fastest that fits, by
    formula."""
    batch: int | None = None
    """Rows in a step. Default: the recipe's, or what makes about a million tokens."""
    accumulate: int | None = None
    """Parts a step's batch is computed in. Default: the recipe's, or one row a device at a time."""
    seq: int | None = None
    """Tokens in a row. Default: the recipe's, or the model's context."""
    remat: Remat | None = None
    """What the backward pass recomputes. Default: the recipe's, or block."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the layers compute in. Default: the recipe's, or bfloat16."""
    attention: Backend | None = None
    """What computes attention. Default: the recipe's, or what training would take there."""
    optimizer: Kind | None = None
    """Default: the recipe's, or adamw."""
    moments: Literal["float32", "bfloat16"] | None = None
    """What the optimizer's running means are kept in. Default: the recipe's, or float32."""
    lora: tyro.conf.OmitArgPrefixes[LoRAConfig] = NO_LORA
    preferences: bool = False
    """The data are preferences, of which adapters learn; `batch` counts pairs of rows. Default: as
    the recipe has a dpo_beta, or not."""
    search: bool = False
    """Try meshes, policies of remat and microbatches, compile the best, and rank them."""
    sequential: bool = False
    """Also compile the step with GPT-3's block, and say what GPT-J's saves."""
    measure: bool = False
    """Also run the step on the devices that are here, and print predicted beside measured."""
    tokens: float | None = None
    """How many tokens to say the days and hours for, as 400e9."""
    price: float | None = None
    """Of one chip for an hour, to say what the tokens cost."""
    serve: bool = False
    """Plan the engine that answers requests, not training."""
    slots: int | None = None
    """With serve: completions that draw at once. Default: the engine's."""
    positions: int | None = None
    """With serve: tokens that a slot has room for. Default: the model's context."""
    quantize: Quantisation | None = None
    """With serve: keep the matrices in so many bits."""
    kv_cache: KVCache = "model"
    """With serve: keep keys and values in the model's dtype, or in int8."""
    max_adapters: int = 0
    """With serve: for how many low-rank adapters there is room beside the weights."""
    max_adapter_rank: int | None = None
    """With serve: the largest rank of one. Default: 16."""
    json: Path | None = None
    """Also write all of it to this file."""
    html: Path | None = None
    """Also write it as a page to this file."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "seq", "slots", "positions", "max_adapter_rank"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        for name in ("tokens", "price"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UserError(f"{name}={value} must be above 0")
        if self.price is not None and self.tokens is None:
            raise UserError(f"price={self.price} says nothing without tokens: add --tokens 400e9")
        if self.mesh is not None:
            mesh_from(self.mesh)
        self._check_kind()

    def _check_kind(self) -> None:
        """Refuse what would not be looked at."""
        of_serving = (
            *("slots", "positions", "quantize", "kv_cache"),
            *("max_adapters", "max_adapter_rank"),
        )
        of_training = (
            *("batch", "accumulate", "seq", "remat", "attention", "optimizer", "moments"),
            *("search", "sequential", "measure", "tokens", "price", "lora", "preferences"),
        )
        others, kind = (of_training, "serve") if self.serve else (of_serving, "training")
        for name in others:
            if getattr(self, name) != PlanCommand.__dataclass_fields__[name].default:
                raise UserError(f"{name} is not looked at when planning for {kind}: leave it out")
        if self.max_adapter_rank is not None and not self.max_adapters:
            raise UserError(
                f"max_adapter_rank={self.max_adapter_rank} is of adapters, and there is no room "
                "for any: give max_adapters too"
            )
        if self.search and (self.mesh or self.accumulate or self.remat):
            raise UserError("search tries every mesh, accumulate and remat: leave them out")
        if self.search and (self.sequential or self.measure):
            raise UserError("search compares many: leave out sequential and measure")


EXAMPLE = "gptj plan gpt-j-6b --on v3-256 --mesh data=32,tensor=8 --tokens 400e9"


def run_plan(args: Sequence[str]) -> None:
    """Run `gptj plan`."""
    command, console = parse(PlanCommand, "plan", args, EXAMPLE), Console()
    place = find(command.on)
    if command.serve:
        _serve(command, place, console)
    elif command.search:
        _search(command, place, console)
    else:
        _train(command, place, console)


def _train(command: PlanCommand, place: Place, console: Console) -> None:
    job = _job(command, place)
    if command.sequential:
        check_comparable(job)
    if command.measure:
        check_here(job)
    plan = made(job)
    terminal.show(plan, console, command.tokens, command.price)
    found = _plain(plan, command)
    _write(command, found, [plan])  # already now: what follows may fail
    if command.sequential:
        saved = saving(plan)
        terminal.show_saving(saved, console)
        found["sequential"] = dataclasses.asdict(saved)
    if command.measure:
        if not plan.fits:
            raise UserError(f"it does not fit {place.name}, so nothing is measured")
        measured = measure(job)
        terminal.show_measured(plan, measured, console)
        found["measured"] = dataclasses.asdict(measured)
    _write(command, found, [plan])


def _plain(plan: Plan, command: PlanCommand) -> dict[str, Any]:
    run = {"run": plan.run(command.tokens, command.price)} if command.tokens else {}
    return plan.plain() | run


def _search(command: PlanCommand, place: Place, console: Console) -> None:
    job = _job(command, place)
    found = searching.search(job, lambda words: console.print(words, highlight=False))
    console.print()
    terminal.show_search(found, console)
    best = found[0].plan
    terminal.show(best, console, command.tokens, command.price)
    ranked = [_plain(each.plan, command) | {"reason": each.reason} for each in found]
    _write(command, {"ranked": ranked}, [each.plan for each in found[: terminal.SHOWN]])


def _serve(command: PlanCommand, place: Place, console: Console) -> None:
    model, _, _ = _asked(command)
    mesh = mesh_from(command.mesh) if command.mesh else _serving_mesh(model, place)
    rank = command.max_adapter_rank
    asked = EngineConfig(command.slots or EngineConfig.slots, max_adapters=command.max_adapters)
    job = serving.ServeJob(
        place, model, mesh, asked.rounded(mesh[0] * mesh[1]).slots,
        command.positions or model.context,
        command.dtype or "bfloat16", command.quantize, command.kv_cache,
        command.max_adapters, RANK if rank is None else rank,
    )  # fmt: skip
    plan = serving.made(job)
    terminal.show_serve(plan, console)
    _write(command, plan.plain(), [plan])


def _serving_mesh(model: ModelConfig, place: Place) -> Mesh:
    """As much tensor as divides the heads, the rest data."""
    found = [mesh for mesh in searching.meshes(model, place) if mesh[1] == 1]
    if not found:
        raise UserError(f"no mesh of {place.devices} devices divides the model: choose another")
    return max(found, key=lambda mesh: mesh[2])


def _asked(command: PlanCommand) -> tuple[ModelConfig, OptimizerConfig, dict[str, Any]]:
    """The model, the optimizer, and what a recipe says of the step."""
    if not command.model.endswith(".py"):
        recipe = {"compute": StepConfig(dtype="bfloat16", remat="block")}
        return named(command.model), OptimizerConfig().for_run(1000), recipe
    from gptj.cli.runs import load_recipe

    config = load_recipe(Path(command.model))
    shape = config.model
    model = shape if isinstance(shape, ModelConfig) else named(shape)
    recipe = {name: getattr(config, name) for name in ("batch", "accumulate", "seq", "compute")}
    return model, config.optimizer.for_run(config.steps), recipe


def _job(command: PlanCommand, place: Place) -> Job:
    """What is asked for; a flag wins over the recipe, a recipe over the defaults."""
    model, optimizer, recipe = _asked(command)
    changes = {"kind": command.optimizer, "moments": command.moments}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if "kind" in given:  # another optimizer has its own decay rates, and no more than it needs
        given |= {"b1": None, "b2": None, "original_shards": None, "eps": OptimizerConfig.eps}
    optimizer = dataclasses.replace(optimizer, **given).for_run(1000)
    names = ("remat", "dtype", "attention", "lora")
    steps: dict[str, Any] = {name: getattr(command, name) for name in names}
    if command.lora == NO_LORA:
        del steps["lora"]
    compute = dataclasses.replace(
        recipe["compute"], **{name: value for name, value in steps.items() if value is not None}
    )
    if place.platform == "gpu" and (command.attention or compute.attention in ("splash", "native")):
        raise UserError(
            f"attention={compute.attention} changes nothing of a plan for {place.name}, which is "
            "by formula: leave it out"
        )
    if command.preferences and compute.dpo_beta is None:
        compute = dataclasses.replace(compute, dpo_beta=DPO_BETA)
    seq = command.seq or recipe.get("seq") or model.context
    rows = 1 if compute.dpo_beta is None else 2
    batch = command.batch or recipe.get("batch") or max(1, TOKENS // (rows * seq))
    accumulate = command.accumulate or recipe.get("accumulate")
    if command.mesh is None:
        found = searching.anywhere(place, model, batch, seq, optimizer, compute)
        return found if command.search else searching.fastest_mesh(found, accumulate)
    mesh = mesh_from(command.mesh)
    often = accumulate or max(1, batch // (mesh[0] * mesh[1]))
    return Job(place, model, mesh, batch, often, seq, optimizer, compute)


def _write(command: PlanCommand, found: dict[str, Any], plans: list[Any]) -> None:
    if command.json:
        _put("json", command.json, json.dumps(found, indent=2) + "\n")
    if command.html:
        from gptj.plan.page import page

        _put("html", command.html, page(found, plans))


def _put(option: str, out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{option}={out} cannot be written ({error.strerror}): choose another file"
        ) from error
