"""A model as one object: weights, shape and tokenizer, to score and to write text with."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int
from rich.console import Console

from gptj.config import ModelConfig
from gptj.convert.convert import write
from gptj.convert.load import load_params
from gptj.convert.open import open_source
from gptj.convert.source import from_params
from gptj.engine import engine
from gptj.engine.sampling import SamplingParams
from gptj.errors import UserError
from gptj.model import Params, forward
from gptj.sharding import batch_ways, check_mesh, place, reshard
from gptj.tokenizer import Tokenizer
from gptj.train import loop
from gptj.train.config import TrainConfig
from gptj.train.loop import TrainResult

SAMPLE_TOKENS = 64
"""Length of the samples that a run writes down as it trains."""

DTYPES = (jnp.dtype("float32"), jnp.dtype("bfloat16"))


@dataclasses.dataclass(frozen=True)
class Model:
    """A GPT-J with its weights and tokenizer. It computes in the dtype of its weights."""

    config: ModelConfig
    params: Params[Array]
    tokenizer: Tokenizer | None
    """`None` where the files held none: text then needs `load(..., tokenizer=...)`."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the weights are stored in and the layers compute in."""
        return np.dtype(self.params.embedding.dtype)

    def logits(
        self, tokens: Int[np.ndarray | Array, "batch length"]
    ) -> Float32[Array, "batch length vocab"]:
        """Next-token logits at every position, float32, for the tokenizer's tokens only.

        Rows that the mesh divides stay split over it; others come back on every device.

        Raises:
          UserError: a token is not one of the model's, or a row is empty or longer than its
            context.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 2 or not ids.shape[1] or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(
                f"tokens of shape {ids.shape} and type {ids.dtype} must be whole numbers in rows "
                "of one length, at least 1"
            )
        if ids.size and not 0 <= ids.min() <= ids.max() < self.config.vocab_size:
            raise UserError(
                f"tokens range from {ids.min()} to {ids.max()}, the model knows 0 to "
                f"{self.config.vocab_size - 1}"
            )
        if ids.shape[1] > self.config.context:
            raise UserError(
                f"rows of {ids.shape[1]} tokens are longer than the model's context of "
                f"{self.config.context}: shorten them"
            )
        padded = np.pad(ids.astype(np.int32), [(0, -len(ids) % batch_ways()), (0, 0)])
        return _logits(self.params, place(padded, "batch", None), len(ids), self.config)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        on_text: Callable[[int, str], None] | None = None,
        **sampling: Any,
    ) -> list[str]:
        """The text that follows each prompt.

        Args:
          prompts: one prompt or several, written on together.
          on_text: called with a prompt's index and the next piece of its text as they come.
          **sampling: fields of `SamplingParams`: temperature, top_p, top_k, max_tokens, seed, stop.

        Raises:
          UserError: a sampling field does not exist or is out of range, or a prompt is too long.
        """
        known = [field.name for field in dataclasses.fields(SamplingParams)]
        if unknown := sorted(set(sampling) - set(known)):
            raise UserError(f"no sampling field {', '.join(unknown)}: there are {', '.join(known)}")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        completions = engine.generate(
            self.params, self.config, self._text(), prompts, SamplingParams(**sampling), on_text
        )
        return [completion.text for completion in completions]

    def score(self, texts: str | Sequence[str]) -> list[Float32[np.ndarray, " tokens"]]:
        """For each text, each of its tokens' log-probability (nats) given those before it.

        The first token is given the end-of-text token, as at the start of a document.

        Raises:
          UserError: a text has more tokens than the model's context.
        """
        texts = [texts] if isinstance(texts, str) else texts
        return engine.score(self.params, self.config, self._text(), texts)

    def _text(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(
                "the model came without a tokenizer: load it with tokenizer=... (--tokenizer), a "
                "tokenizer.json, the folder of GPT-2's vocab.json and merges.txt, or a Hub id such "
                "as EleutherAI/gpt-j-6b"
            )
        return self.tokenizer

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a folder that `load` reads.

        It holds model.json, tokenizer.json and weights.safetensors.

        Raises:
          UserError: the folder exists and is not empty.
          gptj.checkpoint.CheckpointError: it cannot be written; then no folder is left.
        """
        write(from_params(self.config, self.params, self.tokenizer), path)


def load(
    path_or_hub_id: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    config: ModelConfig | None = None,
    tokenizer: str | None = None,
) -> Model:
    """A model of any kind, on the mesh that is set or on one device.

    The kind is seen from the files: a run's folder (its newest checkpoint), a folder written by
    `Model.save` or `gptj convert`, a Hugging Face folder or Hub id, or Mesh Transformer JAX's
    shards, at a path or a URL, or in an archive. Each tensor goes straight from the files to its
    shards, so little else is ever in memory.

    Args:
      dtype: store and compute in float32 or bfloat16; as stored when not given, and float32 for
        float16, which holds its numbers exactly.
      config: the model's shape, where shards of the original's have no config.json beside them.
      tokenizer: what `Tokenizer.load` takes, where none lies beside the weights.

    Raises:
      UserError: there is no model there, or it cannot be read; names the file at fault.
    """
    if dtype is not None and not any(dtype == known for known in DTYPES):
        raise UserError(f"dtype={dtype} is not float32 or bfloat16")
    source = open_source(path_or_hub_id, config=config, tokenizer=tokenizer)
    check_mesh(source.config)
    found = source.tokenizer()
    if found and found.vocab_size > source.config.padded_vocab_size:
        raise UserError(
            f"the tokenizer of {path_or_hub_id} has {found.vocab_size} tokens, more than the "
            f"{source.config.padded_vocab_size} rows of the model: they are not of one model"
        )
    stored = source.dtype if source.dtype in DTYPES else np.dtype("float32")
    return Model(source.config, load_params(source, dtype or stored), found)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _logits(
    params: Params[Array], tokens: Array, rows: int, config: ModelConfig
) -> Float[Array, "rows length vocab"]:
    """The logits of the first `rows` rows; those after them only fill up the mesh."""
    logits = forward(params, tokens, config, dtype=params.embedding.dtype)
    batch = "batch" if rows == len(tokens) else None
    return reshard(logits, batch, None, None)[:rows, :, : config.vocab_size]


def train(config: TrainConfig, *, console: Console | None = None) -> TrainResult:
    """Train as `config` says, on the mesh that is set or on one device.

    Run again with the same `config` it goes on where the last checkpoint stands, and ends with the
    weights, bit for bit, of a run that was never stopped.

    Args:
      console: where progress is shown; standard output when not given.

    Raises:
      UserError: what `config` names does not exist or does not fit together, or the run diverged.
      gptj.checkpoint.CheckpointError: a checkpoint could not be written or read.
    """
    return loop.train(config, write_on=_write_on, console=console)


def _write_on(
    params: Params[Array], config: ModelConfig, tokenizer: Tokenizer, prompts: Sequence[str]
) -> list[str]:
    """What a model under way makes of some prompts: the same draws every time it is asked."""
    model = Model(config, params, tokenizer)
    return model.generate(prompts, max_tokens=SAMPLE_TOKENS, temperature=0.8)
