"""A chat as a prompt: the plain transcript that a base model goes on from, or a template's text.

The plain one gives each message a line with its speaker's name, its text, and an empty line:

    System:
    You are brief.

    User:
    Who wrote Faust?

    Assistant:

and the model goes on from there. It ends where the model begins to speak for somebody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gptj.errors import UserError
from gptj.serve.config import ServeConfig
from gptj.serve.refusal import Refused

SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
"""By role, the name in the plain transcript."""

STOPS = ("\n\nUser:", "\n\nSystem:", "\n\nAssistant:")
"""What ends an answer in the plain transcript."""

Messages = Sequence[Mapping[str, str]]
"""Each with a `role` and its `content`."""


class Transcript:
    """How chats become prompts, and what ends an answer."""

    def __init__(self, render: Callable[[Messages], str], stops: tuple[str, ...]) -> None:
        self.render, self.stops = render, stops


def plain(messages: Messages) -> str:
    """The plain transcript."""
    told = "".join(f"{SPEAKERS[each['role']]}:\n{each['content']}\n\n" for each in messages)
    return f"{told}Assistant:\n"


def read_transcript(config: ServeConfig) -> Transcript:
    """What the configuration asks for.

    Raises:
      UserError: there is no such template, it is not one, or Jinja is not installed.
    """
    if config.chat_template is None:
        stops = STOPS if config.chat_stop is None else config.chat_stop
        return Transcript(plain, stops)
    return Transcript(_template(config.chat_template), config.chat_stop or ())


def _template(path: Path) -> Callable[[Messages], str]:
    """A Jinja template: it sees `messages` and `add_generation_prompt`, and nothing of the host."""
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise UserError("chat_template needs jinja2: pip install 'gptj-jax[serve]'") from error

    def refuse(message: str) -> None:
        raise Refused(400, f"messages: {message}", param="messages")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    try:
        template = environment.from_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        raise UserError(f"chat_template={path} cannot be used: {error}") from error

    def render(messages: Messages) -> str:
        try:
            return template.render(messages=messages, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise Refused(
                400, f"messages: the chat template refuses them: {error}", param="messages"
            ) from error

    return render
