"""Sampling: the distribution drawn from, whose draw it is, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from gptj.engine.sampling import SamplingParams, row_seeds, sample
from gptj.errors import UserError
from gptj.sharding import make_mesh, place

DRAWS = 20_000
VOCAB, PADDED = 10, 16
LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 0.0, 1.9, -3.0, 0.7, 1.0, -0.2], np.float32)


def padded(logits: np.ndarray) -> np.ndarray:
    """The logits with padding columns that would win, were they tokens."""
    return np.concatenate([logits, np.full(PADDED - VOCAB, 1e30, np.float32)])


@functools.partial(jax.jit, static_argnames="vocab_size")
def jitted(logits, seed, position, temperature, top_k, top_p, vocab_size=VOCAB):
    return sample(logits, seed, position, temperature, top_k, top_p, vocab_size)


def draw(logits, *, rows=DRAWS, seed=0, position=None, temperature=1.0, top_k=0, top_p=1.0):
    """Tokens for `rows` copies of one row of logits, at consecutive positions if not told."""
    position = np.arange(rows) if position is None else position
    return np.asarray(
        jitted(
            jnp.broadcast_to(padded(logits), (rows, PADDED)),
            jnp.full(rows, seed, jnp.uint32),
            jnp.broadcast_to(jnp.asarray(position, jnp.int32), rows),
            jnp.full(rows, temperature, jnp.float32),
            jnp.full(rows, top_k, jnp.int32),
            jnp.full(rows, top_p, jnp.float32),
        )
    )


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(logits, temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """The probabilities to draw with, one plain step after the other."""
    p = softmax(logits.astype(np.float64) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    before = 0.0
    for token in order:
        mass = p[token]
        if before > top_p:
            p[token] = 0
        before += mass
    return p / p.sum()


class TestTheDistribution:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize(
        "filters", [{}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 5, "top_p": 0.8}]
    )
    def test_draws_follow_the_reference(self, temperature, filters):
        expected = reference(LOGITS, temperature, **filters)
        counts = np.bincount(draw(LOGITS, temperature=temperature, **filters), minlength=VOCAB)
        assert not counts[expected == 0].any()
        possible = expected > 0
        assert chisquare(counts[possible], DRAWS * expected[possible]).pvalue > 1e-3

    def test_the_temperature_comes_before_the_nucleus(self):
        hot = {"temperature": 4.0, "top_p": 0.6}
        drawn = set(draw(LOGITS, **hot).tolist())
        assert drawn == set(np.flatnonzero(reference(LOGITS, **hot)).tolist())
        assert drawn != set(np.flatnonzero(reference(LOGITS, top_p=0.6)).tolist())

    def test_top_k_comes_before_the_nucleus(self):
        # Four of ten equal tokens have 1/4 each: the third is the last that 0.6 admits.
        assert set(draw(np.zeros(VOCAB, np.float32), top_k=4, top_p=0.6).tolist()) == {0, 1, 2}

    def test_a_token_goes_when_those_before_it_exceed_top_p(self):
        four_equal = np.where(np.arange(VOCAB) < 4, 0, -1e9).astype(np.float32)
        assert set(draw(four_equal, top_p=0.49).tolist()) == {0, 1}
        assert set(draw(four_equal, top_p=0.50).tolist()) == {0, 1, 2}
        assert set(draw(four_equal, top_p=0.51).tolist()) == {0, 1, 2}

    def test_exactly_k_stay_even_among_equals(self):
        assert set(draw(np.zeros(VOCAB, np.float32), top_k=3).tolist()) == {0, 1, 2}

    @pytest.mark.parametrize(
        "one", [{"temperature": 0.0}, {"temperature": 1e-9}, {"top_k": 1}, {"top_p": 1e-6}]
    )
    def test_the_likeliest_alone(self, one):
        assert set(draw(LOGITS, rows=500, **one).tolist()) == {LOGITS.argmax()}

    @pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.5}])
    def test_greedy_takes_the_first_of_equals(self, filters):
        tied = np.array([0, 3, 1, 3, 3, 0, 0, 0, 0, 0], np.float32)
        assert set(draw(tied, rows=50, temperature=0.0, **filters).tolist()) == {1}

    @pytest.mark.parametrize("temperature", [0.0, 1.0, 1e30])
    @pytest.mark.parametrize("filters", [{}, {"top_k": 1000}, {"top_p": 0.999}])
    def test_padding_is_never_drawn(self, temperature, filters):
        assert draw(LOGITS, temperature=temperature, **filters).max() < VOCAB

    def test_huge_logits_and_tiny_temperatures_overflow_nothing(self):
        drawn = draw(LOGITS * 1e30, rows=50, temperature=1e-30, top_p=0.9)
        assert set(drawn.tolist()) == {LOGITS.argmax()}


class TestTheDraw:
    def test_it_depends_on_the_seed_and_the_position_alone(self):
        once = draw(LOGITS, rows=64)
        assert draw(LOGITS, rows=64).tolist() == once.tolist()
        assert draw(LOGITS, rows=8, position=np.arange(8, 16)).tolist() == once[8:16].tolist()
        assert (draw(LOGITS, rows=64, seed=1) != once).sum() > 20
        assert len(set(draw(LOGITS, rows=64, position=3).tolist())) == 1

    def test_a_row_draws_the_same_whatever_the_others_ask_for(self):
        rng = np.random.default_rng(0)
        n = 40
        rows = (
            np.stack([padded(row) for row in rng.normal(size=(n, VOCAB)).astype(np.float32)]),
            np.arange(n, dtype=np.uint32) % 5,
            np.arange(n, dtype=np.int32),
            rng.choice(np.array([0.0, 0.7, 1.0, 1.5], np.float32), n),
            rng.choice(np.array([0, 0, 3], np.int32), n),
            rng.choice(np.array([1.0, 1.0, 0.8], np.float32), n),
        )
        together = np.asarray(jitted(*rows))
        alone = [int(jitted(*(vector[i : i + 1] for vector in rows))[0]) for i in range(n)]
        assert together.tolist() == alone

    @pytest.mark.parametrize("top_p", [1.0, 0.8])
    def test_a_mesh_draws_the_same(self, top_p):
        expected = draw(LOGITS, rows=16, top_p=top_p)
        with jax.set_mesh(make_mesh(data=2, tensor=4)):
            drawn = jitted(
                place(np.tile(padded(LOGITS), (16, 1)), "batch", "vocab"),
                np.zeros(16, np.uint32),
                np.arange(16, dtype=np.int32),
                np.ones(16, np.float32),
                np.zeros(16, np.int32),
                np.full(16, top_p, np.float32),
            )
        assert np.asarray(drawn).tolist() == expected.tolist()

    @pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
    def test_row_zero_has_the_seed_itself_and_the_others_their_own(self, seed):
        seeds = row_seeds(seed, 50)
        assert seeds[0] == seed
        assert len(set(seeds.tolist())) == 50
        assert row_seeds(seed, 3).tolist() == seeds[:3].tolist()
        assert row_seeds(seed ^ 1, 50).tolist()[1:] != seeds.tolist()[1:]


class TestParameters:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("temperature", float("nan")),
            ("temperature", float("inf")),
            ("temperature", -0.1),
            ("temperature", "hot"),
            ("top_p", 0.0),
            ("top_p", 1.01),
            ("top_p", float("nan")),
            ("top_p", None),
            ("top_k", -1),
            ("top_k", 2**31),
            ("top_k", 2.5),
            ("max_tokens", 0),
            ("max_tokens", 10.0),
            ("seed", -1),
            ("seed", 2**32),
            ("seed", 0.5),
            ("stop", ("a", "")),
            ("stop", "a"),
            ("stop", (1,)),
        ],
    )
    def test_a_value_out_of_range_is_refused_by_name(self, field, value):
        with pytest.raises(UserError, match=rf"^{field}=.* must be ") as error:
            SamplingParams(**{field: value})
        assert repr(value) in str(error.value)
        assert "\n" not in str(error.value)

    def test_the_ends_of_the_ranges_are_accepted(self):
        SamplingParams(0, 1, 0, 1, 0, ())
        SamplingParams(np.float32(1e9), 1e-9, 2**31 - 1, np.int64(9), 2**32 - 1, ("\n", "end"))
