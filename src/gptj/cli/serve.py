"""`gptj serve`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from gptj.api import load
from gptj.cli.flags import MeshShape, parse
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.step import Draft
from gptj.errors import UserError
from gptj.quantised import Quantisation
from gptj.serve.config import RayConfig, ServeConfig

if TYPE_CHECKING:
    from gptj.serve.asked import Answering
    from gptj.serve.metrics import Metrics


@dataclasses.dataclass(frozen=True)
class ServeCommand:
    """Answer requests over HTTP: OpenAI's protocol, the original's `/complete`, and KoboldAI's.

    Ctrl-C or SIGTERM lets the requests under way finish, and stops.
    """

    model: tyro.conf.Positional[str]
    """A model of any kind: a run, a saved or converted model, a Hugging Face folder or Hub id, or
    the original's shards."""
    serve: tyro.conf.OmitArgPrefixes[ServeConfig] = ServeConfig()
    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = EngineConfig()
    draft: str | None = None
    """A smaller model of the same vocabulary, to guess with: see `speculate`."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What to store and compute in. Default: what the weights are stored in."""
    quantize: Quantisation | None = None
    """Keep the matrices in so many bits, rounded as they are read: less memory, and
    faster but for nf4."""
    tokenizer: str | None = None
    """A tokenizer, as `gptj prepare` takes it, where none lies with the model."""
    mesh: MeshShape = MeshShape()
    ray: Annotated[str | None, tyro.conf.arg(metavar="replicas=N[,cpus=N][,gpus=N]")] = None
    """Run so many replicas of the model on a Ray cluster, each on so many cores and GPUs and with
    the mesh over its own devices. `address=HOST:PORT` names the cluster. Default: the one that this
    machine is of, or else a new one on it."""


def run_serve(args: Sequence[str]) -> int:
    """Run `gptj serve`."""
    command = parse(ServeCommand, "serve", args, "gptj serve runs/mine --port 8000 --slots 16")
    try:
        from gptj.serve.run import serve, set_up
        from gptj.serve.worker import Worker
    except ImportError as error:
        raise UserError(f"gptj serve needs {error.name}: pip install 'gptj-jax[serve]'") from error
    name = command.serve.name or _name(command.model)
    ray = None if command.ray is None else RayConfig.parse(command.ray)
    setup = set_up(command.serve)  # refused before a model is loaded
    with contextlib.closing(setup.listener):
        if ray is not None:
            return serve(_replicas(command, ray), name, setup)
        with command.mesh.use():
            engine = _engine(command)
            return serve(lambda metrics: Worker(engine, metrics), name, setup)


def _replicas(command: ServeCommand, config: RayConfig) -> Callable[[Metrics], Answering]:
    try:
        from gptj.serve.replicas import Replicas
    except ImportError as error:
        raise UserError(f"--ray needs {error.name}: pip install 'gptj-jax[ray]'") from error
    return lambda metrics: Replicas(functools.partial(_on_mesh, command), config, metrics)


@contextlib.contextmanager
def _on_mesh(command: ServeCommand) -> Iterator[Engine]:
    """The engine, while its mesh is set."""
    with command.mesh.use():
        yield _engine(command)


def _engine(command: ServeCommand) -> Engine:
    model = load(
        command.model,
        dtype=command.dtype,
        quantize=command.quantize,
        tokenizer=command.tokenizer,
    )
    draft = load(command.draft, dtype=command.dtype) if command.draft else None
    guesser = Draft(draft.params, draft.config) if draft else None
    return Engine(model.params, model.config, model.tokenizer, command.engine, guesser)


def _name(model: str) -> str:
    """The last part of a path, a URL or a Hub id, without what archives are called."""
    last = Path(model.rstrip("/")).resolve().name
    return last.removesuffix(".gz").removesuffix(".zst").removesuffix(".tar") or "gptj"
