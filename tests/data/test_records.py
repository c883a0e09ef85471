"""Records: what a field is, how a record's fields are told, and which say enough to learn from."""

import pytest

from gptj.data.examples import (
    ExampleConfig,
    ExampleReader,
    fields_of,
    lacking,
    looked_up,
    named,
)
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes()


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def read(config: ExampleConfig, record: dict) -> list[int]:
    return ExampleReader(config, TOKENIZER).ids("a.jsonl:1", record).tolist()


def test_a_field_is_one_of_its_name_else_one_within():
    record = {"a": {"b": {"c": 1}, "n": None}, "a.b": 2, "t": "text"}
    found = {"a.b": 2, "a.b.c": 1, "t": "text", "a.n": None, "a.x": None, "t.x": None, "x.y": None}
    assert {field: looked_up(record, field) for field in found} == found
    assert looked_up(record, "a.b.c.d") is None


def test_fields_are_told_with_those_within_and_empty_ones():
    record = {"a": {"b": {"c": 1}, "n": None}, "e": {}, "f": [], "g": {"h": {}}, "i": ""}
    assert list(fields_of(record)) == ["a.b.c", "a.n", "e", "f", "g.h", "i"]
    assert named(fields_of(record)) == "'a.b.c', 'a.n', 'e', 'f', 'g.h', 'i'"
    assert named([]) == "nothing"


@pytest.mark.parametrize(
    ("record", "field", "what"),
    [
        ({}, "a", " (it holds nothing)"),
        ({"a": None}, "a", " but null (it holds 'a')"),
        ({"a": 0}, "a", " but 0 (it holds 'a')"),
        ({"a": {"b": None}}, "a.b", " (it holds 'a.b')"),
        ({"a": {"b": []}}, "a.b", " but [] (it holds 'a.b')"),
        ({"a": {}}, "a", " but a record (it holds 'a')"),
    ],
)
def test_what_a_field_holds_instead_of_text_is_told(record, field, what):
    found = str(lacking("a.jsonl:1", record, field, "name it"))
    assert found == (
        f"a.jsonl:1 has no text in a field '{field}'{what}: name it, or mend or remove the record"
    )


def test_an_answer_that_nothing_comes_before_is_refused(tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    config = ExampleConfig("chats", chat_template=template)
    with pytest.raises(UserError, match="message 1 is an empty answer, or one that nothing comes"):
        read(config, {"messages": [said("assistant", "b")]})
    assert read(config, {"messages": [said("user", "a"), said("assistant", "b")]}) == [
        ~ord("a"),
        ord("b"),
    ]


def test_none_but_the_assistant_has_to_say_something():
    chat = [said("system", ""), said("user", ""), said("assistant", "b")]
    text = b"System:\n\n\nUser:\n\n\nAssistant:\n"
    assert read(ExampleConfig("chats"), {"messages": chat}) == [*(~each for each in text), ord("b")]


@pytest.mark.parametrize("field", ["prompt", "completion", "chosen", "rejected"])
def test_numbers_are_texts_and_empty_texts_are_none(field):
    kind = "completions" if field in ("prompt", "completion") else "preferences"
    record = {"prompt": "p", "completion": "q", "chosen": "r", "rejected": "s"}
    config = ExampleConfig(kind)
    assert read(config, {**record, field: 0}) == read(config, {**record, field: "0"})
    assert read(config, {**record, field: 1.5}) == read(config, {**record, field: "1.5"})
    with pytest.raises(UserError, match=rf"a\.jsonl:1 has an empty {field}: "):
        read(config, {**record, field: ""})
    for other in (None, False, {}):
        with pytest.raises(UserError, match=rf"no text in a field '{field}'.*--{field}"):
            read(config, {**record, field: other})
