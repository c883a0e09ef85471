"""The original's configs, counts of leaves and sums of copies, by hand."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from gptj import PRESETS, ModelConfig, UserError
from gptj.convert.convert import write
from gptj.convert.mesh_transformer import (
    FIELDS,
    _added,
    _beside,
    _layers,
    _replicated,
    _shards,
    read_config,
    scope,
)
from gptj.convert.open import open_source
from gptj.convert.source import from_params
from gptj.convert.tensor import Tensor
from gptj.files import Folder
from gptj.model import init
from gptj.tokenizer import Tokenizer

RELEASED = PRESETS["gpt-j-6b"]
SEEN = {"layers": 28, "d_model": 4096, "d_ff": 16384, "padded_vocab_size": 50400}
TINY = ModelConfig(1, 16, 2, 4, 64, 260, 260, context=16)


def config_of(**changes):
    return json.dumps({t: getattr(RELEASED, ours) for t, ours in FIELDS.items()} | changes)


def written(folder, tokenizer=None, shards=1, **changes):
    source = from_params(TINY, init(jax.random.key(0), TINY), tokenizer)
    write(replace(source, **changes), folder, "mesh-transformer", shards)
    return folder


def test_the_released_models_config_is_its_preset():
    assert read_config(config_of(), "here") == RELEASED
    assert read_config(config_of(n_vocab=50401), "here").vocab_size == 50401
    assert read_config(config_of(), "here", {"d_ff": 8192}).d_ff == 8192


def test_without_a_config_the_released_shape_is_the_released_model(tmp_path):
    assert _beside(Folder(tmp_path), SEEN) == RELEASED
    for field in SEEN:
        with pytest.raises(UserError, match="does not say how many heads"):
            _beside(Folder(tmp_path), {**SEEN, field: SEEN[field] + 1})


@pytest.mark.parametrize("full", [False, True])
def test_leaves_are_counted_in_layers(full):
    for layers in (1, 2, 28):
        assert _layers("here", len(scope(layers, full))) == (layers, full)
    for leaves in (len(scope(0, full)), len(scope(1, full)) + 1, len(scope(1, full)) - 1, 1):
        said = rf"has {leaves} leaves a shard, which no GPT-J has \(7 and 10 a layer, thrice"
        with pytest.raises(UserError, match=said):
            _layers("here", leaves)
    assert len(scope(28, False)) == 7 + 10 * 28


class TestSums:
    """Copies of a bias that training keeps equal: they differ by rounding, a hundredth at most."""

    @pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
    def test_are_of_copies_that_differ_by_a_hundredth_of_the_largest(self, scale):
        one = np.array([1.0, -100.0, 0.0], np.float32) * np.float32(scale)
        for gap, fits in ((0.9, True), (-0.9, True), (1.1, False), (-1.1, False)):
            other = one + np.array([0, 0, gap * scale], np.float32)
            if fits:
                np.testing.assert_allclose(_added("here", "b", [one, other]), one + other)
                continue
            with pytest.raises(UserError, match="b differs between the shards"):
                _added("here", "b", [one, one, other])

    def test_of_zeros_and_of_nothing_are_that(self):
        assert _added("here", "b", [np.zeros(3, np.float16)] * 4).tolist() == [0, 0, 0]
        assert _added("here", "b", [np.zeros(0, np.float16)] * 2).dtype == np.float16


@pytest.mark.parametrize("given", [None, replace(TINY, vocab_size=258)])
@pytest.mark.parametrize(("tokens", "expected"), [(259, 259), (270, 260)])
def test_a_tokenizer_says_how_many_tokens_there_are_where_no_config_does(
    given, tokens, expected, tmp_path
):
    tokenizer = Tokenizer.train(["the cat sat on the mat, the cat sat on the hat"], tokens)
    assert tokenizer.vocab_size == tokens
    config = open_source(written(tmp_path / "x", tokenizer), config=given).config
    assert config.vocab_size == (258 if given else expected)


@pytest.mark.parametrize("other", [np.array([7], np.int32), np.array(7, np.float32)])
def test_a_counter_is_one_in_every_shard(other):
    stored = [Tensor(x.shape, x.dtype, lambda x=x: x) for x in (np.array(7, np.int32), other)]
    assert _replicated("here", "step", stored[:1] * 2) == 7
    with pytest.raises(UserError, match="here: step is not a counter"):
        _replicated("here", "step", stored)


def test_a_model_of_unknown_steps_is_at_none(tmp_path):
    assert open_source(written(tmp_path / "x", step=None)).step == 0


def test_as_many_shards_as_the_original_made(tmp_path):
    folder = written(tmp_path / "x", shards=2)
    (folder / "shard_1").rename(folder / "shard_2")
    with pytest.raises(UserError, match="holds 2 shards, but not shard_1: a whole"):
        _shards(Folder(folder))
    (folder / "shard_1").mkdir()
    with pytest.raises(UserError, match="holds 3 shards: a whole checkpoint has 1, 2, 4, 8, 16"):
        _shards(Folder(folder))
