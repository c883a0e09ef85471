"""What else is measured of a model under way: callables, for training knows no evaluation."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable

from jaxtyping import Array

from gptj.config import ModelConfig
from gptj.data.mixture import Mixture
from gptj.data.packing import shortest
from gptj.data.store import TokenStore
from gptj.errors import UserError
from gptj.model import Params
from gptj.tokenizer import Tokenizer
from gptj.train.config import TrainConfig
from gptj.train.heldout import held_out
from gptj.train.sinks import Row

MOST_SOURCES = 32
"""A curve for each of more sources is of no use to anyone."""

Measure = Callable[[Params[Array], ModelConfig, Tokenizer], Row]
"""Weights, as they lie on the mesh that is set and not to be kept, to metrics by name."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Something that is measured now and then, and after the last step."""

    every: int
    """Steps from one time to the next."""
    measure: Measure
    check: Callable[[int], None] = lambda seq: None
    """Refuses, before the first step, rows of so many targets that it could not measure on."""


def of_sources(config: TrainConfig) -> Evaluator:
    """The held-out loss of each source of the data: each file or folder that was prepared.

    Raises:
      UserError: there is no held-out part, or it has too many sources.
    """
    store = Mixture.open(config.data).held_out
    if store is None:
        raise UserError(f"{config.data} has no held-out part: leave out eval_sources")
    if store.manifest.examples == "preferences":
        raise UserError("eval_sources measures no preferences: leave it out")
    records = itertools.groupby(store.sources, lambda record: record.name.partition("/")[0])
    parts = [(name, store.part(list(each))) for name, each in records]
    sources = {name for name, _ in parts}
    if (count := len(sources)) > MOST_SOURCES:
        raise UserError(
            f"the held-out text of {config.data} has {count} sources, more than "
            f"{MOST_SOURCES}: prepare it from a folder for each source, or leave out eval_sources"
        )

    examples = store.manifest.examples is not None

    def fitting(seq: int) -> list[tuple[str, TokenStore]]:
        return [(n, part) for n, part in parts if not examples or shortest(part) <= seq + 1]

    def check(seq: int) -> None:
        if missing := sorted(sources - {name for name, _ in fitting(seq)}):
            raise UserError(
                f"seq={seq} is shorter than every held-out example of the source {missing[0]}, "
                "whose loss eval_sources is to measure: raise seq, or leave out eval_sources"
            )

    def measure(params: Params[Array], model: ModelConfig, tokenizer: Tokenizer) -> Row:
        seq = model.context if config.seq is None else config.seq
        compute = dataclasses.replace(
            config.compute, end_of_text=tokenizer.eos_id, examples=examples
        )
        nats, tokens = defaultdict[str, float](float), defaultdict[str, int](int)
        # A folder's files may lie apart, so a name comes more than once.
        for name, part in fitting(seq):
            found = held_out(
                params,
                part,
                model,
                seq=seq,
                batch=config.batch // config.accumulate,
                compute=compute,
                batches=config.eval_batches,
            )
            nats[name] += found.loss * found.tokens
            tokens[name] += found.tokens
        return {f"heldout_loss_{name}": nats[name] / count for name, count in tokens.items()}

    return Evaluator(config.eval_every, measure, check)
