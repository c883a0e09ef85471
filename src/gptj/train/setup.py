"""What a run needs before its first step: data, model, optimizer, all found to fit together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array

from gptj import checkpoint, hosts
from gptj.adapters import joined
from gptj.attention import check_backend, default_backend
from gptj.config import ModelConfig, resolve
from gptj.convert.adapted import mark_of
from gptj.convert.open import open_source
from gptj.convert.source import Source
from gptj.data.batches import EvalBatches, TrainBatches
from gptj.data.mixture import Mixture
from gptj.errors import UserError
from gptj.model import Params, count_parameters
from gptj.sharding import check_batch, check_mesh
from gptj.train import run as runs
from gptj.train.config import TrainConfig
from gptj.train.evaluators import Evaluator
from gptj.train.objective import DPO_BETA, StepConfig
from gptj.train.optimizer import ORIGINAL
from gptj.train.progress import human
from gptj.train.start import base_of, check_tokenizer, state_of
from gptj.train.state import TrainState, abstract_state, new_state

_NAMES = {
    "cudnn": "cuDNN",
    "native": "our native program",
    "splash": "splash attention",
    "xla": "XLA",
}


class Setup:
    """A run made ready.

    Raises:
      UserError: what `config` names does not exist or does not fit together.
    """

    def __init__(self, config: TrainConfig, evaluators: Sequence[Evaluator] = ()) -> None:
        self.config = config
        self.data = Mixture.open(config.data)
        self.source: Source | None = None
        self.model = resolve(self._shape(), self.data.tokenizer.vocab_size)
        if self.source is not None:
            check_tokenizer(self.source, self.data.tokenizer)
        self.seq = self.model.context if config.seq is None else config.seq
        self._check()
        self.batches = TrainBatches(self.data, self.seq, config.batch, config.seed)
        self.optimizer = config.optimizer.for_run(config.steps)
        self.compute = self._compute()
        if self.data.held_out is not None:  # refused now, and not at the first evaluation
            EvalBatches(self.data.held_out, self.seq, config.batch // config.accumulate)
        for each in evaluators:
            each.check(self.seq)
        self.base: Params[Array] | None = None
        hosts.same_everywhere(self._command())
        runs.begin(
            config.out,
            self.model,
            self.data.tokenizer,
            self.course(),
            config.data,
            config.checkpoints,
            begun_from=config.from_,
            allow_data_change=config.allow_data_change,
        )

    def _compute(self) -> StepConfig:
        """How a step computes, with what the data say."""
        config, kind = self.config.compute, self.data.examples
        if kind == "preferences" and not self.adapts:
            raise UserError(
                f"{self.config.data} holds preferences, which adapters are trained on beside the "
                "model as it was: give --from MODEL and --lora-rank"
            )
        if kind != "preferences" and config.dpo_beta is not None:
            raise UserError(
                f"dpo_beta={config.dpo_beta} is for data of preferences, and {self.config.data} "
                f"holds {kind or 'texts'}: leave it out"
            )
        if kind == "preferences" and config.z_loss != StepConfig.z_loss:
            raise UserError(f"z_loss={config.z_loss} is no part of preferences: leave it out")
        beta = config.dpo_beta
        return dataclasses.replace(
            config,
            end_of_text=self.data.tokenizer.eos_id,
            examples=kind is not None,
            pairs=kind == "preferences",
            dpo_beta=DPO_BETA if beta is None and kind == "preferences" else beta,
        )

    def _shape(self) -> ModelConfig | str:
        """The model asked for. What it starts from is opened only until the run has its own."""
        config = self.config
        if config.from_ is None:
            if config.compute.lora.rank is not None:
                raise UserError("lora-rank trains adapters of a model: name it with --from MODEL")
            return config.model
        if config.model != TrainConfig.model:
            raise UserError(f"the model's shape is that of from={config.from_}: leave out model")
        saved = hosts.told(bool(checkpoint.complete(checkpoint.of_run(config.out))))
        if saved and config.compute.lora.rank is None:
            return ModelConfig.load(config.out / runs.MODEL)
        self.source = open_source(config.from_)
        return self.source.config

    def _check(self) -> None:
        config = self.config
        if self.seq > self.model.context:
            raise UserError(
                f"seq={self.seq} is longer than the model's context of {self.model.context} "
                "tokens: lower seq, or raise the model's context"
            )
        if config.keep_best and self.data.held_out is None:
            raise UserError(
                f"keep_best={config.keep_best} needs held-out text, and {config.data} has none: "
                "prepare it with some, or leave keep_best out"
            )
        if config.prompts and jax.process_count() > 1:
            raise UserError(
                f"prompts cannot be written on from by {jax.process_count()} hosts yet: leave "
                "them out, and use `gptj generate` on the run's checkpoints"
            )
        check_mesh(self.model)
        check_backend(config.compute.attention, self._dtype, self.model.d_head)
        if config.compute.lora.rank is not None:
            config.compute.lora.check(self.model)
            if config.optimizer.kind == ORIGINAL:
                raise UserError(f"optimizer={ORIGINAL} trains no adapters: choose another")
        check_batch(config.batch // config.accumulate)

    @property
    def _dtype(self) -> str:
        """What attention computes in."""
        original = self.config.optimizer.kind == ORIGINAL
        return "float32" if original else self.config.compute.dtype

    def course(self) -> dict[str, Any]:
        """All that decides which weights the run ends with."""
        config = self.config
        return {
            "data": self.data.fingerprint,
            "from": config.from_,
            "seq": self.seq,
            "batch": config.batch,
            "accumulate": config.accumulate,
            "seed": config.seed,
            "rewind_after": config.rewind_after,
            "optimizer": dataclasses.asdict(self.optimizer),
            "compute": dataclasses.asdict(self.compute),
            **(self._base_course() if self.adapts else {}),
            "fresh_opt": config.fresh_opt,
        }

    def _base_course(self) -> dict[str, str]:
        """What tells the model beside which adapters are trained from others, and its copies."""
        assert self.source is not None
        return {"base": self._mark, "base_dtype": str(self.source.weights["embedding"].dtype)}

    @functools.cached_property
    def _mark(self) -> str:
        assert self.source is not None
        return mark_of(self.source)

    @property
    def adapts(self) -> bool:
        """Whether adapters are trained, beside weights that stay as they are."""
        return self.config.compute.lora.rank is not None

    def whole(self, params: Any) -> Params[Array]:
        """What the model computes with, of what is trained."""
        if self.base is None:
            return params
        return joined(self.base, params, self.model, self.compute.lora)

    def _command(self) -> dict[str, Any]:
        """All that every host must do alike."""
        names = ("steps", "eval_every", "eval_batches", "save_every", "keep", "keep_every")
        asked = {name: getattr(self.config, name) for name in (*names, "keep_best", "profile")}
        return {
            "model": dataclasses.asdict(self.model),
            **self.course(),
            **asked,
            "mesh": dict(jax.sharding.get_abstract_mesh().shape),
            "heldout": self.data.held_out.fingerprint if self.data.held_out else None,
            "out": self.config.out.name,
            "checkpoints": self.config.checkpoints,
        }

    def starting_state(self) -> TrainState:
        """The state of the newest checkpoint, or a new one."""
        if self.adapts and self.source is not None:
            self.base = base_of(self.source, self.compute)
        saved = checkpoint.complete(checkpoint.of_run(self.config.out))
        newest = hosts.told(checkpoint.step_of(saved[-1]) if saved else None)
        if newest is not None:
            return self.state_at(newest)
        if self.source is not None and not self.adapts:
            return state_of(self.source, self.optimizer, fresh=self.config.fresh_opt)
        key, lora = jax.random.key(self.config.seed), self.compute.lora
        return new_state(key, self.model, self.optimizer, lora)

    def state_at(self, step: int) -> TrainState:
        """The state of the checkpoint made after `step` updates."""
        path = checkpoint.path_of(checkpoint.of_run(self.config.out), step)
        like = abstract_state(self.model, self.optimizer, self.compute.lora)
        state: TrainState = checkpoint.restore(path, like, dataclasses.asdict(self.model))
        return state

    def introduction(self, start: int) -> str:
        """What is about to happen, in a sentence."""
        tokens = self.config.batch * self.seq * (2 if self.compute.pairs else 1)
        mesh = dict(jax.sharding.get_abstract_mesh().shape) or "one device"
        parts = zip(self.data.parts, self.batches.epochs(self.config.steps), strict=True)
        often = ", ".join(f"{part.name} {epochs:.2g}" for part, epochs in parts if part.name)
        left_out = self.batches.left_out
        attention = self.compute.attention or default_backend(self._dtype, self.model.d_head)
        return (
            f"{human(count_parameters(self.model))} parameters on {jax.devices()[0].device_kind} "
            f"({mesh}), attention by {_NAMES[attention]}; "
            f"{human(len(self.data))} tokens of text, {human(tokens)} a step; "
            f"{'new run' if start == 0 else f'going on from step {start}'} in {self.config.out}"
            + (f", from {self.config.from_}" if self.config.from_ else "")
            + (f"; times that each text is read: {often}" if often else "")
            + (f"; left out, longer than seq={self.seq}: {left_out:,} examples" if left_out else "")
        )
