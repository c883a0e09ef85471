"""What the loop decides: when it measures, saves, stops, passes over data and goes back.

Its devices, disk and text are stood in for, so that whole runs take no time.
"""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gptj
from gptj import checkpoint
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.train import loop as loops
from gptj.train import meter as meters
from gptj.train.evaluators import Evaluator
from gptj.train.heldout import HeldOut
from gptj.train.objective import StepConfig
from gptj.train.rows import Skip, batch_index
from gptj.train.step import StepMetrics

TEXTS = StepConfig()
BATCH = 3
"""Rows in a step of a staged run, whose rows are numbered from there."""


class Stage:
    """A loop whose devices, disk and text are stood in for, so that only its decisions are left.

    A state is the tuple of the batches that its updates were made of. `bad` batches spike.
    """

    def __init__(self, config, monkeypatch, bad=(), stop_after=None):
        self.bad, self.stop_after = set(bad), stop_after
        self.rows, self.events, self.said, self.samples = {}, [], [], []
        self.saved, self.notes, self.scored, self.traced = {}, {}, [], []
        self.skips, self.evaluators, self.stepped = [], [], 0
        self.config = config
        self.stop = SimpleNamespace(requested=stop_after == 0)
        monkeypatch.setattr(loops, "Feed", self.feed)
        monkeypatch.setattr(loops, "train_step", self.train_step)
        monkeypatch.setattr(meters, "peak_flops", lambda: 1e12)
        paths = lambda _: [Path(f"{step:08}") for step in sorted(self.saved)]  # noqa: E731
        monkeypatch.setattr(checkpoint, "complete", paths)
        monkeypatch.setattr(
            jax.profiler, "start_trace", lambda to: self.traced.append(self.stepped)
        )
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self.traced.append(self.stepped))

    def feed(self, batches, batch, accumulate, skips):
        number = lambda update: batch_index(update, skips)  # noqa: E731
        self.skips = skips
        return SimpleNamespace(
            skips=skips,
            rows=number,
            ids=lambda update: np.arange(BATCH).reshape(1, -1) + number(update) * BATCH,
            forget=lambda: self.said.append("forgotten"),
            close=lambda: None,
        )

    def train_step(self, state, rows, **_):
        spiked = rows in self.bad
        streak = state.streak + 1 if spiked else 0
        made = state.params if spiked else (*state.params, rows)
        losses = jnp.array([[1.0, jnp.nan, 2.0]])
        scalars = dict.fromkeys(("last_loss", "z_loss", "grad_norm_micro"), 0.0)
        metrics = StepMetrics(
            loss=float(rows), accuracy=None, margin=None, grad_square_micro=1.0, grad_norm=1.0,
            lr=0.1, streak=streak, row_losses=losses, **scalars,
        )  # fmt: skip
        self.stepped += 1
        self.stop.requested = self.stepped == self.stop_after
        return SimpleNamespace(step=state.step + 1, params=made, streak=streak), metrics

    def evaluate(self, params, held_out, model, **how):
        self.scored.append((len(params), how["batches"]))
        self.how = how
        return HeldOut(float(len(params)), None, 5)

    def save(self, step, state, notes):
        self.saved[step], self.notes[step] = state, notes

    def write(self, row):
        assert row["step"] not in self.rows
        self.rows[int(row["step"])] = row

    def rewind(self, step, skips):
        self.rows = {at: row for at, row in self.rows.items() if at <= step}

    def forget(self, after):
        self.saved = {step: state for step, state in self.saved.items() if step <= after}

    def run(self, start=None, held_out="text", write_on=None, compute=TEXTS):
        record = SimpleNamespace(
            last={}, lost=0.0, write=self.write, rewind=self.rewind,
            tell=lambda event, step, text, **more: self.events.append((event, step, text, more)),
            sample=lambda *what: self.samples.append(what),
        )  # fmt: skip
        setup = SimpleNamespace(
            config=self.config, batches=None, model=ModelConfig(1, 8, 2, 2, 8, 257, 264, 16),
            compute=compute, optimizer=None, base="base", seq=16, whole=lambda params: params,
            data=SimpleNamespace(tokenizer="a tokenizer", held_out=held_out),
            introduction=lambda step: f"begun at {step}", state_at=lambda step: self.saved[step],
        )  # fmt: skip
        saver = SimpleNamespace(save=self.save, wait=lambda: None, forget=self.forget)
        nothing = lambda _: None  # noqa: E731
        display = SimpleNamespace(say=self.said.append, show=nothing, go_on=nothing)
        loop = loops.Loop(setup, saver, display, record, self.stop)
        loop.evaluate, loop.write_on, loop.evaluators = self.evaluate, write_on, self.evaluators
        return loop.run(start or SimpleNamespace(step=0, params=(), streak=0))


