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
    adapters: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=PATH ...")] = ()
    """Low-rank adapters that answer beside the model, each asked for by its name: runs that trained
    some, or folders of PEFT's."""
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
    named = _adapters(command, name)
    setup = set_up(command.serve)  # refused before a model is loaded
    with contextlib.closing(setup.listener):
        if ray is not None:
            return serve(_replicas(command, named, ray), name, setup)
        with command.mesh.use():
            engine = _engine(command, named)
            return serve(lambda metrics: Worker(engine, metrics), name, setup)


def _adapters(command: ServeCommand, model: str) -> dict[str, str]:
    """Where the adapters are that it begins with, by name.

    Raises:
      UserError: two have one name, or one the model's; or the server has no room for any.
    """
    found: dict[str, str] = {}
    for word in command.adapters:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise UserError(f"adapters={word!r} must be NAME=PATH")
        if name in found or name == model:
            raise UserError(f"adapters={word!r} has the name of another one: use a name of its own")
        found[name] = path
    if command.serve.adapter_loading and command.ray is not None:
        raise UserError("replicas load no adapters while they run: leave out adapter_loading")
    if command.serve.adapter_loading and not (found or command.engine.max_adapters):
        raise UserError("adapter_loading needs room for adapters: give --max-adapters")
    return found


def _replicas(
    command: ServeCommand, adapters: dict[str, str], config: RayConfig
) -> Callable[[Metrics], Answering]:
    try:
        from gptj.serve.replicas import Replicas
    except ImportError as error:
        raise UserError(f"--ray needs {error.name}: pip install 'gptj-jax[ray]'") from error
    return lambda metrics: Replicas(functools.partial(_on_mesh, command, adapters), config, metrics)


@contextlib.contextmanager
def _on_mesh(command: ServeCommand, adapters: dict[str, str]) -> Iterator[Engine]:
    """The engine, while its mesh is set."""
    with command.mesh.use():
        yield _engine(command, adapters)


def _engine(command: ServeCommand, adapters: dict[str, str]) -> Engine:
    model = load(
        command.model,
        dtype=command.dtype,
        quantize=command.quantize,
        tokenizer=command.tokenizer,
    )
    draft = load(command.draft, dtype=command.dtype) if command.draft else None
    guesser = Draft(draft.params, draft.config) if draft else None
    room = command.engine.max_adapters or len(adapters)
    options = dataclasses.replace(command.engine, max_adapters=room)
    engine = Engine(
        model.params, model.config, model.tokenizer, options, guesser, base=command.model
    )
    for name, path in adapters.items():
        engine.load_adapter(name, path)
    return engine


def _name(model: str) -> str:
    """The last part of a path, a URL or a Hub id, without what archives are called."""
    last = Path(model).resolve().name
    return last.removesuffix(".gz").removesuffix(".zst").removesuffix(".tar") or "gptj"
