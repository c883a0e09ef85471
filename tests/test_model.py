"""The model's table of weights, its loss, and what it must not spend or count."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import cross_entropy, kernels, model
from gptj.adapters import LoRAConfig, init, joined
from gptj.attention import KEYS, cached_attention, causal_attention, rotary
from gptj.config import PRESETS, ModelConfig, preset
from gptj.cross_entropy import ZLoss
from gptj.errors import UserError
from gptj.flops import flops_per_token
from gptj.sharding import make_mesh

CONFIG = ModelConfig(2, 32, 4, 4, 64, 250, 256, 300)
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 290), np.int32)


@pytest.fixture(scope="module")
def params():
    return model.init(jax.random.key(0), CONFIG)


class TestWeights:
    def test_gpt_j_has_as_many_parameters_as_published(self):
        assert model.count_parameters(preset("gpt-j-6b")) == 6_050_882_784
        assert model.count_parameters(preset("gpt-j-6b"), original_shards=8) == 6_053_381_344

    @pytest.mark.parametrize(
        ("name", "billions"),
        [
            ("125m", 0.16),
            ("350m", 0.41),
            ("1.3b", 1.4),
            ("2.7b", 2.8),
            ("10b", 10.6),
            ("13b", 13.1),
            ("20b", 20.6),
            ("40b", 39.5),
        ],
    )
    def test_presets_are_the_size_they_say(self, name, billions):
        assert model.count_parameters(PRESETS[name]) / 1e9 == pytest.approx(billions, rel=0.03)

    def test_initial_weights_follow_the_table(self, params):
        def check(weight, array):
            assert array.shape == weight.shape
            assert array.dtype == jnp.float32
            if not weight.is_matrix:
                assert np.all(np.asarray(array) == weight.init)
            else:  # truncated at two deviations, which leaves 0.88 of one
                assert np.abs(array).max() <= 2 * weight.init
                assert np.std(array) == pytest.approx(0.88 * weight.init, rel=0.1)

        jax.tree.map(check, model.weights(CONFIG), params)

    def test_other_keys_give_other_weights(self, params):
        other = model.init(jax.random.key(1), CONFIG)
        assert np.any(np.asarray(params.blocks.query) != np.asarray(other.blocks.query))
        assert np.any(np.asarray(params.blocks.query) != np.asarray(params.blocks.key))

    def test_abstract_shapes_are_the_real_ones(self, params):
        for mesh in ((1, 1, 1), (2, 2, 2)):
            with jax.set_mesh(make_mesh(*mesh)):
                real, shapes = model.init(jax.random.key(0), CONFIG), model.abstract(CONFIG)
            describe = lambda x: (x.shape, x.dtype, x.sharding)  # noqa: E731
            assert jax.tree.map(describe, real) == jax.tree.map(describe, shapes)


def plain_loss(params, tokens, z_loss=0.0):
    """The definition, on all logits at once."""
    logits = model.forward(params, tokens[:, :-1], CONFIG)[..., : CONFIG.vocab_size]
    log_total = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(log_total - target + z_loss * log_total**2)


class TestLoss:
    @pytest.mark.parametrize("length", [2, 100, 129, 290])
    @pytest.mark.parametrize("z_loss", [0.0, 0.1])
    def test_it_is_the_mean_cross_entropy_and_so_is_its_gradient(self, params, length, z_loss):
        tokens = TOKENS[:, :length]
        ours = jax.value_and_grad(model.loss)(params, tokens, CONFIG, z_loss=ZLoss(z_loss))
        expected = jax.value_and_grad(plain_loss)(params, tokens, z_loss)
        assert float(ours[0]) == pytest.approx(float(expected[0]), rel=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
            ours[1],
            expected[1],
        )

    def test_padding_rows_of_the_vocabulary_count_nothing(self, params):
        bias = params.output_bias.at[CONFIG.vocab_size :].set(50.0)
        loud = dataclasses.replace(params, output_bias=bias)
        loss, gradient = jax.value_and_grad(model.loss)(loud, TOKENS, CONFIG)
        assert float(loss) == pytest.approx(float(model.loss(params, TOKENS, CONFIG)), rel=1e-6)
        assert not np.any(gradient.output_bias[CONFIG.vocab_size :])
        assert not np.any(gradient.output[:, CONFIG.vocab_size :])

    def test_weights_choose_what_counts(self, params):
        weights = np.zeros((2, 289), np.float32)
        weights[0, 10:20] = 0.1
        loss, (nll, _) = model.losses(params, TOKENS, CONFIG, weights=jnp.asarray(weights))
        assert float(loss) == pytest.approx(float(nll[0, 10:20].mean()), rel=1e-5)
        gradient = jax.grad(lambda p: model.loss(p, TOKENS, CONFIG, weights=jnp.asarray(weights)))
        unseen = set(range(CONFIG.vocab_size)) - set(TOKENS[0, :20].tolist())
        assert not np.any(np.asarray(gradient(params).embedding)[sorted(unseen)])

    def test_the_z_loss_is_of_each_tokens_normaliser(self, params):
        loss, (nll, z_loss) = model.losses(
            params, TOKENS, CONFIG, z_loss=cross_entropy.ZLoss(weight=1e-3)
        )
        logits = model.forward(params, TOKENS[:, :-1], CONFIG)[..., : CONFIG.vocab_size]
        expected = 1e-3 * np.square(jax.nn.logsumexp(logits, axis=-1))
        np.testing.assert_allclose(z_loss, expected, rtol=1e-5)
        assert float(loss) == pytest.approx(float(np.mean(nll + z_loss)), rel=1e-6)

    def test_an_untrained_model_knows_nothing(self, params):
        loss = float(model.loss(params, TOKENS, CONFIG))
        spread = 0.88**2 / 2  # the initial logits have standard deviation 0.88
        assert loss == pytest.approx(math.log(CONFIG.vocab_size) + spread, rel=0.05)

    def test_gpt_j_size_loss_needs_little_memory(self):
        """One sequence of 2,048 at GPT-J's shapes: 413 MB a copy of the logits, never held."""
        config = preset("gpt-j-6b")
        d, v, length = config.d_model, config.padded_vocab_size, config.context
        f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def objective(hidden, output, bias, targets, weights):
            return cross_entropy.linear_cross_entropy(
                hidden, output, bias, targets, weights, config.vocab_size
            )[0]

        shapes = (f32(1, length, d), f32(d, v), f32(v), ids, f32(1, length))
        program = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2)))
        memory = program.lower(*shapes).compile().memory_analysis()

        temporary = memory.temp_size_in_bytes  # the gradients themselves are outputs
        assert temporary < 300 * 2**20


