"""How much of an answer depends on its company: a naive batch's, beside the engine's.

    make demo && .venv/bin/python benchmarks/exactness.py         the demo's model
    .venv/bin/python benchmarks/exactness.py MODEL TEXT

Passages of a text that the model was not trained on are written on greedily, each alone and in
batches of several sizes. The naive way is a batch of as many rows as there are prompts, by the
engine's own forward pass and XLA's products. Of the engine it is what its users see: tokens and
log-probabilities. Numbers count as changed if one bit is another.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from figures import RESULTS, write

import gptj
from gptj.engine.cache import Cache, new_cache
from gptj.engine.forward import forward
from gptj.model import Params, logits

ROOT = Path(__file__).parents[1]
PROMPT, NEW, ASKED = 32, 64, 32
SIZES = (2, 4, 8, 16, ASKED)


@partial(jax.jit, static_argnames="config", donate_argnames="cache")
def step(
    params: Params[Any], cache: Cache, tokens: jax.Array, start: jax.Array, config: gptj.ModelConfig
) -> tuple[jax.Array, Cache]:
    """The logits after the last of these tokens, for as many rows as there are."""
    hidden, cache = forward(params, cache, tokens, start, config)
    return logits(params, hidden[:, -1:], config)[:, 0, : config.vocab_size], cache


class Answers(NamedTuple):
    """To each prompt."""

    numbers: np.ndarray
    """The logits of the first token, or the log-probabilities of all."""
    tokens: np.ndarray
    gaps: np.ndarray
    """By how much the likeliest token's logit is above the next one's, at each token."""


def naive(model: gptj.Model, prompts: np.ndarray, size: int, new: int) -> Answers:
    """In batches of so many rows as there are prompts in it."""
    found = []
    for batch in np.split(prompts, len(prompts) // size):
        cache = new_cache(model.config, size, model.dtype, PROMPT + new)
        start = jnp.zeros(size, jnp.int32)
        _, cache = step(model.params, cache, jnp.asarray(batch[:, :-1]), start, model.config)
        tokens, made = [batch[:, -1]], []
        for at in range(PROMPT - 1, PROMPT + new - 1):
            last = jnp.asarray(tokens[-1])[:, None]
            rows, cache = step(model.params, cache, last, start + at, model.config)
            made.append(np.asarray(rows))
            tokens.append(made[-1].argmax(-1).astype(np.int32))
        second, first = np.sort(np.stack(made, axis=1))[..., -2:].transpose(2, 0, 1)
        found.append(Answers(made[0], np.stack(tokens[1:], axis=1), first - second))
    return Answers(*map(np.concatenate, zip(*found, strict=True)))


def by_engine(engine: gptj.Engine, prompts: np.ndarray, size: int, new: int) -> Answers:
    """In so many requests at a time."""
    sampling = gptj.SamplingParams(temperature=0, max_tokens=new, logprobs=20, ignore_eos=True)
    asked = [gptj.Request(prompt.tolist(), sampling) for prompt in prompts]
    done = [each for n in range(0, len(asked), size) for each in engine.run(asked[n : n + size])]
    numbers = np.array(
        [
            [[one.logprob, *(p for _, p in one.top)] for one in each.logprobs or ()]
            for (each,) in done
        ]
    )
    gaps = numbers[:, :, 1] - numbers[:, :, 2]
    return Answers(numbers, np.array([one.tokens for (one,) in done]), gaps)


def measure(model: gptj.Model, prompts: np.ndarray) -> dict[str, Any]:
    """Both ways, of a model in one dtype; whole answers of the largest batch alone."""
    options = gptj.EngineConfig(ASKED, PROMPT + NEW, prefix_bytes=0)
    engine = gptj.Engine(model.params, model.config, None, options)
    found: dict[str, Any] = {}
    for name, way in (("naive", partial(naive, model)), ("engine", partial(by_engine, engine))):
        alone, few = way(prompts, 1, NEW), way(prompts, 1, 1)
        company = {size: way(prompts, size, 1) for size in SIZES}
        together = way(prompts, ASKED, NEW)
        away = np.abs(company[ASKED].numbers - few.numbers)
        found[name] = {
            "changed": {n: float(np.mean(x.numbers != few.numbers)) for n, x in company.items()},
            "by": {"median": float(np.median(away)), "most": float(away.max())},
            "parted": list(parted(alone.tokens, together.tokens)),
            "gaps": np.quantile(alone.gaps, np.linspace(0, 1, 201)).tolist(),
            "tokens": alone.gaps.size,
        }
        if example := _example(model, prompts, alone.tokens, together.tokens):
            found[name]["example"] = example
    return found


def parted(alone: np.ndarray, together: np.ndarray) -> Iterator[int | None]:
    """The first token at which two answers to each prompt are not the same, if there is one."""
    for row in alone != together:
        yield int(row.argmax()) if row.any() else None


def _example(
    model: gptj.Model, prompts: np.ndarray, alone: np.ndarray, together: np.ndarray
) -> dict[str, str] | None:
    """The texts of two answers that part, of those the ones that agree longest."""
    places = [(place, n) for n, place in enumerate(parted(alone, together)) if place is not None]
    if not places or model.tokenizer is None:
        return None
    _, n = max(places)
    words = {"prompt": prompts[n], "alone": alone[n], "in company": together[n]}
    return {name: model.tokenizer.decode(ids.tolist()) for name, ids in words.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", nargs="?", default=str(ROOT / "runs" / "demo"))
    parser.add_argument("text", nargs="?", type=Path, help="a text file that it was not trained on")
    parser.add_argument("--out", type=Path, default=RESULTS / "exactness.json")
    args = parser.parse_args()
    found = {}
    for dtype in ("float32", "bfloat16"):
        model = gptj.load(args.model, dtype=dtype)
        assert model.tokenizer
        prompts = _prompts(model.tokenizer, args.text)
        found[dtype] = measure(model, prompts)
        for name in ("naive", "engine"):
            print(dtype, name, found[dtype][name]["changed"], flush=True)
    result = {
        "what": "greedy answers alone and in company: the share of their numbers that another bit "
        "is in, and the token at which they part",
        "model": Path(args.model).name,
        "prompts": ASKED,
        "new tokens": NEW,
        "dtypes": found,
    }
    write(args.out, result)


def _prompts(tokenizer: gptj.Tokenizer, text: Path | None) -> np.ndarray:
    """Passages of a text, or of what was kept from the demo's model."""
    if text:
        ids = tokenizer.encode(text.read_text())
    else:
        heldout = gptj.TokenStore.open(ROOT / "data" / "demo" / "heldout")
        ids = [
            token
            for n in range(heldout.manifest.documents)
            for token in tokenizer.encode(heldout.text(n))
        ]
    far = len(ids) // ASKED
    return np.array([ids[n * far : n * far + PROMPT] for n in range(ASKED)], np.int32)


if __name__ == "__main__":
    main()
