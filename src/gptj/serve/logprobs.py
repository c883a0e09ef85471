"""Log-probabilities as OpenAI writes them: the tokens as text, and where each begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gptj.engine.request import TokenLogprob
from gptj.tokenizer import END_OF_TEXT, Tokenizer


class Placed(NamedTuple):
    """A token and where its text begins."""

    token: int
    offset: int
    """In characters."""
    logprob: float | None
    """None for the first token of a prompt, which nothing comes before."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probabilities, falling."""


class Placer:
    """Places the tokens of one text as they come, and holds back those that may not be shown yet.

    Of the tokens that spell a stop string nothing is shown, as nothing is of the string itself; and
    a token may come before its text does, which waits for the rest of a character.
    """

    def __init__(self, tokenizer: Tokenizer, begin: int = 0) -> None:
        """Of a text that begins after `begin` characters of another."""
        self._stream, self._at, self._shown = tokenizer.stream(), begin, begin
        self._held: deque[Placed] = deque()

    def push(self, found: Iterable[TokenLogprob], text: str, last: bool = False) -> list[Placed]:
        """Tokens that came, and the text that became sure; all that is left with `last`."""
        for each in found:
            self._held.append(Placed(each.token, self._at, each.logprob, each.top))
            self._at += len(self._stream.push(each.token))
        self._shown += len(text)
        if last and self._at + len(self._stream.finish()) == self._shown:
            held, self._held = list(self._held), deque()  # no stop string was cut off
            return held
        sure = []
        while self._held and self._held[0].offset < self._shown:
            sure.append(self._held.popleft())
        return sure


def place_prompt(
    tokenizer: Tokenizer, tokens: Sequence[int], found: Sequence[TokenLogprob]
) -> list[Placed]:
    """The tokens of a prompt; `found` has all but the first."""
    stream, at, placed = tokenizer.stream(), 0, []
    for index, token in enumerate(tokens):
        own = found[index - 1] if index else None
        placed.append(Placed(token, at, own.logprob if own else None, own.top if own else ()))
        at += len(stream.push(token))
    return placed


def spelling(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes that a token stands for; the end of text by its name, others of no text by none."""
    if token == tokenizer.eos_id:
        return END_OF_TEXT.encode()
    return tokenizer.spelling[token] if token < tokenizer.vocab_size else b""


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""The token as text, or `bytes:\xf0\x9f` where it is not whole characters."""
    piece = spelling(tokenizer, token)
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def alternatives(tokenizer: Tokenizer, placed: Placed) -> dict[str, float] | None:
    """The likeliest tokens' log-probabilities by their text, and the token's own among them."""
    if placed.logprob is None:
        return None
    found: dict[str, float] = {}
    for token, logprob in placed.top:
        found.setdefault(token_text(tokenizer, token), logprob)
    found.setdefault(token_text(tokenizer, placed.token), placed.logprob)
    return found
