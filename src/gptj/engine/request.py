"""What is asked of the engine and what it gives back: small records, each checked when made."""

from __future__ import annotations

import dataclasses
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import tyro

from gptj.errors import UserError

LARGEST = 3e38
"""Of what is computed with in 32 bits; more would be infinite there."""

SEEDS = 1 << 32
"""Seeds are 32 bits: JAX would drop the higher ones without a word."""

MOST_ALTERNATIVES = 20
"""Of how many tokens beside the drawn one log-probabilities can be had."""

FinishReason = Literal["stop", "length", "cancelled", "error"]
Overflow = Literal["stop", "slide"]

GUIDES = ("json_schema", "regex", "grammar")
"""What a completion can be made to keep to."""


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn and where they end.

    The controls act in one order: repetition, frequency and presence penalties; the logit bias;
    allowed and banned tokens, `min_tokens`, and the schema, expression or grammar; temperature;
    top-k; top-p; min-p; typical; the draw.
    """

    temperature: float = 1.0
    """Divides the logits: below 1 sharpens, above 1 flattens, 0 always takes the likeliest."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability; in (0, 1], 1 is off."""
    top_k: int = 0
    """Draw from this many likeliest tokens; 0 is off."""
    max_tokens: int = 128
    """Longest completion, in tokens."""
    seed: int = 0
    """The same seed gives the same text; 0 to 4294967295."""
    stop: tuple[str, ...] = ()
    """A completion ends before the first of these strings to appear in it."""
    min_p: float = 0.0
    """Leave out tokens less probable than this times the likeliest; in [0, 1], 0 is off."""
    typical_p: float = 1.0
    """Draw from the tokens whose surprise is nearest the expected one and that together have this
    probability ("Locally Typical Sampling", arXiv:2202.00666); in (0, 1], 1 is off."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the negative logits of tokens in the prompt or the
    completion ("CTRL", arXiv:1909.05858); above 1 discourages them, 1 is off."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that the completion already has."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit as many times as the completion already has it."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Added to the logits of these token ids."""
    allowed_tokens: tuple[int, ...] | None = None
    """Draw none but these token ids, and those that end a completion. Default: any."""
    banned_tokens: tuple[int, ...] = ()
    """Never draw these token ids."""
    stop_tokens: tuple[int, ...] = ()
    """A completion ends before the first of these token ids, as before the end of text."""
    ignore_eos: bool = False
    """The end-of-text token does not end a completion."""
    min_tokens: int = 0
    """No token ends a completion before it has this many."""
    json_schema: Annotated[str | Mapping[str, Any] | None, tyro.conf.arg(constructor=str)] = None
    """Write JSON that keeps to this schema, given as JSON text or a dict; `{}` is any JSON."""
    regex: str | None = None
    """Write what this regular expression matches as a whole."""
    grammar: str | None = None
    """Write what this Lark grammar derives from `start`."""
    n: int = 1
    """Completions of each prompt, each drawn with a random stream of its own."""
    best_of: int | None = None
    """Draw this many completions and keep the `n` of the highest mean log-probability a token.
    Default: n."""
    logprobs: Annotated[int | None, tyro.conf.Suppress] = None
    """Also give each token's log-probability in nats, by the model's own logits, and those of so
    many likeliest tokens; 0 to 20. Default: none."""
    prompt_logprobs: Annotated[int | None, tyro.conf.Suppress] = None
    """The same for the tokens of the prompt, but the first, which nothing comes before;
    `max_tokens` may then be 0."""
    overflow: Overflow = "stop"
    """Where the model's context is full, `stop` for the reason `length`; or `slide` on, each new
    token seeing the last `context - 1`, as the original did."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "typical_p"):
            _number(name, getattr(self, name))
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name))
        for name in ("top_k", "max_tokens", "seed", "min_tokens", "n"):
            _whole(name, getattr(self, name))
        if not self.temperature >= 0:
            raise UserError(
                f"temperature={self.temperature} must be a finite number, 0 (greedy) or above"
            )
        for name in ("top_p", "typical_p"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(
                    f"{name}={getattr(self, name)} must be above 0 and at most 1 (1 is off)"
                )
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} must be at least 0 (off) and at most 1")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise UserError(
                f"repetition_penalty={self.repetition_penalty} must be a finite number from 0.01 "
                "to 100 (1 is off)"
            )
        if not 0 <= self.top_k < 1 << 31:
            raise UserError(f"top_k={self.top_k} must be 0 (off) or a number of tokens")
        if not (0 if self.prompt_logprobs is not None else 1) <= self.max_tokens < 1 << 31:
            raise UserError(f"max_tokens={self.max_tokens} must be at least 1")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"seed={self.seed} must be between 0 and {SEEDS - 1}")
        if isinstance(self.json_schema, Mapping):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema))
        self._check_ends()
        self._check_guide()
        self._check_counts()

    def _check_ends(self) -> None:
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UserError(
                f"min_tokens={self.min_tokens} must be at least 0 and at most "
                f"max_tokens={self.max_tokens}"
            )
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise UserError(f"stop={self.stop!r} must be a tuple of strings, none of them empty")
        for name in ("allowed_tokens", "banned_tokens", "stop_tokens"):
            ids = getattr(self, name) or ()
            if isinstance(ids, str) or not all(_is_id(token) for token in ids):
                raise UserError(f"{name}={ids!r} must be a tuple of token ids")
        if self.allowed_tokens == ():
            raise UserError("allowed_tokens=() must be at least one token id, or left out")
        for token, bias in self.logit_bias.items():
            if not _is_id(token):
                raise UserError(f"logit_bias={token!r} must be of a token id")
            _number("logit_bias", bias)
        if self.overflow not in ("stop", "slide"):
            raise UserError(f"overflow={self.overflow!r} must be `stop` or `slide`")

    def _check_guide(self) -> None:
        given = [name for name in GUIDES if getattr(self, name) is not None]
        for name in given:
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{name}={getattr(self, name)!r} must be text")
        if len(given) > 1:
            raise UserError(f"{given[0]} and {given[1]} cannot both be kept to: leave out one")
        others = ("allowed_tokens", "banned_tokens", "min_tokens", "ignore_eos")
        for name in others if given else ():
            if getattr(self, name):
                raise UserError(
                    f"{name} may leave {given[0]} no token to go on with: leave out one of the two"
                )

    def _check_counts(self) -> None:
        if self.n < 1:
            raise UserError(f"n={self.n} must be at least 1")
        if self.best_of is not None:
            _whole("best_of", self.best_of)
            if self.best_of < self.n:
                raise UserError(f"best_of={self.best_of} must be at least n={self.n}")
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None:
                _whole(name, count)
                if not 0 <= count <= MOST_ALTERNATIVES:
                    raise UserError(f"{name}={count} must be between 0 and {MOST_ALTERNATIVES}")

    def ends(self, eos: int | None) -> frozenset[int]:
        """The tokens that end a completion, where `eos` ends a text."""
        return frozenset(self.stop_tokens) | (
            {eos} if eos is not None and not self.ignore_eos else set()
        )

    @property
    def guide(self) -> tuple[str, str] | None:
        """What it must keep to: of which kind, and its text."""
        return next(
            ((name, text) for name in GUIDES if (text := getattr(self, name)) is not None), None
        )

    @property
    def drawn(self) -> int:
        """How many completions are drawn."""
        return self.best_of or self.n


def _number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name}={value!r} must be a number")
    if not -LARGEST <= cast(float, value) <= LARGEST:
        raise UserError(f"{name}={value!r} must be a finite number of 32 bits")


def _whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name}={value!r} must be a whole number")


def _is_id(token: Any) -> bool:
    is_whole = isinstance(token, numbers.Integral) and not isinstance(token, bool)
    return is_whole and int(token) >= 0


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt, and how to go on from it."""

    prompt: str | Sequence[int]
    """Text, or the ids of its tokens. An empty one is the start of a document: end of text."""
    sampling: SamplingParams = SamplingParams()
    score_from: int = 1
    """With `prompt_logprobs`, the index of the first token whose log-probability is wanted: what
    comes before it may be found in the prefix cache."""
    adapter: str | None = None
    """The name of the adapter to answer with, as `Engine.load_adapter` gave it. Default: none, the
    weights as they are."""


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """How likely the model held a token, in nats, and which it held likeliest."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log-probabilities, falling."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str
    tokens: list[int]
    """The ids drawn, without the end-of-text token; of a stop string, up to the token that
    completed it."""
    finish_reason: FinishReason
    """`stop`: the model ended the text, wrote a stop string, or completed what it had to keep to;
    `length`: there was no more room; `cancelled`: nobody wanted it any more; `error`: its grammar
    became too complex to follow."""
    logprobs: list[TokenLogprob] | None = None
    """One for each of `tokens`, where they were asked for."""
    prompt_logprobs: list[TokenLogprob] | None = None
    """One for each of the prompt's tokens from `score_from` on, where they were asked for."""


@dataclasses.dataclass(frozen=True)
class Delta:
    """The next piece of a completion, as it comes."""

    request: int
    """The number that `Engine.submit` gave."""
    choice: int
    """Which of the request's completions, from 0."""
    text: str
    """What is now sure to stay; the pieces joined are the completion's text."""
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None
    """The whole of it, with the last piece."""
