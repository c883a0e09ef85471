"""What a writer makes of documents: texts whole or in parts, and tokens, in any order."""

import json

import numpy as np
import pytest

from gptj.data.read import Document
from gptj.data.store import TokenStore
from gptj.data.write import StoreWriter, Written, finish, grown
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()
UNCUT = Tokenizer({**json.loads(BYTES.to_json()), "normalizer": {"type": "NFC"}})
"""Which may join the end of one part with the beginning of the next."""


def store(path, documents, tokenizer=BYTES) -> TokenStore:
    with StoreWriter(path, tokenizer) as writer:
        for document in documents:
            writer.add(document)
    finish(path, tokenizer, [writer.written()])
    return TokenStore.open(path)


@pytest.mark.parametrize("tokenizer", [BYTES, UNCUT], ids=["cut", "uncut"])
def test_a_text_in_parts_is_the_text(tokenizer, tmp_path):
    assert tokenizer.cuttable == (tokenizer is BYTES)
    whole = (("a", "e\u0301 one two"), ("a", "three"), ("b", "four"))
    parts = (("a", "e", True), ("a", "\u0301 one", True), ("a", " two", False),
             ("a", "three", False), ("b", "fo", True), ("b", "ur", False))  # fmt: skip
    one = store(tmp_path / "one", [Document(*each) for each in whole], tokenizer)
    cut = (Document(name, text, continues=more) for name, text, more in parts)
    two = store(tmp_path / "two", cut, tokenizer)
    assert two.manifest == one.manifest
    assert [two.text(n) for n in range(3)][1:] == ["three", "four"]
    ids = tokenizer.encode("é one two" if tokenizer is UNCUT else whole[0][1])
    assert two.tokens[:].tolist()[: len(ids) + 1] == [*ids, 256]


def test_texts_and_tokens_stay_in_their_order_and_are_counted_as_what_they_say(tmp_path):
    ids = (np.array([195, 169]), np.array([], np.int64), np.array([65, 0]))
    given = [Document("a", "one"), Document("b", ids=ids[0]), Document("b", ids=ids[1]),
             Document("b", "two"), Document("c", ids=ids[2]), Document("c", "é")]  # fmt: skip
    made = store(tmp_path, given)
    assert [made.text(n) for n in range(6)] == ["one", "é", "", "two", "A\0", "é"]
    assert [(each.name, each.first_document, each.documents, each.tokens, each.bytes)
            for each in made.sources] == [
        ("a", 0, 1, 4, 3), ("b", 1, 3, 3 + 1 + 4, 2 + 3), ("c", 4, 2, 6, 2 + 2)
    ]  # fmt: skip
    made.verify()


@pytest.mark.parametrize(
    ("ids", "kind", "wrong"),
    [
        ([0, 256], None, None), ([5, 257], None, 257), ([-1], None, -1), ([0, 999, -7], None, 999),
        ([~0, ~256, 0], "chats", None), ([256, ~257], "chats", 257), ([257], "chats", 257),
    ],
)  # fmt: skip
def test_tokens_must_be_the_tokenizers(ids, kind, wrong, tmp_path):
    writer = StoreWriter(tmp_path, BYTES, examples=kind)
    if wrong is None:
        return writer.add(Document("a", ids=np.array(ids)))
    said = f"^a holds the token {wrong}, and the tokenizer has 257: name the tokenizer that made it"
    with pytest.raises(UserError, match=said):
        writer.add(Document("a", ids=np.array(ids)))


def test_parts_come_one_after_the_other_and_after_what_was_there(tmp_path):
    parts: list[Written] = []
    for portion, texts in enumerate((("a", "b"), ("c",), (), ("d", "e", "f"))):
        with StoreWriter(tmp_path, BYTES, portion) as writer:
            for text in texts:
                writer.add(Document(text, text * 3))
        parts.append(writer.written())
    assert [part.documents for part in parts] == [2, 1, 0, 3]
    whole = grown(None, BYTES, parts)
    assert [each.first_document for each in whole.sources] == list(range(6))
    assert [each.name for each in whole.shards] == ["00000-000", "00001-000", "00003-000"]
    assert grown(grown(grown(None, BYTES, parts[:1]), BYTES, parts[1:2]), BYTES, parts[2:]) == whole
    assert Written.of(json.loads(json.dumps(
        {"shards": [vars(each) for each in parts[3].shards],
         "sources": [vars(each) for each in parts[3].sources]}
    ))) == parts[3]  # fmt: skip
