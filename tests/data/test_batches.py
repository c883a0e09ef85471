"""Batches: each row once an epoch, a pure function of the step; each token scored once."""

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.data.batches import EvalBatches, TrainBatches, permute
from gptj.data.joined import Joined
from gptj.data.mixture import ROUND, Mixture, Part
from gptj.data.read import Document
from gptj.data.store import TokenStore
from gptj.data.write import StoreWriter, finish
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

TOKENS = 101


def make_store(path: Path, length: int) -> TokenStore:
    """A store of `length` tokens: distinct characters, so that a row tells where it is from."""
    with StoreWriter(path, Tokenizer.bytes()) as writer:
        writer.add(Document("a", "".join(map(chr, range(length - 1)))))
    finish(path, Tokenizer.bytes(), [writer.written()])
    return TokenStore.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("batches") / "store", TOKENS)


@pytest.fixture(scope="module")
def of_length(tmp_path_factory):
    """A store of any length, made once."""
    root = tmp_path_factory.mktemp("lengths")
    return functools.cache(lambda length: make_store(root / str(length), length))


class TestPermutation:
    @given(n=st.integers(1, 2000), key=st.binary(max_size=80))
    @settings(deadline=None)
    def test_it_is_a_bijection(self, n, key):
        assert sorted(permute(np.arange(n), n, key)) == list(range(n))

    @given(n=st.integers(1, 2**62), key=st.binary(max_size=8), data=st.data())
    @settings(deadline=None)
    def test_it_stays_in_range_at_any_size(self, n, key, data):
        few = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=20))
        places = permute(np.array(few, np.int64), n, key)
        assert len(set(places.tolist())) == len(few)
        assert all(0 <= place < n for place in places.tolist())

    def test_it_is_the_same_for_ever(self):
        # Change one of these and every resumed run reads other data than it would have.
        assert permute(np.arange(10), 10, b"key").tolist() == [2, 6, 7, 0, 5, 8, 9, 4, 1, 3]
        large = permute(np.arange(3), 10**12, b"").tolist()
        assert large == [474326291963, 250093716181, 307249023691]
        few = {3: [2, 1, 0], 4: [3, 1, 0, 2], 5: [2, 3, 4, 0, 1]}  # of 2, 2 and 4 bits
        assert {n: permute(np.arange(n), n, b"key").tolist() for n in few} == few

    def test_it_shuffles(self):
        n = 10_000
        places = permute(np.arange(n), n, b"0")
        assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 0.05
        assert abs(np.corrcoef(places, permute(np.arange(n), n, b"1"))[0, 1]) < 0.05
        neighbours = np.abs(np.diff(places))
        assert (neighbours == 1).mean() < 0.01


