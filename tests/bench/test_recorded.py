"""What the original was recorded at, as a share of its hardware."""

import dataclasses

import pytest

from gptj.bench.recorded import ORIGINAL, Recorded

A_TOKEN = 3 * (2 * (28 * (4 * 4096**2 + 8 * 4096**2) + 4096 * 50400) + 2 * 28 * 4096 * 2048)
"""Operations to train on one, by hand: forward, and twice as much backward."""


@pytest.mark.parametrize("each", ORIGINAL, ids=lambda each: each.hardware)
def test_its_share_is_of_all_cores_of_a_tpu_v3(each):
    peak = each.cores * 61.5e12  # 123 TFLOP/s a chip, which has two cores
    assert each.share == pytest.approx(each.tokens_per_second * A_TOKEN / peak, rel=1e-9)
    assert each.hardware == f"TPU v3-{each.cores}"
    assert each.source.startswith("https://")


def test_a_share_follows_the_speed_and_the_cores():
    one = Recorded("TPU v3-8", 8, 5000, "")
    faster = dataclasses.replace(one, tokens_per_second=10_000)
    wider = dataclasses.replace(one, cores=16)
    assert faster.share == pytest.approx(2 * one.share)
    assert wider.share == pytest.approx(one.share / 2)
