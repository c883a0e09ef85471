"""What reaches the devices are the rows that the order of the data says, on any mesh."""

import contextlib
import hashlib
import json

import jax
import numpy as np
import pytest

from gptj.data.batches import TrainBatches
from gptj.data.mixture import MixConfig, Mixture, mix
from gptj.data.prepare import PrepareConfig, prepare
from gptj.sharding import make_mesh
from gptj.train.feed import Feed
from gptj.train.rows import Skip


@pytest.fixture
def batches(tiny_data):
    return TrainBatches(Mixture.open(tiny_data), 16, 8, 3)


def fed(batches, updates, skips=()) -> list[np.ndarray]:
    with contextlib.closing(Feed(batches, 8, 2, list(skips))) as feed:
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
    with contextlib.closing(Feed(batches, 8, 2, [])) as feed:
        feed.rows(3)
        feed.skips.append(Skip(2, 5))
        feed.forget()
        again = [np.asarray(feed.rows(update)).reshape(8, 17) for update in (2, 3)]
        np.testing.assert_array_equal(feed.ids(3).reshape(-1), batches.row_ids(8))
    np.testing.assert_array_equal(again, [batches.batch(7), batches.batch(8)])
    resumed = fed(batches, (1, 2), [Skip(2, 5)])
    np.testing.assert_array_equal(resumed[0].reshape(8, 17), batches.batch(1))
    np.testing.assert_array_equal(resumed[1].reshape(8, 17), batches.batch(7))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_stream_is_the_same_on_1_2_3_or_8_hosts(accumulate, tmp_path):
    """A device stands for a host: each reads its own rows of a mixture and no others."""
    for name in "ab":
        rows = (json.dumps({"text": f"{name} {number} " * 5}) for number in range(200))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        prepare(PrepareConfig((str(tmp_path / f"{name}.jsonl"),), tmp_path / name, "bytes"))
    mix(MixConfig((f"{tmp_path / 'a'}=5", f"{tmp_path / 'b'}=1"), tmp_path / "mixed"))
    updates, batch, seq = 30, 48, 16
    batches = TrainBatches(Mixture.open(tmp_path / "mixed"), seq, batch, 1)
    one = hashlib.sha256(b"".join(batches.batch(step).tobytes() for step in range(updates)))
    for hosts in (1, 2, 3, 8):
        found = hashlib.sha256()
        with (
            jax.set_mesh(make_mesh(hosts)),
            contextlib.closing(Feed(batches, batch, accumulate, [])) as feed,
        ):
            for update in range(updates):
                whole = np.zeros((accumulate, batch // accumulate, seq + 1), np.int32)
                for shard in feed.rows(update).addressable_shards:
                    assert shard.data.shape[1] == batch // accumulate // hosts
                    whole[shard.index] = np.asarray(shard.data)
                found.update(whole.tobytes())
        assert found.hexdigest() == one.hexdigest()
