"""A run that begins from a model: with its optimizer's state it goes on, without it starts anew."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gptj
from gptj.convert import names
from gptj.convert.convert import write
from gptj.convert.open import open_source
from gptj.convert.source import COUNT, MU, NU, SCHEDULE_COUNT, from_params
from gptj.convert.tensor import Tensor
from gptj.data.batches import TrainBatches
from gptj.data.mixture import Mixture
from gptj.train.config import TrainConfig
from gptj.train.loop import train
from gptj.train.lr_find import LrFindConfig, lr_find
from gptj.train.optimizer import OptimizerConfig
from gptj.train.start import state_of
from gptj.train.step import StepConfig, mean_gradient

CONFIG = gptj.ModelConfig(2, 32, 4, 4, 64, 257, 264, 32, embedding_bias=True)
STEP, SCHEDULED = 100, 7
OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_steps=10, anneal_steps=1000, b2=0.999).for_run(2000)


def held(array) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)


@pytest.fixture(scope="module")
def params():
    return gptj.init(jax.random.key(1), CONFIG)


@pytest.fixture(scope="module")
def full(params, tmp_path_factory):
    """A checkpoint of the original's kind, stopped after step 100, with moments of its own."""
    draw = np.random.default_rng(0)
    moments = {
        prefix + name: held(draw.uniform(1e-6, 1e-5, weight.shape).astype(np.float32))
        for prefix in (MU, NU)
        for name, weight in names.tensors(CONFIG).items()
    }
    counts = {COUNT: held(np.int32(STEP)), SCHEDULE_COUNT: held(np.int32(SCHEDULED))}
    source = from_params(CONFIG, params, gptj.Tokenizer.bytes())
    out = tmp_path_factory.mktemp("full") / "step_100"
    source = dataclasses.replace(source, step=STEP, optimizer={**moments, **counts})
    write(source, out, "mesh-transformer", 4)
    return out


def test_moments_counters_and_step_arrive_leaf_by_leaf(full):
    source = open_source(full)
    for mesh in (None, (2, 2, 2)):
        with jax.set_mesh(gptj.make_mesh(*mesh)) if mesh else jax.default_device(None):
            state = state_of(source, OPTIMIZER)
        adam, schedule = state.opt_state[1], state.opt_state[3]
        assert (int(state.step), int(adam.count), int(schedule.count)) == (STEP, STEP, SCHEDULED)
        for prefix, tree in ((MU, adam.mu), (NU, adam.nu)):
            for name, (leaf, layer) in names.by_name(tree, CONFIG.layers).items():
                ours = leaf[layer] if name.startswith("blocks.") else leaf
                np.testing.assert_array_equal(ours, source.optimizer[prefix + name].read())


def test_moments_may_be_kept_in_bfloat16(full):
    narrow = dataclasses.replace(OPTIMIZER, moments="bfloat16", b2=0.95)
    adam = state_of(open_source(full), narrow).opt_state[1]
    exact = state_of(open_source(full), OPTIMIZER).opt_state[1]
    for ours, theirs in ((adam.mu, exact.mu), (adam.nu, exact.nu)):
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), ours, theirs
        )


@pytest.mark.parametrize("kind", ["lion", "muon", "adafactor"])
def test_another_optimizer_cannot_go_on_from_adams_moments(full, kind):
    with pytest.raises(gptj.UserError, match=f"Adam's moments, which optimizer={kind} cannot"):
        state_of(open_source(full), OptimizerConfig(kind).for_run(1000))


@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_what_is_to_be_fresh_leaves_them_behind(full, params, kind):
    optimizer = OptimizerConfig(kind).for_run(1000)
    state = state_of(open_source(full), optimizer, fresh=True)
    assert int(state.step) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, state.params, params)


def test_a_learning_rate_is_looked_for_from_the_first_step_on(full, tiny_data):
    options = {"lowest": 1e-5, "highest": 1e-4, "steps": 10, "seq": 16, "batch": 2}
    found = lr_find(LrFindConfig(tiny_data, from_=str(full), **options))
    assert found.rates[0] == pytest.approx(1e-5)
    assert found.rates[-1] == pytest.approx(1e-4)


