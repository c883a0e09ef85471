"""The noise scale finds the gradient and the noise that gradients were made of."""

import numpy as np
import pytest

from gptj.train.noise import NoiseScale

DRAW = np.random.default_rng(0)
GRADIENT, DEVIATION = DRAW.normal(0, 0.1, 400), 0.5


def measured(small, big, steps):
    """Squared norms of the means of noisy gradients of single rows, as steps measure them."""
    for _ in range(steps):
        rows = GRADIENT + DRAW.normal(0, DEVIATION, (big, len(GRADIENT)))
        parts = rows.reshape(-1, small, len(GRADIENT)).mean(1)
        yield np.square(parts).sum(1).mean(), np.square(rows.mean(0)).sum()


@pytest.mark.parametrize(("small", "big"), [(1, 8), (2, 16)])
def test_it_is_the_variance_of_a_row_over_the_squared_gradient(small, big):
    noise, row = NoiseScale(small, big, {}), {}
    for squares in measured(small, big, 300):
        row = noise.row(*squares)
    gradient, variance = np.square(GRADIENT).sum(), len(GRADIENT) * DEVIATION**2
    assert row["noise_gradient"] == pytest.approx(gradient, rel=0.1)
    assert row["noise_variance"] == pytest.approx(variance, rel=0.1)
    assert row["noise_scale"] == pytest.approx(variance / gradient, rel=0.2)


def test_it_goes_on_where_a_run_stopped():
    squares = list(measured(1, 4, 20))
    whole = NoiseScale(1, 4, {})
    rows = [whole.row(*pair) for pair in squares]
    resumed = NoiseScale(1, 4, rows[9])
    assert [resumed.row(*pair) for pair in squares[10:]] == rows[10:]


def test_one_microbatch_tells_nothing():
    assert NoiseScale(8, 8, {}).row(1.0, 1.0) == {}


def test_where_noise_hides_the_gradient_there_is_no_scale():
    row = NoiseScale(1, 2, {}).row(1.0, 0.4)
    assert row["noise_gradient"] < 0
    assert "noise_scale" not in row


def test_a_step_by_hand():
    # Of 1 row the square is 7 and of 4 it is 4: what the noise adds shrinks fourfold, from 4 to 1.
    row = NoiseScale(1, 4, {}).row(7.0, 4.0)
    assert row == pytest.approx({"noise_gradient": 3, "noise_variance": 4, "noise_scale": 4 / 3})


def test_the_parts_are_averaged_and_not_their_ratio():
    noise = NoiseScale(1, 4, {})
    noise.row(7.0, 4.0)
    row = noise.row(107.0, 104.0)  # 103 and 4
    assert row == pytest.approx({"noise_gradient": 4, "noise_variance": 4, "noise_scale": 1})


@pytest.mark.parametrize("squares", [(4.0, 1.0), (3.0, 3.0), (1.0, 2.0)])
def test_no_gradient_or_no_noise_is_no_scale(squares):
    assert [*NoiseScale(1, 4, {}).row(*squares)] == ["noise_gradient", "noise_variance"]