@pytest.fixture
def staged(tmp_path, monkeypatch):
    def make(steps=12, save_every=5, eval_every=4, *, stage=None, **options):
        more = {"steps": steps, "save_every": save_every, "eval_every": eval_every}
        config = gptj.TrainConfig(tmp_path / "data", tmp_path / "run", **more, **options)
        return Stage(config, monkeypatch, **(stage or {}))

    return make


often = st.integers(1, 9)
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class TestDecisions:
    @quick
    @given(st.integers(1, 14), often, often, often, st.sampled_from([None, 3]))
    def test_each_thing_is_done_when_it_is_due_and_at_the_end(
        self, staged, steps, save_every, eval_every, also_every, eval_batches
    ):
        stage = staged(steps, save_every, eval_every, eval_batches=eval_batches)
        measure = lambda params, *_: {"own": float(len(params))}  # noqa: E731
        stage.evaluators = [Evaluator(also_every, measure)]
        result = stage.run()
        due = lambda every: [n for n in range(1, steps + 1) if n % every == 0 or n == steps]  # noqa: E731
        assert [*stage.rows] == [*range(1, steps + 1)]
        assert [row["loss"] for row in stage.rows.values()] == [*range(steps)]
        assert [*stage.saved] == due(save_every)
        assert [step for step, state in stage.saved.items() if len(state.params) != step] == []
        how = [(step, None if step == steps else eval_batches) for step in due(eval_every)]
        assert stage.scored == how
        assert [n for n, row in stage.rows.items() if "heldout_loss" in row] == due(eval_every)
        assert {n: row["own"] for n, row in stage.rows.items() if "own" in row} == {
            step: step for step in due(also_every)
        }
        # A score is compared with others of as much text: not the last one, where it read more.
        like = [n for n in due(eval_every) if n < steps or eval_batches is None]
        found = {n: notes["heldout_loss"] for n, notes in stage.notes.items() if len(notes) > 1}
        assert found == {n: n for n in like if n in stage.saved}
        assert (result.step, result.loss, result.held_out.loss) == (steps, steps - 1, steps)
        assert [event[:2] for event in stage.events] == [("start", 0), ("end", steps)]

    @quick
    @given(st.integers(1, 11), often, often)
    def test_a_signal_saves_the_step_it_came_in_and_scores_nothing(
        self, staged, last, save_every, eval_every
    ):
        first = staged(12, save_every, eval_every, stage={"stop_after": last})
        measured = []
        first.evaluators = [Evaluator(1, lambda params, *_: measured.append(len(params)) or {})]
        result = first.run()
        assert (result.step, result.held_out) == (last, None)
        assert [*first.rows] == [*range(1, last + 1)]
        assert measured == [*range(1, last)]
        assert {step for step, _ in first.scored} == {
            n for n in range(1, last) if n % eval_every == 0
        }
        assert max(first.saved) == last
        assert first.events[-1][:3] == (
            "stop", last, f"stopped at step {last}, saved; the same command goes on from there"
        )  # fmt: skip
        second = staged(12, save_every, eval_every)
        second.run(first.saved[last])
        assert [*second.rows] == [*range(last + 1, 13)]
        assert second.saved[12].params == tuple(range(12))
        assert second.events[0][:3] == ("resume", last, f"begun at {last}")

    def test_a_signal_during_the_last_step_is_an_end_like_any(self, staged):
        stage = staged(4, stage={"stop_after": 4})
        assert stage.run().held_out.loss == 4
        assert stage.scored == [(4, None)]
        assert stage.events[-1][:3] == ("end", 4, "reached the last step, 4")

    def test_a_signal_before_the_first_step_saves_nothing(self, staged):
        stage = staged(stage={"stop_after": 0})
        assert stage.run().step == 0
        assert (stage.saved, stage.rows) == ({}, {})
        assert stage.said[-1] == "stopped at step 0; the same command goes on from there"

    def test_a_finished_run_is_scored_on_all_and_nothing_else(self, staged):
        stage = staged(5, eval_batches=2)
        result = stage.run(SimpleNamespace(step=5, params=tuple(range(5)), streak=0))
        assert stage.scored == [(5, None)]
        assert (result.loss, result.held_out.loss, stage.saved) == (None, 5, {})
        scores = "held-out loss 5.0000  perplexity 148.41"
        assert stage.said[-1] == f"nothing to do: the run is at step 5 of 5  {scores}"

    @pytest.mark.parametrize("pairs", [False, True])
    def test_a_pair_is_two_rows_and_is_told_by_the_model_as_it_was(
        self, staged, monkeypatch, pairs
    ):
        monkeypatch.setattr(meters.Laps, "rate", lambda _, amount: amount)
        stage = staged(4, batch=8, accumulate=2)
        result = stage.run(compute=StepConfig(pairs=pairs, examples=pairs))
        assert result.tokens_per_second == (2 if pairs else 1) * 8 * 16
        assert stage.rows[3]["tokens"] == 3 * result.tokens_per_second
        assert (stage.how["seq"], stage.how["batch"]) == (16, 4)
        assert stage.how.get("reference") == ("base" if pairs else None)

    @pytest.mark.parametrize("held_out", [None, "text"])
    def test_what_is_not_asked_for_is_not_done(self, staged, held_out):
        stage = staged(4)
        result = stage.run(held_out=held_out, write_on=lambda *_: ["never"])
        assert len(stage.scored) == (held_out is not None)
        assert (result.held_out is None) == (held_out is None)
        assert stage.samples == []

    def test_prompts_are_written_on_from_even_without_held_out_text(self, staged):
        stage = staged(6, eval_every=4, prompts=("a", "b"))
        write_on = lambda params, model, tokenizer, prompts: [  # noqa: E731
            f"{prompt} after {len(params)}" for prompt in prompts
        ]
        stage.run(held_out=None, write_on=write_on)
        assert stage.samples == [
            *((4, "a", "a after 4"), (4, "b", "b after 4")),
            *((6, "a", "a after 6"), (6, "b", "b after 6")),
        ]


