"""The engine's step that draws a token for every slot, compiled for absent devices."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptj.engine import programs
from gptj.engine.cache import new_cache
from gptj.engine.config import EngineConfig
from gptj.engine.request import SamplingParams
from gptj.engine.slots import Slots, one_slot
from gptj.plan.compiled import Compiled, TooLarge, facts, mesh_of, too_large
from gptj.plan.serve import ServeJob, params_of
from gptj.sharding import BATCH_AXES


def compile_decode(job: ServeJob) -> Compiled | TooLarge:
    """Compile `engine.programs.decode` as the engine would call it."""
    mesh = mesh_of(job.mesh, job.place)
    begin = time.perf_counter()
    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda x: _placed(x, x.dtype, mesh), params_of(job))
        steps = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
        lowered = programs.decode.lower(
            params, _cache(job, mesh), _slots(job, mesh), steps, EngineConfig().burst, job.model
        )
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return too_large(str(error), time.perf_counter() - begin)
    return facts(compiled, job.place, job.mesh, mesh, begin, 0, 0)


def _cache(job: ServeJob, mesh: jax.sharding.Mesh) -> Any:
    def empty() -> Any:
        quantised = job.kv_cache == "int8"
        return new_cache(job.model, job.slots, jnp.dtype(job.dtype), job.positions, quantised)

    def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # What a CPU keeps as bits because of its own compiler.
        is_bits = x.dtype == jnp.uint16 and job.place.platform != "cpu"
        return _placed(x, jnp.dtype(jnp.bfloat16) if is_bits else x.dtype, mesh)

    return jax.tree.map(placed, jax.eval_shape(empty))


def _placed(
    x: jax.ShapeDtypeStruct, dtype: np.dtype[Any], mesh: jax.sharding.Mesh
) -> jax.ShapeDtypeStruct:
    assert x.sharding is not None
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=NamedSharding(mesh, x.sharding.spec))


def _slots(job: ServeJob, mesh: jax.sharding.Mesh) -> Slots:
    idle = one_slot(job.model, [0], SamplingParams(), eos=0, active=False)

    def leaf(value: Any) -> jax.ShapeDtypeStruct:
        value = np.asarray(value)
        layout = NamedSharding(mesh, PartitionSpec(BATCH_AXES, *[None] * value.ndim))
        return jax.ShapeDtypeStruct((job.slots, *value.shape), value.dtype, sharding=layout)

    return jax.tree.map(leaf, idle)
