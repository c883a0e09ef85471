"""What a step minimises: which targets count and how much, and who sees whom."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.config import ModelConfig
from gptj.cross_entropy import TokenLosses
from gptj.data.packing import BEGINS
from gptj.errors import UserError
from gptj.train import objective as objectives
from gptj.train.objective import (
    Microbatch,
    StepConfig,
    attend_in,
    ids_in,
    learnt,
    objective,
    parts_of,
)
from gptj.train.preferences import answers, preferences

MODEL = ModelConfig(1, 8, 2, 2, 12, 30, 32, 16)
EXAMPLES = StepConfig(examples=True)
PAIRS = StepConfig(examples=True, pairs=True, dpo_beta=0.5)
NEGATIVE = st.integers(-31, 29)


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            *(("dpo_beta", value, "must be above 0, and finite") for value in (0.0, -1.0)),
            *(("dpo_beta", value, "must be above 0, and finite") for value in (math.inf, math.nan)),
            *(("z_loss", value, "must not be below 0") for value in (-1e-9, math.nan)),
            *(("spike_sigma", value, "must not be below 0") for value in (-1.0, math.nan)),
        ],
    )
    def test_what_makes_no_sense(self, name, value, said):
        with pytest.raises(UserError, match=f"^{name}={value} {said}$"):
            StepConfig(**{name: value})

    @pytest.mark.parametrize(
        ("name", "value"),
        [("z_loss", 0.0), ("spike_sigma", 0.0), ("spike_sigma", math.inf), ("dpo_beta", 1e-9)],
    )
    def test_the_last_that_does(self, name, value):
        assert getattr(StepConfig(**{name: value}), name) == value


class TestWhatIsLearnt:
    def test_what_is_only_read_comes_as_its_complement(self):
        ids, counts = learnt(jnp.array([[3, ~0, 5, ~7, 9]]))
        assert ids.tolist() == [[3, 0, 5, 7, 9]]
        assert counts.tolist() == [[0, 1, 0, 1]]  # of targets: all but the first token

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.lists(NEGATIVE, min_size=4, max_size=4), min_size=3, max_size=3))
    def test_of_examples_each_token_counts_alike_in_whichever_microbatch(self, rows):
        tokens = np.array(rows).reshape(len(rows), 1, 4)
        often = int((tokens[..., 1:] >= 0).sum())
        if not often:
            return
        parts = parts_of(jnp.asarray(tokens), EXAMPLES)
        found = np.asarray(parts.counts)
        # The losses of microbatches are averaged: each target then counts 1 / often.
        weights = {round(float(each), 5) for each in (found / len(rows)).flat}
        assert weights <= {0.0, round(1 / often, 5)}
        assert found.sum() == pytest.approx(len(rows))
        assert parts.number.tolist() == [*range(len(rows))]
        assert (np.asarray(parts.rows) >= 0).all()

    @pytest.mark.parametrize("config", [StepConfig(), PAIRS], ids=["texts", "pairs"])
    def test_texts_and_pairs_come_as_they_are(self, config):
        tokens = jnp.array([[[1, ~2, 3]], [[4, 5, ~6]]])
        parts = parts_of(tokens, config)
        assert parts.counts is None
        np.testing.assert_array_equal(parts.rows, tokens)

    def test_only_ids_of_examples_say_where_one_begins(self):
        rows = jnp.array([[5 | BEGINS, 6]])
        assert ids_in(rows, EXAMPLES).tolist() == [[5, 6]]
        assert ids_in(rows, StepConfig()).tolist() == rows.tolist()


class TestWhoSeesWhom:
    ROW = jnp.array([[7 | BEGINS, 1, 7, 2, 3 | BEGINS, 4, 7]])
    """The last is a target alone; 7 ends a text."""

    def ends(self, config, row=ROW):
        return attend_in(row, config).keywords["ends"]

    def test_all_of_a_row_of_texts(self):
        assert self.ends(StepConfig(end_of_text=7)) is None

    def test_documents_that_are_isolated_end_at_the_next(self):
        row = jnp.array([[7, 1, 7, 2, 3, 4, 7]])
        config = StepConfig(isolate=True, end_of_text=7)
        assert self.ends(config, row).tolist() == [[2, 2, 6, 6, 6, 6]]

    @pytest.mark.parametrize("isolate", [False, True])
    def test_examples_end_where_the_next_begins(self, isolate):
        config = StepConfig(examples=True, isolate=isolate, end_of_text=7)
        assert self.ends(config).tolist() == [[4, 4, 4, 4, 6, 6]]

    def test_an_answer_has_its_row_to_itself(self):
        assert self.ends(PAIRS) is None

    @pytest.mark.parametrize("backend", [None, "xla", "native"])
    def test_the_backend_is_the_one_asked_for(self, backend):
        attend = attend_in(self.ROW, StepConfig(attention=backend))
        assert attend.keywords["backend"] == backend
        assert attend.func is objectives.causal_attention


class TestMeasured:
    NLL = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    Z = NLL / 100

    def measured(self, counts=None):
        """What is said of losses that are known, and those that are asked for."""
        how = lambda params, rows, counts: (params, TokenLosses(self.NLL, self.Z))  # noqa: E731
        counts = None if counts is None else jnp.asarray(counts)
        part = Microbatch(jnp.zeros((2, 4), jnp.int32), counts, jnp.int32(0))
        loss, found = objectives._token_loss("minimised", part, how=how)
        assert loss == "minimised"
        assert (found.accuracy, found.margin) == (None, None)
        return found

    def test_of_texts(self):
        found = self.measured()
        assert (float(found.loss), float(found.last_loss)) == (3.5, 4.5)
        assert float(found.z_loss) == pytest.approx(0.035)
        assert found.row_losses.tolist() == [2, 5]

    def test_of_examples_the_last_that_is_learnt_of_each_row(self):
        found = self.measured([[0.0, 0.25, 0.0], [0.25, 0.25, 0.25]])
        assert float(found.loss) == (2 + 4 + 5 + 6) / 4
        assert float(found.z_loss) == pytest.approx((2 + 4 + 5 + 6) / 400)
        assert float(found.last_loss) == (2 + 6) / 2
        assert found.row_losses.tolist() == [2, 5]

    def test_a_row_of_which_nothing_is_learnt_has_a_last_loss_of_0(self):
        found = self.measured([[0.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
        assert (float(found.loss), float(found.last_loss)) == (4.5, 2.5)


@jax.jit
def slope_and_pull(own, reference, beta):
    def loss(own):
        found = preferences(own, reference, beta)
        return found.loss.sum(), found.pull

    return jax.grad(loss, has_aux=True)(own)


class TestPreferences:
    def test_a_pair_by_hand(self):
        own, reference = jnp.array([4.0, 9.0]), jnp.array([5.0, 7.0])
        found = preferences(own, reference, beta=math.log(3) / 3)
        # The preferred became likelier by 1 and the other less so by 2: a margin of log 3.
        assert float(found.margin[0]) == pytest.approx(math.log(3))
        assert float(found.loss[0]) == pytest.approx(math.log(4 / 3))
        assert found.pull.tolist() == pytest.approx([math.log(3) / 12, -math.log(3) / 12])

    def test_before_anything_is_learnt_a_pair_says_log_2(self):
        same = jnp.array([3.0, 4.0, 5.0, 2.0])
        found = preferences(same, same, beta=0.2)
        assert found.loss.tolist() == pytest.approx([math.log(2)] * 2)
        assert found.pull.tolist() == pytest.approx([0.1, -0.1, 0.1, -0.1])

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.floats(0, 20), min_size=8, max_size=8), st.floats(0.01, 2))
    def test_the_pull_is_the_slope_of_the_loss(self, values, beta):
        own, reference = np.array(values, np.float32).reshape(2, 4)
        slope, pull = slope_and_pull(own, reference, beta)
        np.testing.assert_allclose(pull, slope, atol=1e-6)

    def test_the_preferred_answer_of_each_pair_comes_first(self):
        pairs = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
        assert answers(pairs).tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_what_is_minimised_is_by_what_the_data_are(monkeypatch):
    asked = []
    monkeypatch.setattr(
        objectives, "_original_loss", lambda *_, **how: asked.append("original") or (0, (0, 0))
    )
    monkeypatch.setattr(
        objectives, "token_losses", lambda *_, **how: asked.append("ours") or (0, (0, 0))
    )
    for original in (True, False):
        objective(MODEL, StepConfig(), original, None).keywords["how"](None)
    assert asked == ["original", "ours"]
    assert objective(MODEL, PAIRS, False, "base").keywords["reference"] == "base"
    with pytest.raises(AssertionError):
        objective(MODEL, PAIRS, False, None)
