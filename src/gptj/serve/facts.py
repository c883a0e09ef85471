"""What those who ask need to know of an engine, wherever it runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from importlib.metadata import version

import jax
import numpy as np

from gptj.caches import processor
from gptj.config import ModelConfig
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Facts:
    """An engine's shape and tokenizer."""

    config: ModelConfig
    options: EngineConfig
    positions: int
    tokenizer: Tokenizer
    fingerprint: str
    """Equal ones give equal bits for equal requests and seeds."""


def facts(engine: Engine) -> Facts:
    """The facts about an engine.

    Raises:
      UserError: its model has no tokenizer.
    """
    if engine.tokenizer is None:
        raise UserError("a model without a tokenizer cannot be served: give --tokenizer")
    return Facts(
        engine.config, engine.options, engine.positions, engine.tokenizer, fingerprint(engine)
    )


def fingerprint(engine: Engine) -> str:
    """Of the weights (a part of each), the tokenizer, the engine's shape, devices and versions.

    Reading every weight would take longer than loading them did; a row of each tells models apart.
    """
    device = jax.devices()[0]
    known = {
        "config": dataclasses.asdict(engine.config),
        "options": dataclasses.asdict(engine.options),
        "tokenizer": engine.tokenizer.sha256 if engine.tokenizer else None,
        "mesh": str(jax.sharding.get_abstract_mesh().shape),
        "devices": f"{device.platform} {device.device_kind} {jax.device_count()}",
        "processor": processor() if device.platform == "cpu" else None,
        "versions": [version("gptj-jax"), jax.__version__],
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    for leaf in jax.tree.leaves(engine.device.params):
        part = leaf.addressable_shards[0].data
        digest.update(np.asarray(part[(0,) * (part.ndim - 1)] if part.ndim else part).tobytes())
    return f"gptj-{digest.hexdigest()[:16]}"
