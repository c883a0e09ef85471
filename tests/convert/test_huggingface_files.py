"""What is written for transformers, file by file, and what of theirs is refused; without torch."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import gptj
from gptj import ModelConfig, UserError
from gptj.convert import huggingface
from gptj.convert.convert import write
from gptj.convert.huggingface import DEFAULTS, _split, config_json, read_config
from gptj.convert.inspect import diff
from gptj.convert.open import open_source
from gptj.convert.source import from_params
from gptj.convert.tensor import Tensor
from gptj.model import init

CONFIG = ModelConfig(2, 16, 2, 4, 64, 257, 300, context=16)
INDEX = "model.safetensors.index.json"


def written(folder, tokenizer=None, **changes):
    config = replace(CONFIG, **changes)
    source = from_params(config, init(jax.random.key(0), config), tokenizer)
    write(source, folder, "huggingface")
    return source


def read(path):
    return json.loads(path.read_text())


def tensor(size):
    return Tensor((size,), np.dtype("uint8"), lambda: None)


@pytest.mark.parametrize(
    ("sizes", "files"),
    [
        ([4, 6, 1, 12, 3], [[4, 6], [1], [12], [3]]),
        ([10], [[10]]),
        ([11, 11], [[11], [11]]),
        ([5, 4, 2, 8, 1], [[5, 4], [2, 8], [1]]),
        ([], [[]]),
    ],
)
def test_a_file_is_filled_to_its_limit_or_is_of_one_tensor(sizes, files, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 10)
    found = _split({f"{n}": tensor(size) for n, size in enumerate(sizes)})
    assert [[each.bytes for each in file.values()] for file in found] == files
    assert [name for file in found for name in file] == [f"{n}" for n in range(len(sizes))]


@pytest.mark.parametrize(("parts", "room"), [(2, 2 / 3), (5, 2 / 7)])
def test_one_file_has_no_index_and_several_are_numbered(parts, room, tmp_path, monkeypatch):
    source = written(tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").glob("model*")] == ["model.safetensors"]
    total = sum(tensor.bytes for tensor in source.weights.values())
    monkeypatch.setattr(huggingface, "SHARD_BYTES", int(total * room))
    written(tmp_path / "many")
    names = [f"model-{n:05d}-of-{parts:05d}.safetensors" for n in range(1, parts + 1)]
    assert sorted(path.name for path in (tmp_path / "many").glob("*.safetensors")) == names
    index = read(tmp_path / "many" / INDEX)
    assert index["metadata"]["total_size"] == total
    assert sorted(set(index["weight_map"].values())) == names
    assert diff(open_source(tmp_path / "one"), open_source(tmp_path / "many")).same_bits


class TestConfig:
    @pytest.mark.parametrize("d_ff", [64, 65])
    def test_what_is_written_is_read_as_it_was(self, d_ff):
        config = replace(CONFIG, d_ff=d_ff)
        values = config_json(config, np.dtype("float32"))
        assert read_config(values, "here", 257) == config
        assert values["n_inner"] == (None if d_ff == 64 else 65)
        assert (values["use_cache"], values["tie_word_embeddings"]) == (True, False)

    @pytest.mark.parametrize(
        ("rows", "tokens", "expected"),
        [
            (300, None, 300), (300, 257, 257), (300, 301, 300),  # one row a token at least
            (50400, None, 50257), (50400, 50258, 50258), (50257, None, 50257),
        ],
    )  # fmt: skip
    def test_what_is_left_out_is_as_transformers_takes_it(self, rows, tokens, expected):
        values = {"n_layer": 2, "n_embd": 256, "n_head": 2, "vocab_size": rows}
        found = read_config(values, "here", tokens)
        assert (found.d_ff, found.context, found.rotary_dims) == (1024, 2048, 64)
        assert found.layer_norm_eps == DEFAULTS["layer_norm_epsilon"]
        assert (found.vocab_size, found.padded_vocab_size) == (expected, rows)

    @pytest.mark.parametrize("value", [None, False, {}, []])
    def test_a_field_that_says_no_is_no_hindrance(self, value):
        values = config_json(CONFIG, np.dtype("float32"))
        assert read_config({**values, "rope_scaling": value}, "here", 257) == CONFIG
        for other in (True, 3, {"a": 1}):
            with pytest.raises(UserError, match="does not know: rope_scaling;"):
                read_config({**values, "rope_scaling": other}, "here")

    @pytest.mark.parametrize(
        ("tokens", "rows", "end"), [(257, 300, 256), (50257, 50257, 50256), (50300, 50400, 50256)]
    )
    def test_without_a_tokenizer_the_last_token_ends_or_gpt_2s(self, tokens, rows, end, tmp_path):
        written(tmp_path / "x", layers=1, d_model=8, vocab_size=tokens, padded_vocab_size=rows)
        ids = {"bos_token_id": end, "eos_token_id": end}
        assert ids.items() <= read(tmp_path / "x" / "config.json").items()
        generation = read(tmp_path / "x" / "generation_config.json")
        assert generation == {"_from_model_config": True, **ids}
        assert not list((tmp_path / "x").glob("tokenizer*"))

    def test_with_one_its_own(self, tmp_path):
        tokenizer = gptj.Tokenizer.train(["the cat sat on the mat"], 270)
        written(tmp_path / "x", tokenizer)
        assert read(tmp_path / "x" / "config.json")["eos_token_id"] == tokenizer.eos_id != 256


def test_an_index_in_which_one_file_is_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 20_000)
    written(tmp_path / "x")
    index = read(tmp_path / "x" / INDEX)
    index["weight_map"]["lm_head.bias"] = 1
    (tmp_path / "x" / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"{INDEX} has no weight_map from tensors to files"):
        open_source(tmp_path / "x")
