"""Documents as they are mended: their texts, their numbers, and what nobody asked to mend."""

import numpy as np
import pytest

from gptj.data.clean import BEGINNING, CleanConfig, Dropped, Drops, beginning, kept, mended
from gptj.data.read import Document
from gptj.tokenizer import Tokenizer


def told(documents) -> list[tuple[str, int, str, bool]]:
    return [(each.source, each.number, each.text, each.continues) for each in documents]


def test_unless_asked_for_nothing_is_mended_or_left_out():
    texts = ("schÃ¶n", "a @-@ b , c", "one<|endoftext|>two", " ")
    documents = [Document("a", text) for text in texts]
    assert told(mended(documents, CleanConfig())) == [
        ("a", number, text, False) for number, text in enumerate(texts)
    ]
    config = CleanConfig()
    assert (config.min_unique_tokens, config.copies) == (0, "keep")


def test_documents_are_numbered_in_their_source_and_parts_have_one_number():
    documents = [
        Document("a", "1"),
        Document("b", "1"),
        Document("b", "2", continues=True),
        Document("b", " 2", continues=True),
        Document("b", " 2"),
        Document("b", "3"),
        Document("a", "2"),
    ]
    found = [(source, number) for source, number, _, _ in told(mended(documents, CleanConfig()))]
    assert found == [("a", 0), ("b", 0), *[("b", 1)] * 3, ("b", 2), ("a", 1)]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["a<|endoftext|>b"], ["a", "b"]),
        (["<|endoftext|>"], []),
        (["<|endoftext|><|endoftext|>a<|endoftext|>"], ["a"]),
        (["a", " b<|endoftext|>c", " d"], ["a| b", "c| d"]),
        (["a<|endoftext|>", " b"], ["a", "| b"]),
        (["a", " b<|endoftext|>"], ["a| b"]),
    ],
)
def test_a_text_is_split_at_each_end_of_text_whatever_its_parts(parts, expected):
    documents = [
        Document("a", text, continues=number < len(parts)) for number, text in enumerate(parts, 1)
    ]
    whole: list[str] = []
    begun = False
    for _, number, text, continues in told(mended(documents, CleanConfig(split_end_of_text=True))):
        whole = [*whole[:-1], f"{whole[-1]}|{text}"] if begun else [*whole, text]
        assert number == len(whole) - 1
        begun = continues
    assert whole == expected
    assert not begun


def test_documents_of_tokens_stay_whatever_is_mended():
    documents = [Document("a", ids=np.array([7, 8])), Document("a", ids=np.array([9]))]
    found = list(mended(documents, CleanConfig(split_end_of_text=True, detokenize=True)))
    assert [each.ids.tolist() for each in found] == [[7, 8], [9]]
    assert [each.key for each in found] == [("a", 0), ("a", 1)]


def test_those_that_are_left_out_are_passed_over():
    documents = [Document(source, number=number) for source in "ab" for number in range(3)]
    drops = Drops(keys={("a", 1), ("b", 0)})
    assert [each.key for each in kept(documents, drops)] == [
        ("a", 0), ("a", 2), ("b", 1), ("b", 2),
    ]  # fmt: skip


def test_of_a_beginning_as_much_is_taken_as_white_space_may_need():
    tokenizer, text = Tokenizer.bytes(), "x" * 999
    ids = np.array(tokenizer.encode(text))
    assert beginning(Document("a", text), None) == "x" * 4 * BEGINNING
    assert beginning(Document("a", text), tokenizer) == "x" * 4 * BEGINNING
    assert beginning(Document("a", ids=ids), tokenizer) == "x" * 4 * BEGINNING
    assert beginning(Document("a", ids=~ids), tokenizer) == "x" * 4 * BEGINNING
    assert beginning(Document("a", ids=ids), None) == ""


def test_reasons_are_told_from_the_most_frequent_on():
    drops = Drops()
    for reason, count in (("a", 1), ("b", 3), ("c", 2)):
        for number in range(count):
            drops.note((reason, number), reason, 5, reason * 2)
    assert [(each.reason, each.documents, each.bytes) for each in drops.report()] == [
        ("b", 3, 15), ("c", 2, 10), ("a", 1, 5),
    ]  # fmt: skip
    assert drops.report()[2] == Dropped("a", 1, 5, ("a, document 1: aa",))
