"""The cases of gpu.py that ask whether the GPU's results are right."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptj.attention import causal_attention, document_ends
from gptj.config import ModelConfig, preset
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.kernels import gpu
from gptj.model import block, init, weights

SIX = preset("gpt-j-6b")

Found = dict[str, Any]


def layer() -> Found:
    """One layer of GPT-J's size in bfloat16, against NumPy's float64."""
    rng, config = np.random.default_rng(0), SIX
    table = weights(config).blocks
    made = jax.tree.map(lambda w: rng.normal(0, 0.02, w.shape[1:]).astype(np.float32), table)
    made = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64), made)
    x = rng.normal(size=(1, 256, config.d_model))
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    expected = _layer(x[0], made, config)[None]
    small = jax.tree.map(lambda w, x: jnp.asarray(x, jnp.bfloat16), table, made)
    ours = jax.jit(lambda x, w: block(x, w, config, jnp.arange(256)))
    got = np.asarray(ours(jnp.asarray(x, jnp.bfloat16), small), np.float64)
    return {"error": _error(got, expected), "bound": 1e-2}


def _layer(x: np.ndarray, w: Any, config: ModelConfig) -> np.ndarray:
    """The same, written down once more."""
    centred = x - x.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.layer_norm_eps)
    y = y * w.norm_scale + w.norm_offset
    angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, 64, 2) / 64)
    turn = np.exp(1j * angles)[:, None]

    def heads(matrix: np.ndarray, turned: bool) -> np.ndarray:
        found = np.einsum("re,ehd->rhd", y, matrix)
        if turned:
            pairs = (found[..., 0:64:2] + 1j * found[..., 1:64:2]) * turn
            found[..., 0:64:2], found[..., 1:64:2] = pairs.real, pairs.imag
        return found

    query, key, value = heads(w.query, True), heads(w.key, True), heads(w.value, False)
    scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(config.d_head)
    scores += np.where(np.tri(len(x)), 0, -np.inf)
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("hqk,khd->qhd", exp / exp.sum(-1, keepdims=True), value)
    inner = y @ w.ffn_in + w.ffn_in_bias
    active = inner * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    out = np.einsum("rhd,hde->re", mixed, w.attention_out) + active @ w.ffn_out
    return x + out + w.ffn_out_bias


def attention(d_head: str = "256") -> Found:
    """CuDNN's causal attention and its gradients, whole rows and packed; errors and milliseconds.

    Against the same written down plainly, in float32.
    """
    found: Found = {"bound": 2e-2}
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (4, 2048, 16, int(d_head))
    *qkv, pull = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
    tokens = jax.random.randint(jax.random.key(1), (4, 2048), 0, 300)
    for name, ends in (("whole", None), ("packed", document_ends(tokens == 7))):
        ours = _both_ways(functools.partial(causal_attention, ends=ends, backend="cudnn"))
        plain = _both_ways(functools.partial(_plainly, ends=ends))
        wide = [x.astype(jnp.float32) for x in (*qkv, pull)]
        errors = list(map(_error, ours(*qkv, pull), plain(*wide)))
        found[name] = {
            "errors": errors,
            "ms": 1e3 * seconds_of(functools.partial(ours, *qkv, pull)),
        }
    found["error"] = max(*found["whole"]["errors"], *found["packed"]["errors"])
    return found


def _plainly(query: Any, key: Any, value: Any, ends: Any) -> Any:
    at = jnp.arange(query.shape[1])
    seen = at[:, None] >= at
    if ends is not None:
        seen = seen & (at[:, None] < ends[:, None, None, :])
    dot = functools.partial(jnp.einsum, precision="highest")
    scores = dot("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    return dot("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), value)


def _both_ways(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Attention and the gradients of its inputs."""

    def both(query: Any, key: Any, value: Any, pull: Any) -> Any:
        mixed, back = jax.vjp(attend, query, key, value)
        return mixed, *back(pull)

    return jax.jit(both)


def cached() -> Found:
    """Attention over a cache against float64, rows of many lengths; whatever the other rows are."""
    rng, worst, alike = np.random.default_rng(0), 0.0, True
    run = jax.jit(gpu.attention)
    for queries, d_head in ((1, 256), (5, 64), (200, 256), (512, 128)):

        def drawn(*shape: int) -> Any:
            return jnp.asarray(rng.normal(size=(3, *shape)), jnp.bfloat16)

        q, *kv = drawn(queries, 16, d_head), *(drawn(16, 1024, d_head) for _ in range(2))
        last = jnp.asarray(rng.integers(0, 1024, (3, queries)), jnp.int32)
        ours = np.asarray(run(q, *kv, last))
        wide = [np.asarray(x, np.float64) for x in (q, *kv)]
        scores = np.einsum("bqhd,bhkd->bhqk", *wide[:2]) / np.sqrt(d_head)
        seen = np.arange(1024) <= np.asarray(last)[:, None, :, None]
        exp = np.where(seen, np.exp(scores), 0)
        expected = np.einsum("bhqk,bhkd->bqhd", exp / exp.sum(-1, keepdims=True), wide[2])
        worst = max(worst, _error(ours, expected))
        company = [x.at[::2].multiply(2) for x in (q, *kv)]
        other = np.asarray(run(*company, last.at[::2].set(last[::2] // 2)))
        alike &= bool((other[1] == ours[1]).all())
    return {"error": worst, "bound": 1e-2, "same bits in other company": alike}


def greedy() -> Found:
    """Greedy completions of a small model in float32, to be the CPU's."""
    jax.config.update("jax_default_matmul_precision", "highest")
    config = preset("demo")
    params = init(jax.random.key(0), config)
    engine = Engine(params, config, None, EngineConfig(slots=4, positions=128))
    sampling = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (4, 20)).tolist()
    asked = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
    drawn: dict[int, list[int]] = {number: [] for number in asked}
    while engine.busy:
        for delta in engine.step():
            drawn[delta.request] += delta.tokens
    return {"tokens": [drawn[number] for number in asked]}


def seconds_of(run: Callable[[], Any], times: int = 10) -> float:
    """The median of some runs, after two."""
    taken = []
    for _ in range(times + 2):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[2:])


def _error(a: Any, b: Any) -> float:
    """The norm of the difference over that of `b`."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
