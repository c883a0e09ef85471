"""A model as one object: weights, shape and tokenizer, to score and to write text with."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int
from rich.console import Console

from gptj.attention import KEYS
from gptj.config import ModelConfig
from gptj.convert.convert import write
from gptj.convert.load import load_params
from gptj.convert.open import open_source
from gptj.convert.source import from_params
from gptj.engine.beam import BeamParams, beam_search
from gptj.engine.config import EngineConfig, KVCache
from gptj.engine.engine import Engine
from gptj.engine.request import Completion, Delta, Request, SamplingParams
from gptj.engine.sampling import row_seeds
from gptj.engine.step import Draft
from gptj.errors import UserError
from gptj.model import Params, forward
from gptj.quantised import Quantisation, is_quantised
from gptj.sharding import batch_ways, check_mesh, place, reshard
from gptj.tokenizer import Tokenizer
from gptj.train import loop
from gptj.train.config import TrainConfig
from gptj.train.evaluators import Evaluator
from gptj.train.loop import TrainResult

SAMPLE_TOKENS = 64
"""Length of the samples that a run writes down as it trains."""

SLOTS = 8
"""Completions that a model's own engine draws at once, when there are several."""

DTYPES = (jnp.dtype("float32"), jnp.dtype("bfloat16"))


@dataclasses.dataclass(frozen=True)
class _Kept:
    """An engine of a model's own, and the model that guesses for it."""

    engine: Engine
    draft: Model | None

    def serves(self, options: EngineConfig, draft: Model | None) -> bool:
        """Whether it has room for as many positions, and is otherwise the same."""
        own, asked = self.engine.options, options.rounded(batch_ways())
        alike = own == dataclasses.replace(asked, positions=own.positions)
        return alike and self.engine.positions >= (asked.positions or 0) and self.draft is draft


