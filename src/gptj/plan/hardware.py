"""How much of an accelerator's peak well-made training programs have reached, with the sources.

Makers' figures are in `gptj.accelerators`.
"""

from __future__ import annotations

import dataclasses

from gptj.accelerators import Accelerator
from gptj.plan.place import Place


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """A measured share of the peak, of programs that waited little for others."""

    share: float
    source: str


_MAXTEXT = "https://maxtext.readthedocs.io/en/latest/reference/models/tiering.html"
_FOUNDRY = "https://github.com/mosaicml/llm-foundry/tree/main/scripts/train/benchmarking"
_H100 = Efficiency(0.508, f"30B, 8 x H100, sequence 2048, HFU: {_FOUNDRY}")
_V3 = Efficiency(0.565, "LaMDA, 137B on 1024 chips: arXiv:2201.08239, section 3")
_V6E = Efficiency(0.503, f"Llama 3.1 70B on v6e-256, MFU: {_MAXTEXT}")

EFFICIENCIES = {
    "TPU v2": dataclasses.replace(_V3, source=f"that of v3: {_V3.source}"),
    "TPU v3": _V3,
    "TPU v4": Efficiency(0.578, "PaLM 540B, HFU: arXiv:2204.02311, table 3"),
    "TPU v5 lite": dataclasses.replace(_V6E, source=f"that of v6e: {_V6E.source}"),
    "TPU v5": Efficiency(0.654, f"Llama 2 70B on 512 chips, MFU: {_MAXTEXT}"),
    "TPU v5p": Efficiency(0.654, f"Llama 2 70B on 512 chips, MFU: {_MAXTEXT}"),
    "TPU v6 lite": _V6E,
    "H100": _H100,
    "H200": dataclasses.replace(_H100, source=f"that of H100: {_H100.source}"),
    "cpu": Efficiency(0.71, "this project's own runs: benchmarks/results/2026-11-27-amd-epyc.json"),
}
"""By kind. LaMDA's, PaLM's and the others' count all that the hardware did, not only what the model
needs; where nothing was computed twice the two are one."""

OTHERS = Efficiency(0.5, "no measured figure is known for it: half of the peak is assumed")


def efficiency(unit: Accelerator) -> Efficiency:
    """Of an accelerator."""
    return EFFICIENCIES.get(unit.kind, OTHERS)


def float32_share(place: Place) -> float:
    """Of the peak, what products of float32 arrays have, as JAX makes them unless told otherwise.

    A TPU rounds their operands to bfloat16. A GPU does so to TF32, at half the rate, and those
    before Ampere compute in float32 proper: the makers' data sheets, as in `gptj.accelerators`. A
    CPU's peak is measured in float32.
    """
    old = {"V100": 15.7 / 125, "T4": 8.1 / 65}
    return old.get(place.accelerator.kind, 0.5) if place.platform == "gpu" else 1.0
