"""Prompts in, text out: the loop over the programs, and where a completion ends."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float32, Int32

from gptj.config import ModelConfig
from gptj.engine.cache import Cache, new_cache
from gptj.engine.programs import CHUNK, decode, log_probs, prefill
from gptj.engine.sampling import SamplingParams, row_seeds
from gptj.errors import UserError
from gptj.model import Params
from gptj.sharding import batch_ways, spec
from gptj.tokenizer import Tokenizer

SCORED_ROWS = 8
"""Texts that `score` reads at a time; a mesh that splits the batch further rounds it up."""

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    text: str
    tokens: list[int]
    """The ids drawn, without the end-of-text token; of a stop string, up to the token that
    completed it."""
    finish_reason: FinishReason
    """`stop`: the model ended the text or wrote a stop string; `length`: there was no more room."""


class UntilStop:
    """Lets text through up to a stop string, holding back what may still become one.

    The stop string that is complete first counts, however the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = stops
        self._held = ""

    def push(self, piece: str, last: bool = False) -> str:
        """The text that is now sure to stay; all that is left with `last`."""
        text = self._held + piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        held = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        sure = len(text) - held
        self._held = text[sure:]
        return text[:sure]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)


class _Row:
    """One completion as it grows."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], room: int, show: Callable[[str], None]
    ) -> None:
        self.reason: FinishReason | None = None
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._eos, self._stream = tokenizer.eos_id, tokenizer.stream()
        self._until, self._room, self._show = UntilStop(stops), room, show

    def push(self, token: int) -> None:
        """Take the token drawn, and decide whether it was the last."""
        if token == self._eos:
            return self._end("stop")
        self._tokens.append(token)
        self._add(self._until.push(self._stream.push(token)))
        if self._until.found:
            self.reason = "stop"
        elif len(self._tokens) == self._room:
            self._end("length")

    def completion(self) -> Completion:
        assert self.reason, "the completion is still growing"
        return Completion("".join(self._text), self._tokens, self.reason)

    def _end(self, reason: FinishReason) -> None:
        self._add(self._until.push(self._stream.finish(), last=True))
        self.reason = "stop" if self._until.found else reason

    def _add(self, piece: str) -> None:
        if piece:
            self._text.append(piece)
            self._show(piece)


def generate(
    params: Params[Array],
    config: ModelConfig,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: SamplingParams,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Complete the prompts together, computing in the dtype of the weights.

    A completion ends at the end-of-text token, before a stop string, after `max_tokens`, or where
    prompt and completion fill the model's context. An empty prompt is the start of a document:
    the end-of-text token alone. Row 0 draws with `sampling.seed` and the others with seeds
    derived from it and their number, so a prompt alone and the first of many agree.

    Args:
      prompts: all are in memory at once; see `gptj.engine.cache.new_cache` for how much they take.
      on_text: called with a prompt's number and the next piece of its text; the pieces joined
        are the completion's text.

    Raises:
      UserError: a prompt leaves no room in the model's context, or is not in its vocabulary.
    """
    ids = [tokens or [tokenizer.eos_id] for tokens in _encode(tokenizer, config, prompts)]
    for number, tokens in enumerate(ids):
        if len(tokens) >= config.context:
            raise UserError(
                f"prompt {number} has {len(tokens)} tokens and the model's context is "
                f"{config.context}: shorten the prompt to at most {config.context - 1}"
            )
    if not ids:
        return []

    def row(number: int, tokens: list[int]) -> _Row:
        room = min(sampling.max_tokens, config.context - len(tokens))
        show = on_text or (lambda number, piece: None)
        return _Row(tokenizer, sampling.stop, room, lambda piece: show(number, piece))

    rows = [row(number, tokens) for number, tokens in enumerate(ids)]
    _decode_all(params, config, ids, sampling, rows)
    return [row.completion() for row in rows]


