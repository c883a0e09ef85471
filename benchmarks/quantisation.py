"""What fewer bits cost in quality: perplexity, and KL from float32, of the same text.

    .venv/bin/python benchmarks/quantisation.py                  a small model, trained first
    .venv/bin/python benchmarks/quantisation.py gpt-j-6b/ wiki.test.raw

Every kind reads the text as the engine does, through its cache, in windows of the model's context.
KL is the mean over tokens of KL(float32 || kind) of the next token's distribution, in nats, and
`agrees` is how often both find the same token likeliest. One model is in memory at a time; what
float32 found waits on the disk, 4 bytes times tokens times vocabulary (of GPT-J: 3.3 GB).

With no model it trains the demo's (recipes/demo.py) on seven novels, about five minutes on two CPU
cores, and reads what was held out of them.
"""

from __future__ import annotations

import argparse
import functools
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from figures import RESULTS, write

import gptj
from gptj import kernels
from gptj.engine.cache import Cache, new_cache
from gptj.engine.forward import forward
from gptj.model import logits
from gptj.quantised import Quantisation

ROOT = Path(__file__).parents[1]
NOVELS = ROOT.parent / "shared" / "data" / "gutenberg_en" / "books.jsonl"
CHUNK = 128


class Kind(NamedTuple):
    """How a model is stored; it computes in `dtype`."""

    dtype: str = "float32"
    quantize: Quantisation | None = None
    int8_cache: bool = False
    natively: bool = False
    """By a CPU's native programs, as the engine reads a prompt."""


KINDS = {
    "float32": Kind(),
    "bfloat16": Kind("bfloat16"),
    "int8": Kind(quantize="int8"),
    "int4": Kind(quantize="int4"),
    "int8 cache": Kind(int8_cache=True),
    "int8, int8 cache": Kind(quantize="int8", int8_cache=True),
    "int4, int8 cache": Kind(quantize="int4", int8_cache=True),
    "bfloat16, int8": Kind("bfloat16", "int8"),
    "bfloat16, int8, natively": Kind("bfloat16", "int8", natively=True),
    "bfloat16, int4": Kind("bfloat16", "int4"),
    "bfloat16, int4, natively": Kind("bfloat16", "int4", natively=True),
}


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def read(
    params: gptj.Params[jax.Array],
    cache: Cache,
    tokens: jax.Array,
    start: jax.Array,
    config: gptj.ModelConfig,
) -> tuple[jax.Array, Cache]:
    """Log-probabilities of what follows each token of a chunk, and the cache with it read."""
    first = jnp.zeros(1, jnp.int32)
    with kernels.rounding():  # as the engine's
        hidden, cache = forward(params, cache, tokens[None], start, config, slot=first)
        rows = logits(params, hidden, config)[0, :, : config.vocab_size]
    return jax.nn.log_softmax(rows), cache


