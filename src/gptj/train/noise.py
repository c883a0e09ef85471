"""The gradient noise scale: the batch size beyond which more rows help little.

`B_simple` of "An Empirical Model of Large-Batch Training" (arXiv:1812.06162), appendix A.1.
"""

from __future__ import annotations

from gptj.train.sinks import Row

DECAY = 0.99
"""Of the running means of its two parts, whose ratio would be noise step by step."""

GRADIENT, VARIANCE, SCALE = "noise_gradient", "noise_variance", "noise_scale"


class NoiseScale:
    """Follows the squared norm of the true gradient and the variance of a row's.

    Both follow from the squared norms of gradients over few and over many rows, for the noise in
    a gradient's square shrinks with the rows that it is the mean of.
    """

    def __init__(self, small: int, big: int, before: Row) -> None:
        """`small` and `big` rows in the two gradients; `before`: the last row of metrics."""
        self.small, self.big = small, big
        self._means = (before[GRADIENT], before[VARIANCE]) if GRADIENT in before else None

    def row(self, small_square: float, big_square: float) -> Row:
        """The noise scale in rows, and its parts; nothing where a batch is a single microbatch."""
        small, big = self.small, self.big
        if small == big:
            return {}
        gradient = (big * big_square - small * small_square) / (big - small)
        variance = (small_square - big_square) / (1 / small - 1 / big)
        if self._means is None:
            self._means = gradient, variance
        else:
            before, share = self._means, 1 - DECAY
            self._means = (
                DECAY * before[0] + share * gradient,
                DECAY * before[1] + share * variance,
            )
        gradient, variance = self._means
        row = {GRADIENT: gradient, VARIANCE: variance}
        return {**row, SCALE: variance / gradient} if gradient > 0 and variance > 0 else row