class TestRematerialisation:
    @pytest.mark.parametrize("remat", ["dots", "block", "offload"])
    def test_it_changes_no_gradient(self, params, remat):
        expected = jax.grad(model.loss)(params, TOKENS, CONFIG)
        ours = jax.grad(model.loss)(params, TOKENS, CONFIG, remat=remat)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
            ours,
            expected,
        )

    @pytest.mark.parametrize("lora", [None, LoRAConfig(2)], ids=["whole", "adapters"])
    def test_it_saves_memory(self, lora):
        deep = dataclasses.replace(CONFIG, layers=16)
        params = model.abstract(deep)
        trained = (
            params if lora is None else jax.eval_shape(lambda: init(jax.random.key(0), deep, lora))
        )

        def temporary(remat):
            def loss(trained, params):
                whole = trained if lora is None else joined(params, trained, deep, lora)
                return model.loss(whole, TOKENS, deep, remat=remat)

            program = jax.jit(jax.grad(loss)).lower(trained, params).compile()
            return program.memory_analysis().temp_size_in_bytes

        none, dots, block = map(temporary, ("none", "dots", "block"))
        assert block < dots < none
        assert block < 0.5 * none

    def test_an_unknown_policy_is_named(self, params):
        with pytest.raises(
            UserError, match=r"remat='all' is not one of none, dots, block, offload"
        ):
            model.loss(params, TOKENS, CONFIG, remat="all")

    def test_offloading_wants_memory_to_offload_to(self, params, monkeypatch):
        memory = SimpleNamespace(kind="device")
        device = SimpleNamespace(addressable_memories=lambda: [memory])
        monkeypatch.setattr(model.jax, "devices", lambda: [device])
        with pytest.raises(
            UserError, match=r"offload needs devices with pinned_host .* device: use"
        ):
            model.loss(params, TOKENS, CONFIG, remat="offload")


