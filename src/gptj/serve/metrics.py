"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gptj.engine.request import Delta
from gptj.serve.asked import Asked

FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper ends of the histograms' buckets, in seconds."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # of every counter, when it was made

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one server. Any thread may count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first = self._histogram(
            "time_to_first_token", "From when a request is let in to its first token", FIRST
        )
        self.between = self._histogram(
            "inter_token",
            "From a token to the next of its completion; those together share",
            BETWEEN,
        )
        self.whole = self._histogram("request", "From a request's arrival to the end", WHOLE)
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts taken on")
        self.completion_tokens = self._counter("completion_tokens", "Tokens drawn and handed out")
        self.requests = self._counter("http_requests", "Requests answered", "route", "status")

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"gptj_{name}_seconds", what, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"gptj_{name}", what, labels, registry=self.registry)

    def watch(self, gauges: Mapping[str, Reading], counters: Mapping[str, Reading]) -> None:
        """Also tell what these give at the moment of being asked; each has its description."""
        self.registry.register(_Readings(gauges, counters))

    def came(self, asked: Asked, index: int, delta: Delta, now: float) -> None:
        """Note when tokens came; those that came together share the wait before them."""
        if not (count := len(delta.tokens)):
            return
        completion = index, delta.choice
        self.completion_tokens.inc(count)
        if all(request != index for request, _ in asked.last):
            self.first.observe(now - asked.arrived)
        if completion in asked.last:
            for _ in range(count):
                self.between.observe((now - asked.last[completion]) / count)
        asked.last[completion] = now

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


Reading = tuple[str, Callable[[], float]]
"""What a figure means, and how to read it."""


class _Readings:
    """Figures that are kept elsewhere, read when they are asked for."""

    def __init__(self, gauges: Mapping[str, Reading], counters: Mapping[str, Reading]) -> None:
        self._gauges, self._counters = gauges, counters

    def collect(self) -> Iterator[Metric]:
        for name, (what, read) in self._gauges.items():
            yield GaugeMetricFamily(f"gptj_{name}", what, value=read())
        for name, (what, read) in self._counters.items():
            yield CounterMetricFamily(f"gptj_{name}", what, value=read())
