"""GPT-J in JAX: train, evaluate, sample and serve it, from one laptop CPU to a pod.

    model = gptj.load("runs/demo")
    print(model.generate("def ", max_tokens=64, temperature=0)[0])

Everything runs on the mesh that is set (`jax.set_mesh(gptj.make_mesh(...))`), or on one device.

What stands here is loaded when it is first asked for, so that `import gptj` takes no time.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptj.adapters import LoRAConfig
    from gptj.api import Model, load, train
    from gptj.config import PRESETS, ModelConfig, preset
    from gptj.data.examples import ExampleConfig
    from gptj.data.mixture import MixConfig, mix
    from gptj.data.prepare import PrepareConfig, prepare
    from gptj.data.store import TokenStore
    from gptj.engine.config import EngineConfig
    from gptj.engine.engine import Engine
    from gptj.engine.request import Completion, Request, SamplingParams
    from gptj.errors import UserError
    from gptj.model import Params, count_parameters, forward, init, loss
    from gptj.sharding import make_mesh
    from gptj.tokenizer import Tokenizer
    from gptj.train.config import TrainConfig
    from gptj.train.loop import TrainResult
    from gptj.train.objective import StepConfig
    from gptj.train.optimizer import OptimizerConfig

__all__ = [
    "PRESETS",
    "Completion",
    "Engine",
    "EngineConfig",
    "ExampleConfig",
    "LoRAConfig",
    "MixConfig",
    "Model",
    "ModelConfig",
    "OptimizerConfig",
    "Params",
    "PrepareConfig",
    "Request",
    "SamplingParams",
    "StepConfig",
    "TokenStore",
    "Tokenizer",
    "TrainConfig",
    "TrainResult",
    "UserError",
    "count_parameters",
    "forward",
    "init",
    "load",
    "loss",
    "make_mesh",
    "mix",
    "prepare",
    "preset",
    "train",
]
__version__ = "0.1.0"

_HOMES = {
    "adapters": ("LoRAConfig",),
    "api": ("Model", "load", "train"),
    "config": ("PRESETS", "ModelConfig", "preset"),
    "data.examples": ("ExampleConfig",),
    "data.mixture": ("MixConfig", "mix"),
    "data.prepare": ("PrepareConfig", "prepare"),
    "data.store": ("TokenStore",),
    "engine.config": ("EngineConfig",),
    "engine.engine": ("Engine",),
    "engine.request": ("Completion", "Request", "SamplingParams"),
    "errors": ("UserError",),
    "model": ("Params", "count_parameters", "forward", "init", "loss"),
    "sharding": ("make_mesh",),
    "tokenizer": ("Tokenizer",),
    "train.config": ("TrainConfig",),
    "train.loop": ("TrainResult",),
    "train.objective": ("StepConfig",),
    "train.optimizer": ("OptimizerConfig",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """A package whose names are found in its modules."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = getattr(import_module(f"gptj.{_HOME_OF[name]}"), name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        """As usual, but `gptj.train` stays the function when the package of that name is loaded."""
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
