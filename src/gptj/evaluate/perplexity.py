"""How well a model predicts a text, in a measure that does not depend on its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptj.data.find import find_sources
from gptj.data.read import Document, Reader, joined
from gptj.errors import UserError
from gptj.evaluate.requests import windows
from gptj.evaluate.scorer import Scorer


@dataclass(frozen=True)
class TextScore:
    """A model's fit to a text, each of its tokens predicted once."""

    nats: float
    """The text's negative log-likelihood in all."""
    documents: int
    tokens: int
    bytes: int
    """Of UTF-8."""

    @property
    def perplexity(self) -> float:
        """`exp` of the nats a token: comparable between models of one tokenizer."""
        return math.exp(min(self.nats / self.tokens, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits to code one byte: comparable between tokenizers, and with a compressor."""
        return self.nats / math.log(2) / self.bytes

    def __str__(self) -> str:
        return (
            f"perplexity {self.perplexity:.4f} a token, {self.bits_per_byte:.4f} bits a byte "
            f"({self.documents:,} documents, {self.tokens:,} tokens, {self.bytes:,} bytes)"
        )


def read(paths: Sequence[Path]) -> list[Document]:
    """The documents of files and folders: whole files, or one a line of JSON lines.

    Raises:
      UserError: there is none, or a file is empty or not text.
    """
    reader, sources = Reader(strict=True), find_sources(paths).sources
    return [each for source in sources for each in joined(reader.documents(source))]


def score_texts(scorer: Scorer, texts: Sequence[str], stride: int | None = None) -> TextScore:
    """Score each text by itself, its first token given end-of-text.

    Args:
      stride: how many tokens are predicted at a time, each given all that the model's window holds
        before it. Fewer give each token more to go by, at more work; as many as the window holds
        when not given, as the harness does.

    Raises:
      UserError: the stride is longer than the window, or no text has a token.
    """
    window, tokenizer = scorer.config.context, scorer.tokenizer
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise UserError(f"stride={stride} must be from 1 to the model's window of {window} tokens")
    tokens = [
        np.concatenate([np.array(tokenizer.encode(piece), np.int32) for piece in pieces])
        for pieces in map(tokenizer.pieces, texts)
    ]
    asked = [part for ids in tokens for part in windows(ids, tokenizer.eos_id, window, stride)]
    if not asked:
        raise UserError("the text is empty: there is nothing to predict")
    return TextScore(
        nats=-math.fsum(each.logprob for each in scorer.score(asked)),
        documents=len(texts),
        tokens=sum(map(len, tokens)),
        bytes=sum(len(text.encode()) for text in texts),
    )
