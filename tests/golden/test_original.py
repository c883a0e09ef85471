"""What the original code computed, recorded: every case in the folder GPTJ_GOLDEN must come out.

The folder's README is the specification of the format; where there is none, all this is skipped.
"""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gptj
from gptj import model
from gptj.attention import KEYS, cached_attention, causal_attention
from gptj.convert.convert import ConvertConfig, convert
from gptj.convert.inspect import diff
from gptj.convert.open import open_source
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Completion, Request, SamplingParams

GOLDEN = Path(os.environ.get("GPTJ_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
CASES = sorted(path.parent for path in GOLDEN.glob("*/config.json"))
CHECKPOINTS = sorted(path.parent for path in GOLDEN.glob("*/*/shard_0"))
BFLOAT16 = np.dtype(jnp.bfloat16)
CLOSE = 2e-5

if not CHECKPOINTS:
    pytest.skip(f"no golden data in {GOLDEN} (name its folder in GPTJ_GOLDEN)", True)

each_checkpoint = pytest.mark.parametrize(
    "folder", CHECKPOINTS, ids=lambda path: f"{path.parent.name}-{path.name}"
)


def evaluated(folder: Path) -> bool:
    """Whether the case's recorded evaluation is of these very weights, or of them unrounded."""
    exact = folder.name.endswith("slim") == folder.parent.name.endswith("bf16")
    return exact and (folder.parent / f"{folder.name.split('_')[0]}_eval.npz").is_file()


each_evaluated = pytest.mark.parametrize(
    "folder",
    [path for path in CHECKPOINTS if evaluated(path)],
    ids=lambda path: f"{path.parent.name}-{path.name}",
)


@functools.cache
def loaded(folder: Path) -> gptj.Model:
    return gptj.load(folder, dtype=jnp.float32)


def recorded(folder: Path):
    return np.load(folder.parent / f"{folder.name.split('_')[0]}_eval.npz")


def raw(folder: Path) -> dict[str, list[np.ndarray]]:
    """Each leaf's copies by the name that the recording gives it, its two bytes kept as bytes."""
    index = json.loads((folder / "index.json").read_text())
    shards = sorted(folder.glob("shard_*"), key=lambda path: int(path.name[6:]))
    return {
        leaf["name"]: [np.load(shard / leaf["file"])[leaf["key"]] for shard in shards]
        for leaf in index
    }


def test_every_case_has_a_checkpoint():
    assert {path.parent for path in CHECKPOINTS} == set(CASES)


@each_evaluated
def test_logits_and_losses_are_the_originals(folder):
    ours, data = loaded(folder), recorded(folder)
    inputs, targets = data["tokens"][:, :-1], data["tokens"][:, 1:]
    logits = np.asarray(ours.logits(inputs))
    np.testing.assert_allclose(logits, data["logits"], rtol=0, atol=CLOSE)
    nll = model.losses(ours.params, data["tokens"].astype(np.int32), ours.config)[1].nll
    np.testing.assert_allclose(nll, data["all_loss"], rtol=0, atol=CLOSE)
    np.testing.assert_allclose(np.mean(nll, axis=-1), data["loss"], rtol=0, atol=CLOSE)
    np.testing.assert_array_equal(logits.argmax(-1) == targets, data["correct"])


def streams(ours: gptj.Model, tokens: np.ndarray, attend=causal_attention) -> list[jax.Array]:
    """The embedding, and what each layer makes of it in turn."""
    made, positions = [model.embed(ours.params, tokens, jnp.float32)], jnp.arange(tokens.shape[1])
    for layer in range(ours.config.layers):
        own = jax.tree.map(lambda stacked, layer=layer: stacked[layer], ours.params.blocks)
        made.append(model.block(made[-1], own, ours.config, positions, attend))
    return made


@each_evaluated
def test_every_layer_is_the_originals(folder):
    ours, data = loaded(folder), recorded(folder)
    made = streams(ours, data["tokens"][:, :-1].astype(np.int32))
    np.testing.assert_allclose(np.stack(made, 1), data["hidden"], rtol=0, atol=CLOSE)


@each_evaluated
def test_with_keys_past_a_contexts_length_hidden_it_is_the_originals(folder):
    ours, data = loaded(folder), recorded(folder)
    inputs, targets = data["tokens"][:, :-1].astype(np.int32), data["tokens"][:, 1:]

    last_seen = np.minimum(np.arange(inputs.shape[1]), data["ctx_length"][:, None])

    def attend(query, key, value):
        # As of a cache: whole blocks of keys, those past the end never seen.
        pad = [(0, 0), (0, 0), (0, KEYS - key.shape[1]), (0, 0)]
        key, value = (jnp.pad(x.transpose(0, 2, 1, 3), pad) for x in (key, value))
        return cached_attention(query, jnp.asarray(last_seen, jnp.int32), lambda i: (key, value))

    assert (data["ctx_length"] < inputs.shape[1] - 1).any()  # something is hidden
    last = model.final_norm(ours.params, streams(ours, inputs, attend)[-1], ours.config)
    logits = model.logits(ours.params, last, ours.config)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    np.testing.assert_allclose(nll, data["ctx_all_loss"], rtol=0, atol=CLOSE)
    np.testing.assert_array_equal(np.argmax(logits, -1) == targets, data["ctx_correct"])


def written(folder: Path, count: int, **sampling) -> list[Completion]:
    """What our engine writes on the recorded prompts, greedily."""
    ours, data = loaded(folder), recorded(folder)
    prompts = [
        row[-int(length) :].tolist()
        for row, length in zip(data["gen_ctx"], data["gen_ctx_length"], strict=True)
    ]
    greedy = SamplingParams(temperature=0, max_tokens=count, logprobs=0, **sampling)
    engine = Engine(ours.params, ours.config, None, EngineConfig(slots=2, chunk=8))
    return [choices[0] for choices in engine.run([Request(p, greedy) for p in prompts])]


@each_evaluated
@pytest.mark.parametrize(("name", "sampling"), [("gen", {}), ("long_gen", {"overflow": "slide"})])
def test_greedy_generation_is_the_originals(folder, name, sampling):
    data = recorded(folder)
    tokens, logits = data[f"{name}_tokens"], data[f"{name}_logits"]
    found = written(folder, tokens.shape[1], **sampling)
    np.testing.assert_array_equal([each.tokens for each in found], tokens)
    expected = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    last = logits.shape[1]
    expected = np.take_along_axis(expected, tokens[:, -last:, None].astype(int), -1)[..., 0]
    own = [[token.logprob for token in each.logprobs[-last:]] for each in found]
    np.testing.assert_allclose(own, expected, rtol=0, atol=CLOSE)


@each_checkpoint
@pytest.mark.parametrize("by_way_of", ["gptj", None])
def test_written_back_it_is_equal_to_the_byte(folder, by_way_of, tmp_path):
    source = folder
    if by_way_of:
        source = tmp_path / "ours"
        convert(ConvertConfig(str(folder), source, by_way_of))
    shards = len(list(folder.glob("shard_*")))
    convert(ConvertConfig(str(source), tmp_path / "back", "mesh-transformer", shards=shards))
    files = sorted(path.relative_to(folder) for path in folder.glob("shard_*/*.npz"))
    assert len(files) == 16 * shards
    for name in files:
        theirs, ours = np.load(folder / name), np.load(tmp_path / "back" / name)
        assert ours.files == theirs.files
        for key in theirs.files:
            assert (ours[key].dtype, ours[key].shape) == (theirs[key].dtype, theirs[key].shape)
            assert ours[key].tobytes() == theirs[key].tobytes(), (name, key)


@each_checkpoint
def test_another_number_of_shards_holds_the_same_weights(folder, tmp_path):
    for shards in (1, 2):
        out = tmp_path / str(shards)
        convert(ConvertConfig(str(folder), out, "mesh-transformer", shards=shards))
        found = diff(open_source(folder), open_source(out))
        assert found.same_bits


@pytest.mark.parametrize(
    "folder",
    [path for path in CHECKPOINTS if path.name.endswith("full")],
    ids=lambda path: f"{path.parent.name}-{path.name}",
)
def test_the_optimizers_state_is_read_leaf_by_leaf(folder):
    source, leaves = open_source(folder), raw(folder)
    assert source.step == int(leaves["step"][0])
    assert int(source.optimizer["count"].read()) == int(leaves["opt_state/2/count"][0])
    assert int(source.optimizer["schedule_count"].read()) == int(leaves["opt_state/5/count"][0])
    root = "causal_transformer_shard/~"
    last = source.config.layers - 1
    for moment in ("mu", "nu"):
        found = {
            name.removeprefix(f"{moment}."): tensor.read()
            for name, tensor in source.optimizer.items()
            if name.startswith(f"{moment}.")
        }
        assert set(found) == set(source.weights)
        theirs = lambda name, moment=moment: leaves[f"opt_state/2/{moment}/{root}/{name}"]  # noqa: E731
        joined = lambda name, axis, theirs=theirs: np.concatenate(theirs(name), axis)  # noqa: E731
        layer = f"layer_{last}/~"
        whole = {
            "embedding": joined("embedding_shard/~/linear/w", 0),
            "embedding_bias": theirs("embedding_shard/~/linear/b")[0],
            f"blocks.{last}.query": joined(f"{layer}/linear/w", 1),
            f"blocks.{last}.value": joined(f"{layer}/linear_1/w", 1),
            f"blocks.{last}.key": joined(f"{layer}/linear_2/w", 1),
            f"blocks.{last}.attention_out": joined(f"{layer}/linear_3/w", 0),
            f"blocks.{last}.ffn_in": joined(f"{layer}/linear_4/w", 1),
            f"blocks.{last}.ffn_in_bias": joined(f"{layer}/linear_4/b", 0),
            f"blocks.{last}.ffn_out": joined(f"{layer}/linear_5/w", 0),
            f"blocks.{last}.ffn_out_bias": theirs(f"{layer}/linear_5/b")[0],
            f"blocks.{last}.norm_scale": theirs(f"{layer}/replicated_layer_norm/scale")[0],
            f"blocks.{last}.norm_offset": theirs(f"{layer}/replicated_layer_norm/offset")[0],
            "output": joined("projection_shard/~/linear/w", 1),
            "output_bias": joined("projection_shard/~/linear/b", 0),
            "norm_scale": theirs("projection_shard/~/replicated_layer_norm/scale")[0],
            "norm_offset": theirs("projection_shard/~/replicated_layer_norm/offset")[0],
        }
        for name, expected in whole.items():
            np.testing.assert_array_equal(found[name].reshape(expected.shape), expected, name)


@each_checkpoint
def test_a_mesh_gets_the_same_weights(folder):
    one = loaded(folder)
    with jax.set_mesh(gptj.make_mesh(2, 2, 2 if one.config.heads % 2 == 0 else 1)):
        many = gptj.load(folder, dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)
