"""The model's shape: what is refused, and what a file or a preset becomes."""

import json

import pytest

from gptj.config import PRESETS, ModelConfig, preset, resolve
from gptj.errors import UserError


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": 3}, "d_model=4096 is not divisible by heads=3"),
        ({"rotary_dims": 63}, "rotary_dims=63 must be even"),
        ({"rotary_dims": 512}, "at most the head's 256 dimensions"),
        ({"padded_vocab_size": 50000}, "padded_vocab_size=50000 is below vocab_size=50257"),
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"layers": "2"}, "layers='2' must be a whole number"),
        ({"heads": 16.0}, "heads=16.0 must be a whole number"),
        ({"d_ff": True}, "d_ff=True must be a whole number"),
        ({"rotary_base": -1.0}, "rotary_base=-1.0 must be above 0"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps='x' must be a number"),
    ],
)
def test_an_impossible_shape_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        ModelConfig(**changes)


def test_files_round_trip(tmp_path):
    for config in PRESETS.values():
        config.save(tmp_path / "model.json")
        assert ModelConfig.load(tmp_path / "model.json") == config
        assert resolve(str(tmp_path / "model.json"), config.vocab_size) == config


@pytest.mark.parametrize("content", ["{", "[1]", json.dumps({"layers": 2, "depth": 3})])
def test_a_bad_file_is_named(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match=r"model\.json|unknown or missing fields .*'depth'"):
        ModelConfig.load(tmp_path / "model.json")


def test_a_presets_vocabulary_fits_the_tokenizer():
    config = resolve("125m", 1000)
    assert (config.vocab_size, config.padded_vocab_size) == (1000, 1024)
    assert resolve("gpt-j-6b", 50257).padded_vocab_size == 50304


def test_an_explicit_vocabulary_is_kept_and_must_suffice():
    assert resolve(preset("gpt-j-6b"), 50257) == preset("gpt-j-6b")
    with pytest.raises(UserError, match="vocab_size=4096 is smaller than the tokenizer's 5000"):
        resolve(preset("demo"), 5000)


def test_an_unknown_model_lists_the_presets():
    with pytest.raises(UserError, match=r"'7b' is neither a preset \(demo, 125m, .*40b\) nor"):
        resolve("7b", 100)
    with pytest.raises(UserError, match="no model preset '7b'"):
        preset("7b")


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary_dims": 0},  # no dimension has to be rotated
        {"rotary_dims": 256},  # and all of them may be
        {"padded_vocab_size": 50257},
        {"layer_norm_eps": 1},  # a whole number is a number
        {"context": 1},
    ],
)
def test_a_shape_at_its_limits_is_one(changes):
    config = ModelConfig(**changes)
    assert [getattr(config, name) for name in changes] == list(changes.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rotary_dims": -2}, "rotary_dims=-2 must be even and at most the head's 256"),
        ({"rotary_dims": 258}, "rotary_dims=258 must be even and at most the head's 256"),
        ({"rotary_dims": 64.0}, "rotary_dims=64.0 must be a whole number"),
        ({"embedding_bias": 1}, "embedding_bias=1 must be true or false"),
        ({"rotary_base": True}, "rotary_base=True must be a number"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0 must be above 0"),
        ({"context": -1}, "context=-1 must be at least 1"),
        ({"padded_vocab_size": 50256}, "50256 is below vocab_size=50257: the padded table"),
    ],
)
def test_and_just_beyond_them_is_none(changes, said):
    with pytest.raises(UserError, match=said):
        ModelConfig(**changes)


@pytest.mark.parametrize(
    ("vocab", "multiple", "padded"), [(1, 128, 128), (128, 128, 128), (129, 128, 256), (7, 3, 9)]
)
def test_another_vocabulary_is_padded_up(vocab, multiple, padded):
    config = preset("125m").with_vocab(vocab, multiple)
    assert (config.vocab_size, config.padded_vocab_size) == (vocab, padded)
    assert config.with_vocab(50257).d_model == 768
    assert preset("125m").d_head == 64


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"model\.json is not JSON \(.*\): it must hold a model's config"),
        ("[" * 10**5, r"model\.json is not JSON"),
        ("[1]", r"model\.json must hold a JSON object of model config fields"),
        ("{}", r"model\.json: model config has unknown or missing fields \['context', 'd_ff', "),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_name(tmp_path, content, said):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(UserError, match=said):
        ModelConfig.load(tmp_path / "model.json")
    with pytest.raises(UserError, match=said):
        resolve(str(tmp_path / "model.json"), 5)


def test_a_vocabulary_that_just_suffices_does():
    assert resolve(preset("demo"), 4096) == preset("demo")
    with pytest.raises(UserError, match=r"4096 is smaller .* 4097: prepare the data with the"):
        resolve(preset("demo"), 4097)
