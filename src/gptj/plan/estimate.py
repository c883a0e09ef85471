"""What a training step needs, by formula: to choose what is worth compiling, and for GPUs.

Bytes are of one device. Each formula names the arrays it counts; what the compiler makes of a
program for a TPU or a CPU is measured against them in the tests.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax

from gptj.adapters import trained
from gptj.cross_entropy import CHUNK
from gptj.model import Weight, weights
from gptj.plan.compiled import Compiled, Exchange, arguments, exchange_seconds, state_bytes
from gptj.plan.job import Job, abstract_mesh
from gptj.remat import Remat
from gptj.sharding import LOGICAL_TO_MESH

WIDTH = {"float32": 4, "bfloat16": 2}


def part(weight: Weight, job: Job, *, gathered: bool = False) -> float:
    """How many of a weight's numbers a device has: stored, or `gathered` over fsdp for use."""
    total = float(math.prod(weight.shape))
    for axis in weight.axes:
        mesh_axis = LOGICAL_TO_MESH.get(axis or "")
        if isinstance(mesh_axis, str) and not (gathered and mesh_axis == "fsdp"):
            total /= job.axis(mesh_axis)
    return total


def stored(job: Job) -> tuple[int, int]:
    """Bytes of all weights, and of the optimizer's state."""
    return _stored(dataclasses.replace(job, batch=job.ways, accumulate=1))


@functools.cache
def _stored(job: Job) -> tuple[int, int]:
    with abstract_mesh(job.mesh):
        return state_bytes(*arguments(job))


def gradients(job: Job) -> float:
    """Of a microbatch, in what its matrices are cast to; and their sum, in float32.

    Adapters are cast to nothing, and nothing else has a gradient.
    """
    width = 4 if job.adapts else WIDTH[job.compute.dtype]
    total = 0.0
    for weight in jax.tree.leaves(trained(job.model, job.compute.lora)):
        each = part(weight, job)
        total += each * (width if weight.is_matrix else 4)
        total += 4 * each if job.accumulate > 1 else 0
    return total


def activations(job: Job, remat: Remat | None = None) -> float:
    """What the layers keep for the backward pass of one microbatch, under a policy.

    `block` keeps each layer's input, and `offload` keeps it elsewhere. `dots` keeps the products
    with weights as well, and `none` all that a product or a softmax is made of, weights that were
    gathered over fsdp among them.
    """
    model, tensor, width = job.model, job.axis("tensor"), WIDTH[job.compute.dtype]
    d, f = model.d_model, model.d_ff
    kept = {
        "offload": 0.0,
        "block": d,
        "dots": d + (3 * d + f) / tensor,
        "none": 2 * d + (4 * d + f) / tensor,
    }[remat or job.compute.remat]
    gathered = 0.0
    if (remat or job.compute.remat) == "none" and job.axis("fsdp") > 1:
        gathered = sum(part(each, job, gathered=True) for each in _in_layers(job))
    return (model.layers * job.tokens_at_once * kept + gathered) * width


def _in_layers(job: Job) -> list[Weight]:
    """The matrices of all layers."""
    found = jax.tree.leaves(weights(job.model))
    return [each for each in found if each.is_matrix and each.axes[0] == "layers"]


def temporaries(job: Job) -> float:
    """What one layer or the loss needs while it is computed, and weights made ready for use.

    Those beside adapters are ready as they are stored, unless they are in few bits or in parts,
    and the output's have no gradient.
    """
    model, tensor, width = job.model, job.axis("tensor"), WIDTH[job.compute.dtype]
    tokens = job.tokens_at_once
    matrices = [each for each in jax.tree.leaves(weights(model)) if each.is_matrix]
    vocab = model.padded_vocab_size / tensor
    layer = sum(part(each, job, gathered=True) for each in _in_layers(job)) / model.layers
    if job.adapts:
        is_ready = not job.compute.lora.quantize and job.axis("fsdp") == 1
        ready = 0.0 if is_ready else layer + model.d_model * vocab
    elif job.axis("fsdp") > 1:  # gathered a layer at a time, and their gradients likewise
        ready = 2 * layer
    else:
        ready = sum(part(each, job) for each in matrices) if width < 4 else 0.0
    streams = tokens * (6 * model.d_model + (4 * model.d_model + 3 * model.d_ff) / tensor)
    scores = tokens * model.heads / tensor * max(128, job.seq / 8)
    loss = tokens / job.seq * CHUNK * vocab * 4 * 3
    loss += 0 if job.adapts else 4 * model.d_model * vocab
    return ready * width + max(streams * width + scores * 4 * 3, loss)


