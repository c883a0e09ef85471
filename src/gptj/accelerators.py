"""What the accelerators can do, a row each: the one place with makers' figures and their source.

A device is what JAX calls one. TPU v2 and v3 have two devices (cores) a chip, which share its
memory, its bandwidth and its links; v4 and v5p join their two cores into one device.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device of a kind."""

    kind: str
    """What JAX's `device_kind` holds; of several that it holds, the longest."""
    peak_flops: float
    """Dense bfloat16 products a second (V100, T4: float16)."""
    memory: float
    """Bytes; 0 where the kind alone does not tell."""
    bandwidth: float
    """Bytes a second of its memory."""
    link: float
    """Bytes a second one way: over one link of a TPU's chip, or of a GPU into its node's switch."""
    source: str
    cores: int = 1
    """Devices on a chip."""
    whole_ring: int = 0
    """Chips along a torus dim from which on, or at a multiple of which, its ends are joined."""
    node: int = 0
    """GPUs that share a switch; a network joins the nodes."""


NETWORK = 50e9
"""Bytes a second one way of a GPU's own 400 Gbit/s network port, as in NVIDIA's DGX H100."""

_TPU = "https://docs.cloud.google.com/tpu/docs"
_CACM = "Jouppi et al., A Domain-Specific Supercomputer for Training DNNs, CACM 63(7), 2020"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"
_GA102 = (
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)

ACCELERATORS = (
    Accelerator("TPU v2", 22.5e12, 8 * GIB, 350e9, 62e9, f"{_TPU}/v2; links: {_CACM}", 2, 16),
    Accelerator("TPU v3", 61.5e12, 16 * GIB, 450e9, 82e9, f"{_TPU}/v3; links: {_CACM}", 2, 32),
    Accelerator("TPU v4", 275e12, 32 * GIB, 1200e9, 45e9, f"{_TPU}/v4", 1, 4),
    Accelerator("TPU v5 lite", 197e12, 16 * GIB, 819e9, 50e9, f"{_TPU}/v5e", 1, 16),
    Accelerator("TPU v5", 459e12, 95 * GIB, 2765e9, 100e9, f"{_TPU}/v5p", 1, 4),
    Accelerator("TPU v5p", 459e12, 95 * GIB, 2765e9, 100e9, f"{_TPU}/v5p", 1, 4),
    Accelerator("TPU v6 lite", 918e12, 32 * GIB, 1638e9, 100e9, f"{_TPU}/v6e", 1, 16),
    Accelerator("TPU7x", 1153.5e12, 96 * GIB, 3690e9, 100e9, f"{_TPU}/tpu7x", 2, 4),
    Accelerator("V100", 125e12, 0, 900e9, 150e9, f"{_NVIDIA}/v100", node=8),
    Accelerator("T4", 65e12, 16e9, 320e9, 16e9, f"{_NVIDIA}/tesla-t4", node=1),
    Accelerator("A100", 312e12, 80e9, 2039e9, 300e9, f"{_NVIDIA}/a100", node=8),
    Accelerator("A100-SXM4-40GB", 312e12, 40e9, 1555e9, 300e9, f"{_NVIDIA}/a100", node=8),
    Accelerator("A10G", 70e12, 24e9, 600e9, 32e9, f"{_NVIDIA}/products/a10-gpu", node=1),
    Accelerator("RTX 3070", 40.6e12, 8e9, 448e9, 32e9, f"{_GA102}, appendix A", node=1),
    Accelerator("RTX 3090", 71e12, 24e9, 936e9, 32e9, f"{_GA102}, appendix A", node=1),
    Accelerator("L4", 121e12, 24e9, 300e9, 32e9, f"{_NVIDIA}/l4", node=1),
    Accelerator("L40S", 362e12, 48e9, 864e9, 32e9, f"{_NVIDIA}/l40s", node=1),
    Accelerator("H100 PCIe", 756e12, 80e9, 2000e9, 64e9, f"{_NVIDIA}/h100", node=1),
    Accelerator("H100", 989e12, 80e9, 3350e9, 450e9, f"{_NVIDIA}/h100", node=8),
    Accelerator("H200", 989e12, 141e9, 4800e9, 450e9, f"{_NVIDIA}/h200", node=8),
    Accelerator("B200", 2250e12, 180e9, 8000e9, 900e9, f"{_NVIDIA}/dgx-b200", node=8),
)


def named(device_kind: str) -> Accelerator | None:
    """The accelerator of which JAX's name for a device speaks, if it is one of these."""
    held = [each for each in ACCELERATORS if each.kind.lower() in device_kind.lower()]
    return max(held, key=lambda each: len(each.kind), default=None)
