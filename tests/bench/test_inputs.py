"""What sides are given: the same to each, within the vocabulary, and never the same row twice."""

import numpy as np
import pytest

from gptj.bench.config import TrainBench
from gptj.bench.inputs import batches, prompts
from gptj.config import ModelConfig

CONFIG = ModelConfig(1, 16, 2, 4, 32, vocab_size=5, padded_vocab_size=8, context=32)


def test_every_side_trains_on_the_same_rows_in_the_same_order():
    bench = TrainBench(batch=3, seq=7)
    ours, theirs = batches(bench, CONFIG), batches(bench, CONFIG)
    first, second = ours(), ours()
    assert first.shape == (3, 7 + 1)  # what follows the last token is learnt, too
    assert first.dtype == np.int32
    assert (first != second).any()
    np.testing.assert_array_equal([first, second], [theirs(), theirs()])


def test_rows_hold_every_token_and_no_padding():
    assert {*batches(TrainBench(batch=8, seq=63), CONFIG)().flatten().tolist()} == {*range(5)}


@pytest.mark.parametrize(("count", "tokens"), [(1, 200), (40, 5)])
def test_prompts_are_as_many_and_as_long_as_asked_and_none_ends_a_text(count, tokens):
    found = prompts(CONFIG, count, tokens)
    assert found == prompts(CONFIG, count, tokens)
    assert [len(each) for each in found] == [tokens] * count
    assert {token for each in found for token in each} == {*range(4)}
    assert all(type(token) is int for token in found[0])


def test_prompts_of_one_question_differ():
    assert len({tuple(each) for each in prompts(CONFIG, 8, 30)}) == 8
