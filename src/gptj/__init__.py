"""GPT-J in JAX: train, evaluate, sample and serve it, from one laptop CPU to a pod.

    model = gptj.load("runs/demo")
    print(model.generate("def ", max_tokens=64, temperature=0)[0])

Everything runs on the mesh that is set (`jax.set_mesh(gptj.make_mesh(...))`), or on one device.
"""

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