def readings(job: Job) -> int:
    """Passes that only read: of pairs by the model, and by the one that it was."""
    return 2 if job.pairs else 0


def exchanges(job: Job, rates: dict[str, float]) -> list[Exchange]:
    """The collectives of a step: of activations over tensor, of weights and gradients over others.

    Every microbatch adds its gradients over the batch axes, in what its matrices are cast to; of
    adapters in float32.
    """
    model, width = job.model, WIDTH[job.compute.dtype]
    tokens = job.tokens_at_once
    table = jax.tree.leaves(trained(model, job.compute.lora))
    sums = sum(part(each, job, gathered=True) for each in table if each.is_matrix)
    sums *= 4 if job.adapts else width
    data, fsdp, tensor = job.mesh
    found = []

    def add(kind: str, axes: tuple[str, ...], devices: int, size: float, times: int) -> None:
        rate = rates["+".join(axes)]
        seconds = times * exchange_seconds(kind, size, devices, rate)
        found.append(Exchange(kind, axes, devices, round(size), times, seconds))

    often, layers, passes = job.accumulate, model.layers, 2 + readings(job)
    if tensor > 1:
        stream = tokens * model.d_model * width
        add("all-reduce", ("tensor",), tensor, stream, passes * layers * often)
        add("all-reduce", ("tensor",), tensor, stream, passes * often)
    if fsdp > 1:
        read = (stored(job)[0] * fsdp if job.adapts else sums) / layers
        add("all-gather", ("fsdp",), fsdp, read, passes * layers * often)
        add("reduce-scatter", ("fsdp",), fsdp, sums / layers, layers * often)
    if data > 1:
        add("all-reduce", ("data",), data, sums / fsdp / layers, layers * often)
    return found


def traffic(job: Job) -> float:
    """Bytes read and written: weights and gradients, activations, the optimizer's update.

    Each microbatch reads a layer's weights in each of its passes and its activations about twenty
    times over, scores in float32 among them. Weights beside adapters have a pass less; those in few
    bits are written and read in more ones each time. A pass that only reads is one more of each.
    """
    model, tensor, width = job.model, job.axis("tensor"), WIDTH[job.compute.dtype]
    tokens, passes = job.tokens_at_once, 4 if job.compute.remat in ("block", "offload") else 3
    numbers = sum(part(each, job, gathered=True) for each in jax.tree.leaves(weights(model)))
    own, state = stored(job)
    streams = tokens * (20 * model.d_model + (12 * model.d_model + 8 * model.d_ff) / tensor)
    scores = tokens * model.heads / tensor * job.seq / 2 * 4 * (2 * passes)
    layers = model.layers * (streams * width + scores)
    if job.adapts:
        more = 2 * numbers * width if job.compute.lora.quantize else 0
        more_often = readings(job)
        layers *= 1 + more_often / passes
        return job.accumulate * ((passes - 1 + more_often) * (own + more) + layers) + 3 * state
    summed = numbers * (2 * width + (8 if job.accumulate > 1 else 0))
    often = job.accumulate * (numbers * width * passes + summed + layers)
    return often + 2 * (own + state) + own


def estimated(job: Job, rates: dict[str, float]) -> Compiled:
    """The same facts as of a compiled program."""
    own, state = stored(job)
    return Compiled(
        seconds=0.0,
        arguments=own + state,
        temporaries=round(gradients(job) + activations(job) + temporaries(job)),
        weights=own,
        optimizer=state,
        traffic=traffic(job),
        exchanges=tuple(exchanges(job, rates)),
        open_loops=0,
        versions="by formula, not compiled",
    )
