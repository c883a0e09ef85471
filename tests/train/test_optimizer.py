"""Every optimizer's settings, its schedule, and one update of each against its definition."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import model
from gptj.adapters import LoRAConfig, trained
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.train.optimizer import (
    OptimizerConfig,
    _clip,
    copies,
    current_lr,
    global_norm,
    make_optimizer,
    schedule,
)

MODEL = ModelConfig(1, 8, 2, 2, 12, 30, 32, 16, embedding_bias=True)
ORIGINAL = "gptj-2021"
DRAW = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda weight: DRAW.normal(size=weight.shape).astype(np.float32), model.weights(MODEL)
)


def ready(kind="adamw", **changes) -> OptimizerConfig:
    """At a rate of 1 from the first step on, with a quarter of decay and nothing to clip."""
    plain = {"lr": 1.0, "end_lr": 1.0, "warmup_steps": 0, "weight_decay": 0.25, "clip": 1e9}
    return OptimizerConfig(kind, **plain | changes).for_run(10)


UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiled in a third of the time, and run once."""


@functools.cache
def compiled(config: OptimizerConfig):
    optimizer = make_optimizer(config, MODEL)
    return optimizer.init, jax.jit(optimizer.update, compiler_options=UNOPTIMISED)


def update(config, *gradients):
    """What the last of some gradients makes of the weights, but for decay; the state after it."""
    init, step = compiled(config)
    state = init(PARAMS)
    for gradient in gradients:
        updates, state = step(gradient, state, PARAMS)
    decay = jax.tree.map(
        lambda weight, p: config.weight_decay * p * weight.is_matrix, model.weights(MODEL), PARAMS
    )
    return jax.tree.map(np.add, updates, decay), state


def norm(gradient, config: OptimizerConfig) -> float:
    how = jax.jit(global_norm, static_argnums=(1, 2), compiler_options=UNOPTIMISED)
    return float(how(gradient, config, MODEL))


def constant(value: float):
    return jax.tree.map(lambda x: np.full_like(x, value), PARAMS)


class TestDefaults:
    @pytest.mark.parametrize(
        ("kind", "b1", "b2", "shards"),
        [
            ("adamw", 0.9, 0.95, None),
            ("lion", 0.9, 0.99, None),
            ("muon", 0.9, 0.95, None),
            ("adafactor", None, None, None),
            (ORIGINAL, 0.9, 0.999, 8),
        ],
    )
    def test_they_are_filled_in_by_kind(self, kind, b1, b2, shards):
        config = OptimizerConfig(kind, warmup_steps=30).for_run(100)
        assert (config.b1, config.b2, config.original_shards) == (b1, b2, shards)
        assert config.anneal_steps == 70
        assert config.for_run(5000) == config  # they do not change once they are there

    @pytest.mark.parametrize("kind", ["adamw", "lion", "muon", ORIGINAL])
    def test_what_is_given_stays(self, kind):
        given_ = {"b1": 0.0, "b2": 0.5, "anneal_steps": 7, "warmup_steps": 0}
        more = {"original_shards": 1} if kind == ORIGINAL else {}
        config = OptimizerConfig(kind, **given_, **more)
        assert config.for_run(100) == config

    @pytest.mark.parametrize(("warmup", "steps"), [(10, 10), (11, 10), (1, 1)])
    def test_a_warm_up_as_long_as_the_run_leaves_nothing(self, warmup, steps):
        said = f"warmup_steps={warmup} leaves nothing of the run's {steps} steps: lower the warm-up"
        with pytest.raises(UserError, match=said):
            OptimizerConfig(warmup_steps=warmup).for_run(steps)
        assert OptimizerConfig(warmup_steps=warmup).for_run(warmup + 1).anneal_steps == 1


class TestSettings:
    @pytest.mark.parametrize(
        "changes",
        [
            {"end_lr": 0.0},
            {"lr": 6e-5},  # as end_lr
            {"b1": 0.0, "b2": 0.0},
            {"weight_decay": 0.0},
            {"anneal_steps": 1},
            {"kind": "muon", "eps": 1e-6},
            {"moments": "bfloat16", "b2": 0.99},
            {"kind": "lion", "moments": "bfloat16", "b2": 0.999},  # whose mean moves further
            {"kind": ORIGINAL, "original_shards": 1},
        ],
        ids=str,
    )
    def test_the_last_that_is_possible(self, changes):
        assert OptimizerConfig(**changes)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"lr": -1.0}, "lr=-1.0 must be above 0"),
            ({"end_lr": -1e-9}, "end_lr=-1e-09 between 0 and lr"),
            ({"b1": 1.0}, "b1=1.0 must be at least 0 and below 1"),
            ({"b1": -0.1}, "b1=-0.1 must be at least 0 and below 1"),
            ({"b2": math.nan}, "b2=nan must be at least 0 and below 1"),
            ({"clip": math.nan}, "clip=nan must be above 0"),
            ({"eps": 0.0}, "eps=0.0 must be above 0"),
            ({"weight_decay": math.nan}, "weight_decay=nan must be at least 0"),
            *(
                ({"kind": kind, "eps": 1e-6}, f"optimizer={kind} has no eps=1e-06: leave it out")
                for kind in ("adafactor", "lion")
            ),
            ({"kind": "adafactor", "b1": 0.9}, "optimizer=adafactor has no b1 and b2: leave them"),
            ({"kind": ORIGINAL, "moments": "bfloat16"}, f"optimizer={ORIGINAL} has no moments="),
            ({"moments": "bfloat16", "b2": 0.991}, "Lower b2 to 0.99 or less"),
            ({"kind": "lion", "original_shards": 2}, f"add --optimizer {ORIGINAL}, or leave it"),
            ({"kind": ORIGINAL, "original_shards": -1}, "original_shards=-1 must be at least 1"),
        ],
        ids=str,
    )
    def test_the_first_that_is_not(self, changes, said):
        with pytest.raises(UserError) as failure:
            OptimizerConfig(**changes)
        assert said in str(failure.value)


