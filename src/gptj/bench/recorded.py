"""How fast the original was: what its authors wrote down, which no machine here can repeat."""

from __future__ import annotations

import dataclasses

from gptj.accelerators import ACCELERATORS
from gptj.config import preset
from gptj.flops import flops_per_token


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Mesh Transformer JAX training GPT-J-6B."""

    hardware: str
    cores: int
    tokens_per_second: float
    source: str

    @property
    def share(self) -> float:
        """Of the makers' peak of all cores, as `gptj train` counts operations."""
        peak = next(each.peak_flops for each in ACCELERATORS if each.kind == "TPU v3")
        done = self.tokens_per_second * flops_per_token(preset("gpt-j-6b"), 2048)
        return done / (peak * self.cores)


ORIGINAL = (
    Recorded(
        "TPU v3-256", 256, 151_000,
        "https://arankomatsuzaki.wordpress.com/2021/06/04/gpt-j/, from scratch",
    ),
    Recorded(
        "TPU v3-8", 8, 5_000,
        "https://github.com/kingoflolz/mesh-transformer-jax, README, fine-tuning",
    ),
)  # fmt: skip