def test_fresh_without_a_model_to_start_from_is_refused(tiny_data, tmp_path):
    with pytest.raises(gptj.UserError, match="fresh_opt is of a model to start from: name it with"):
        TrainConfig(tiny_data, tmp_path / "run", fresh_opt=True)


def config(data, out, start, steps, **more) -> TrainConfig:
    return TrainConfig(
        data, out, from_=str(start), steps=steps, seq=16, batch=4, optimizer=OPTIMIZER, **more
    )


def test_training_goes_on_from_them(full, params, tiny_data, tmp_path):
    """One more step moves each moment by the gradient of the next rows, by Adam's definition."""
    result = train(config(tiny_data, tmp_path / "run", full, STEP + 1))
    assert result.step == STEP + 1
    rows = TrainBatches(Mixture.open(tiny_data), 16, 4, 0).batch(STEP)
    _, gradient, _ = mean_gradient(params, jnp.asarray(rows)[None], CONFIG, OPTIMIZER, StepConfig())
    norm = optax.tree.norm(gradient)
    gradient = jax.tree.map(lambda g: g / jnp.maximum(1, norm), gradient)
    before = state_of(open_source(full), OPTIMIZER).opt_state[1]
    count = STEP + 1
    mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, before.mu, gradient)
    nu = jax.tree.map(lambda n, g: 0.999 * n + 0.001 * g * g, before.nu, gradient)
    lr = OPTIMIZER.lr * SCHEDULED / OPTIMIZER.warmup_steps

    def moved(p, m, n, weight):
        update = m / (1 - 0.9**count) / (jnp.sqrt(n / (1 - 0.999**count)) + 1e-8)
        return p - lr * (update + 0.1 * p * weight.is_matrix)

    expected = jax.tree.map(moved, params, mu, nu, gptj.model.weights(CONFIG))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
        result.params,
        expected,
    )
    again = train(config(tiny_data, tmp_path / "run", full, STEP + 1))
    assert again.loss is None  # nothing to do: the run's own checkpoint counts, not the start


def test_a_stopped_run_goes_on_from_its_own_checkpoint(full, tiny_data, tmp_path):
    full = shutil.copytree(full, tmp_path / "full")
    whole = train(config(tiny_data, tmp_path / "whole", full, STEP + 4))
    part = dataclasses.replace(config(tiny_data, tmp_path / "part", full, STEP + 2))
    train(part)
    shutil.rmtree(full)  # the run no longer needs what it started from
    resumed = train(dataclasses.replace(part, steps=STEP + 4))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_without_an_optimizer_it_starts_anew(params, tiny_data, tmp_path):
    gptj.Model(CONFIG, params, gptj.Tokenizer.bytes()).save(tmp_path / "model")
    first = state_of(open_source(tmp_path / "model"), OPTIMIZER)
    assert int(first.step) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(first.opt_state))
    jax.tree.map(np.testing.assert_array_equal, first.params, params)
    result = train(config(tiny_data, tmp_path / "run", tmp_path / "model", 11))
    assert result.step == 11


def test_a_model_with_another_tokenizer_is_refused(params, tiny_text, tiny_data, tmp_path):
    text = tiny_text.read_text()
    other = gptj.Tokenizer.train([text], 260)
    bigger = dataclasses.replace(CONFIG, vocab_size=264)
    gptj.Model(bigger, params, other).save(tmp_path / "model")
    with pytest.raises(gptj.UserError, match="another tokenizer than that of"):
        train(config(tiny_data, tmp_path / "run", tmp_path / "model", 11))
    assert not (tmp_path / "run").exists()


def test_a_shape_beside_a_start_is_refused(refused, train_flags, tiny_run, tmp_path):
    flags = train_flags(tmp_path / "run")
    refused("train", *flags, "--from", tiny_run, said=("leave out model",))