class TestSchedule:
    def test_without_a_warm_up_it_begins_at_its_peak(self):
        config = OptimizerConfig(lr=4.0, end_lr=2.0, warmup_steps=0, anneal_steps=4)
        rates = [float(schedule(config)(step)) for step in range(6)]
        halfway = math.sqrt(2) / 2  # the cosine of an eighth of a turn
        assert rates == pytest.approx([4, 3 + halfway, 3, 3 - halfway, 2, 2], abs=1e-6)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 20), st.integers(1, 50), st.floats(0, 1))
    def test_it_rises_to_the_peak_falls_to_the_end_and_stays(self, warmup, anneal, end):
        config = OptimizerConfig(lr=1.0, end_lr=end, warmup_steps=warmup, anneal_steps=anneal)
        rate = np.array(schedule(config)(jnp.arange(80)))
        assert (np.diff(rate[: warmup + 1]) > 0).all()
        assert rate[warmup] == pytest.approx(1.0)
        assert (np.diff(rate[warmup:]) <= 1e-6).all()
        assert rate[warmup + anneal :] == pytest.approx(np.float32(end), abs=1e-6)

    def test_looked_for_it_grows_by_one_factor_and_reaches_its_peak_with_the_last_step(self):
        config = OptimizerConfig(lr=8.0, end_lr=8.0, warmup_steps=0, anneal_steps=4, grows_from=1.0)
        assert [float(schedule(config)(step)) for step in range(4)] == pytest.approx([1, 2, 4, 8])

    def test_the_rate_that_is_told_is_that_of_the_next_update(self):
        config, adam = ready(end_lr=0.0, warmup_steps=2), optax.ScaleByAdamState(9, None, None)
        counted = ((adam, optax.ScaleByScheduleState(jnp.int32(n))) for n in range(4))
        told = [float(current_lr(config, state)) for state in counted]
        assert told == pytest.approx([0, 0.5, 1, (1 + math.cos(math.pi / 8)) / 2])


KINDS = pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor", "muon", ORIGINAL])


