"""What is measured: sides that do the same work in turns, and the limits it is a share of."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Stored = Literal["float32", "bfloat16", "int8", "int4"]
"""What the matrices are stored in; of training, what products are made in."""

OURS = "gptj"


@dataclasses.dataclass(frozen=True)
class Work:
    """What one run of a case does, and the least that it must multiply and read."""

    unit: str
    amount: float
    """How many of the unit."""
    flops: float = 0.0
    bytes: float = 0.0


class Unavailable(Exception):
    """A side cannot do this on the machine at hand, and is left out."""


Runs = dict[str, Callable[[], float]]
"""Of each case what does its work once; a call gives the seconds it took."""


@dataclasses.dataclass(frozen=True)
class Side:
    """Who does the work, and with numbers of which type."""

    system: str
    stored: str = ""

    def __str__(self) -> str:
        return f"{self.system} {self.stored}".strip()


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the devices at hand can do, measured."""

    device: str
    bandwidth: float
    """Bytes a second of a plain reading of memory."""
    flops: Mapping[str, float]
    """Operations a second of a large product, by the type of what is multiplied."""

    @staticmethod
    def usual(found: Sequence[Limits]) -> Limits:
        """Each rate's median in several measurements of a device; of two the higher.

        A machine that others use too reads memory much faster in some moments than in most.
        """
        bandwidth = statistics.median_high(limits.bandwidth for limits in found)
        kinds = found[0].flops
        flops = {
            kind: statistics.median_high(limits.flops[kind] for limits in found) for kind in kinds
        }
        return Limits(found[0].device, bandwidth, flops)

    def of_devices(self, count: int) -> Limits:
        """Those of so many such devices."""
        flops = {kind: rate * count for kind, rate in self.flops.items()}
        return Limits(self.device, self.bandwidth * count, flops)

    def seconds(self, work: Work, stored: str) -> tuple[float, str]:
        """The least that the work could take, and what of: `memory` or `compute`.

        Numbers stored in fewer bits than 16 are multiplied as bytes where products of such were
        measured, and else as bfloat16.
        """
        few = "int8" if "int8" in self.flops else "bfloat16"
        kind = stored if stored in self.flops else few
        multiply = work.flops / self.flops[kind]
        read = work.bytes / self.bandwidth
        return max((multiply, "compute"), (read, "memory"))


@dataclasses.dataclass(frozen=True)
class Figure:
    """What one side took for one case."""

    side: Side
    case: str
    work: Work
    seconds: list[float]
    """Of each counted turn."""
    peak_bytes: int
    """The most memory that the side's process had once it was ready."""

    @property
    def median(self) -> float:
        """Seconds of a turn."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.work.amount / self.median


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as fast as a peer ours is, in the same turns: the median, and the ends."""

    ours: Side
    peer: Side
    case: str
    median: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class Result:
    """All figures of a subject."""

    subject: str
    command: str
    asked: Mapping[str, Any]
    limits: Limits
    figures: list[Figure]
    left_out: list[str]
    """Sides that cannot do it here, and why."""
    machine: Mapping[str, Any]
    date: str

    def share(self, figure: Figure) -> tuple[float, str] | None:
        """Of the limit what a figure reaches, from 0 to 1, and which limit that is."""
        least, bound = self.limits.seconds(figure.work, figure.side.stored)
        return (least / figure.median, bound) if least else None

    @property
    def ratios(self) -> list[Ratio]:
        """Of each case, ours over every peer of the same type."""
        ours = [each for each in self.figures if each.side.system == OURS]
        peers = [each for each in self.figures if each.side.system != OURS]
        return [
            _ratio(mine, other)
            for mine in ours
            for other in peers
            if mine.case == other.case and other.side.stored in ("", mine.side.stored)
        ]

    def as_json(self) -> dict[str, Any]:
        """The whole, with rates, shares and ratios written out."""
        whole = dataclasses.asdict(self)
        for entry, figure in zip(whole["figures"], self.figures, strict=True):
            entry["side"] = str(figure.side)
            entry["per_second"] = figure.rate
            if share := self.share(figure):
                entry["share"], entry["bound"] = share
        whole["ratios"] = [
            {**dataclasses.asdict(each), "ours": str(each.ours), "peer": str(each.peer)}
            for each in self.ratios
        ]
        return whole


def _ratio(mine: Figure, other: Figure) -> Ratio:
    """Work over time on both sides, turn by turn."""
    scale = mine.work.amount / other.work.amount
    turns = [scale * b / a for a, b in zip(mine.seconds, other.seconds, strict=True)]
    return Ratio(mine.side, other.side, mine.case, statistics.median(turns), min(turns), max(turns))
