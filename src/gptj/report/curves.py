"""What a curve of any length becomes before it is drawn."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptj.report.scale import Floats

POINTS = 1000
"""At most so many points of a curve are drawn; a screen has not many more columns."""


class Series(NamedTuple):
    """Finite values and the steps they belong to; equally long."""

    steps: Floats
    values: Floats


def decimate(series: Series, limit: int = POINTS) -> Series:
    """At most `limit` of the points: the first, the last, and every stretch's least and greatest.

    So that a spike of one step in a hundred thousand is still seen, at its own step.
    """
    length = len(series.steps)
    if length <= limit:
        return series
    edges = np.linspace(1, length - 1, (limit - 2) // 2 + 1).astype(int)
    kept = {0, length - 1}
    for start, end in pairwise(edges.tolist()):
        part = series.values[start:end]
        kept |= {int(start + part.argmin()), int(start + part.argmax())}
    chosen = np.array(sorted(kept))
    return Series(series.steps[chosen], series.values[chosen])


def thin(series: Series, limit: int = POINTS // 2) -> Series:
    """At most `limit` of the points, evenly: enough for a curve that is smooth."""
    if len(series.steps) <= limit:
        return series
    chosen = np.linspace(0, len(series.steps) - 1, limit).round().astype(int)
    return Series(series.steps[chosen], series.values[chosen])


def smooth(series: Series, leave_out: NDArray[np.bool_] | None = None) -> Series:
    """The mean of the neighbours of each point, a fortieth of the curve to either side.

    Fewer near the beginning, where a run falls fast; at the end, those before. Points of
    `leave_out` have a mean but no part in anyone's.
    """
    length = len(series.values)
    width = length // 40
    if width < 1:
        return series
    index = np.arange(length)
    half = np.minimum(width, index // 2)
    low, high = index - half, np.minimum(index + half + 1, length)
    part = np.ones(length) if leave_out is None else (~leave_out).astype(float)
    # Sums from the median, and of nothing enormous, so that the running sum keeps its digits.
    middle = float(np.median(series.values))
    apart = series.values - middle
    limit = 1e6 * float(np.median(np.abs(apart))) or np.inf
    sums = np.concatenate([[0.0], np.cumsum(np.clip(apart, -limit, limit) * part)])
    counts = np.concatenate([[0.0], np.cumsum(part)])
    found = counts[high] - counts[low]
    means = middle + (sums[high] - sums[low]) / np.maximum(found, 1)
    return Series(series.steps, np.where(found > 0, means, series.values))
