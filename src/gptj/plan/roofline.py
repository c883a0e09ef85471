"""From what a step needs to how long it takes: the roofline, and what is predicted of it."""

from __future__ import annotations

import dataclasses

from gptj.flops import flops_per_token, forward_flops_per_token, hardware_flops_per_token
from gptj.model import count_parameters
from gptj.plan.compiled import Compiled
from gptj.plan.hardware import efficiency, float32_share
from gptj.plan.job import Job


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step, each part alone and at its best but for `predicted`."""

    compute: float
    """All products at the makers' peak for the layers' dtype."""
    memory: float
    """All that is read and written, at the memory's bandwidth."""
    interconnect: float
    """All collectives, at the links' bandwidth."""
    exposed: float
    """Of that, what the compiler lets no product hide."""
    predicted: float
    """Products at the share of the peak that good programs reach, or the memory or the hidden
    collectives where those take longer, and what is exposed of the interconnect."""
    share: float
    """That share of the peak."""
    source: str
    """Where it was measured."""

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {"compute": self.compute, "memory": self.memory, "interconnect": self.interconnect}
        return max(parts, key=lambda name: parts[name])


def times(job: Job, found: Compiled) -> Times:
    """The times of a step."""
    unit, reached = job.place.accelerator, efficiency(job.place.accelerator)
    peak = unit.peak_flops * (float32_share(job.place) if job.compute.dtype == "float32" else 1)
    made = hardware_flops_per_token(job.model, job.seq, job.compute.remat, job.compute.lora)
    flops = job.tokens * (made + 2 * _reading(job))
    compute = flops / job.place.devices / peak
    memory = found.traffic / unit.bandwidth
    hidden = sum(each.seconds for each in found.exchanges if each.is_hidden)
    exposed = sum(each.seconds for each in found.exchanges if not each.is_hidden)
    return Times(
        compute=compute,
        memory=memory,
        interconnect=hidden + exposed,
        exposed=exposed,
        predicted=max(compute / reached.share, memory, hidden) + exposed,
        share=reached.share,
        source=reached.source,
    )


@dataclasses.dataclass(frozen=True)
class Utilisation:
    """Shares of the peak at the predicted speed, by the counts in use; they differ in attention."""

    gptj_mfu: float
    """As `gptj train` measures: weights in products, the causal half of attention."""
    gptj_hfu: float
    """With what is computed again."""
    palm_mfu: float
    """PaLM's (arXiv:2204.02311, appendix B): `6 N + 12 layers d_model length` a token."""
    palm_hfu: float
    """With another forward pass where whole layers are computed again."""
    article_mfu: float
    """GPT-J's article, "the GPT-3 count": `6 N` a token, no attention."""
    article_hfu: float
    """GPT-J's article, with attention and recomputation: what PaLM's HFU counts."""


def _reading(job: Job) -> int:
    """Operations to read a token of a pair once: what the model was does, and the model again."""
    return forward_flops_per_token(job.model, job.seq // 2) if job.pairs else 0


def utilisation(job: Job, seconds: float) -> Utilisation:
    """What a step of so many seconds makes of the hardware.

    Of weights beside adapters the papers' counts have `4 N`, since none has a gradient, and of
    pairs `2 N` more for what the model was.
    """
    model, parameters = job.model, count_parameters(job.model)
    rate = job.tokens / seconds / (job.place.devices * job.place.accelerator.peak_flops)
    attention = 4 * model.layers * model.d_model * job.seq
    read = 2 * parameters + attention if job.pairs else 0
    products = (4 if job.adapts else 6) * parameters
    again = 2 * parameters + attention if job.compute.remat in ("block", "offload") else 0
    hardware = products + 3 * attention + again + 2 * read
    needed = flops_per_token(model, job.seq, job.compute.lora) + _reading(job)
    made = hardware_flops_per_token(model, job.seq, job.compute.remat, job.compute.lora)
    return Utilisation(
        gptj_mfu=rate * needed,
        gptj_hfu=rate * (made + 2 * _reading(job)),
        palm_mfu=rate * (products + 3 * attention + read),
        palm_hfu=rate * hardware,
        article_mfu=rate * (products + (2 * parameters if job.pairs else 0)),
        article_hfu=rate * hardware,
    )
