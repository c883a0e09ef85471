"""What reaches the devices are the rows that the order of the data says, on any mesh."""

import contextlib

import jax
import numpy as np
import pytest

from gptj.data.batches import TrainBatches
from gptj.data.mixture import Mixture
from gptj.sharding import make_mesh
from gptj.train.feed import Feed
from gptj.train.rows import Skip


@pytest.fixture
def batches(tiny_data):
    return TrainBatches(Mixture.open(tiny_data), 16, 8, 3)


def fed(batches, updates, skips=()) -> list[np.ndarray]:
    with contextlib.closing(Feed(batches, 8, 2, 16, list(skips))) as feed:
        return [np.asarray(feed.rows(update)) for update in updates]


@pytest.mark.parametrize("mesh", [None, (2, 2, 2), (1, 4, 1)], ids=str)
def test_every_update_gets_its_own_rows(batches, mesh):
    with jax.set_mesh(make_mesh(*mesh)) if mesh else contextlib.nullcontext():
        found = fed(batches, range(5))
    for update, rows in enumerate(found):
        assert rows.shape == (2, 4, 17)
        np.testing.assert_array_equal(rows.reshape(8, 17), batches.batch(update))


def test_reading_ahead_is_only_ahead(batches):
    found = fed(batches, (0, 1, 7, 2))
    for update, rows in zip((0, 1, 7, 2), found, strict=True):
        np.testing.assert_array_equal(rows.reshape(8, 17), batches.batch(update))


def test_after_going_back_other_rows_come(batches):
    with contextlib.closing(Feed(batches, 8, 2, 16, [])) as feed:
        feed.rows(3)
        feed.skips.append(Skip(2, 5))
        feed.forget()
        again = [np.asarray(feed.rows(update)).reshape(8, 17) for update in (2, 3)]
        np.testing.assert_array_equal(feed.ids(3).reshape(-1), batches.row_ids(8))
    np.testing.assert_array_equal(again, [batches.batch(7), batches.batch(8)])
    resumed = fed(batches, (1, 2), [Skip(2, 5)])
    np.testing.assert_array_equal(resumed[0].reshape(8, 17), batches.batch(1))
    np.testing.assert_array_equal(resumed[1].reshape(8, 17), batches.batch(7))
