"""`gptj bench serve`: the mix it asks, when that is asked and answered, and figures that fit."""

import io
import json
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from gptj.bench import serve as module
from gptj.bench.config import ServeBench
from gptj.bench.serve import ServeResult, mix, ready, report, serve
from gptj.config import ModelConfig
from gptj.engine.config import EngineConfig
from gptj.engine.request import Request, SamplingParams
from gptj.errors import UserError

SMALL = ("--shortest", 3, "--longest", 20, "--new-tokens", 20, "--requests", 5)
ENGINE = ("--slots", 2, "--chunk", 16, "--burst", 4)
MODEL = ModelConfig(2, 32, 4, 4, 64, 257, 384, context=64)


class Slow:
    """An engine that lets one request in a step and draws `burst` tokens of each that is in."""

    def __init__(self, clock, slots: int = 2, burst: int = 1) -> None:
        self.clock, self.burst, self.log = clock, burst, []
        self.options = SimpleNamespace(slots=slots)
        self.device = SimpleNamespace(step_bytes=lambda kept: 1000 + kept)
        self.prefix = SimpleNamespace(clear=lambda: self.log.append("clear"))
        self.waiting: deque[SimpleNamespace] = deque()
        self.drawing: list[SimpleNamespace] = []

    @property
    def busy(self):
        return bool(self.waiting or self.drawing)

    def submit(self, request):
        number = 100 + len(self.log)  # no index of anything
        self.log.append(tuple(request.prompt))
        left = request.sampling.max_tokens
        job = SimpleNamespace(prompt=request.prompt, tokens=[], left=left, number=number)
        self.waiting.append(job)
        return number

    def step(self):
        """A second, and ten more to read the prompt of one that is let in."""
        if not self.busy:
            return []
        self.clock.now += 1
        if self.waiting and len(self.drawing) < self.options.slots:
            self.drawing.append(self.waiting.popleft())
            self.clock.now += 10
            return []
        deltas = []
        for job in self.drawing:
            drawn = (7,) * min(self.burst, job.left - len(job.tokens))
            job.tokens += drawn
            deltas.append(SimpleNamespace(request=job.number, tokens=drawn))
        self.drawing = [job for job in self.drawing if len(job.tokens) < job.left]
        return deltas


@pytest.fixture
def clock(monkeypatch):
    """The time, which passes only where something is done or slept."""
    made = SimpleNamespace(now=1000.0)

    def sleep(seconds):
        made.now += 0.25

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: made.now, sleep=sleep))
    return made


def requests(*lengths: int, new: int = 3) -> list[Request]:
    sampling = SamplingParams(max_tokens=new)
    return [Request([n] * length, sampling) for n, length in enumerate(lengths)]


class TestAnswering:
    def test_each_token_is_noted_when_it_came_for_the_request_it_is_of(self, clock):
        asked, came = module._answer(Slow(clock), requests(4, 4, new=3), [0.0, 0.0])
        assert asked == [1000, 1000]
        assert came == [[1023, 1024, 1025]] * 2  # two readings of 11 s come first

    def test_a_request_is_asked_at_its_moment_and_not_before(self, clock):
        engine = Slow(clock)
        asked, came = module._answer(engine, requests(4, 4, new=1), [0.0, 500.0])
        assert asked == [1000, 1500]
        assert came == [[1012], [1512]]

    def test_what_waits_for_a_busy_engine_has_waited_since_its_moment(self, clock):
        """Or a slow engine would be asked less often, and look quick."""
        asked, came = module._answer(Slow(clock, slots=1), requests(4, 4, new=2), [0.0, 1.0])
        assert asked == [1000, 1001]
        assert came == [[1012, 1013], [1025, 1026]]

    def test_tokens_that_come_together_have_one_moment(self, clock):
        _, came = module._answer(Slow(clock, burst=2), requests(4, new=3), [0.0])
        assert came == [[1012, 1012, 1013]]


