"""What those who ask need to know of an engine, wherever it runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from importlib.metadata import version

import jax
import numpy as np

from gptj.caches import processor
from gptj.config import ModelConfig
from gptj.engine.adapters import Loaded
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Voice:
    """What answers under a name: the model, or the model with an adapter."""

    name: str
    fingerprint: str
    """Equal ones give equal bits for equal requests and seeds."""
    adapter: str | None = None
    """The engine's name of it, which is the same."""
    place: str | None = None
    """Where the adapter lies."""
    since: int = 0
    """When it was loaded, in seconds since 1970."""


def voice(adapter: Loaded, engine: str) -> Voice:
    """Of an adapter in an engine of that fingerprint."""
    both = hashlib.sha256(f"{engine} {adapter.digest}".encode()).hexdigest()
    name = adapter.name
    return Voice(name, f"gptj-{both[:16]}", name, adapter.place, int(time.time()))


@dataclasses.dataclass(frozen=True)
class Facts:
    """An engine's shape and tokenizer."""

    config: ModelConfig
    options: EngineConfig
    positions: int
    tokenizer: Tokenizer
    fingerprint: str
    """See `Voice`."""
    adapters: tuple[Voice, ...] = ()
    """Those that are there from the start."""


def facts(engine: Engine) -> Facts:
    """The facts about an engine.

    Raises:
      UserError: its model has no tokenizer.
    """
    if engine.tokenizer is None:
        raise UserError("a model without a tokenizer cannot be served: give --tokenizer")
    own = fingerprint(engine)
    adapters = tuple(voice(each, own) for each in engine.adapters)
    return Facts(engine.config, engine.options, engine.positions, engine.tokenizer, own, adapters)


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
    for leaf in jax.tree.leaves(engine.device.own_params()):
        part = leaf.addressable_shards[0].data
        digest.update(np.asarray(part[(0,) * (part.ndim - 1)] if part.ndim else part).tobytes())
    return f"gptj-{digest.hexdigest()[:16]}"
