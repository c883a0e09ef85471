"""What the engine refuses before it begins: each mistake in one sentence."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

from gptj.config import ModelConfig
from gptj.engine.request import Request, SamplingParams
from gptj.errors import UserError
from gptj.sharding import check_mesh
from gptj.tokenizer import Tokenizer


def prompt_tokens(
    request: Request,
    what: str,
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    positions: int,
) -> list[int]:
    """The ids of a request's prompt; the end of text for an empty one.

    Args:
      what: what an error calls the prompt.
      positions: how many tokens a slot has room for.

    Raises:
      UserError: the request cannot be answered.
    """
    prompt = request.prompt
    if isinstance(prompt, str):
        if tokenizer is None:
            raise UserError(f"{what} is text and there is no tokenizer: give token ids")
        prompt = tokenizer.encode(prompt)
    if not all(isinstance(token, numbers.Integral) for token in prompt):
        raise UserError(f"{what} must be text or whole numbers, the ids of tokens")
    tokens = [int(token) for token in prompt]
    if not tokens:
        if tokenizer is None:
            raise UserError(f"{what} is empty: give at least one token id")
        tokens = [tokenizer.eos_id]
    sampling = request.sampling
    if sampling.stop and tokenizer is None:
        raise UserError(f"stop={sampling.stop!r} needs a tokenizer: give stop_tokens")
    slide = sampling.overflow == "slide"
    if slide and positions < config.context:
        raise UserError("overflow=slide needs an engine with the model's whole context")
    if not 1 <= request.score_from <= len(tokens):
        raise UserError(
            f"score_from={request.score_from} must be between 1 and the {len(tokens)} tokens "
            f"of {what}"
        )
    # The last token to be scored need not be read.
    most = positions + (1 if not sampling.max_tokens else 0 if slide else -1)
    if len(tokens) > most:
        raise UserError(
            f"{what} has {len(tokens)} tokens and the model's context is "
            f"{positions}: shorten the prompt to at most {most}"
        )
    _check_ids(what, tokens, config)
    for name in ("stop_tokens", "allowed_tokens", "banned_tokens", "logit_bias"):
        _check_ids(name, list(getattr(sampling, name) or ()), config)
    _check_left(sampling, tokenizer.eos_id if tokenizer else None, config)
    return tokens


def check_draft(draft: ModelConfig, config: ModelConfig, positions: int, guesses: int) -> None:
    """Refuse a draft model that cannot guess for this one.

    Raises:
      UserError: it knows other tokens, its context is too short, or nothing is to be guessed.
    """
    if not guesses:
        raise UserError("a draft model guesses nothing without speculate: set it to 4, say")
    if draft.vocab_size != config.vocab_size:
        raise UserError(
            f"the draft model knows {draft.vocab_size} tokens and the model {config.vocab_size}: "
            "use one that was trained with the same tokenizer"
        )
    if draft.context < positions:
        raise UserError(
            f"the draft model's context of {draft.context} is shorter than the engine's "
            f"{positions} positions: lower positions, or use another draft"
        )
    check_mesh(draft)


def _check_left(sampling: SamplingParams, eos: int | None, config: ModelConfig) -> None:
    """Refuse controls that leave no token to draw."""
    ends = sampling.ends(eos)
    if sampling.allowed_tokens is None:
        left = set(range(config.vocab_size)) if len(sampling.banned_tokens) else None
    else:
        left = set(sampling.allowed_tokens) | ends
    if left is None:
        return
    left -= set(sampling.banned_tokens) | (ends if sampling.min_tokens else set())
    if not left:
        raise UserError(
            "allowed_tokens, banned_tokens and min_tokens together leave no token to draw: allow "
            "one that is neither banned nor an end"
        )


def _check_ids(what: str, ids: Sequence[int], config: ModelConfig) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < config.vocab_size:
        wrong = max(ids) if max(ids) >= config.vocab_size else min(ids)
        raise UserError(
            f"{what} has token {wrong} and the model knows 0 to {config.vocab_size - 1}: "
            "use the tokenizer the model was trained with"
        )