@pytest.mark.parametrize(
    ("times", "gaps"),
    [
        ([5.0], []),
        ([1.0, 2.0, 4.0], [1.0, 2.0]),
        ([1.0, 1.0, 1.0], []),
        ([1.0, 2.0, 2.0, 5.0, 5.0, 5.0], [0.5, 0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_tokens_that_came_together_share_the_wait_before_them(times, gaps):
    assert module._gaps(times) == gaps


class TestOneStep:
    def test_it_is_timed_while_every_slot_draws_and_no_prompt_is_read(self, clock):
        seconds, read = module._step(Slow(clock), requests(4, 5, new=4))
        assert seconds == 1.0
        assert read == 1000 + (4 + 3) + (5 + 3)  # after the last step that leaves both drawing

    def test_of_a_burst_it_is_one_step_s_part(self, clock):
        assert module._step(Slow(clock, burst=4), requests(4, 5, new=12))[0] == 0.25

    def test_there_is_a_request_for_every_slot_however_few_are_asked(self, clock):
        engine = Slow(clock, slots=5)
        module._step(engine, requests(4, 6, new=9))
        assert [len(prompt) for prompt in engine.log] == [4, 6, 4, 6, 4]

    def test_requests_that_end_too_soon_time_no_step(self, clock):
        with pytest.raises(UserError, match="raise new_tokens, or lower slots"):
            module._step(Slow(clock), requests(4, new=1))


class TestTheWhole:
    @pytest.fixture
    def slow(self, clock, monkeypatch):
        engine, bench = Slow(clock), ServeBench(requests=3, shortest=4, longest=4, new_tokens=5)
        asked = mix(bench, 100)
        monkeypatch.setattr(module, "ready", lambda _: (engine, asked))
        monkeypatch.setattr(module, "measured_bandwidth", lambda: 2000.0)
        return engine, bench

    def test_figures_are_of_the_mix_alone_from_the_first_question_to_the_last_token(self, slow):
        engine, bench = slow
        found = serve(bench)
        assert engine.log.index("clear") == 2  # after the two that filled the slots
        assert (found.tokens, found.prompt_tokens) == (15, 12)
        assert found.first == [23, 23, 39]
        assert found.between == [1.0] * 12
        assert found.seconds == 43
        assert found.step_seconds == 1.0
        assert found.step_bytes == 1000 + 2 * (4 + 4)
        assert found.tokens_per_second == 15 / 43
        assert found.share_of_bandwidth == 1016 / 2000

    def test_moments_are_as_often_as_the_rate_says_and_the_same_for_a_seed(self, monkeypatch):
        moments = []

        def answer(engine, asked, at):
            moments.append(at)
            return at, [[each + 1] for each in at]

        monkeypatch.setattr(module, "_answer", answer)
        monkeypatch.setattr(module, "_step", lambda *_: (1.0, 1))
        monkeypatch.setattr(module, "measured_bandwidth", lambda: 1.0)
        engine = SimpleNamespace(prefix=SimpleNamespace(clear=lambda: None))
        monkeypatch.setattr(module, "ready", lambda bench: (engine, mix(bench, 9)))
        for rate, seed in ((0, 0), (4, 0), (4, 0), (4, 1)):
            found = serve(ServeBench(requests=400, shortest=1, longest=1, rate=rate, seed=seed))
            assert found.seconds == moments[-1][-1] + 1 - moments[-1][0]
        at_once, first, again, other = moments
        assert at_once == [0] * 400
        assert first == again != other
        assert (np.diff(first) > 0).all()
        assert first[-1] == pytest.approx(400 / 4, rel=0.1)


class TestReady:
    @pytest.fixture
    def made(self, monkeypatch):
        engines = []

        def engine(params, config, tokenizer, options):
            engines.append(options)
            return SimpleNamespace(warm_up=lambda: engines.append("warm"))

        monkeypatch.setattr(module, "Engine", engine)
        monkeypatch.setattr(module, "loaded", lambda *asked: (asked, MODEL))
        return engines

    def test_a_slot_has_room_for_the_longest_request_unless_told_otherwise(self, made):
        bench = ServeBench(shortest=1, longest=20, new_tokens=30)
        _, asked = ready(bench)
        assert made == [EngineConfig(positions=50), "warm"]
        assert asked == mix(bench, 257)
        ready(ServeBench(shortest=1, longest=20, new_tokens=30, engine=EngineConfig(positions=60)))
        assert made[2].positions == 60

    def test_what_the_model_has_no_room_for_is_refused_before_anything_is_made(self, made):
        with pytest.raises(UserError, match="longest=40 and new_tokens=30 are together more"):
            ready(ServeBench(shortest=1, longest=40, new_tokens=30))
        assert made == []


def test_the_mix_draws_to_its_end_and_each_request_by_its_own_seed():
    asked = mix(ServeBench(requests=5, new_tokens=7, temperature=0.5, shortest=9, longest=9), 11)
    for n, each in enumerate(asked):
        expected = SamplingParams(temperature=0.5, max_tokens=7, ignore_eos=True, seed=n)
        assert each.sampling == expected
        assert len(each.prompt) == 9
    assert {token for each in asked for token in each.prompt} == {*range(11)}


def test_the_report_names_percentiles_rates_and_the_roofline():
    waits = [n / 1000 for n in range(1, 102)]
    result = ServeResult(
        seconds=20.0, tokens=400, prompt_tokens=900, first=waits, between=[0.25, 0.25],
        step_seconds=0.02, step_bytes=200_000_000, bandwidth=40e9,
    )  # fmt: skip
    out = io.StringIO()
    report(result, Console(file=out, width=200))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines == [
        "p50 p95 p99",
        "time to first token 51 ms 96 ms 100 ms",
        "between tokens 250 ms 250 ms 250 ms",
        "20 tokens/s drawn, 45 read, in 20.0 s",
        "a decode step of all slots: 20.0 ms, 10.0 GB/s of 40.0: 25 % of the roofline",
    ]


def test_the_mix_is_the_same_for_the_same_seed_and_within_its_lengths():
    config = ServeBench(requests=50, shortest=3, longest=9)
    asked = mix(config, 100)
    assert asked == mix(config, 100)
    assert {len(request.prompt) for request in asked} == set(range(3, 10))
    assert asked != mix(ServeBench(requests=50, shortest=3, longest=9, seed=1), 100)


@pytest.mark.parametrize("rate", [0, 50])
def test_the_figures_fit_together(gptj, tiny_run, tmp_path, rate):
    out = tmp_path / "figures.json"
    code, said, _ = gptj(
        *("bench", "serve", "--model", tiny_run, *SMALL, *ENGINE, "--rate", rate, "--json", out)
    )
    assert code == 0
    assert all(word in said for word in ("time to first token", "tokens/s", "% of the roofline"))
    found = json.loads(out.read_text())["serve"]["measured"]
    assert found["tokens"] == 5 * 20
    assert len(found["first"]) == 5
    assert len(found["between"]) <= 5 * 19
    assert all(0 < value <= found["seconds"] for value in found["first"])
    assert np.sum(found["between"]) <= 5 * found["seconds"]
    assert found["step_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bench", "serve", "--requests", 0), "requests=0 must be at least 1"),
        (("bench", "serve", "--longest", 3), "longest=3 must be at least shortest=64"),
        (("bench", "serve", "--rate", -1), "rate=-1.0 must be 0"),
        (("bench", "serve", "--slots", 0), "slots=0 must be at least 1"),
    ],
)
def test_mistakes(refused, words, said):
    refused(*words, said=(said,))
