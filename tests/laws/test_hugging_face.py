"""The law: the same weights give the logits, loss and gradients of transformers' GPT-J."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import model
from gptj.config import ModelConfig

torch = pytest.importorskip("torch", reason="torch is not installed (`make test` installs it)")
transformers = pytest.importorskip("transformers")

# layers, d_model, heads, rotary_dims, d_ff, vocabulary, positions
SIZES = [
    (1, 16, 1, 16, 64, 100, 32),
    (2, 64, 4, 8, 256, 257, 150),
    (3, 96, 3, 32, 100, 512, 64),
    (2, 128, 2, 64, 512, 300, 280),
    (4, 32, 8, 2, 128, 64, 20),
]


def build(size):
    """A random transformers model with weights larger than its initialiser's, and our config."""
    layers, d_model, heads, rotary_dims, d_ff, vocab, positions = size
    torch.manual_seed(sum(size))
    theirs = transformers.GPTJForCausalLM(
        transformers.GPTJConfig(
            vocab_size=vocab,
            n_positions=positions,
            n_embd=d_model,
            n_layer=layers,
            n_head=heads,
            rotary_dim=rotary_dims,
            n_inner=d_ff,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = ModelConfig(layers, d_model, heads, rotary_dims, d_ff, vocab, vocab, positions)
    return theirs, config


def to_ours(named, config):
    """Our tree from transformers' arrays by name: weights, or their gradients."""
    get = {name: value.detach().numpy() for name, value in named.items()}
    heads, d = (config.heads, config.d_head), config.d_model

    def stacked(name, change=lambda x: x):
        blocks = (f"transformer.h.{layer}.{name}" for layer in range(config.layers))
        return np.stack([change(get[block]) for block in blocks])

    def split_out(x):
        return x.T.reshape(d, *heads)

    return model.Params(
        embedding=get["transformer.wte.weight"],
        blocks=model.Block(
            norm_scale=stacked("ln_1.weight"),
            norm_offset=stacked("ln_1.bias"),
            query=stacked("attn.q_proj.weight", split_out),
            key=stacked("attn.k_proj.weight", split_out),
            value=stacked("attn.v_proj.weight", split_out),
            attention_out=stacked("attn.out_proj.weight", lambda x: x.T.reshape(*heads, d)),
            ffn_in=stacked("mlp.fc_in.weight", np.transpose),
            ffn_in_bias=stacked("mlp.fc_in.bias"),
            ffn_out=stacked("mlp.fc_out.weight", np.transpose),
            ffn_out_bias=stacked("mlp.fc_out.bias"),
        ),
        norm_scale=get["transformer.ln_f.weight"],
        norm_offset=get["transformer.ln_f.bias"],
        output=get["lm_head.weight"].T,
        output_bias=get["lm_head.bias"],
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_equal(size):
    theirs, config = build(size)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, config.context))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    params = to_ours(dict(theirs.named_parameters()), config)
    ours = jax.jit(model.forward, static_argnums=2)(params, tokens.astype(np.int32), config)
    assert ours.dtype == jnp.float32
    assert np.abs(np.asarray(ours) - expected).max() < 1e-4
    assert np.abs(expected).max() > 1  # far from the tolerance: the comparison means something


@pytest.mark.parametrize("size", SIZES[1:3], ids=str)
def test_loss_and_gradients_equal(size):
    theirs, config = build(size)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, config.context + 1))
    rows = torch.from_numpy(tokens)
    logits = theirs(rows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    expected.backward()
    gradients = to_ours({name: p.grad for name, p in theirs.named_parameters()}, config)
    params = to_ours(dict(theirs.named_parameters()), config)
    loss, ours = jax.jit(jax.value_and_grad(model.loss), static_argnums=2)(
        jax.tree.map(jnp.asarray, params), tokens.astype(np.int32), config
    )
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max()), ours, gradients
    )


def test_bfloat16_stays_near_float32():
    theirs, config = build(SIZES[1])
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 100), np.int32)
    params = to_ours(dict(theirs.named_parameters()), config)
    forward = jax.jit(model.forward, static_argnums=2, static_argnames="dtype")
    wide = np.asarray(forward(params, tokens, config))
    narrow = np.asarray(forward(params, tokens, config, dtype=jnp.bfloat16))
    assert narrow.dtype == np.float32
    assert 0 < np.abs(narrow - wide).max() < 0.05 * np.abs(wide).max()