@dataclasses.dataclass(frozen=True)
class Model:
    """A GPT-J with its weights and tokenizer. It computes in the dtype of its weights."""

    config: ModelConfig
    params: Params[Array]
    tokenizer: Tokenizer | None
    """`None` where the files held none: text then needs `load(..., tokenizer=...)`."""
    _engines: list[_Kept] = dataclasses.field(default_factory=list, repr=False, compare=False)

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
        speculate: int = 0,
        draft: Model | None = None,
        kv_cache: KVCache = "model",
        **sampling: Any,
    ) -> list[str]:
        """The text that follows each prompt.

        Args:
          prompts: one prompt or several, written on together. The first draws with `seed` and the
            others with seeds derived from it and their number.
          on_text: called with the index of a text and its next piece as they come.
          speculate: tokens that a step guesses ahead, which changes the speed alone.
          draft: a smaller model of the same tokenizer that guesses them; else they are looked up in
            the text so far.
          kv_cache: what keys and values are stored in: the model's dtype, or int8.
          **sampling: fields of `SamplingParams`: temperature, top_p, max_tokens, seed, stop, ...

        Returns:
          One text a prompt; with `n`, that many in a row.

        Raises:
          UserError: a sampling field does not exist or is out of range, or a prompt is too long.
        """
        known = [field.name for field in dataclasses.fields(SamplingParams)]
        if unknown := sorted(set(sampling) - set(known)):
            raise UserError(f"no sampling field {', '.join(unknown)}: there are {', '.join(known)}")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        asked = SamplingParams(**sampling)
        if asked.logprobs is not None or asked.prompt_logprobs is not None:
            raise UserError("generate gives texts: for logprobs use score, or a gptj.Engine")
        ids = self._text().encode_batch(prompts)
        seeds = row_seeds(asked.seed, len(ids)).tolist()
        requests = [
            Request(tokens, dataclasses.replace(asked, seed=seed))
            for tokens, seed in zip(ids, seeds, strict=True)
        ]

        def show(delta: Delta) -> None:
            if on_text and delta.text:
                on_text(delta.request * asked.n + delta.choice, delta.text)

        options = EngineConfig(speculate=speculate, kv_cache=kv_cache)
        completions = self._run(requests, show, options=options, draft=draft)
        return [completion.text for choices in completions for completion in choices]

    def search(self, prompts: str | Sequence[str], **options: Any) -> list[str]:
        """The likeliest texts after each prompt, by beam search; nothing is drawn at random.

        Args:
          prompts: one prompt or several, searched one after the other.
          **options: fields of `gptj.engine.beam.BeamParams`: beams, max_tokens, length_penalty,
            early_stopping, n.

        Returns:
          For each prompt its `n` best, best first, in a row.

        Raises:
          UserError: a field does not exist or is out of range, or a prompt is too long.
        """
        known = [field.name for field in dataclasses.fields(BeamParams)]
        if unknown := sorted(set(options) - set(known)):
            raise UserError(f"no search field {', '.join(unknown)}: there are {', '.join(known)}")
        prompts = [prompts] if isinstance(prompts, str) else prompts
        eos, beam = self._text().eos_id, BeamParams(**options)
        found = [
            beam_search(self.params, self.config, ids or [eos], beam, eos)
            for ids in self._text().encode_batch(prompts)
        ]
        return [self._text().decode(each.tokens) for ends in found for each in ends]

    def score(self, texts: str | Sequence[str]) -> list[Float32[np.ndarray, " tokens"]]:
        """For each text, each of its tokens' log-probability (nats) given those before it.

        The first token is given the end-of-text token, as at the start of a document.

        Raises:
          UserError: a text has more tokens than the model's context.
        """
        texts = [texts] if isinstance(texts, str) else texts
        eos, only = self._text().eos_id, SamplingParams(max_tokens=0, prompt_logprobs=0)
        tokens, context = self._text().encode_batch(texts), self.config.context
        for number, ids in enumerate(tokens):
            if len(ids) > context:
                raise UserError(
                    f"text {number} has {len(ids)} tokens and the model's context is {context}: "
                    f"shorten the text to at most {context}, or score it in parts"
                )
        completions = self._run([Request([eos, *ids], only) for ids in tokens], what="text")
        scores = [choices[0].prompt_logprobs or [] for choices in completions]
        return [np.array([each.logprob for each in found], np.float32) for found in scores]

    def _run(
        self,
        requests: Sequence[Request],
        on_delta: Callable[[Delta], None] | None = None,
        what: str = "prompt",
        options: EngineConfig = EngineConfig(),
        draft: Model | None = None,
    ) -> list[list[Completion]]:
        """Answer requests on an engine that has room for them, kept for those to come."""
        if not requests:
            return []
        context = self.config.context
        slots = SLOTS if sum(request.sampling.drawn for request in requests) > 1 else 1
        needed = max(
            context
            if request.sampling.overflow == "slide"
            else min(len(request.prompt) + request.sampling.max_tokens, context)
            for request in requests
        )
        positions = min(-(-needed // KEYS) * KEYS, context)
        options = dataclasses.replace(options, slots=slots, positions=positions)
        if self._engines and self._engines[0].serves(options, draft):
            return self._engines[0].engine.run(requests, on_delta, what)
        guesser = Draft(draft.params, draft.config) if draft else None
        engine = Engine(self.params, self.config, self.tokenizer, options, guesser)
        self._engines[:] = [_Kept(engine, draft)]
        return engine.run(requests, on_delta, what)

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
          UserError: the folder exists and is not empty, or the weights are quantised.
          gptj.checkpoint.CheckpointError: it cannot be written; then no folder is left.
        """
        if is_quantised(self.params):
            raise UserError(
                "a quantised model has lost the numbers that its files would hold: load it without "
                "quantize to save it, or use gptj convert"
            )
        write(from_params(self.config, self.params, self.tokenizer), path)


def load(
    path_or_hub_id: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    quantize: Quantisation | None = None,
    config: ModelConfig | None = None,
    tokenizer: str | None = None,
    base: str | None = None,
) -> Model:
    """A model of any kind, on the mesh that is set or on one device.

    The kind is seen from the files: a run's folder (its newest checkpoint), a folder written by
    `Model.save` or `gptj convert`, a Hugging Face folder or Hub id, or Mesh Transformer JAX's
    shards, at a path or a URL, or in an archive; or adapters of PEFT's, which are added to the
    model that they belong to. Each tensor goes straight from the files to its
    shards, so little else is ever in memory.

    Args:
      dtype: store and compute in float32 or bfloat16; as stored when not given, and float32 for
        float16, which holds its numbers exactly.
      quantize: keep the matrices in `int8`, a scale a column, or `int4`, a scale and a low end for
        each 128 numbers of a column, or `nf4`, a scale for each 64 (with either the output
        projection in int8). They are rounded as they are read, so that the model in full is never
        in memory, and `dtype` is what the rest is stored in and the layers compute in. Such a
        model cannot be saved.
      config: the model's shape, where shards of the original's have no config.json beside them.
      tokenizer: what `Tokenizer.load` takes, where none lies beside the weights.
      base: the model that adapters belong to, where it is not where they say.

    Raises:
      UserError: there is no model there, or it cannot be read; names the file at fault. Or int4
        or nf4 does not fit its shape, or the mesh.
    """
    if quantize is not None and quantize not in get_args(Quantisation):
        raise UserError(f"quantize={quantize!r} is not one of {', '.join(get_args(Quantisation))}")
    if dtype is not None and not any(dtype == known for known in DTYPES):
        raise UserError(f"dtype={dtype} is not float32 or bfloat16")
    source = open_source(path_or_hub_id, config=config, tokenizer=tokenizer, base=base)
    check_mesh(source.config)
    found = source.tokenizer()
    if found and found.vocab_size > source.config.padded_vocab_size:
        raise UserError(
            f"the tokenizer of {path_or_hub_id} has {found.vocab_size} tokens, more than the "
            f"{source.config.padded_vocab_size} rows of the model: they are not of one model"
        )
    stored = source.dtype if source.dtype in DTYPES else np.dtype("float32")
    return Model(source.config, load_params(source, dtype or stored, quantize), found)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _logits(
    params: Params[Array], tokens: Array, rows: int, config: ModelConfig
) -> Float[Array, "rows length vocab"]:
    """The logits of the first `rows` rows; those after them only fill up the mesh."""
    logits = forward(params, tokens, config, dtype=params.embedding.dtype)
    batch = "batch" if rows == len(tokens) else None
    return reshard(logits, batch, None, None)[:rows, :, : config.vocab_size]


def train(
    config: TrainConfig,
    *,
    evaluators: Sequence[Evaluator] = (),
    console: Console | None = None,
) -> TrainResult:
    """Train as `config` says, on the mesh that is set or on one device.

    Run again with the same `config` it goes on where the last checkpoint stands, and ends with the
    weights, bit for bit, of a run that was never stopped.

    Args:
      evaluators: what else is measured of the model under way; see `gptj.train.evaluators`.
      console: where progress is shown; standard output when not given.

    Raises:
      UserError: what `config` names does not exist or does not fit together, or the run diverged.
      gptj.checkpoint.CheckpointError: a checkpoint could not be written or read.
    """
    return loop.train(config, evaluators=evaluators, write_on=_write_on, console=console)


def _write_on(
    params: Params[Array], config: ModelConfig, tokenizer: Tokenizer, prompts: Sequence[str]
) -> list[str]:
    """What a model under way makes of some prompts: the same draws every time it is asked."""
    model = Model(config, params, tokenizer)
    return model.generate(prompts, max_tokens=SAMPLE_TOKENS, temperature=0.8)
