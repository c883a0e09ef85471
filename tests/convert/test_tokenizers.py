"""The tokenizer beside foreign weights: found, counted, and written as transformers reads it."""

import json

import pytest

from gptj import Tokenizer, UserError
from gptj.convert.tokenizers import load_tokenizer, save_tokenizer, token_count
from gptj.files import Folder


def with_extra(count, name="<|extratoken_{}|>"):
    """The tokenizer of bytes, and names for so many rows that no text reaches."""
    definition = json.loads(Tokenizer.bytes().to_json())
    like = definition["added_tokens"][0]
    definition["added_tokens"] += [
        {**like, "id": 257 + n, "content": name.format(n + 1)} for n in range(count)
    ]
    return Tokenizer(definition)


def test_without_its_files_there_is_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(Folder(tmp_path)) is None


def test_what_is_saved_is_found(tmp_path):
    ours = Tokenizer.train(["the cat sat on the mat"], 270)
    save_tokenizer(ours, tmp_path, 32)
    assert load_tokenizer(Folder(tmp_path)).sha256 == ours.sha256


def test_a_damaged_one_is_called_by_its_own_place(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=rf"^{tmp_path}/tokenizer\.json is not JSON"):
        load_tokenizer(Folder(tmp_path))


def test_only_what_means_something_counts():
    assert token_count(None) is None
    for extra in (0, 1, 3):
        assert token_count(with_extra(extra)) == 257
    for name in ("<|extratoken|>", "a<|extratoken_{}|>", "<|extratoken_{}|>b"):
        assert token_count(with_extra(1, name)) == 258


def test_what_transformers_reads_beside_it(tmp_path):
    save_tokenizer(with_extra(2), tmp_path, 32)
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    assert json.loads((tmp_path / "special_tokens_map.json").read_text()) == special
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 32,
        "clean_up_tokenization_spaces": False,
        **special,
    }


def test_the_end_is_called_as_the_tokenizer_calls_it(tmp_path):
    definition = json.loads(Tokenizer.bytes().to_json())
    text = json.dumps(definition).replace("<|endoftext|>", "</s>")
    save_tokenizer(Tokenizer(json.loads(text)), tmp_path, 32)
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["eos_token"] == "</s>"