class TestTraining:
    @given(seq=st.integers(1, TOKENS - 1), batch=st.integers(1, 60), seed=st.integers(0, 99))
    @settings(deadline=None)
    def test_an_epoch_covers_every_row_exactly_once(self, store, seq, batch, seed):
        batches = TrainBatches(Mixture.of(store), seq, batch, seed)
        n = batches.n_rows
        steps = -(-2 * n // batch)
        rows = np.concatenate([batches.row_ids(step) for step in range(steps)])
        for epoch in (0, 1):
            assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))

    @pytest.mark.parametrize(
        ("seq", "rows"), [(1, 100), (33, 3), (34, 2), (50, 2), (51, 1), (100, 1)]
    )
    def test_a_row_needs_a_target_more_than_it_has(self, store, seq, rows):
        assert TrainBatches(Mixture.of(store), seq, 1).n_rows == rows

    def test_every_token_but_the_first_is_a_target_once_an_epoch(self, store):
        batches = TrainBatches(Mixture.of(store), seq=10, batch=5)
        targets = np.concatenate([batches.batch(step)[:, 1:].ravel() for step in range(2)])
        assert sorted(targets) == sorted(store.tokens[1:101])

    def test_a_row_is_the_tokens_from_its_place(self, store):
        batches = TrainBatches(Mixture.of(store), seq=7, batch=4)
        for row, tokens in zip(batches.row_ids(3), batches.batch(3), strict=True):
            assert tokens.tolist() == store.tokens[row * 7 : row * 7 + 8].tolist()

    @given(steps=st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
    @settings(deadline=None)
    def test_a_step_is_the_same_whatever_came_before(self, store, steps):
        batches = TrainBatches(Mixture.of(store), seq=8, batch=3)
        before = {step: batches.batch(step) for step in steps}
        for step in reversed(steps):
            fresh = TrainBatches(Mixture.of(store), seq=8, batch=3).batch(step)
            np.testing.assert_array_equal(fresh, before[step])
            np.testing.assert_array_equal(batches.batch(step), before[step])

    def test_another_batch_size_reads_the_same_order(self, store):
        def rows(batch: int) -> list[int]:
            batches = TrainBatches(Mixture.of(store), 4, batch)
            steps = range(60 // batch)
            return np.concatenate([batches.row_ids(step) for step in steps]).tolist()

        assert rows(1) == rows(4) == rows(60)

    def test_epochs_seeds_and_data_differ_in_order(self, store, tmp_path):
        other = make_store(tmp_path / "other", TOKENS + 1)
        orders = {
            tuple(TrainBatches(Mixture.of(store), 4, 25).row_ids(0)),
            tuple(TrainBatches(Mixture.of(store), 4, 25).row_ids(1)),
            tuple(TrainBatches(Mixture.of(store), 4, 25, seed=1).row_ids(0)),
            tuple(TrainBatches(Mixture.of(other), 4, 25).row_ids(0)),
        }
        assert len(orders) == 4

    def test_shapes_and_types(self, store):
        batches = TrainBatches(Mixture.of(store), seq=9, batch=30)
        assert (batches.batch(0).shape, batches.batch(0).dtype) == ((30, 10), np.int32)
        assert (batches.row_ids(0).shape, batches.row_ids(0).dtype) == ((30,), np.int64)
        assert type(batches.batch(0)) is np.ndarray

    def test_the_longest_seq_is_one_row(self, store):
        batch = TrainBatches(Mixture.of(store), seq=TOKENS - 1, batch=2).batch(0)
        assert batch.tolist() == [store.tokens[:].tolist()] * 2

    def test_a_row_lies_where_its_tokens_are(self, store):
        batches = TrainBatches(Mixture.of(store), seq=7, batch=1)
        for row in range(batches.n_rows):
            found, tokens = batches.place(row)
            assert found is store
            assert tokens == range(7 * row, 7 * row + 8)

    def test_rows_may_be_asked_for_in_any_shape(self, store):
        batches = TrainBatches(Mixture.of(store), seq=7, batch=1)
        found = batches.rows(np.array([[3, 0], [13, 3]]))
        assert found.shape == (2, 2, 8)
        np.testing.assert_array_equal(found[0, 0], found[1, 1])
        assert found[1, 0].tolist() == store.tokens[91:99].tolist()

    @pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (10, 0.5), (20, 1), (50, 2.5)])
    def test_an_epoch_is_as_many_steps_as_there_are_rows_over_the_batch(self, store, steps, epochs):
        assert TrainBatches(Mixture.of(store), seq=5, batch=1).epochs(steps) == [epochs]
        assert TrainBatches(Mixture.of(store), seq=5, batch=4).epochs(steps) == [4 * epochs]
        assert TrainBatches(Mixture.of(store), seq=5, batch=4).left_out == 0


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> TrainBatches:
    folder = tmp_path_factory.mktemp("two")
    stores = [make_store(folder / str(length), length) for length in (21, 41)]
    shares = (ROUND // 4, 3 * ROUND // 4)
    parts = [Part(str(s), s, share) for s, share in zip(stores, shares, strict=True)]
    return TrainBatches(Mixture("both", tuple(parts), None), seq=5, batch=8)


class TestParts:
    """Rows of two stores: those of the second are numbered after the first's."""

    def test_each_row_is_of_the_store_that_it_lies_in(self, both):
        assert both.n_rows == 4 + 8
        for row in range(12):
            store, tokens = both.place(row)
            assert len(store) == (21 if row < 4 else 41)
            assert tokens.start == 5 * (row if row < 4 else row - 4)
            expected = store.tokens[tokens.start : tokens.stop].tolist()
            assert both.rows(np.array(row)).tolist() == expected

    def test_each_part_has_epochs_of_its_own_and_its_turns(self, both):
        ids = np.concatenate([both.row_ids(step) for step in range(8)])
        first, second = ids[ids < 4], ids[ids >= 4]
        assert (len(first), len(second)) == (16, 48)
        for epoch in range(4):
            assert sorted(first[4 * epoch : 4 * epoch + 4]) == [0, 1, 2, 3]
        for epoch in range(6):
            assert sorted(second[8 * epoch : 8 * epoch + 8]) == list(range(4, 12))
        assert both.epochs(8) == [4, 6]


class TestEvaluation:
    @given(length=st.integers(2, 40), seq=st.integers(1, 50), batch=st.integers(1, 6))
    @settings(deadline=None)
    def test_every_token_is_scored_exactly_once(self, of_length, length, seq, batch):
        store = of_length(length)
        batches = EvalBatches(store, seq, batch)
        context, targets = [], []
        for tokens, weights in batches:
            assert (tokens.shape, weights.shape) == ((batch, seq + 1), (batch, seq))
            assert (tokens.dtype, weights.dtype) == (np.int32, np.float32)
            targets += tokens[:, 1:][weights == 1].tolist()
            context += tokens[:, :-1][weights == 1].tolist()
            assert set(np.unique(weights)) <= {0.0, 1.0}
        stream = [store.tokenizer.eos_id, *store.tokens[:].tolist()]
        assert targets == stream[1:]
        assert context == stream[:-1]  # each target has its predecessor before it
        assert len(list(batches)) == len(batches)

    def test_padding_is_end_of_text_without_weight(self, store):
        *_, (tokens, weights) = EvalBatches(store, seq=30, batch=3)
        assert weights.sum() == TOKENS - 90
        assert set(tokens[:, 1:][weights == 0]) == {256}

    @pytest.mark.parametrize(("seq", "batch", "limit"), [(4, 5, None), (4, 5, 2), (1, 51, None)])
    def test_a_host_reads_its_own_rows_alone(self, store, seq, batch, limit):
        batches = EvalBatches(store, seq, batch, limit)
        parts = [slice(at, min(batch, at + size)) for at in range(batch) for size in (0, 1, 2)]
        for number, (tokens, weights) in enumerate(batches):
            for part in parts:
                np.testing.assert_array_equal(batches.rows(number, part), tokens[part])
                np.testing.assert_array_equal(batches.weights(number, part), weights[part])

    def test_of_a_host_no_other_rows_are_read(self, store, monkeypatch):
        read, own = [], Joined.read
        monkeypatch.setattr(Joined, "read", lambda *given: read.append(given[1:]) or own(*given))
        EvalBatches(store, 4, 5).rows(1, slice(2, 4))
        assert read == [(28, 36), (27, 28)]  # two rows of four, and what comes before them

    @pytest.mark.parametrize(
        ("limit", "first_tokens"), [(1, [0]), (2, [0, 60]), (3, [0, 40, 80]), (4, [0, 20, 60, 80])]
    )
    def test_a_limit_begins_at_the_first_and_goes_on_evenly(self, store, limit, first_tokens):
        begins = [256, *store.tokens[:].tolist()]
        found = [int(tokens[0, 0]) for tokens, _ in EvalBatches(store, 4, 5, limit)]
        assert found == [begins[at] for at in first_tokens]

    def test_a_limit_takes_batches_spread_evenly(self, store):
        whole = list(EvalBatches(store, 4, 5))
        some = EvalBatches(store, 4, 5, limit=3)
        assert len(some) == 3
        chosen = [whole[index * len(whole) // 3] for index in range(3)]
        for (tokens, weights), (expected, expected_weights) in zip(some, chosen, strict=True):
            np.testing.assert_array_equal(tokens, expected)
            np.testing.assert_array_equal(weights, expected_weights)
        assert len(EvalBatches(store, 4, 5, limit=999)) == len(whole)

    def test_a_store_shorter_than_seq_is_one_padded_row(self, store):
        [(tokens, weights)] = EvalBatches(store, seq=500, batch=1)
        assert tokens.shape == (1, 501)
        assert weights.sum() == TOKENS

    def test_it_can_be_iterated_again(self, store):
        batches = EvalBatches(store, 4, 5)
        assert len(list(batches)) == len(list(batches)) == 6


class TestMistakes:
    def test_a_seq_longer_than_the_data(self, store):
        with pytest.raises(UserError, match=r"seq=101 is longer .* 101 tokens.* at most 100"):
            TrainBatches(Mixture.of(store), seq=TOKENS, batch=1)

    @pytest.mark.parametrize("kind", [TrainBatches, EvalBatches])
    def test_a_shape_below_one(self, kind, store):
        data = Mixture.of(store) if kind is TrainBatches else store
        with pytest.raises(UserError, match="seq=0 must be at least 1"):
            kind(data, 0, 1)
        with pytest.raises(UserError, match="batch=-1 must be at least 1"):
            kind(data, 1, -1)

    def test_a_limit_below_one(self, store):
        with pytest.raises(UserError, match="limit=0 must be at least 1 batch"):
            EvalBatches(store, 4, 5, limit=0)
