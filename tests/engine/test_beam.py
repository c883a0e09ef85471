"""The search's side on the host: over a language that is a table, against all there is to say."""

import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.engine.beam import BeamParams, Ending, _Search, beam_search
from gptj.errors import UserError
from gptj.sharding import make_mesh

EOS = 2


def search(table: np.ndarray, beam: BeamParams, room: int, eos: int | None = EOS) -> list[Ending]:
    """The search, where the token after `a` is `b` with log-probability `table[a, b]`."""
    state = _Search(beam, room, eos)
    last = np.zeros(beam.beams, np.int32)
    parents = np.zeros(beam.beams, np.int32)
    for _ in range(room):
        ways = (state.scores[:, None] + table[last]).ravel()
        order = np.argsort(-ways, kind="stable")[: 2 * beam.beams]
        last, parents = state.take(
            ways[order].tolist(), (order // len(table)).tolist(), (order % len(table)).tolist()
        )
        assert len(last) == len(parents) == (0 if state.is_over and not len(last) else beam.beams)
        if state.is_over:
            break
    return sorted(state.endings, reverse=True)[: beam.n]


def exhaustive(table: np.ndarray, room: int, penalty: float) -> list[tuple[float, list[int]]]:
    """Every completion there is, best first: those that end, and those that fill the room."""
    found = []
    ids = [each for each in range(len(table)) if each != EOS]
    for length in range(room + 1):
        for tokens in itertools.product(ids, repeat=length):
            path = [0, *tokens]
            total = sum(table[a, b] for a, b in itertools.pairwise(path))
            if length < room:
                score = (total + table[path[-1], EOS]) / (length + 1) ** penalty
            else:
                score = total / length**penalty
            found.append((score, list(tokens)))
    return sorted(found, key=lambda each: -each[0])


@given(
    rows=st.lists(st.lists(st.floats(0.05, 1), min_size=3, max_size=3), min_size=3, max_size=3),
    room=st.integers(1, 3),
    penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
)
def test_with_room_for_every_beginning_it_finds_the_best_there_are(rows, room, penalty):
    table = np.log(np.array(rows) / np.array(rows).sum(1, keepdims=True))
    beam = BeamParams(16, length_penalty=penalty, early_stopping="never", n=3)
    found = search(table, beam, room)
    best = exhaustive(table, room, penalty)
    assert [each.score for each in found] == pytest.approx([score for score, _ in best[:3]], 1e-4)
    by_tokens = {tuple(tokens): score for score, tokens in best}
    for each in found:
        assert each.score == pytest.approx(by_tokens[tuple(each.tokens)], rel=1e-4)
        assert each.ended == (len(each.tokens) < room)
        assert EOS not in each.tokens


def take(state: _Search, *ways: tuple[float, int, int]):
    return [each.tolist() for each in state.take(*map(list, zip(*ways, strict=True)))]


class TestAStep:
    def test_beams_begin_as_one(self):
        scores = _Search(BeamParams(3), 5, EOS).scores.tolist()
        assert scores[0] == 0
        assert max(scores[1:]) <= -1e8

    def test_the_best_ways_on_are_followed_in_their_order(self):
        state = _Search(BeamParams(2), 5, EOS)
        assert take(state, (-1, 0, 7), (-2, 0, 8), (-3, 0, 9), (-4, 1, 7)) == [[7, 8], [0, 0]]
        assert state.scores.tolist() == [-1, -2]
        assert take(state, (-3, 1, 5), (-4, 0, 6), (-9, 0, 5), (-9, 1, 6)) == [[5, 6], [1, 0]]
        take(state, (-5, 0, EOS), (-6, 1, EOS), (-9, 0, 3), (-9, 1, 3))
        assert [each.tokens for each in sorted(state.endings, reverse=True)] == [[8, 5], [7, 6]]

    def test_an_end_among_the_first_ways_is_kept_and_a_later_one_is_not(self):
        state = _Search(BeamParams(2), 5, EOS)
        take(state, (-1, 0, 7), (-2, 0, EOS), (-3, 0, EOS), (-4, 0, 8))
        assert [(each.score, each.tokens, each.ended) for each in state.endings] == [(-2, [], True)]

    def test_in_the_last_room_every_way_is_an_end(self):
        state = _Search(BeamParams(2, length_penalty=0), 1, EOS)
        assert take(state, (-1, 0, 7), (-2, 0, EOS), (-3, 0, 8), (-4, 0, 9)) == [[], []]
        assert state.is_over
        assert sorted((e.score, e.tokens, e.ended) for e in state.endings) == [
            (-2, [], True), (-1, [7], False),
        ]  # fmt: skip

    def test_where_there_are_fewer_tokens_than_beams_the_rest_lead_nowhere(self):
        state = _Search(BeamParams(3), 5, EOS)
        assert take(state, (-1, 0, 7), (-2, 0, EOS)) == [[7, 7, 7], [0, 0, 0]]
        assert state.scores[0] == -1
        assert max(state.scores[1:].tolist()) <= -1e8

    def test_a_score_is_over_the_length_with_the_end_counted(self):
        state = _Search(BeamParams(1, length_penalty=2), 9, EOS)
        take(state, (-1, 0, 7), (-5, 0, 8))
        take(state, (-8, 0, EOS), (-9, 0, 7))
        assert state.endings[0].score == -8 / 2**2


class TestStopping:
    def after(self, early: str, penalty: float, ends: float, goes_on: float) -> bool:
        state = _Search(BeamParams(1, length_penalty=penalty, early_stopping=early), 4, EOS)
        take(state, (ends, 0, EOS), (goes_on, 0, 7))
        return state.is_over

    @pytest.mark.parametrize(
        ("early", "penalty", "ends", "goes_on", "over"),
        [
            ("full", 1.0, -2, -1, True),
            ("hopeless", 1.0, -2, -1, False),
            ("hopeless", 1.0, -1, -2, True),
            ("hopeless", 1.0, -2, -2, True),  # it can get no better than it is
            ("never", 1.0, -1, -2, False),  # four tokens long it were -2 / 4
            ("never", 1.0, -1, -4, True),
            ("never", 1.0, -1, -3.9, False),
            ("never", 0.0, -1, -2, True),
            ("never", -1.0, -1, -2, True),  # longer is worse
            ("never", -1.0, -2, -1, False),
        ],
    )
    def test_when_the_ends_cannot_be_beaten(self, early, penalty, ends, goes_on, over):
        assert self.after(early, penalty, ends, goes_on) == over

    def test_not_before_there_are_as_many_ends_as_beams(self):
        state = _Search(BeamParams(2, early_stopping="full"), 4, EOS)
        take(state, (-1, 0, EOS), (-2, 0, 7), (-3, 0, 8), (-9, 0, 9))
        assert not state.is_over
        take(state, (-3, 0, EOS), (-4, 0, 7), (-5, 1, 8), (-9, 0, 9))
        assert state.is_over
        assert len(state.endings) == 2

    @pytest.mark.parametrize(("early", "kept"), [("full", [-2.0]), ("hopeless", [-1.5])])
    def test_a_better_end_takes_the_worst_ones_place_unless_they_are_full(self, early, kept):
        state = _Search(BeamParams(1, early_stopping=early), 9, EOS)
        take(state, (-2, 0, EOS), (-1, 0, 7))
        take(state, (-3, 0, EOS), (-1, 0, 7))
        take(state, (-30, 0, EOS), (-1, 0, 7))
        assert [each.score for each in state.endings] == kept

    def test_once_it_is_hopeless_no_end_is_taken(self):
        state = _Search(BeamParams(1, early_stopping="hopeless"), 9, EOS)
        take(state, (-1, 0, EOS), (-5, 0, 7))
        take(state, (-0.1, 0, EOS), (-5, 0, 7))
        assert [each.score for each in state.endings] == [-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beams": 0}, "beams=0 must be at least 1"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"n": 0}, "n=0 must be at least 1"),
        ({"n": 5}, "n=5 must be at most beams=4"),
        ({"length_penalty": math.inf}, "length_penalty=inf must be a finite number"),
        ({"early_stopping": True}, "early_stopping=True must be `never`, `hopeless` or `full`"),
    ],
)
def test_what_cannot_be_searched_with(options, said):
    with pytest.raises(UserError, match=f"^{said}$"):
        BeamParams(**options)


def test_a_mesh_that_splits_the_beams():
    with jax.set_mesh(make_mesh(1, 2)), pytest.raises(UserError, match="use tensor alone"):
        beam_search(None, None, None, [1], BeamParams(), None)


def test_the_ends_of_the_ranges_are_accepted():
    assert BeamParams(1, 1, -2.0, "full", 1).n == 1
    assert BeamParams(4, n=4).beams == 4
