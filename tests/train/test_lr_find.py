"""The learning-rate range test."""

import numpy as np
import pytest

from gptj.errors import UserError
from gptj.train.lr_find import LrFindConfig, LrFound, lr_find
from gptj.train.objective import StepConfig
from gptj.train.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def found(tiny_data, tiny_model) -> LrFound:
    usual = {"steps": 60, "seq": 32, "batch": 4, "lowest": 1e-5, "highest": 10.0}
    return lr_find(LrFindConfig(tiny_data, str(tiny_model), **usual))


def test_the_rate_grows_by_one_factor_until_the_loss_rises(found):
    factors = np.divide(found.rates[1:], found.rates[:-1])
    np.testing.assert_allclose(factors, 1e6 ** (1 / 59), rtol=1e-4)
    assert found.rates[0] == pytest.approx(1e-5)
    assert len(found.rates) < 60
    assert found.smooth[-1] > 1.5 * min(found.smooth)


def test_what_is_suggested_learns(found):
    assert found.suggested == pytest.approx(found.lowest / 10, rel=0.05)
    assert 1e-4 < found.suggested < 0.1
    assert min(found.smooth) < found.losses[0] - 0.3
    assert found.turned


def test_it_goes_to_the_end_where_nothing_rises(tiny_data, tiny_model):
    config = LrFindConfig(
        tiny_data, str(tiny_model), lowest=1e-9, highest=1e-8, steps=10, seq=16, batch=2
    )
    found = lr_find(config)
    assert len(found.rates) == 10
    assert found.rates[-1] == pytest.approx(1e-8)
    assert max(found.losses) - min(found.losses) < 0.5
    assert not LrFound(found.rates, found.losses, tuple(range(10, 0, -1))).turned


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 1.0}, r"lowest=1\.0 must be above 0 and below highest=1\.0"),
        ({"steps": 5}, "steps=5 must be at least 10"),
        ({"optimizer": OptimizerConfig(lr=1e-3)}, "lr is what is to be found: leave it out"),
        ({"compute": StepConfig(spike_sigma=3.0)}, "spike_sigma skips what is looked for"),
    ],
)
def test_what_makes_no_test_is_refused(tiny_data, options, message):
    with pytest.raises(UserError, match=message):
        lr_find(LrFindConfig(tiny_data, **options))