class TestAttention:
    Q, K, V = np.random.default_rng(1).standard_normal((3, 2, 300, 4, 16)).astype(np.float32)

    def test_it_is_the_softmax_over_what_came_before(self):
        scores = np.einsum("bqhd,bkhd->bhqk", self.Q, self.K) / 4
        scores = np.where(np.tril(np.ones((300, 300), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        expected = np.einsum("bhqk,bkhd->bqhd", weights, self.V)
        np.testing.assert_allclose(causal_attention(self.Q, self.K, self.V), expected, atol=1e-5)

    def test_a_cache_read_from_any_place_gives_the_same(self):
        whole = causal_attention(self.Q, self.K, self.V)
        last_seen = jnp.array([[17], [200]]) + jnp.arange(50)
        rows = [self.Q[row, begin : begin + 50] for row, begin in enumerate((17, 200))]
        pad = [(0, 0), (0, 0), (0, -self.K.shape[1] % KEYS), (0, 0)]
        keys, values = (jnp.pad(x.transpose(0, 2, 1, 3), pad) for x in (self.K, self.V))

        def read(index):
            return tuple(
                jax.lax.dynamic_slice_in_dim(x, index * KEYS, KEYS, 2) for x in (keys, values)
            )

        ours = cached_attention(jnp.stack(rows), last_seen, read)
        for row, begin in enumerate((17, 200)):
            np.testing.assert_allclose(ours[row], whole[row, begin : begin + 50], atol=1e-5)

    def test_rotation_depends_on_the_distance_only(self):
        def scores(shift):
            positions = jnp.arange(20) + shift
            query, key = (rotary(x[:, :20], positions, 8, 1e4) for x in (self.Q, self.K))
            return jnp.einsum("bqhd,bkhd->bhqk", query, key)

        np.testing.assert_allclose(scores(0), scores(1000), atol=2e-3)
        turned = rotary(self.Q[:, :20], jnp.arange(20), 8, 1e4)
        np.testing.assert_array_equal(turned[..., 8:], self.Q[:, :20, :, 8:])
        np.testing.assert_array_equal(turned[:, 0], self.Q[:, 0])

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("dims", [0, 6, 8, 16])
    def test_it_is_the_rotation_of_pairs_and_its_gradient_is_autodiff_s(self, dtype, dims):
        x, pull = self.Q[:, :20].astype(dtype), self.K[:, :20].astype(dtype)

        def by_pairs(x):
            angles = jnp.arange(20.0)[:, None, None] * 1e4 ** (-jnp.arange(0, dims, 2) / dims)
            sin, cos = jnp.sin(angles).astype(dtype), jnp.cos(angles).astype(dtype)
            even, odd = x[..., 0:dims:2], x[..., 1:dims:2]
            both = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
            return jnp.concatenate([both.reshape(*x.shape[:-1], dims), x[..., dims:]], axis=-1)

        def with_gradient(turn):
            return jax.jit(lambda x: (turn(x), *jax.vjp(turn, x)[1](pull)))(x)

        ours = with_gradient(lambda x: rotary(x, jnp.arange(20), dims, 1e4))
        for found, expected in zip(ours, with_gradient(by_pairs), strict=True):
            assert found.dtype == dtype
            rounding = 1e-6 if dtype == "float32" else 2**-7
            np.testing.assert_allclose(
                found.astype(jnp.float32),
                expected.astype(jnp.float32),
                rtol=rounding,
                atol=rounding,
            )


def test_training_flops_are_those_of_the_compiled_products(monkeypatch):
    """Six per weight and token, and the causal half of attention: the count XLA itself makes of
    the forward pass, times three, on a model without attention blocks to skip."""
    monkeypatch.setattr(kernels, "available", lambda: False)  # whose work XLA cannot count
    config = ModelConfig(1, 64, 1, 8, 256, 512, 512, 128)
    tokens = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    forward = jax.jit(lambda params, tokens: model.forward(params, tokens, config))
    cost = forward.lower(model.abstract(config), tokens).compile().cost_analysis()
    square = 4 * config.d_model * 128 * 128  # the whole square here; the formula counts half
    expected = flops_per_token(config, 128) * 128 / 3 + square / 2
    assert cost["flops"] == pytest.approx(expected, rel=0.05)
