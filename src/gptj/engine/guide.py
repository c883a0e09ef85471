"""Completions that keep to a JSON schema, a regular expression or a grammar, token by token."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from gptj.engine.request import SamplingParams
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

KEPT = 64
"""Compiled guides that are kept for the next who asks for the same."""


JSON_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON is written on one line: where any space is allowed, a small model may write it for ever."""


class Guide:
    """Where one completion stands in what it must keep to."""

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher, self._vocab = matcher, vocab

    def allowed(self) -> Bool[np.ndarray, " vocab"]:
        """By token, whether it may come next; the end of text where the whole may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.unpackbits(bits, bitorder="little")[: self._vocab].astype(bool)
        return np.pad(found, (0, self._vocab - len(found)))

    def push(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self._matcher.consume_token(token)

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self._matcher.is_stopped())

    @property
    def is_lost(self) -> bool:
        """Whether it became too complex to follow."""
        return bool(self._matcher.is_error())


class Guides:
    """Makes the guides of one engine, each schema, expression or grammar compiled once."""

    def __init__(self, tokenizer: Tokenizer | None, vocab: int) -> None:
        self._tokenizer, self._vocab = tokenizer, vocab
        self._compiled: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def start(self, sampling: SamplingParams) -> Guide | None:
        """A guide at its beginning; none where nothing is to be kept to.

        Raises:
          UserError: there is no tokenizer, the library that follows grammars is not installed, or
            the schema, expression or grammar is not one.
        """
        if not sampling.guide:
            return None
        if sampling.guide not in self._compiled:
            self._compiled[sampling.guide] = self._compile(*sampling.guide)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(sampling.guide)
        return Guide(self._compiled[sampling.guide].deep_copy(), self._vocab)

    def _compile(self, kind: str, text: str) -> Any:
        library = _library()
        make = {
            "json_schema": functools.partial(
                library.LLMatcher.grammar_from_json_schema, defaults=JSON_SPACES
            ),
            "regex": library.LLMatcher.grammar_from_regex,
            "grammar": library.LLMatcher.grammar_from_lark,
        }
        try:
            grammar = make[kind](text)
        except ValueError as error:
            raise _refused(kind, text, str(error)) from error
        matcher = library.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(kind, text, matcher.get_error())
        return matcher

    @functools.cached_property
    def _tokens(self) -> Any:
        if self._tokenizer is None:
            raise UserError("a completion that keeps to a schema or grammar needs a tokenizer")
        wrapper = _library().TokenizerWrapper(_Spelling(self._tokenizer))
        return _library().LLTokenizer(wrapper)


class _Spelling:
    """Our tokenizer as the library wants it: the bytes that each id spells."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, None
        self.tokens = tokenizer.spelling
        self.special_token_ids = [n for n, piece in enumerate(self.tokens) if not piece]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> Sequence[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


@functools.cache
def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UserError(
            "json_schema, regex and grammar need llguidance: pip install 'gptj-jax[serve]'"
        ) from error
    return llguidance


def _refused(kind: str, text: str, why: str) -> UserError:
    reason = " ".join(why.split())
    shown = text if len(text) <= 60 else text[:57] + "..."
    return UserError(f"{kind}={shown!r} cannot be followed: {reason}")
