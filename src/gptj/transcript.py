"""A chat as a text: the plain transcript that a base model goes on from, or a template's.

The plain one gives each message a line with its speaker's name, its text, and an empty line:

    System:
    You are brief.

    User:
    Who wrote Faust?

    Assistant:

and the model goes on from there. It ends where the model begins to speak for somebody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gptj.errors import UserError
from gptj.tokenizer import END_OF_TEXT, Tokenizer

END = "\ud800"
"""Stands for the end-of-text token in a chat's text: half a character, so no message has it."""

SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
"""By role, the name in the plain transcript."""

STOPS = ("\n\nUser:", "\n\nSystem:", "\n\nAssistant:")
"""What ends an answer in the plain transcript."""

Messages = Sequence[Mapping[str, str]]
"""Each with a `role` and its `content`."""

Render = Callable[[Messages, bool], str]
"""Messages to their text, which ends with the beginning of an answer if that is asked for.

`END` in it is the end-of-text token, and what a message says of it is text. It raises `UserError`
for messages that it refuses."""


def plain(messages: Messages, answer: bool) -> str:
    """The plain transcript."""
    _check(messages)
    told = "".join(f"{SPEAKERS[each['role']]}:\n{each['content']}\n\n" for each in messages)
    return told + "Assistant:\n" * answer


def read_template(path: Path) -> Render:
    """A Jinja template: it sees `messages` and `add_generation_prompt`, and nothing of the host.

    What it calls `eos_token`, or spells `<|endoftext|>` itself, becomes `END`. Its `bos_token` is
    empty, since no text begins with one here.

    Raises:
      UserError: there is no such template, it is not one, or Jinja is not installed.
    """
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise UserError("chat_template needs jinja2: pip install 'gptj-jax[serve]'") from error

    def refuse(message: str) -> None:
        raise UserError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals |= {"raise_exception": refuse, "bos_token": "", "eos_token": END}
    try:
        source = path.read_text(encoding="utf-8")
        template = environment.from_string(source.replace(END_OF_TEXT, END))
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise UserError(f"chat_template={path} cannot be used: {error}") from error

    def render(messages: Messages, answer: bool) -> str:
        _check(messages)
        try:
            return template.render(messages=messages, add_generation_prompt=answer)
        except UserError:
            raise
        except Exception as error:  # a template is a program, and can fail as any
            raise UserError(f"the chat template refuses them: {error}") from error

    return render


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a chat's text.

    Raises:
      UserError: it holds half of a character other than `END`.
    """
    first, *rest = (tokenizer.encode(piece) for piece in text.split(END))
    return first + [token for piece in rest for token in (tokenizer.eos_id, *piece)]


def _check(messages: Messages) -> None:
    for number, each in enumerate(messages, start=1):
        if END in json.dumps(each, ensure_ascii=False, default=str):
            raise UserError(
                f"message {number} holds half of a surrogate pair (U+D800), which is not a "
                "character: remove it"
            )
