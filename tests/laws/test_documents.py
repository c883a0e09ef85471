"""Documents that are isolated are read as if each stood alone, on every mesh."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj import model
from gptj.attention import causal_attention, document_ends
from gptj.config import ModelConfig
from gptj.data.batches import TrainBatches
from gptj.data.examples import ExampleConfig
from gptj.data.mixture import Mixture
from gptj.data.prepare import PrepareConfig, prepare
from gptj.data.store import ids_of
from gptj.sharding import make_mesh, place
from gptj.train import objective
from gptj.train.objective import StepConfig, attend_in, learnt

CONFIG = ModelConfig(2, 64, 4, 16, 128, 100, 128, 64)
EOS, LENGTH = 7, 48
APART = StepConfig(isolate=True, end_of_text=EOS)
DRAW = np.random.default_rng(0)


def rows(count: int = 8) -> np.ndarray:
    """Rows of several documents, each begun by an end-of-text but where it goes on from before."""
    found = DRAW.integers(8, 100, (count, LENGTH + 1))
    found[DRAW.random(found.shape) < 0.1] = EOS
    return found


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def token_losses(params, tokens, config, compute):
    return model.losses(params, tokens, config, attend=attend_in(tokens, compute))


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3))
@settings(deadline=None)
def test_ends_are_where_the_next_document_begins(begins):
    tokens = jnp.where(jnp.array(begins), EOS, 1)
    found = document_ends(tokens == EOS).tolist()
    for row, ends in zip(begins, found, strict=True):
        for place_, end in enumerate(ends):
            later = [n for n in range(place_ + 1, 5) if row[n]]
            assert end == (later[0] if later else 5)


@pytest.mark.parametrize("mesh", [None, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 4}])
def test_each_is_read_as_if_alone(mesh):
    params = model.init(jax.random.key(0), CONFIG)
    tokens = rows()
    alone = []
    for row in tokens:
        starts = [0, *(np.flatnonzero(row[1:-1] == EOS) + 1), LENGTH]
        for start, end in itertools.pairwise(starts):
            part = np.full((1, LENGTH + 1), EOS)  # padded behind, which nothing before sees
            part[0, : end - start + 1] = row[start : end + 1]
            _, (nll, _) = token_losses(params, jnp.asarray(part), CONFIG, StepConfig())
            alone.append(np.asarray(nll)[0, : end - start])
    if mesh is None:
        _, (found, _) = token_losses(params, jnp.asarray(tokens), CONFIG, APART)
    else:
        with jax.set_mesh(make_mesh(**mesh)):
            sharded = model.init(jax.random.key(0), CONFIG)
            placed = place(tokens.astype(np.int32), "batch", None)
            _, (found, _) = token_losses(sharded, placed, CONFIG, APART)
    np.testing.assert_allclose(np.asarray(found).ravel(), np.concatenate(alone), atol=2e-5)


def test_no_gradient_crosses_their_border():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 1, LENGTH, 4, 16))
    tokens = np.ones((1, LENGTH), int)
    tokens[0, 20] = EOS
    ends = document_ends(jnp.asarray(tokens) == EOS)

    def second(key, value):
        return jnp.sum(causal_attention(query, key, value, ends=ends)[:, 20:] ** 2)

    for gradient in jax.grad(second, (0, 1))(key, value):
        assert not np.any(gradient[:, :20])
        assert np.any(gradient[:, 20:])


def test_where_positions_begin_changes_nothing():
    """Rotary embeddings see distances alone, so positions need not begin anew with a document."""
    params = model.init(jax.random.key(0), CONFIG)
    tokens = jnp.asarray(rows(4)[:, :-1])
    at = jnp.arange(LENGTH)
    starts = jax.lax.cummax(jnp.where(tokens == EOS, at, 0), axis=1)
    attend = functools.partial(causal_attention, ends=document_ends(tokens == EOS))
    on, anew = (
        model.hidden_states(params, tokens, CONFIG, positions=positions, attend=attend)
        for positions in (jnp.broadcast_to(at, tokens.shape), at - starts)
    )
    np.testing.assert_allclose(on, anew, atol=5e-5)


def test_a_run_isolates_them_by_its_own_tokenizer(gptj, train_flags, tmp_path):
    out = tmp_path / "run"
    assert gptj("train", *train_flags(out), "--isolate").code == 0
    compute = json.loads((out / "run.json").read_text())["compute"]
    assert (compute["isolate"], compute["end_of_text"]) == (True, 256)


def test_a_turn_of_a_chat_sees_those_before_it_and_no_other_chat(tmp_path):
    """Whose answers end with an end-of-text each, as those of most templates do."""
    pytest.importorskip("jinja2")
    template, config = tmp_path / "chat.jinja", ModelConfig(2, 64, 4, 16, 128, 257, 264, 128)
    template.write_text(
        "{% for m in messages %}{{ m.role[0] + ': ' + m.content }}"
        "{{ eos_token if m.role == 'assistant' }}{% endfor %}{{ 'a: ' if add_generation_prompt }}"
    )
    talks = [["hello", "hi", "who?", "me"], ["no", "yes"], ["a", "b", "c", "d", "e", "f"]]
    roles = ("user", "assistant")
    lines = [
        json.dumps({"messages": [
            {"role": roles[n % 2], "content": text} for n, text in enumerate(talk)
        ]})
        for talk in talks
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    examples = ExampleConfig("chats", chat_template=template)
    paths = (str(tmp_path / "in.jsonl"),)
    prepare(PrepareConfig(paths, tmp_path / "out", "bytes", held_out=0, examples=examples))
    data = Mixture.open(tmp_path / "out")
    (part,) = data.parts
    row = jnp.asarray(TrainBatches(data, 127, 1).batch(0))
    learns = StepConfig(examples=True, end_of_text=256)
    params = model.init(jax.random.key(0), config)
    rows_, counts = learnt(row)
    _, (together, _) = objective.token_losses(params, rows_, counts, model=config, config=learns)
    bounds = [*part.store.starts[:].tolist(), len(part.store)]
    for begin, end in itertools.pairwise(bounds):
        tokens = jnp.asarray(ids_of(part.store.tokens[begin:end]))[None]
        _, (alone, _) = model.losses(params, tokens, config)
        np.testing.assert_allclose(together[0, begin : end - 1], alone[0], rtol=2e-4, atol=2e-5)
    assert int(jnp.sum(counts)) == sum(len(text) + 1 for talk in talks for text in talk[1::2])
