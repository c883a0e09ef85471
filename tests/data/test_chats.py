"""Of chats with several answers what is learnt, by templates of any kind; and what is refused."""

import numpy as np
import pytest

from gptj.data.examples import ExampleConfig, ExampleReader
from gptj.data.store import ids_of
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bytes()
TALK = [
    {"role": role, "content": content}
    for role, content in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
]


def read(config: ExampleConfig, record: dict) -> np.ndarray:
    return ExampleReader(config, TOKENIZER).ids("a.jsonl:1", record)


def told(tokens: np.ndarray) -> str:
    """The bytes, what is learnt in capitals, and `|` for an end of text that is, `#` for others."""
    signs = []
    for token, id in zip(tokens.tolist(), ids_of(tokens).tolist(), strict=True):
        sign = "#" if id == TOKENIZER.eos_id else chr(id)
        signs.append(sign if token < 0 else "|" if sign == "#" else sign.upper())
    return "".join(signs)


@pytest.mark.parametrize(
    ("user", "assistant", "expected"),
    [
        ("<u>{m}</u>", "<m>{m}</m>", "<u>a</u><m>B</M><u>c</u><m>D</M>"),
        ("<u>{m}</u>", "<m>{m}{e}", "<u>a</u><m>B|<u>c</u><m>D"),
        ("{e}<u>{m}</u>", "<m>{m}", "#<u>a</u><m>B|<u>c</u><m>D"),
        (".{e}<u>{m}</u>", "<m>{m}", ".#<u>a</u><m>B.#<u>c</u><m>D"),
        ("<u>{m}</u>", "<m>{m}{e}{e}.", "<u>a</u><m>B|#.<u>c</u><m>D"),
    ],
)
def test_an_answer_is_learnt_up_to_the_end_that_follows_at_once(
    user, assistant, expected, tmp_path
):
    """And where none does, as far as the template writes it before there is more."""

    def written(form: str) -> str:
        return form.replace("{m}", "{{ m.content }}").replace("{e}", "{{ eos_token }}")

    begins = assistant.partition("{m}")[0]
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}"
        f"{written(user)}{{% else %}}{written(assistant)}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{begins}{{% endif %}}"
    )
    config = ExampleConfig("chats", chat_template=tmp_path / "chat.jinja")
    assert told(read(config, {"messages": TALK})) == expected


CHATS, PAIRS = ExampleConfig("chats"), ExampleConfig("preferences")


@pytest.mark.parametrize(
    ("config", "record", "said"),
    [
        (CHATS, {"messages": [TALK[0], 3]}, "no list of messages in a field 'messages'"),
        (PAIRS, {"chosen": TALK, "rejected": [*TALK[:3], TALK[0]]}, "a chat that ends with no mes"),
        (PAIRS, {"chosen": [*TALK[:3], TALK[0]], "rejected": TALK}, "a chat that ends with no mes"),
        (
            PAIRS,
            {"prompt": True, "chosen": "b", "rejected": "c"},
            "no text in a field 'prompt' but",
        ),
    ],
)
def test_one_of_several_that_is_wrong_is_enough(config, record, said):
    with pytest.raises(UserError, match=rf"a\.jsonl:1 has {said}"):
        read(config, record)


@pytest.mark.parametrize("prompt", ["{q} {a!r}", "{q:>3} {a}", "{a} and {}"])
def test_of_several_fields_none_says_how_it_looks_or_has_no_name(prompt):
    with pytest.raises(UserError, match=r"(says how fields look|names no field)"):
        ExampleReader(ExampleConfig("completions", prompt=prompt), TOKENIZER)