@jax.jit
def compare(
    expected: jax.Array, found: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each token of a chunk: its loss, KL(expected || found), whether the likeliest agree."""
    own = jnp.take_along_axis(found, targets[:, None], axis=1)[:, 0]
    kl = jnp.sum(jnp.exp(expected) * (expected - found), axis=1)
    return -own, kl, jnp.argmax(expected, axis=1) == jnp.argmax(found, axis=1)


def chunks(tokens: np.ndarray, context: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces of windows of `context` tokens and the one after, and where in its window each is."""
    for window in range(0, len(tokens) - 1, context):
        for begin in range(window, min(window + context, len(tokens) - 1), CHUNK):
            end = min(begin + CHUNK, window + context, len(tokens) - 1)
            yield begin - window, tokens[begin : end + 1]


def measure(path: str, kind: Kind, tokens: np.ndarray, expected: np.memmap) -> dict[str, float]:
    """Read the text as `kind`; float32 itself writes down what the others are compared with."""
    model = gptj.load(path, dtype=kind.dtype, quantize=kind.quantize)
    config, found = model.config, []
    room = -(-config.context // CHUNK) * CHUNK
    cache = new_cache(config, 1, model.dtype, room, kind.int8_cache)
    size = sum(x.nbytes for x in jax.tree.leaves(cache)) // cache[0].keys.shape[2]
    row = 0
    for start, piece in chunks(tokens, config.context):
        count = len(piece) - 1
        padded = np.pad(piece, (0, CHUNK - count))  # read after the chunk's end, and seen by none
        given, targets = padded[:CHUNK], padded[1 : CHUNK + 1]
        with kernels.wanted(kind.natively):
            rows, cache = read(model.params, cache, given, np.full(1, start, np.int32), config)
        if kind == Kind():
            expected[row : row + count] = np.asarray(rows)[:count]
        reference = np.pad(expected[row : row + count], [(0, CHUNK - count), (0, 0)])
        found.append([np.asarray(x)[:count] for x in compare(reference, rows, targets)])
        row += count
    losses, kl, agrees = (
        np.concatenate(each).astype(np.float64) for each in zip(*found, strict=True)
    )
    return {
        "perplexity": math.exp(losses.mean()),
        "kl": max(0.0, kl.mean()),
        "agrees": agrees.mean(),
        "weights_bytes": sum(x.nbytes for x in jax.tree.leaves(model.params)),
        "cache_bytes_a_token": size,
    }


def trained_on_novels() -> tuple[str, str]:
    """The demo's model of the novels, and the text that it has not seen."""
    run = ROOT / "runs" / f"demo-{NOVELS.stem}"
    if not (run / "summary.json").exists():
        demo = [sys.executable, "recipes/demo.py", str(NOVELS)]
        subprocess.run(demo, check=True, cwd=ROOT)
    heldout = gptj.TokenStore.open(ROOT / "data" / run.name / "heldout")
    return str(run), "".join(heldout.text(n) for n in range(heldout.manifest.documents))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", nargs="?", help="a trained model of any kind")
    parser.add_argument("text", nargs="?", type=Path, help="a text file that it was not trained on")
    parser.add_argument("--tokens", type=int, default=16384, help="how much of the text to read")
    parser.add_argument("--out", type=Path, default=RESULTS / "quantisation.json")
    args = parser.parse_args()
    if args.model and not args.text:
        parser.error("give a TEXT for the model to read")
    path, text = (args.model, args.text.read_text()) if args.model else trained_on_novels()
    source = gptj.load(path, quantize="int8")  # the smallest way to its tokenizer
    assert source.tokenizer, "a text is read by the model's tokenizer"
    vocab, eos = source.config.vocab_size, source.tokenizer.eos_id
    ids = source.tokenizer.encode(text[: 16 * args.tokens])[: args.tokens]
    tokens = np.array([eos, *ids], np.int32)
    parameters = gptj.count_parameters(source.config)
    del source
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryFile() as file:
        expected = np.memmap(file, np.float32, "w+", shape=(len(tokens) - 1, vocab))
        for name, kind in KINDS.items():
            found[name] = measure(path, kind, tokens, expected)
            print(line(name, found[name]), flush=True)
    result = {
        "what": "quality of a model's kinds of storage on text that it was not trained on",
        "model": Path(path).name,
        "parameters": parameters,
        "text": str(args.text.name if args.text else f"held out of {NOVELS.name}"),
        "tokens": len(tokens) - 1,
        "kinds": found,
    }
    write(args.out, result)


def line(name: str, found: dict[str, float]) -> str:
    return (
        f"{name:24} perplexity {found['perplexity']:9.4f}   KL {found['kl']:.2e}   "
        f"agrees {100 * found['agrees']:6.2f} %   {found['weights_bytes'] / 1e6:9.2f} MB   "
        f"{found['cache_bytes_a_token']:7.0f} bytes of cache a token"
    )


if __name__ == "__main__":
    main()
