"""Sampling: the distribution drawn from, whose draw it is, and what is refused."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from gptj.config import ModelConfig
from gptj.engine import sampling
from gptj.engine.request import SamplingParams
from gptj.engine.sampling import row_seeds, sample
from gptj.engine.slots import one_slot
from gptj.errors import UserError
from gptj.sharding import make_mesh, place

DRAWS = 20_000
VOCAB, PADDED = 10, 16
LOGITS = np.array([0.3, 2.0, -1.0, 1.2, 0.0, 1.9, -3.0, 0.7, 1.0, -0.2], np.float32)
CONFIG = ModelConfig(1, 8, 2, 4, 8, VOCAB, PADDED, 8)


def padded(logits: np.ndarray) -> np.ndarray:
    """The logits with padding columns that would win, were they tokens."""
    return np.concatenate([logits, np.full(PADDED - VOCAB, 1e30, np.float32)])


@functools.cache
def compiled(candidates: int):
    """`sample` trying its filters on so many tokens first."""

    def run(logits, slots, vocab_size):
        with mock.patch.object(sampling, "CANDIDATES", candidates):
            return sample(logits, slots, vocab_size)

    return jax.jit(run, static_argnums=2)


jitted = compiled(256)


def slots(rows: int, params: SamplingParams, **values):
    """`rows` active slots alike, but for the `values` given, at positions 0, 1, ..."""
    one = one_slot(CONFIG, [3, 3, 5], params, eos=VOCAB - 1)
    values = {"position": np.arange(rows, dtype=np.int32), **values}
    alike = jax.tree.map(lambda x: np.broadcast_to(x, (rows, *np.shape(x))), one)
    return dataclasses.replace(
        alike, **{k: np.broadcast_to(v, getattr(alike, k).shape) for k, v in values.items()}
    )


def draw(logits, *, rows=DRAWS, values=(), candidates=256, **params):
    """Tokens for `rows` copies of one row of logits."""
    many = np.broadcast_to(padded(logits), (rows, PADDED))
    asked = slots(rows, SamplingParams(**params), **dict(values))
    return np.asarray(compiled(candidates)(many, asked, VOCAB))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0) -> np.ndarray:
    """The probabilities to draw with, one plain step after the other."""
    p = softmax(logits.astype(np.float64) / temperature)
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    before = 0.0
    kept = p.copy()
    for token in order:
        if before > top_p:
            kept[token] = 0
        before += p[token]
    kept[p < min_p * p.max()] = 0
    p = kept / kept.sum()
    if typical_p < 1:
        surprise = -np.log(np.where(p > 0, p, 1))
        away = np.where(p > 0, np.abs(surprise - (p * surprise).sum()), np.inf)
        order = np.argsort(away, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p = np.where(away <= away[order][before < typical_p].max(), p, 0)
    return p / p.sum()


FILTERS = [
    {},
    {"top_k": 4},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"typical_p": 0.6},
    {"top_k": 5, "top_p": 0.8},
    {"top_k": 8, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.7},
]


class TestTheDistribution:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    @pytest.mark.parametrize("filters", FILTERS, ids=str)
    @pytest.mark.parametrize("candidates", [3, 256])
    def test_draws_follow_the_reference(self, temperature, filters, candidates):
        expected = reference(LOGITS, temperature, **filters)
        found = draw(LOGITS, candidates=candidates, temperature=temperature, **filters)
        counts = np.bincount(found, minlength=VOCAB)
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

    def test_equals_of_the_likeliest_stay_whatever_min_p(self):
        assert set(draw(np.zeros(VOCAB, np.float32), min_p=1.0).tolist()) == set(range(VOCAB))

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


IDS = np.arange(VOCAB)
SEEN = np.isin(IDS, (3, 5))


def repeated(x, counts):
    return np.where(SEEN | (counts > 0), np.where(x > 0, x / 2, x * 2), x)


def without(*ids):
    return lambda x, counts: np.where(np.isin(IDS, ids), -np.inf, x)


ADJUSTED = [
    ({"repetition_penalty": 2.0}, repeated),
    ({"frequency_penalty": 0.5}, lambda x, counts: x - 0.5 * counts),
    ({"presence_penalty": 0.5}, lambda x, counts: x - 0.5 * (counts > 0)),
    ({"logit_bias": {1: -2.0, 8: 1.5}}, lambda x, counts: x - 2 * (IDS == 1) + 1.5 * (IDS == 8)),
    ({"banned_tokens": (1, 5)}, without(1, 5)),
    ({"allowed_tokens": (2, 7)}, without(0, 1, 3, 4, 5, 6, 8)),
    ({"min_tokens": 2, "stop_tokens": (1,)}, without(1, VOCAB - 1)),
    ({"min_tokens": 1}, without(VOCAB - 1)),
]


class TestWhatChangesTheLogits:
    @pytest.mark.parametrize(
        ("params", "expected"), ADJUSTED, ids=lambda x: "" if callable(x) else str(x)
    )
    def test_each_as_it_says(self, params, expected):
        counts = np.array([2, 1, 1, 0, 0, 3, 0, 0, 0, 0], np.int32)
        drawn = np.pad(counts, (0, PADDED - VOCAB))
        p = softmax(expected(LOGITS.astype(np.float64), counts))
        found = np.bincount(draw(LOGITS, values={"drawn": drawn}, **params), minlength=VOCAB)
        assert not found[p == 0].any()
        assert chisquare(found[p > 0], DRAWS * p[p > 0]).pvalue > 1e-3

    def test_penalties_come_before_the_temperature_and_bans_before_the_filters(self):
        assert set(draw(LOGITS, top_k=1, banned_tokens=(1,)).tolist()) == {5}
        hot = {"frequency_penalty": 1.0, "temperature": 1e-4}
        drawn = np.pad(np.array([0, 1, 0, 0, 0, 0, 0, 0, 0, 0], np.int32), (0, PADDED - VOCAB))
        assert set(draw(LOGITS, values={"drawn": drawn}, rows=50, **hot).tolist()) == {5}


class TestTheDraw:
    def test_it_depends_on_seed_choice_and_position_alone(self):
        once = draw(LOGITS, rows=64)
        assert draw(LOGITS, rows=64).tolist() == once.tolist()
        later = {"position": np.arange(8, 16)}
        assert draw(LOGITS, rows=8, values=later).tolist() == once[8:16].tolist()
        assert (draw(LOGITS, rows=64, seed=1) != once).sum() > 20
        assert (draw(LOGITS, rows=64, values={"choice": 1}) != once).sum() > 20
        assert len(set(draw(LOGITS, rows=64, values={"position": 3}).tolist())) == 1

    def test_a_seed_draws_what_it_always_drew(self):
        """Recorded: who kept a seed has the same text from the next version."""
        assert draw(LOGITS, rows=12).tolist() == [1, 1, 5, 8, 7, 1, 1, 1, 1, 3, 8, 7]

    @pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"min_p": 0.02}, {"typical_p": 0.9}])
    def test_a_slot_alone_draws_what_it_draws_among_many(self, filters):
        among = draw(LOGITS, rows=16, **filters).tolist()
        alone = [draw(LOGITS, rows=1, values={"position": n}, **filters)[0] for n in range(16)]
        assert alone == among
        assert len(set(among)) > 2

    def test_a_row_draws_the_same_whatever_the_others_ask_for(self):
        rng, n = np.random.default_rng(0), 40
        logits = np.stack([padded(row) for row in rng.normal(size=(n, VOCAB)).astype(np.float32)])
        values = {
            "seed": np.arange(n, dtype=np.uint32) % 5,
            "temperature": rng.choice(np.array([0.0, 0.7, 1.0, 1.5], np.float32), n),
            "top_k": rng.choice(np.array([0, 0, 3], np.int32), n),
            "top_p": rng.choice(np.array([1.0, 1.0, 0.8], np.float32), n),
            "min_p": rng.choice(np.array([0.0, 0.0, 0.1], np.float32), n),
            "typical_p": rng.choice(np.array([1.0, 1.0, 0.5], np.float32), n),
            "presence_penalty": rng.choice(np.array([0.0, 0.5], np.float32), n),
        }
        rows = slots(n, SamplingParams(), **values)
        together = np.asarray(jitted(logits, rows, VOCAB)).tolist()
        for i in range(n):
            # Alone among others that ask for nothing.
            own = slots(n, SamplingParams(temperature=0), active=np.arange(n) == i)
            own = jax.tree.map(lambda mine, all_rows: mine.copy(), own, rows)
            jax.tree.map(lambda mine, all_rows, i=i: mine.__setitem__(i, all_rows[i]), own, rows)
            assert int(jitted(logits, own, VOCAB)[i]) == together[i]

    @pytest.mark.parametrize("top_p", [1.0, 0.8])
    def test_a_mesh_draws_the_same(self, top_p):
        expected = draw(LOGITS, rows=16, top_p=top_p)
        with jax.set_mesh(make_mesh(data=2, tensor=4)):
            logits = place(np.tile(padded(LOGITS), (16, 1)), "batch", "vocab")
            own = jax.tree.map(
                lambda x: place(np.ascontiguousarray(x), "batch", *[None] * (x.ndim - 1)),
                slots(16, SamplingParams(top_p=top_p)),
            )
            drawn = jitted(logits, own, VOCAB)
        assert np.asarray(drawn).tolist() == expected.tolist()

    @pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
    def test_row_zero_has_the_seed_itself_and_the_others_their_own(self, seed):
        seeds = row_seeds(seed, 50)
        assert seeds[0] == seed
        assert len(set(seeds.tolist())) == 50
        assert row_seeds(seed, 3).tolist() == seeds[:3].tolist()
        assert row_seeds(seed ^ 1, 50).tolist()[1:] != seeds.tolist()[1:]


def row(*values: float) -> jax.Array:
    return jnp.array([values], jnp.float32)


class TestThePlaceOfADraw:
    @pytest.mark.parametrize(
        ("weights", "target", "place"),
        [
            ((2, 3, 5), 0, 0), ((2, 3, 5), 1.9, 0), ((2, 3, 5), 2, 1), ((2, 3, 5), 4.9, 1),
            ((2, 3, 5), 5, 2), ((2, 3, 5), 9.9, 2),
            ((0, 3, 0, 5), 0, 1), ((0, 3, 0, 5), 3, 3),  # never one without a weight
            ((2, 3, 0), 5, 1), ((0, 2, 0, 0), 7, 1), ((2, 0, 0), 2, 0),  # rounded beyond the sum
            ((0, 0.25, 0), 1, 1),
        ],
    )  # fmt: skip
    def test_is_where_the_running_sum_passes_it(self, weights, target, place):
        assert sampling._pick(row(*weights), row(target)).tolist() == [place]

    @pytest.mark.parametrize("columns", [1, 127, 128, 129, 300])
    def test_is_the_same_found_by_blocks(self, columns):
        rng = np.random.default_rng(columns)
        weights = rng.integers(0, 4, (40, columns)).astype(np.float32)  # whose sums are exact
        weights[:, rng.integers(columns)] = 2
        uniform = rng.integers(0, 64, 40).astype(np.float32) / 64
        target = uniform * weights.sum(1)
        passed = np.cumsum(weights, axis=1) > target[:, None]
        found = sampling._draw_in_blocks(jnp.asarray(weights), jnp.asarray(uniform))
        assert found.tolist() == passed.argmax(axis=1).tolist()


class TestTypical:
    # Surprises of 1, 2, 3 and 3 bits; 1.75 are expected, so the second token is the nearest.
    P = (0.5, 0.25, 0.125, 0.125)

    @pytest.mark.parametrize(
        ("mass", "kept"),
        [
            (1e-60, [0, 1, 0, 0]), (1e-6, [0, 1, 0, 0]), (0.25, [0, 1, 0, 0]), (0.26, [1, 1, 0, 0]),
            (0.75, [1, 1, 0, 0]), (0.76, [1, 1, 1, 1]), (1.0, [1, 1, 1, 1]),
        ],
    )  # fmt: skip
    def test_the_nearest_to_the_expected_surprise_stay(self, mass, kept):
        keep = sampling._keep_typical(row(*self.P), jnp.ones((1, 4), bool), jnp.array([mass]))
        assert keep[0].tolist() == [bool(each) for each in kept]

    def test_the_whole_mass_keeps_what_adds_nothing_to_it(self):
        found = sampling._keep_typical(row(1, 1e-9), jnp.ones((1, 2), bool), jnp.ones(1))
        assert found[0].tolist() == [True, True]

    def test_among_those_that_were_kept_alone(self):
        # Of 0.25 and 0.125, kept, 2/3 and 1/3: surprises of 0.58 and 1.58, and 0.92 expected.
        keep = jnp.array([[False, True, True, False]])
        for mass, kept in ((0.6, [0, 1, 0, 0]), (0.7, [0, 1, 1, 0]), (1.0, [0, 1, 1, 0])):
            found = sampling._keep_typical(row(*self.P), keep, jnp.array([mass]))
            assert found[0].tolist() == [bool(each) for each in kept]


class TestLogProbabilities:
    def test_are_in_nats_over_the_tokens_that_there_are(self):
        logits = np.log(np.array([[1, 2, 5, 1e9], [4, 3, 1, 1e9]], np.float32))
        own, top, ids = sampling.log_probabilities(logits, jnp.array([1, 2]), 3, jnp.array(True))
        np.testing.assert_allclose(np.exp(own), [2 / 8, 1 / 8], rtol=1e-5)
        assert ids[:, :3].tolist() == [[2, 1, 0], [0, 1, 2]]
        expected = [[5 / 8, 2 / 8, 1 / 8], [4 / 8, 3 / 8, 1 / 8]]
        np.testing.assert_allclose(np.exp(top[:, :3]), expected, rtol=1e-5)
        _, top, ids = sampling.log_probabilities(logits, jnp.array([1, 2]), 3, jnp.array(False))
        assert not top.any()
        assert not ids.any()

    def test_of_large_logits_too(self):
        found = sampling.log_normaliser(row(1e30, 1e30))
        np.testing.assert_allclose(found, [[1e30]])
        np.testing.assert_allclose(sampling.log_normaliser(row(0, 0, 0, 0)), [[np.log(4)]])


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
            ("min_p", 1.1),
            ("typical_p", 0.0),
            ("repetition_penalty", 0.0),
            ("presence_penalty", float("nan")),
            ("frequency_penalty", "much"),
            ("min_tokens", -1),
            ("min_tokens", 129),
            ("n", 0),
            ("best_of", 0),
            ("logprobs", 21),
            ("logprobs", -1),
            ("stop_tokens", (-1,)),
            ("banned_tokens", "ab"),
            ("overflow", "wrap"),
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
