"""Rows of metrics: every second of a run is accounted for, once."""

import time

import jax.numpy as jnp
import pytest

from gptj import hardware
from gptj.config import ModelConfig
from gptj.flops import flops_per_token, hardware_flops_per_token
from gptj.train import meter
from gptj.train.meter import KINDS, Laps, Meter, Stopwatch
from gptj.train.metrics import seconds
from gptj.train.step import StepConfig, StepMetrics

MODEL = ModelConfig(2, 32, 4, 4, 64, 250, 256, 64)


class Clock:
    """A clock that stands still until told."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    return clock


def metrics(**changes) -> StepMetrics:
    values = {"loss": 3.0, "last_loss": 2.5, "z_loss": 0.01, "grad_norm_micro": 1.5, "lr": 1e-3}
    values |= {"grad_square_micro": 2.25, "grad_norm": 1.2, "streak": 0, **changes}
    measured = {k: jnp.float32(v) for k, v in values.items()}
    return StepMetrics(**{"accuracy": None, "margin": None} | measured, row_losses=jnp.ones((2, 2)))


def make(before=None, lost=0.0, **compute) -> Meter:
    return Meter(MODEL, StepConfig(**compute), 32, 8, 2, before or {}, lost)


def test_each_second_goes_into_one_kind(clock):
    watch = Stopwatch({})
    clock.now = 1.0
    with watch.on("evaluate"):
        clock.now = 3.0
        with watch.on("checkpoint"):
            clock.now = 7.0
        clock.now = 7.5
    clock.now = 8.0
    row = watch.row()
    assert row == {f"seconds_{kind}": 0.0 for kind in KINDS} | {
        **{"seconds_step": 1.5, "seconds_evaluate": 2.5, "seconds_checkpoint": 4.0}
    }
    assert sum(row.values()) == seconds(row) == 8.0


def test_a_restart_counts_on_and_what_was_thrown_away_is_lost(clock):
    watch = Stopwatch({"seconds_step": 10.0, "seconds_lost": 1.0}, lost=2.5)
    clock.now = 1.0
    row = watch.row()
    assert (row["seconds_step"], row["seconds_lost"]) == (11.0, 3.5)
    assert seconds(row) == 11.0


def test_laps_leave_out_what_was_not_a_step(clock):
    laps = Laps()
    assert laps.lap() is None  # the first compiles
    assert laps.rate(10) is None
    for now in (1.0, 3.0):
        clock.now = now
        laps.lap()
    clock.now = 50.0
    laps.pause()
    clock.now = 51.0
    assert laps.lap() == 1.0
    assert laps.rate(8) == 8 * 3 / 4.0
    assert laps.percentiles()["step_seconds_p50"] == 1.0
    assert 1.0 < laps.percentiles()["step_seconds_p95"] <= 2.0


def test_a_row_has_the_metrics_rates_and_tokens(clock, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda: 1e12)
    whole = make(remat="block")
    whole.row(1, metrics())
    clock.now = 2.0
    row = whole.row(2, metrics(loss=2.75))
    assert (row["step"], row["loss"], row["tokens"]) == (2, 2.75, 2 * 8 * 32)
    assert row["tokens_per_second"] == 8 * 32 / 2
    rate = 128 * flops_per_token(MODEL, 32)
    assert row["mfu"] == pytest.approx(rate / 1e12)
    again = hardware_flops_per_token(MODEL, 32, "block") / flops_per_token(MODEL, 32)
    assert row["hfu"] == pytest.approx(again * row["mfu"])
    assert 1.2 < again < 1.34  # a fourth pass over the layers, and none over the output
    assert row["noise_scale"] > 0
    assert not {"skipped", "skipped_step", "row_losses", "streak"} & set(row)


def test_spikes_are_counted_and_leave_the_noise_scale_alone(clock, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda: 1e12)
    after = make(before={"step": 4, "skipped": 2})
    calm = after.row(5, metrics())
    clock.now = 1.0
    spike = after.row(6, metrics(loss=float("nan"), grad_square_micro=float("nan"), streak=1))
    assert calm["skipped"] == 2
    assert "skipped_step" not in calm
    assert (spike["skipped"], spike["skipped_step"]) == (3, 1)
    assert "noise_scale" not in spike
    clock.now = 2.0
    assert after.row(7, metrics())["noise_scale"] == calm["noise_scale"]


def test_the_peak_is_the_makers_or_measured(monkeypatch):
    class Device:
        def __init__(self, kind, platform="gpu"):
            self.device_kind, self.platform = kind, platform

    def peak(*devices):
        monkeypatch.setattr(hardware.jax, "devices", lambda: devices)
        return hardware.peak_flops()

    assert peak(Device("NVIDIA H100 80GB HBM3"), Device("NVIDIA H100 80GB HBM3")) == 2 * 989e12
    assert peak(Device("NVIDIA H100 PCIe")) == 756e12
    assert peak(Device("TPU v5 lite", "tpu")) == 197e12
    assert peak(Device("NVIDIA A100-SXM4-40GB")) == 312e12
    monkeypatch.setattr(hardware, "measured_flops", lambda: 1e11)
    assert peak(*[Device("cpu", "cpu")] * 8) == 1e11  # all eight are one


def test_the_measured_peak_is_that_of_a_computer():
    begin = time.perf_counter()
    assert 1e8 < hardware.measured_flops(256, 0.01) < 1e15
    assert time.perf_counter() - begin < 30


def test_a_pair_is_two_rows_and_two_models_read_it(clock, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda: 1e12)
    texts, pairs = make(), make(pairs=True, examples=True, dpo_beta=0.1)
    for each in (texts, pairs):
        each.row(1, metrics())
    clock.now = 1.0
    text, pair = texts.row(2, metrics()), pairs.row(2, metrics(accuracy=0.75, margin=0.5))
    assert pair["tokens"] == 2 * text["tokens"] == 2 * 2 * 8 * 32
    # A pass forward is a third of what a text costs: the reference makes one, and the model
    # another, before it knows what to pull the answers by.
    assert pair["mfu"] == pytest.approx(2 * 4 / 3 * text["mfu"])
    assert pair["hfu"] == pytest.approx(2 * text["hfu"] + 4 / 3 * text["mfu"])
    assert (pair["accuracy"], pair["margin"]) == (0.75, 0.5)
    assert not {"accuracy", "margin"} & text.keys()


def test_numbers_are_written_with_eight_digits(clock, monkeypatch):
    monkeypatch.setattr(meter, "peak_flops", lambda: 1e12)
    row = make().row(7, metrics(loss=1 / 3))
    assert (row["step"], row["loss"]) == (7, 0.33333334)
    assert all(type(value) is float for value in row.values())


def test_percentiles_are_of_the_last_steps_and_the_rate_of_all(clock, monkeypatch):
    monkeypatch.setattr(meter, "LAPS", 3)
    laps = Laps()
    laps.pause()  # before there was anything to pause
    assert laps.lap() is None
    assert laps.percentiles() == {}
    for seconds_ in (10.0, 1.0, 2.0, 3.0):
        clock.now += seconds_
        assert laps.lap() == seconds_
    found = laps.percentiles()
    assert found == {"step_seconds_p50": 2.0, "step_seconds_p95": pytest.approx(2.9)}
    assert laps.rate(4.0) == 4 * 4 / 16


@pytest.mark.parametrize(
    ("counted", "row"), [(None, {}), ({"other": 1}, {}), ({"bytes_in_use": 7}, {"memory_bytes": 7})]
)
def test_memory_is_told_where_a_device_counts_it(monkeypatch, counted, row):
    class Device:
        def memory_stats(self):
            return counted

    monkeypatch.setattr(meter.jax, "local_devices", lambda: [Device(), None])
    assert meter.device_memory() == row
