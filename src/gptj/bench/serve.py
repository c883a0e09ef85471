"""How fast the engine answers on the devices at hand, beside what their memory allows."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from gptj.bench.config import ServeBench, check_context
from gptj.bench.models import loaded
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.errors import UserError
from gptj.hardware import measured_bandwidth


@dataclasses.dataclass(frozen=True)
class ServeResult:
    """What a run of the mix measured; times in seconds."""

    seconds: float
    tokens: int
    """Tokens drawn, of all requests."""
    prompt_tokens: int
    first: list[float]
    """From asking to the first token, of each request."""
    between: list[float]
    """From a token to the next of its request. Tokens that come together share the wait."""
    step_seconds: float
    """One decode step with every slot drawing."""
    step_bytes: int
    """What such a step must read: the weights, and the keys and values of every slot."""
    bandwidth: float
    """Bytes a second that the devices' memory gave to a plain reading."""

    @property
    def tokens_per_second(self) -> float:
        """Drawn tokens, over the whole run."""
        return self.tokens / self.seconds

    @property
    def share_of_bandwidth(self) -> float:
        """What a decode step reads a second, over what a plain reading does."""
        return self.step_bytes / self.step_seconds / self.bandwidth


def mix(config: ServeBench, vocab_size: int) -> list[Request]:
    """The requests: the same for the same seed, whatever the model."""
    draw = np.random.default_rng(config.seed)
    lengths = draw.integers(config.shortest, config.longest + 1, config.requests)
    sampling = SamplingParams(
        temperature=config.temperature, max_tokens=config.new_tokens, ignore_eos=True
    )
    return [
        Request(
            draw.integers(0, vocab_size, length).tolist(), dataclasses.replace(sampling, seed=n)
        )
        for n, length in enumerate(lengths)
    ]


def serve(config: ServeBench) -> ServeResult:
    """Ask the mix of a warm engine, and time one decode step alone.

    Raises:
      UserError: the model cannot be loaded, or has no room for the longest request.
    """
    engine, requests = ready(config)
    step_seconds, step_bytes = _step(engine, requests)
    engine.prefix.clear()  # those that were just read come again
    draw = np.random.default_rng(config.seed + 1)
    waits = draw.exponential(1 / config.rate, len(requests)) if config.rate else [0] * len(requests)
    asked, came = _answer(engine, requests, np.cumsum(waits).tolist())
    first = [times[0] - begin for begin, times in zip(asked, came, strict=True)]
    return ServeResult(
        seconds=max(times[-1] for times in came) - min(asked),
        tokens=sum(map(len, came)),
        prompt_tokens=sum(len(request.prompt) for request in requests),
        first=first,
        between=[gap for times in came for gap in _gaps(times)],
        step_seconds=step_seconds,
        step_bytes=step_bytes,
        bandwidth=measured_bandwidth(),
    )


def ready(config: ServeBench) -> tuple[Engine, list[Request]]:
    """A warm engine, and what to ask of it.

    Raises:
      UserError: the model cannot be loaded, or has no room for the longest request.
    """
    params, shape = loaded(config.model, config.dtype, config.quantize)
    check_context(config, shape)
    room = config.longest + config.new_tokens
    options = dataclasses.replace(config.engine, positions=config.engine.positions or room)
    engine = Engine(params, shape, None, options)
    engine.warm_up()
    return engine, mix(config, shape.vocab_size)


def report(result: ServeResult, console: Console) -> None:
    """The result as a table."""
    table = Table("", "p50", "p95", "p99", box=None)
    for name, values in (("time to first token", result.first), ("between tokens", result.between)):
        table.add_row(name, *(f"{np.percentile(values, p) * 1e3:.0f} ms" for p in (50, 95, 99)))
    console.print(table)
    console.print(
        f"{result.tokens_per_second:.0f} tokens/s drawn, "
        f"{result.prompt_tokens / result.seconds:.0f} read, in {result.seconds:.1f} s"
    )
    console.print(
        f"a decode step of all slots: {result.step_seconds * 1e3:.1f} ms, "
        f"{result.step_bytes / result.step_seconds / 1e9:.1f} GB/s of "
        f"{result.bandwidth / 1e9:.1f}: {100 * result.share_of_bandwidth:.0f} % of the roofline"
    )


def _step(engine: Engine, requests: list[Request]) -> tuple[float, int]:
    """Seconds and bytes of one decode step while every slot draws."""
    slots, seconds, kept = engine.options.slots, [], 0
    for n in range(slots):
        engine.submit(requests[n % len(requests)])
    while engine.busy:
        full, begin = len(engine.drawing) == slots, time.perf_counter()
        tokens = sum(len(delta.tokens) for delta in engine.step())
        if full and len(engine.drawing) == slots and tokens:
            seconds.append((time.perf_counter() - begin) / tokens * slots)
            kept = sum(len(job.prompt) + len(job.tokens) for job in engine.drawing)
    if not seconds:
        raise UserError(
            "the requests end before every slot draws: raise new_tokens, or lower slots"
        )
    return float(np.median(seconds)), engine.device.step_bytes(kept)


def _answer(
    engine: Engine, requests: list[Request], moments: list[float]
) -> tuple[list[float], list[list[float]]]:
    """Ask at the moments; when each was asked, and when each of its tokens came."""
    begin = time.perf_counter()
    asked: list[float] = []
    number: dict[int, int] = {}
    came: list[list[float]] = [[] for _ in requests]
    while len(asked) < len(requests) or engine.busy:
        while len(asked) < len(requests) and time.perf_counter() - begin >= moments[len(asked)]:
            number[engine.submit(requests[len(asked)])] = len(asked)
            asked.append(begin + moments[len(asked)])
        if not engine.busy:
            time.sleep(0.001)
        for delta in engine.step():
            came[number[delta.request]] += [time.perf_counter()] * len(delta.tokens)
    return asked, came


def _gaps(times: list[float]) -> list[float]:
    """The waits between tokens; those that came together share the wait before them."""
    moments, counts = np.unique(times, return_counts=True)
    shared = np.repeat(np.diff(moments) / counts[1:], counts[1:])
    return list(shared)