def _decode_all(
    params: Params[Array],
    config: ModelConfig,
    ids: list[list[int]],
    sampling: SamplingParams,
    rows: list[_Row],
) -> None:
    """Read the prompts, then draw tokens until every row has its last."""
    # Rows that only fill up the mesh, like rows that have ended, go on unread: each position
    # sees its own row alone, and a program with fewer rows would have to be compiled.
    batch = _round_up(len(ids), batch_ways())
    ids = ids + ids[:1] * (batch - len(ids))
    cache = _read_prompts(params, config, ids)
    draw = (
        row_seeds(sampling.seed, batch),
        np.full(batch, sampling.temperature, np.float32),
        np.full(batch, sampling.top_k, np.int32),
        np.full(batch, sampling.top_p, np.float32),
    )
    positions = np.array([len(tokens) - 1 for tokens in ids], np.int32)
    tokens = np.array([row[-1] for row in ids], np.int32)
    while not all(row.reason for row in rows):
        drawn, cache = decode(params, cache, tokens, positions, *draw, config=config)
        # The tokens must come here each step anyway. They go back as NumPy arrays, because JAX
        # compiles once more for an argument that changes from the host's to the device's.
        tokens, positions = np.asarray(drawn), positions + 1
        for row, token in zip(rows, tokens.tolist(), strict=False):
            if not row.reason:
                row.push(token)


def _read_prompts(params: Params[Array], config: ModelConfig, ids: list[list[int]]) -> Cache:
    """A cache that holds all but the last token of each prompt; `decode` begins with that one."""
    # Whole chunks, so that no chunk passes the end and is moved to before it.
    context = _round_up(config.context, CHUNK)
    cache = new_cache(config, len(ids), params.embedding.dtype, context)
    if spec() is None:
        # Tied to the weights' device, as the caches that the programs return are: for one that
        # is not, they would compile once more.
        cache = jax.device_put(cache, params.embedding.sharding)
    longest = max(map(len, ids)) - 1
    tokens = _padded(ids, _round_up(longest, CHUNK))
    for begin in range(0, longest, CHUNK):
        start = np.full(len(ids), begin, np.int32)
        cache = prefill(params, cache, tokens[:, begin : begin + CHUNK], start, config)
    return cache


def score(
    params: Params[Array], config: ModelConfig, tokenizer: Tokenizer, texts: Sequence[str]
) -> list[Float32[np.ndarray, " tokens"]]:
    """For each text the log-probability, in nats, of each of its tokens given those before it.

    The first is given the end-of-text token, as at the start of a document. Computes in the dtype
    of the weights, on a few texts of like length at a time.

    Raises:
      UserError: a text has more tokens than the model's context, or some not in its vocabulary.
    """
    ids = [[tokenizer.eos_id, *tokens] for tokens in _encode(tokenizer, config, texts)]
    lengths = [len(tokens) - 1 for tokens in ids]
    for number, length in enumerate(lengths):
        if length > config.context:
            raise UserError(
                f"text {number} has {length} tokens and the model's context is {config.context}: "
                f"shorten the text to at most {config.context}, or score it in parts"
            )
    scores = [np.zeros(0, np.float32) for _ in ids]
    order = sorted((n for n in range(len(ids)) if lengths[n]), key=lambda n: lengths[n])
    for begin in range(0, len(order), SCORED_ROWS):
        group = order[begin : begin + SCORED_ROWS]
        # Powers of two and multiples of a chunk: few shapes, each compiled once.
        batch = _round_up(1 << (len(group) - 1).bit_length(), batch_ways())
        tokens = _padded([ids[n] for n in group], _round_up(lengths[group[-1]], CHUNK) + 1, batch)
        values = np.asarray(log_probs(params, tokens, config))
        for n, row in zip(group, values, strict=False):
            scores[n] = row[: lengths[n]].copy()
    return scores


def _encode(tokenizer: Tokenizer, config: ModelConfig, texts: Sequence[str]) -> list[list[int]]:
    if isinstance(texts, str):
        raise UserError("a single string was given for a sequence of texts: put it in a list")
    ids = tokenizer.encode_batch(texts)
    largest = max(itertools.chain([tokenizer.eos_id], *ids))
    if largest >= config.vocab_size:
        raise UserError(
            f"the tokenizer gives token {largest} and the model knows 0 to "
            f"{config.vocab_size - 1}: use the tokenizer the model was trained with"
        )
    return ids


def _padded(
    ids: list[list[int]], length: int, batch: int | None = None
) -> Int32[np.ndarray, "batch length"]:
    """The first `length` tokens of each row; zeros after them and in rows past the last."""
    tokens = np.zeros((batch or len(ids), length), np.int32)
    for row, known in zip(tokens, ids, strict=False):
        row[: len(known)] = known[:length]
    return tokens


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
