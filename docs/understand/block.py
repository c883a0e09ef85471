"""Pictures of the first chapter."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

PICTURES: dict[str, Callable[[], Figure]] = {}
