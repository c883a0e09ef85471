"""How chats become prompts here, and what ends an answer."""

from __future__ import annotations

from gptj.errors import UserError
from gptj.serve.config import ServeConfig
from gptj.serve.refusal import Refused
from gptj.transcript import STOPS, Messages, Render, plain, read_template


class Transcript:
    """How chats become prompts, and what ends an answer."""

    def __init__(self, how: Render, stops: tuple[str, ...]) -> None:
        self._how, self.stops = how, stops

    def render(self, messages: Messages) -> str:
        """The prompt of a chat.

        Raises:
          Refused: the template refuses it.
        """
        try:
            return self._how(messages, True)
        except UserError as error:
            raise Refused(400, f"messages: {error}", param="messages") from error


def read_transcript(config: ServeConfig) -> Transcript:
    """What the configuration asks for.

    Raises:
      UserError: there is no such template, it is not one, or Jinja is not installed.
    """
    if config.chat_template is None:
        stops = STOPS if config.chat_stop is None else config.chat_stop
        return Transcript(plain, stops)
    return Transcript(read_template(config.chat_template), config.chat_stop or ())
