"""Numbers for people: axes with round ticks, and values in few characters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
# The first set of digits that gives enough ticks within the decades shown.
_LOG_DIGITS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))
_ENOUGH = 4


@dataclasses.dataclass(frozen=True)
class Axis:
    """The stretch of numbers that an axis shows, evenly or by its logarithm."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, low: float, high: float, log: bool = False) -> Axis:
        """An axis on which `low` and `high` keep a little distance from the ends."""
        if log:
            room = (high / low) ** 0.05 if high > low else 1.2
            return cls(low / room, high * room, log)
        room = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - room, high + room)

    def place(self, values: Floats) -> Floats:
        """Where values lie between the ends, 0 to 1; beyond them, just beyond."""
        if self.log:
            values = np.log(np.maximum(values, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            values = (values - self.low) / (self.high - self.low)
        return np.clip(values, -0.05, 1.05)

    def ticks(self, count: int = 5, whole: bool = False) -> list[float]:
        """About `count` round numbers on the axis; whole numbers only, if so asked."""
        if self.log:
            return self._log_ticks() or self._even_ticks(count, whole)
        return self._even_ticks(count, whole)

    def _even_ticks(self, count: int, whole: bool) -> list[float]:
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(digit for digit in (1, 2, 2.5, 5, 10) if digit * power >= rough * 0.999)
        if whole:
            step = max(1.0, math.ceil(step))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{index * step:.12g}") for index in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for digits in _LOG_DIGITS:
            every = -(-(last - first) // 8) if digits == (1,) else 1
            powers = range(first, last + 1, every)
            ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
            shown = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(shown) >= _ENOUGH:
                return shown
        return []


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks of an axis in one notation: 0 5k 10k, or 0 5e-5 1e-4, or 2.0 2.5 3.0."""
    sizes = [abs(tick) for tick in ticks if tick]
    top, least = max(sizes, default=0.0), min(sizes, default=0.0)
    if top > 20 * least:  # of a logarithmic axis, where each has its own notation
        return [_tick(tick, abs(tick)) for tick in ticks]
    texts = [_tick(tick, top) for tick in ticks]
    if any(text[-1].isalpha() or "e" in text for text in texts):
        return texts
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def _tick(tick: float, top: float) -> str:
    """A tick exactly, in the notation that suits one as large as `top`."""
    for unit, name in _UNITS:
        if top >= max(unit, 1e4):
            return f"{tick / unit:.12g}{name}" if tick else "0"
    return _scientific(tick, 12) if top < 0.02 else f"{tick:,.12g}"


def number(value: float) -> str:
    """A number in about four digits: 12.3k, 1,234, 2.346, 3.2e-4."""
    if not math.isfinite(value):
        return str(value)
    size = abs(float(f"{value:.3g}"))
    for unit, name in _UNITS:
        if size >= max(unit, 1e4):
            return f"{value / unit:.3g}{name}"
    if abs(value) >= 999.95:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 1e-3 or not value else _scientific(value, 2)


def with_unit(value: float, unit: str) -> str:
    """A number and its unit, the thousands with the unit: 48.8 TFLOP/s."""
    text = number(value)
    digits = text.rstrip("kMGTPE")
    return f"{digits} {text[len(digits) :]}{unit}"


def size(count: float) -> str:
    """Bytes in the largest binary unit that there is at least one of: 57.7 GiB."""
    for unit, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if (found := count / 2**unit) >= 1:
            return f"{found:.3g} {name}" if found < 999.5 else f"{found:,.0f} {name}"
    return f"{count:.0f} bytes"


def _scientific(value: float, digits: int) -> str:
    if not value:
        return "0"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}"


def duration(seconds: float) -> str:
    """A time in its two largest units: 0.42 s, 12.5 s, 3m 20s, 2h 05m, 4d 11h."""
    if float(f"{seconds:.3g}") < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h"
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"
