"""The law: reading a text in chunks and tokens through the cache gives `forward`'s logits."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import model
from gptj.config import ModelConfig
from gptj.engine import programs
from gptj.engine.cache import new_cache
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.sharding import make_mesh, place
from gptj.tokenizer import Tokenizer

CONFIG = ModelConfig(2, 32, 4, 8, 128, 257, 384, 160)
CHUNK = 64
BYTES = Tokenizer.bytes()
MESHES = [{}, {"data": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]

# One token; within a chunk; a whole one; one more, so that `decode` begins the next; two and some.
LENGTHS = np.array([1, 5, 64, 65, 130, 150, 128, 129], np.int32)
STEPS = 10
TOKENS = np.random.default_rng(0).integers(0, 257, (len(LENGTHS), CONFIG.context), np.int32)

forward = jax.jit(model.forward, static_argnums=2)
read = jax.jit(programs.forward, static_argnums=4)
logits = jax.jit(model.logits, static_argnums=2)


@functools.cache
def on_host():
    return jax.tree.map(np.asarray, model.init(jax.random.key(0), CONFIG))


def make_params():
    """The same weights on whatever mesh is set; drawing them there would compile for each."""
    return jax.tree.map(lambda x, w: place(x, *w.axes), on_host(), model.weights(CONFIG))


@pytest.fixture(
    scope="class", params=[*MESHES[:2], pytest.param(MESHES[2], marks=pytest.mark.slow)], ids=str
)
def params(request):
    """The same model on each mesh, which stays set while that mesh's tests run."""
    mesh = request.param
    with jax.set_mesh(make_mesh(**mesh)) if mesh else contextlib.nullcontext():
        yield make_params()


def prefilled(params, lengths):
    """A cache with the first `lengths` tokens of each row, and padding after them."""
    cache = new_cache(CONFIG, len(lengths), jnp.float32, CONFIG.context)
    junk = np.where(np.arange(CONFIG.context) < lengths[:, None], TOKENS, 99)
    for begin in range(0, lengths.max(), CHUNK):
        chunk = junk[:, begin : begin + CHUNK]
        chunk = np.pad(chunk, [(0, 0), (0, CHUNK - chunk.shape[1])])
        start = np.full(len(lengths), begin, np.int32)
        cache = read(params, cache, chunk, start, CONFIG)[1]
    return cache


PROMPTS = ["", "a", "GPT-J " * 10, "x" * 64, "y" * 65, "the end" * 20, "¿é?", "z" * 157]


def naive(params, prompt: str, steps: int) -> list[int]:
    """Greedy tokens by running the whole model anew on a padded row for every token."""
    ids = BYTES.encode(prompt) or [BYTES.eos_id]
    start = len(ids)
    while len(ids) < min(start + steps, CONFIG.context):
        # One shape for every length, with rows that each mesh can split.
        row = np.pad(np.array(ids, np.int32), (0, CONFIG.context - len(ids)))
        all_logits = forward(params, place(np.tile(row, (4, 1)), "batch", None), CONFIG)
        token = int(np.asarray(all_logits)[0, len(ids) - 1, : CONFIG.vocab_size].argmax())
        if token == BYTES.eos_id:
            break
        ids.append(token)
    return ids[start:]


class TestOnEachMesh:
    def test_ragged_prompts_then_single_tokens_give_forwards_logits(self, params):
        expected = np.asarray(forward(params, place(TOKENS, "batch", None), CONFIG))[..., :257]
        rows = np.arange(len(LENGTHS))
        positions = LENGTHS - 1
        cache = prefilled(params, positions)
        for _ in range(STEPS):
            hidden, cache = read(params, cache, TOKENS[rows, positions][:, None], positions, CONFIG)
            found = np.asarray(logits(params, hidden, CONFIG))[:, 0, :257]
            np.testing.assert_allclose(found, expected[rows, positions], atol=1e-4, rtol=0)
            assert (found.argmax(-1) == expected[rows, positions].argmax(-1)).all()
            positions = positions + 1

    def test_a_chunk_in_the_middle_gives_forwards_logits(self, params):
        begin = np.array([3, 70, 0, 64, 17, 90, 1, 33], np.int32)
        cache = prefilled(params, begin)
        chunk = np.stack([row[at : at + 20] for row, at in zip(TOKENS, begin, strict=True)])
        hidden, _ = read(params, cache, chunk, begin, CONFIG)
        expected = np.asarray(forward(params, place(TOKENS, "batch", None), CONFIG))
        for row, at in enumerate(begin):
            found = np.asarray(logits(params, hidden, CONFIG))[row, :, :257]
            np.testing.assert_allclose(found, expected[row, at : at + 20, :257], atol=1e-4, rtol=0)

    def test_greedy_generation_is_the_naive_loop_over_forward(self, params):
        sampling = SamplingParams(temperature=0, max_tokens=12)
        engine = Engine(params, CONFIG, BYTES, EngineConfig(4, chunk=CHUNK))
        completions = engine.run([Request(prompt, sampling) for prompt in PROMPTS])
        for prompt, (completion,) in zip(PROMPTS, completions, strict=True):
            assert completion.tokens == naive(params, prompt, 12)


@pytest.mark.parametrize("mesh", MESHES[1:], ids=str)
def test_a_mesh_writes_the_same_text_as_one_device(mesh):
    def write():
        sampling = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=12, seed=4)
        engine = Engine(make_params(), CONFIG, BYTES, EngineConfig(4, chunk=CHUNK))
        return engine.run([Request(prompt, sampling) for prompt in PROMPTS])

    expected = write()
    with jax.set_mesh(make_mesh(**mesh)):
        assert write() == expected
