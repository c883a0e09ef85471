"""tiktoken gives the ids of the library that defines them, or is not asked."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj import bpe
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

SHARED = Path(__file__).parents[2] / "shared" / "data"
TEXTS = [
    "It isn't so; they'll see, WE'LL not: 12,345 and ½ of ４２.\n\n\n  Indented\ttoo \r\n",
    "naïve Ærøskøbing, Ελλάδα, Россия, 日本語, עִבְרִית, हिन्दी, \N{ROLLING ON THE FLOOR LAUGHING}",
    "spaces\u00a0of\u2003many\u3000kinds \u0085 \u200b and\ufeffmarks\x1c\x1d",
    "",
    " ",
    "a" * 5000 + " " * 5000 + "!" * 5000,
]
TRAINED = Tokenizer.train([*TEXTS[:3] * 3, "the cat and the other cat " * 20], 400)
EVERYTHING = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from(" \n\t'lst.1²ǅ"))


def definition(**model):
    """The trained tokenizer's, changed."""
    found = json.loads(TRAINED.to_json())
    return {**found, "model": {**found["model"], **model}}


def ids(tokenizer, texts):
    return [each.tolist() for each in tokenizer.encode_pieces(texts)]


def is_swift(tokenizer):
    return tokenizer._swift is not None


@given(st.lists(EVERYTHING, max_size=4))
def test_any_text_has_the_ids_that_the_library_gives(texts):
    for tokenizer in (TRAINED, Tokenizer.bytes()):
        assert ids(tokenizer, texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.skipif(not SHARED.exists(), reason="GPT-2's vocabulary lies in ../shared")
def test_so_with_the_vocabulary_of_gpt2():
    gpt2 = Tokenizer.load(SHARED / "gpt2_bpe")
    assert is_swift(gpt2)
    books = (SHARED / "gutenberg_en" / "books.jsonl").read_text().splitlines()
    texts = [*TEXTS, json.loads(books[0])["text"][:300_000]]
    pieces = [piece for text in texts for piece in gpt2.pieces(text)]
    assert ids(gpt2, pieces) == gpt2.encode_batch(pieces)


def test_every_character_counts_as_the_same_or_is_left_to_the_library():
    characters = [chr(each) for each in range(0x3000) if not 0xD800 <= each < 0xE000]
    texts = [f"a{each}a 1{each}1 {each} .{each}" for each in characters]
    assert ids(TRAINED, texts) == TRAINED.encode_batch(texts)


def test_a_character_on_which_they_differ_is_left_to_the_library(monkeypatch):
    tokenizer = Tokenizer(definition())
    swift = tokenizer._swift
    monkeypatch.setattr(swift, "_left", lambda text, kind: text.replace("é", ""))
    assert swift.encode(["é", "ascii"])[0] is None
    assert swift.encode(["é", "ascii"])[1].tolist() == tokenizer.encode("ascii")
    assert ids(tokenizer, ["née", "ë"]) == tokenizer.encode_batch(["née", "ë"])


def test_a_text_that_tiktoken_gives_up_on_is_left_to_the_library():
    text = " " * (1 << 20) + "x"
    assert ids(TRAINED, [text]) == [TRAINED.encode(text)]
    assert TRAINED._swift.encode(["x" * (bpe.LONGEST + 1)]) == [None]


def test_half_a_character_is_refused():
    with pytest.raises(UserError, match="half of a surrogate pair"):
        TRAINED.encode_pieces(["fine", "\ud800"])


@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_are_found_in_the_text_unless_they_are_special(special):
    options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = {"id": TRAINED.vocab_size, "content": "<new>", "special": special, **options}
    found = definition()
    tokenizer = Tokenizer({**found, "added_tokens": [*found["added_tokens"], added]})
    assert is_swift(tokenizer)
    texts = ["<new>", "a <new><|endoftext|>", "plain"]
    assert ids(tokenizer, texts) == [tokenizer.encode(text) for text in texts]
    assert (TRAINED.vocab_size in ids(tokenizer, texts)[0]) is not special


def vocabulary(*merges):
    """The tokens of bytes and of some merges, in that order."""
    base = json.loads(Tokenizer.bytes().to_json())["model"]["vocab"]
    tokens = [token for token in base if token != "<|endoftext|>"]
    tokens += dict.fromkeys(merge.replace(" ", "") for merge in merges)
    return {"vocab": {each: i for i, each in enumerate(tokens)}, "merges": list(merges)}


@pytest.mark.parametrize(
    ("model", "sure"),
    [
        ({}, True),
        (vocabulary("a b", "ab c"), True),
        (vocabulary("b c", "a b", "ab c"), False),  # abc alone is a, bc; tiktoken would join them
        (vocabulary("a b", "b c", "ab c", "a bc"), False),  # one token, two ways
        ({"unk_token": "!"}, False),
        ({"dropout": 0.5}, False),
        ({"ignore_merges": True}, False),  # a word that is a token is that token, merges or not
    ],
)
def test_only_what_merges_alike_is_done_by_tiktoken(model, sure):
    found = definition(**model)
    for added in found["added_tokens"]:
        added["id"] = found["model"]["vocab"].setdefault(
            added["content"], len(found["model"]["vocab"])
        )
    tokenizer = Tokenizer(found)
    assert is_swift(tokenizer) is sure
    if not model.get("dropout"):
        texts = ["abcabc", "aabbcc", "bcab", *TEXTS]
        assert ids(tokenizer, texts) == tokenizer.encode_batch(texts)


def test_ids_need_not_be_in_the_order_of_merges():
    model = vocabulary("a b", "ab c", "c d")
    turned = {token: len(model["vocab"]) - i for token, i in model["vocab"].items()}
    tokenizer = Tokenizer(definition(vocab={**turned, "<|endoftext|>": 0}, merges=model["merges"]))
    assert is_swift(tokenizer)
    assert ids(tokenizer, ["abcd cd"]) == [tokenizer.encode("abcd cd")]


def test_another_kind_of_split_is_not_tried():
    found = definition()
    found["pre_tokenizer"]["add_prefix_space"] = True
    tokenizer = Tokenizer(found)
    assert not is_swift(tokenizer)
    assert ids(tokenizer, ["a b"]) == [tokenizer.encode("a b")]


def test_arrays_are_of_a_kind_whoever_made_them():
    for found in TRAINED.encode_pieces(["", "abc", " " * (1 << 18)]):
        assert found.dtype == np.uint32
