"""A chat as a text: whoever speaks, and nothing that a message says is taken for the transcript."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.errors import UserError
from gptj.tokenizer import END_OF_TEXT, Tokenizer
from gptj.transcript import END, SPEAKERS, STOPS, encode, plain, read_template

BYTES = Tokenizer.bytes()
SAID = st.text("ab\n日", max_size=5)


def said(*messages) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


@pytest.fixture
def template(tmp_path):
    def read(text: str):
        path = tmp_path / "template.jinja"
        path.write_text(text)
        return read_template(path)

    return read


class TestPlain:
    @given(st.lists(st.tuples(st.sampled_from([*SPEAKERS]), SAID), max_size=4), st.booleans())
    @settings(max_examples=40, deadline=None)
    def test_each_has_a_line_with_a_name_and_an_empty_line_after_it(self, messages, answer):
        told = plain(said(*messages), answer)
        for role, content in messages:
            piece = f"{SPEAKERS[role]}:\n{content}\n\n"
            assert told.startswith(piece)
            told = told.removeprefix(piece)
        assert told == ("Assistant:\n" if answer else "")

    def test_an_answer_ends_where_anybody_would_begin(self):
        for speaker in set(SPEAKERS.values()):
            assert f"\n\n{speaker}:" in STOPS

    def test_what_looks_like_the_end_of_text_is_refused_with_its_number(self):
        with pytest.raises(UserError, match=r"message 2 holds half of a surrogate pair \(U\+D800"):
            plain(said(("user", "a"), ("user", f"b{END}")), True)
        assert END_OF_TEXT in plain(said(("user", END_OF_TEXT)), True)


class TestTemplates:
    def test_it_sees_the_messages_and_whether_to_begin_an_answer(self, template):
        text = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
        render = template(text + "{% if add_generation_prompt %}>{% endif %}")
        talk = said(("user", "{{ 1 }}"), ("assistant", "b"))
        assert render(talk, True) == "user={{ 1 }};assistant=b;>"
        assert render(talk, False) == "user={{ 1 }};assistant=b;"

    @pytest.mark.parametrize(
        "text", ["{{ eos_token }}", END_OF_TEXT, "{{ '" + END_OF_TEXT + "' }}"]
    )
    def test_its_end_of_text_is_the_token(self, template, text):
        assert template(f"a{text}b{{{{ bos_token }}}}c")([], True) == f"a{END}bc"
        assert encode(template(text)([], True), BYTES) == [BYTES.eos_id]

    def test_blocks_leave_no_lines_behind(self, template):
        assert template("  {% if true %}\na\n  {% endif %}\nb\n")([], True) == "a\nb"

    def test_it_may_refuse_in_its_own_words(self, template):
        with pytest.raises(UserError, match=r"^users first$"):
            template("{{ raise_exception('users first') }}")([], True)

    @pytest.mark.parametrize(
        "text", ["{{ 1 / 0 }}", "{{ messages[3].role }}", "{{ ''.__class__.__mro__ }}"]
    )
    def test_one_that_fails_is_told_in_a_sentence(self, template, text):
        with pytest.raises(UserError, match=r"^the chat template refuses them: "):
            template(text)([], True)

    def test_it_changes_nothing_of_the_messages(self, template):
        talk = said(("user", "a"))
        with pytest.raises(UserError, match="refuses them"):
            template("{% set _ = messages.append(1) %}")(talk, True)
        assert talk == said(("user", "a"))

    def test_what_a_message_says_of_the_token_is_refused_here_too(self, template):
        with pytest.raises(UserError, match="message 1 holds half"):
            template("{{ messages[0].content }}")(said(("user", END)), True)

    @pytest.mark.parametrize("content", [b"{% if %}", b"\xff", None])
    def test_one_that_cannot_be_read(self, tmp_path, content):
        path = tmp_path / "template.jinja"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=f"^chat_template={path} cannot be used: "):
            read_template(path)

    def test_without_jinja_it_says_what_to_install(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "jinja2.exceptions", None)
        with pytest.raises(UserError, match=r"needs jinja2: pip install 'gptj-jax\[serve\]'"):
            read_template(tmp_path / "template.jinja")


@given(st.lists(SAID, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_the_tokens_are_those_of_the_pieces_with_the_token_between(pieces):
    expected = []
    for number, piece in enumerate(pieces):
        expected += [BYTES.eos_id] * (number > 0) + [*piece.encode()]
    assert encode(END.join(pieces), BYTES) == expected


def test_another_half_character_is_no_text():
    with pytest.raises(UserError):
        encode("a\udfff", BYTES)