class TestSpikes:
    @quick
    @given(st.sets(st.integers(0, 15), max_size=6), often, st.integers(2, 4))
    def test_a_run_reaches_its_end_and_learns_nothing_twice(
        self, staged, bad, save_every, rewind_after
    ):
        stage = staged(12, save_every, rewind_after=rewind_after, stage={"bad": bad})
        try:
            stage.run()
        except UserError as error:
            assert "to go back to: train in another folder" in str(error)  # noqa: PT017
            assert stage.events[-1][0] == "stop"
            return
        made = stage.saved[12].params
        assert sorted(set(made)) == [*made]
        assert bad.isdisjoint(made)
        assert [*stage.rows] == [*range(1, 13)]
        passed_over = sum(skip.batches for skip in stage.skips)
        assert made == tuple(
            batch
            for batch in (batch_index(update, stage.skips) for update in range(12))
            if batch not in bad
        )
        went_back = [event for event in stage.events if event[0] == "rewind"]
        assert len(went_back) == len(stage.skips) == stage.said.count("forgotten")
        assert (passed_over > 0) == bool(went_back)

    def test_what_it_says_of_one_names_the_worst_rows_first(self, staged):
        stage = staged(4, stage={"bad": {2}})
        stage.run()
        (skip,) = [event for event in stage.events if event[0] == "skip"]
        told = (
            "step 3 skipped: loss 2, gradient norm 1; rows of the highest loss 7, 8, 6 "
            f"(gptj show-rows {stage.config.out} 3)"
        )
        assert skip == ("skip", 3, told, {"rows": [7, 8, 6], "loss": "2.0", "grad_norm": "1.0"})
        assert told in stage.said

    def test_of_many_rows_only_the_worst_are_named(self, staged, monkeypatch):
        monkeypatch.setattr(loops, "WORST", 2)
        stage = staged(4, stage={"bad": {2}})
        stage.run()
        assert [event[3]["rows"] for event in stage.events if event[0] == "skip"] == [[7, 8]]

    def test_a_state_in_the_midst_of_them_is_not_saved_but_at_the_end_or_a_signal(self, staged):
        stage = staged(8, save_every=2, stage={"bad": {1, 3, 7}})
        stage.run()
        assert [*stage.saved] == [6, 8]
        stage = staged(8, save_every=2, stage={"bad": {4}, "stop_after": 5})
        stage.run()
        assert [*stage.saved] == [2, 4, 5]

    def test_it_goes_back_before_the_first_of_them_and_no_further(self, staged):
        stage = staged(12, save_every=2, rewind_after=3, stage={"bad": {4, 5, 6}})
        stage.run()
        assert stage.skips == [Skip(2, 6)]  # not 4, from where no update was good
        (event,) = [event for event in stage.events if event[0] == "rewind"]
        assert event[1:3] == (
            7,
            "the last 3 updates up to step 7 were skipped as spikes: going back to step 2 and "
            "passing over the data since",
        )
        assert event[2] in stage.said
        assert stage.saved[12].params == (0, 1, *range(8, 18))

    def test_a_second_time_to_the_same_place_it_stops(self, staged):
        stage = staged(12, save_every=4, rewind_after=2, stage={"bad": {5, 6, 9, 10}})
        said = r"there is step 4, where it went back to already to go back to: .* `gptj show-rows "
        with pytest.raises(UserError, match=said):
            stage.run()
        assert stage.skips == [Skip(4, 4)]


class TestTraces:
    @pytest.mark.parametrize(
        ("profile", "traced"),
        [(None, []), ("3:5", [2, 4]), ("1:2", [0, 1]), ("6:99", [5, 6]), ("7:9", [])],
    )
    def test_steps_are_traced_from_the_first_to_before_the_last(self, staged, profile, traced):
        stage = staged(6, profile=profile)
        stage.run()
        assert stage.traced == traced