class TestUpdates:
    @KINDS
    def test_only_matrices_decay_by_the_rate_times_the_share(self, kind):
        """`update` adds what it should be, so that nothing is left."""
        updates, _ = update(ready(kind), constant(0.0))
        jax.tree.map(lambda u: np.testing.assert_allclose(u, 0 * u, atol=1e-6), updates)

    @KINDS
    def test_each_goes_down_and_as_far_up(self, kind):
        down, _ = update(ready(kind), constant(1.0))
        up, _ = update(ready(kind), constant(-1.0))
        assert max(leaf.max() for leaf in jax.tree.leaves(down)) < -0.02
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, atol=1e-5), down, up)

    def test_lion_goes_by_the_sign_of_its_mean(self):
        # The mean is 0.01, then 0.9 * 0.01 + 0.1 * -0.08 is still above 0.
        updates, _ = update(ready("lion"), constant(1.0), constant(-0.08))
        jax.tree.map(lambda u: np.testing.assert_allclose(u, -1, atol=1e-5), updates)
        updates, _ = update(ready("lion"), constant(1.0), constant(-0.1))
        jax.tree.map(lambda u: np.testing.assert_allclose(u, 1, atol=1e-5), updates)

    def test_muon_has_the_layers_matrices_and_adam_the_rest(self):
        shapes = {"query": (8, 8), "attention_out": (8, 8), "ffn_in": (8, 12), "ffn_out": (12, 8)}

        def uneven(rows, columns):
            """A matrix some of whose directions count three times as much as others."""
            left, _, right = np.linalg.svd(DRAW.normal(size=(rows, columns)), full_matrices=False)
            return (left * np.linspace(1, 3, 8)) @ right

        layers = {name: uneven(*shape)[None] for name, shape in shapes.items()}
        blocks = {k: v.reshape(getattr(PARAMS.blocks, k).shape) for k, v in layers.items()}
        gradient = dataclasses.replace(PARAMS, blocks=dataclasses.replace(PARAMS.blocks, **blocks))
        updates, _ = update(ready("muon"), jax.tree.map(np.float32, gradient))
        far = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # the first step of Adam with Nesterov's momentum
        for name in ("embedding", "output", "output_bias"):
            step = -far * np.sign(getattr(gradient, name))
            np.testing.assert_allclose(getattr(updates, name), step, atol=1e-3)
        for name, shape in shapes.items():  # its iteration brings all of them to about 1
            matrix = np.asarray(getattr(updates.blocks, name)).reshape(shape)
            singular = np.linalg.svd(matrix, compute_uv=False)
            np.testing.assert_allclose(singular / (0.2 * math.sqrt(max(shape))), 1, atol=0.35)

    def test_adafactors_step_has_a_root_mean_square_of_at_most_1(self):
        updates, _ = update(ready("adafactor"), constant(1.0), constant(100.0))
        for leaf in jax.tree.leaves(updates):
            assert np.sqrt(np.mean(leaf**2)) == pytest.approx(1)  # it would be more

    def test_means_in_bfloat16_are_close_and_counters_stay_whole(self):
        gradients = constant(0.3), constant(0.4)
        exact, _ = update(ready(), *gradients)
        ours, state = update(ready(moments="bfloat16"), *gradients)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02), ours, exact)
        counts = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == ()]
        assert {(str(leaf.dtype), int(leaf)) for leaf in counts} == {("int32", 2)}

    @pytest.mark.parametrize(
        ("kind", "dtypes"),
        [("adamw", {"bfloat16"}), ("lion", {"bfloat16"}), ("muon", {"bfloat16", "float32"})],
    )
    def test_what_is_kept_in_bfloat16(self, kind, dtypes):
        init = make_optimizer(ready(kind, moments="bfloat16"), MODEL).init
        kept = [leaf for leaf in jax.tree.leaves(jax.eval_shape(init, PARAMS)) if leaf.shape]
        assert {str(leaf.dtype) for leaf in kept} == dtypes


class TestTheOriginal:
    def test_it_counts_the_biases_that_it_kept_on_every_shard(self):
        found = copies(OptimizerConfig(ORIGINAL).for_run(1000), MODEL)
        often = {"embedding_bias", "ffn_out_bias"}
        by_name = {**vars(found), **vars(found.blocks)}
        del by_name["blocks"]
        assert {name: count for name, count in by_name.items() if count != 1} == dict.fromkeys(
            often, 8
        )

    def test_its_norm_counts_each_copy(self):
        ones = constant(1.0)
        count = sum(leaf.size for leaf in jax.tree.leaves(ones))
        config = ready(ORIGINAL, original_shards=4)
        # Two vectors of 8 numbers count four times, three times more than elsewhere.
        assert norm(ones, config) ** 2 == pytest.approx(count + 3 * 16)
        assert norm(ones, ready()) ** 2 == pytest.approx(count)

    def test_each_copy_makes_the_whole_step(self):
        updates, _ = update(ready(ORIGINAL), constant(1.0))
        assert float(updates.embedding_bias[0]) == pytest.approx(-8, rel=1e-5)
        assert float(updates.blocks.ffn_out_bias[0, 0]) == pytest.approx(-8, rel=1e-5)
        assert float(updates.output_bias[0]) == pytest.approx(-1, rel=1e-5)

    @pytest.mark.parametrize(("clip", "share"), [(0.5, 0.5), (2.0, 1.0)])
    def test_a_gradient_is_scaled_down_to_the_clip_and_never_up(self, clip, share):
        config = ready(ORIGINAL, clip=clip)
        often = norm(constant(1.0), config)
        step = jax.jit(_clip(config, MODEL).update, compiler_options=UNOPTIMISED)
        clipped, _ = step(constant(1 / often), optax.EmptyState())
        found = [np.asarray(leaf).min() for leaf in jax.tree.leaves(clipped)]
        assert found == pytest.approx([share / often] * len(found))


def test_adapters_have_moments_of_their_own_shapes_and_all_decay():
    lora = LoRAConfig(rank=2, targets=("q", "ffn_out"))
    params = jax.tree.map(lambda weight: jnp.ones(weight.shape), trained(MODEL, lora))
    optimizer = make_optimizer(ready(weight_decay=0.5), MODEL, lora)
    zero = jax.tree.map(jnp.zeros_like, params)
    step = jax.jit(optimizer.update, compiler_options=UNOPTIMISED)
    updates, state = step(zero, optimizer.init(params), params)
    assert {float(leaf.min()) for leaf in jax.tree.leaves(updates)} == {-0.5}
    (adam,) = (part for part in state if isinstance(part, optax.ScaleByAdamState))
    assert jax.tree.map(jnp.shape, adam.mu) == jax.tree.map(jnp.shape, params)
