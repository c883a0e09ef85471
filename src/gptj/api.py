"""A model as one object: weights, shape and tokenizer, to score and to write text with."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from gptj import checkpoint
from gptj.config import ModelConfig
from gptj.engine import engine
from gptj.engine.sampling import SamplingParams
from gptj.errors import UserError
from gptj.hub import download, is_hub_id
from gptj.model import Params, abstract, forward
from gptj.sharding import batch_ways, check_mesh, place, reshard
from gptj.tokenizer import Tokenizer
from gptj.train.run import CHECKPOINTS, MODEL, TOKENIZER

WEIGHTS = "weights"
DTYPES = (jnp.dtype("float32"), jnp.dtype("bfloat16"))


@dataclasses.dataclass(frozen=True)
class Model:
    """A GPT-J with its weights and tokenizer. It computes in the dtype of its weights."""

    config: ModelConfig
    params: Params[Array]
    tokenizer: Tokenizer

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
            self.params, self.config, self.tokenizer, prompts, SamplingParams(**sampling), on_text
        )
        return [completion.text for completion in completions]

    def score(self, texts: str | Sequence[str]) -> list[Float32[np.ndarray, " tokens"]]:
        """For each text, each of its tokens' log-probability (nats) given those before it.

        The first token is given the end-of-text token, as at the start of a document.

        Raises:
          UserError: a text has more tokens than the model's context.
        """
        texts = [texts] if isinstance(texts, str) else texts
        return engine.score(self.params, self.config, self.tokenizer, texts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a folder that `load` reads: model.json, tokenizer.json, weights/.

        Raises:
          UserError: the folder exists and is not empty.
          gptj.checkpoint.CheckpointError: it could not be written; then no folder is left.
        """
        folder = Path(path).absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists and is not an empty folder: choose another name")
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            self.config.save(unfinished / MODEL)
            self.tokenizer.save(unfinished / TOKENIZER)
            weights = unfinished / WEIGHTS
            checkpoint.save(weights, {"params": self.params}, {"dtype": self.dtype.name})
            unfinished.replace(folder)
        except BaseException as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, OSError):
                raise checkpoint.CheckpointError(
                    f"{folder} could not be written ({error.strerror}): free some space, or "
                    "choose another name"
                ) from error
            raise


def load(path_or_hub_id: str | os.PathLike[str], *, dtype: DTypeLike | None = None) -> Model:
    """A model from a run's folder (its newest checkpoint) or a folder written by `Model.save`.

    A Hub id names a folder of the latter kind on the Hugging Face Hub. The weights land on the
    mesh that is set, each device reading its own part, or on one device.

    Args:
      dtype: store and compute in float32 or bfloat16; as saved when not given.

    Raises:
      UserError: there is no model there, or it cannot be read; names the file at fault.
    """
    folder = _folder(path_or_hub_id)
    if dtype is not None and not any(dtype == known for known in DTYPES):
        raise UserError(f"dtype={dtype} is not float32 or bfloat16")
    config = ModelConfig.load(folder / MODEL)
    check_mesh(config)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.vocab_size > config.padded_vocab_size:
        raise UserError(
            f"{folder / TOKENIZER} has {tokenizer.vocab_size} tokens, more than the "
            f"{config.padded_vocab_size} rows of {folder / MODEL}: they are not of one model"
        )
    weights = _weights(folder)
    stored = dtype or checkpoint.metadata(weights).get("dtype", "float32")
    like = jax.tree.map(lambda leaf: leaf.update(dtype=jnp.dtype(stored)), abstract(config))
    return Model(config, checkpoint.restore(weights, {"params": like})["params"], tokenizer)


def _folder(path_or_hub_id: str | os.PathLike[str]) -> Path:
    """The local folder of a model, downloaded where it is an id and no folder of that name."""
    folder, name = Path(path_or_hub_id), str(path_or_hub_id)
    if not folder.exists() and name.count("/") == 1 and is_hub_id(name):
        folder = download(name, "model", [MODEL, TOKENIZER, f"{WEIGHTS}/*"])
    if not (folder / MODEL).is_file():
        raise UserError(
            f"no model at {name}: give the folder of a `gptj train` run or one written by "
            f"Model.save (a folder with {MODEL})"
        )
    return folder


def _weights(folder: Path) -> Path:
    """The checkpoint that holds a folder's weights."""
    if (folder / WEIGHTS).is_dir():
        return folder / WEIGHTS
    saved = checkpoint.complete(folder / CHECKPOINTS)
    if not saved:
        raise UserError(
            f"the run {folder} has no complete checkpoint yet: train on until its first save"
        )
    return saved[-1]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _logits(
    params: Params[Array], tokens: Array, rows: int, config: ModelConfig
) -> Float[Array, "rows length vocab"]:
    """The logits of the first `rows` rows; those after them only fill up the mesh."""
    logits = forward(params, tokens, config, dtype=params.embedding.dtype)
    batch = "batch" if rows == len(tokens) else None
    return reshard(logits, batch, None, None)[:rows, :, : config.vocab_size]
