"""Rows of whole examples: as a loop over them one by one would fill them."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.data import packing
from gptj.data.batches import EvalBatches
from gptj.data.packing import BEGINS, pack, pair, shortest
from gptj.errors import UserError

EOS = 9
READ_ONLY = ~EOS
PADDING = ~(EOS | BEGINS)


class Held:
    """As much of a store as rows are made of, in memory."""

    def __init__(self, documents: list[list[int]]) -> None:
        sizes = [len(each) for each in documents]
        self.tokens = np.array([id for each in documents for id in each], np.int32)
        self.starts = np.cumsum([0, *sizes])[:-1]
        self.tokenizer = SimpleNamespace(eos_id=EOS)
        self.manifest = SimpleNamespace(examples="completions")

    def __len__(self) -> int:
        return len(self.tokens)

    def __str__(self) -> str:
        return "STORE"


def numbered(sizes: list[int]) -> list[list[int]]:
    """Examples of these sizes: each is its number, over and over, and ends as examples do."""
    return [[100 + number] * (size - 1) + [EOS] for number, size in enumerate(sizes)]


def one_by_one(documents: list[list[int]], width: int) -> list[list[list[int]]]:
    """The examples of each row: as many as fit beside each other, of what fits alone."""
    rows: list[list[list[int]]] = []
    adjacent = False
    for each in documents:
        if len(each) > width:
            adjacent = False
        elif adjacent and sum(map(len, rows[-1])) + len(each) <= width:
            rows[-1].append(each)
        else:
            rows.append([each])
            adjacent = True
    return rows


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), seq=st.integers(1, 12))
def test_rows_are_filled_in_order_and_none_is_cut(sizes, seq):
    documents, width = numbered(sizes), seq + 1
    rows = one_by_one(documents, width)
    if not rows:
        with pytest.raises(UserError, match=f"^seq={seq} .* has {min(sizes)} tokens: raise seq$"):
            pack(Held(documents), seq)
        return
    found = pack(Held(documents), seq)
    assert (len(found), found.width) == (len(rows), width)
    assert found.left_out == sum(size > width for size in sizes)
    for number, (row, read) in enumerate(
        zip(rows, found.read(np.arange(len(rows))).tolist(), strict=True)
    ):
        ids = [id for each in row for id in each]
        own = found.tokens(number)
        assert found.store.tokens[own.start : own.stop].tolist() == ids
        begins = [[each[0] ^ BEGINS, *each[1:]] for each in row]
        assert read == [id for each in begins for id in each] + [PADDING] * (width - len(ids))


def test_rows_past_the_last_are_padding_and_any_may_be_asked_for():
    found = pack(Held(numbered([2, 2])), 2)
    assert found.read(np.array([2, 1, 5, 1])).tolist() == [
        [PADDING] * 3, [101 ^ BEGINS, EOS, PADDING], [PADDING] * 3, [101 ^ BEGINS, EOS, PADDING],
    ]  # fmt: skip
    assert found.read(np.array([], int)).shape == (0, 3)


def test_padding_is_only_read_and_each_of_it_a_document():
    assert PADDING < 0
    assert ~PADDING & BEGINS
    assert ~PADDING & ~BEGINS == EOS


def test_what_is_only_read_keeps_its_sign_where_an_example_begins():
    (row,) = pack(Held([[~5, 6, EOS]]), 2).read(np.array([0])).tolist()
    assert row == [~(5 | BEGINS), 6, EOS]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=9))
def test_the_shortest_is_that_of_all(sizes):
    assert shortest(Held(numbered(sizes))) == min(sizes)


@given(
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=9),
    batch=st.integers(1, 4),
    limit=st.integers(1, 4) | st.none(),
)
def test_scored_is_what_is_learnt_were_it_the_first_token_there_is(sizes, batch, limit):
    store = Held([[~7] * (size - 1) + [0] for size in sizes])
    rows = one_by_one([[~7] * (size - 1) + [0] for size in sizes], 6)
    batches = EvalBatches(store, 5, batch, limit)
    whole = -(-len(rows) // batch)
    assert len(batches) == min(whole, limit or whole)
    for number, (tokens, weights) in enumerate(batches):
        first = number * whole // len(batches) * batch
        own = [[id for each in row for id in each] for row in rows[first : first + batch]]
        counts = [ids.count(0) for ids in own] + [0] * (batch - len(own))
        assert weights.sum(axis=1).tolist() == counts
        assert weights.shape == (batch, 5)
        assert set(np.unique(tokens & ~BEGINS)) <= {0, 7, EOS}
        assert (tokens[:, 1:][weights == 1] & ~BEGINS == 0).all()
        np.testing.assert_array_equal(batches.rows(number, slice(1, 2)), tokens[1:2])
        np.testing.assert_array_equal(batches.weights(number, slice(1, 2)), weights[1:2])


ANSWERS = st.tuples(st.integers(1, 6), st.integers(1, 6))


@given(
    pairs=st.lists(ANSWERS, min_size=1, max_size=8),
    seq=st.integers(1, 7),
    read=st.integers(1, 9),
)
def test_two_answers_have_a_row_each_and_both_must_fit(pairs, seq, read):
    half = seq + 1
    answers = [(numbered([a])[0], numbered([1] * 50 + [b])[50]) for a, b in pairs]
    store = Held([a + b for a, b in answers])
    fitting = [(a, b) for a, b in answers if max(len(a), len(b)) <= half]
    with mock.patch.object(packing, "READ", read):
        if not fitting:
            least = min(max(each) for each in pairs)
            with pytest.raises(UserError, match=f"^seq={seq} .* {least} tokens in an answer: rai"):
                pair(store, seq)
            return
        found = pair(store, seq)
    assert (len(found), found.left_out) == (len(fitting), len(pairs) - len(fitting))
    assert found.width == 2 * half
    rows = found.read(np.arange(len(fitting) + 1)).tolist()
    expected = [
        [id for each in both for id in each + [READ_ONLY] * (half - len(each))] for both in fitting
    ]
    assert rows == [*expected, [READ_ONLY] * 2 * half]
    for number, (a, b) in enumerate(fitting):
        own = found.tokens(number)
        assert store.tokens[own.start : own.stop].tolist() == a + b
