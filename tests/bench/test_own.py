"""Our sides: what each turn does, how often, and what of it is timed."""

import os
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from gptj.bench import own
from gptj.bench.config import (
    DataBench,
    DecodeBench,
    LoadBench,
    PrefillBench,
    ServeBench,
    TrainBench,
)
from gptj.bench.inputs import batches, prompts
from gptj.config import ModelConfig
from gptj.engine.config import EngineConfig
from gptj.engine.request import Request, SamplingParams

MODEL = ModelConfig(2, 32, 4, 4, 64, 257, 384, context=64)


@pytest.fixture
def clock(monkeypatch):
    """The time, which passes only where a stand-in lets it."""
    made = SimpleNamespace(now=50.0)
    monkeypatch.setattr(own, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


class Engines:
    """Stand-ins for engines, which take 100 s to read and a second for each token."""

    def __init__(self, clock) -> None:
        self.clock, self.options, self.log = clock, [], []

    def __call__(self, params, config, tokenizer, options):
        assert (params, config, tokenizer) == ("weights", MODEL, None)
        self.options.append(options)
        self.log.append("made")
        return self

    def warm_up(self):
        self.log.append("warm")

    def run(self, asked):
        self.log.append(asked)
        self.clock.now += 100 + asked[0].sampling.max_tokens


@pytest.fixture
def engines(clock, monkeypatch):
    made = Engines(clock)
    monkeypatch.setattr(own, "Engine", made)
    monkeypatch.setattr(own, "stored_as", lambda model, stored: ("weights", MODEL))
    return made


def greedy(count: int, tokens: int, new: int) -> list[Request]:
    sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    return [Request(prompt, sampling) for prompt in prompts(MODEL, count, tokens)]


def test_drawing_is_timed_without_the_reading_in_an_engine_of_just_such_slots(engines):
    bench = DecodeBench(slots=(1, 4), read=10, new=20, kv_cache="int8")
    cases = own.runs(bench, MODEL, "float32")
    assert engines.log == ["made", "warm"] * 2  # before any turn is timed
    assert engines.options == [
        EngineConfig(slots, positions=31, kv_cache="int8", prefix_bytes=0) for slots in (1, 4)
    ]
    assert cases["4 slots"]() == 20
    assert engines.log[4:] == [greedy(4, 10, 21), greedy(4, 10, 1)]


def test_reading_is_timed_to_the_first_token_and_nothing_is_kept_of_it(engines):
    (run,) = own.runs(PrefillBench(tokens=30, chunk=16), MODEL, "float32").values()
    assert engines.options == [EngineConfig(1, positions=31, chunk=16, prefix_bytes=0)]
    assert [run(), run()] == [101, 101]
    assert engines.log == ["made", "warm", greedy(1, 30, 1), greedy(1, 30, 1)]


def test_no_turn_of_the_mix_finds_what_the_one_before_has_read(engines, monkeypatch):
    asked = greedy(3, 5, 7)
    engines.prefix = SimpleNamespace(clear=lambda: engines.log.append("clear"))
    monkeypatch.setattr(own.serve, "ready", lambda bench: (engines, asked))
    (run,) = own.runs(ServeBench(), MODEL, "float32").values()
    assert [run(), run()] == [107, 107]
    assert engines.log == ["clear", asked] * 2


def test_a_call_is_over_when_its_arrays_are_there(clock):
    class Coming:
        def block_until_ready(self):
            clock.now += 3
            return self

    assert own.timed(lambda: {"a": [Coming()], "b": Coming()}) == 6
    assert own.timed(lambda: None) == 0


def test_training_goes_on_from_step_to_step_with_other_rows(clock, monkeypatch):
    seen, bench = [], TrainBench(seq=6, batch=2, remat="dots", attention="xla")

    def train_step(state, tokens, *, model, optimizer, config):
        seen.append((state, tokens, model, config))
        clock.now += 2
        return state + 1, {}

    monkeypatch.setattr(own, "train_step", train_step)
    monkeypatch.setattr(own, "new_state", lambda key, model, optimizer: 70)
    monkeypatch.setattr(own, "place", lambda tokens, *axes: (tokens, axes))
    (step,) = own.runs(bench, MODEL, "bfloat16").values()
    assert [step(), step()] == [2, 2]
    assert [state for state, *_ in seen] == [70, 71]
    rows = batches(bench, MODEL)
    for _, (tokens, axes), model, config in seen:
        np.testing.assert_array_equal(tokens, rows()[None])  # one micro-batch of all rows
        assert (axes, model) == ((None, "batch", None), MODEL)
        assert (config.dtype, config.remat, config.attention) == ("bfloat16", "dots", "xla")


class TestLoading:
    @pytest.mark.parametrize(
        ("stored", "dtype", "bits"),
        [
            *(("float32", "float32", None), ("bfloat16", "bfloat16", None)),
            *(("int8", "bfloat16", "int8"), ("int4", "bfloat16", "int4")),
        ],
    )
    def test_it_is_loaded_as_asked_its_files_forgotten_first(
        self, clock, monkeypatch, tmp_path, stored, dtype, bits
    ):
        log = []

        def load(model, dtype, quantize):
            log.append((model, jnp.dtype(dtype).name, quantize))
            clock.now += 4
            return SimpleNamespace(params={})

        (tmp_path / "x.safetensors").touch()
        monkeypatch.setattr(own, "forget", log.append)
        monkeypatch.setattr(own, "load", load)
        (run,) = own.runs(LoadBench(str(tmp_path)), None, stored).values()
        assert run() == 4
        assert log == [[tmp_path / "x.safetensors"], (str(tmp_path), dtype, bits)]

    def test_a_plain_reading_reads_every_byte_of_every_file(self, clock, monkeypatch):
        class File:
            def __init__(self, size: int) -> None:
                self.left = size

            def open(self, mode, buffering):
                assert (mode, buffering) == ("rb", 0)
                return self

            def readinto(self, buffer):
                count = min(len(buffer) // 3 + 1, self.left)  # as systems may
                self.left -= count
                clock.now += count / 2**20
                return count

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

        files, forgotten = [File(40 << 20), File(0), File(1 << 20)], []
        monkeypatch.setattr(own, "weight_files", lambda model: files)
        monkeypatch.setattr(own, "forget", forgotten.append)
        assert own.read_files("x") == pytest.approx(41)
        assert [file.left for file in files] == [0, 0, 0]
        assert forgotten == [files]

    def test_files_are_forgotten_whole_where_the_system_can(self, monkeypatch, tmp_path):
        path, told = tmp_path / "x", []
        path.write_bytes(b"x")

        def advise(descriptor, start, length, advice):
            told.append((os.fstat(descriptor).st_ino, start, length, advice))

        monkeypatch.setattr(os, "posix_fadvise", advise)
        own.forget([path, path])
        assert told == [(path.stat().st_ino, 0, 0, os.POSIX_FADV_DONTNEED)] * 2
        monkeypatch.delattr(os, "posix_fadvise")
        own.forget([path])


def test_rows_are_read_on_from_turn_to_turn(clock, monkeypatch):
    """None is read twice, which would find it in memory."""
    steps = []

    def open_rows(data, seq, batch):
        def read(step):
            steps.append(step)
            clock.now += 0.5

        assert (data, seq, batch) == ("opened data/mine", 8, 4)
        return SimpleNamespace(batch=read)

    monkeypatch.setattr(own.Mixture, "open", lambda path: f"opened {path}")
    monkeypatch.setattr(own, "TrainBatches", open_rows)
    bench = DataBench(Path("data/mine"), seq=8, batch=4, rows=12)
    (run,) = own.runs(bench, None, "").values()
    assert [run(), run()] == [1.5, 1.5]
    assert steps == [0, 1, 2, 3, 4, 5]
