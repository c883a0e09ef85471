"""Checkpoints are complete or absent, kept by policy, and never read when damaged."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj import checkpoint
from gptj.checkpoint import CheckpointError, KeepPolicy, Saver, kept
from gptj.errors import UserError
from gptj.sharding import make_mesh
from gptj.train import run

TREE = {"params": {"a": jnp.arange(40_000.0), "b": jnp.ones((3, 4), jnp.bfloat16)}, "step": 7}
LIKE = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))
SMALL = {"x": jnp.zeros(3)}

SCORES = st.dictionaries(
    st.integers(0, 60), st.none() | st.sampled_from([1.0, 2.0, 3.0, math.nan]), max_size=30
)
POLICIES = st.builds(
    KeepPolicy, st.integers(1, 5), st.none() | st.integers(1, 9), st.integers(0, 4)
)


def save(folder, tree, metadata=None, step=1):
    with Saver(folder) as saver:
        saver.save(step, tree, metadata)
    return folder / f"{step:08d}"


def steps(folder):
    return [checkpoint.step_of(path) for path in checkpoint.complete(folder)]


def largest(path):
    files = json.loads((path / checkpoint.MANIFEST).read_text())["files"]
    return max(files, key=lambda name: files[name]["bytes"])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path, TREE, {"note": "x", "model": {"layers": 2, "heads": 4}})


class TestARestoredCheckpoint:
    def test_is_what_was_saved_bit_for_bit(self, saved):
        restored = checkpoint.restore(saved, LIKE)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), restored, TREE)
        assert checkpoint.metadata(saved)["note"] == "x"

    def test_may_be_a_part_by_name(self, saved):
        part = {"params": LIKE["params"]}
        assert jax.tree.structure(checkpoint.restore(saved, part)) == jax.tree.structure(part)

    def test_comes_back_on_any_mesh_from_any_other(self, tmp_path):
        whole = np.arange(8 * 16 * 8, dtype=np.float32).reshape(8, 16, 8)
        layouts = [
            (make_mesh(data=8), jax.P()),
            (make_mesh(fsdp=8), jax.P(None, "fsdp")),
            (make_mesh(fsdp=2, tensor=4), jax.P("fsdp", None, "tensor")),
            (make_mesh(data=2, tensor=2), jax.P(("data", "tensor"))),
        ]
        shardings = [jax.NamedSharding(*layout) for layout in layouts]
        for index, sharding in enumerate(shardings):
            path = save(tmp_path / str(index), {"x": jax.device_put(whole, sharding)})
            for other in shardings:
                like = {"x": jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=other)}
                restored = checkpoint.restore(path, like)["x"]
                assert restored.sharding == other
                np.testing.assert_array_equal(restored, whole)

    def test_is_read_in_chunks_and_within_a_limit(self, tmp_path, monkeypatch):
        """An array of many chunks, cut across them: what is read at once has to fit the limit."""
        monkeypatch.setattr("gptj.checkpoint.handler.CHUNK", 4 << 20)
        monkeypatch.setattr("gptj.checkpoint.restoring.IN_FLIGHT", 9)
        x = jnp.arange(5_000_000, dtype=jnp.int32).reshape(5, 1000, 1000)
        path = save(tmp_path, {"x": x})
        sharding = jax.NamedSharding(make_mesh(tensor=8), jax.P(None, "tensor"))
        like = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
        np.testing.assert_array_equal(checkpoint.restore(path, like)["x"], x)


class TestAnotherModelsCheckpoint:
    def test_differs_in_a_named_field_of_the_config(self, saved):
        with pytest.raises(CheckpointError, match="another model: layers is 2 there and 3 here"):
            checkpoint.restore(saved, LIKE, {"layers": 3, "heads": 4, "new": 1})
        checkpoint.restore(saved, LIKE, {"layers": 2, "heads": 4, "new": 1})

    def test_differs_in_a_named_shape(self, saved):
        other = {"params": {**LIKE["params"], "a": jax.ShapeDtypeStruct((5,), jnp.float32)}}
        with pytest.raises(
            CheckpointError, match=r"another model: params\.a is \(40000,\) there and \(5,\) here"
        ):
            checkpoint.restore(saved, other)

    def test_lacks_a_weight_or_has_one_too_many(self, saved):
        c = jax.ShapeDtypeStruct((5,), jnp.float32)
        with pytest.raises(CheckpointError, match=r"params\.c is missing there and \(5,\) here"):
            checkpoint.restore(saved, {"params": {**LIKE["params"], "c": c}})
        with pytest.raises(CheckpointError, match=r"params\.b is \(3, 4\) there and missing here"):
            checkpoint.restore(saved, {"params": {"a": LIKE["params"]["a"]}})

    def test_has_another_optimizers_state(self, tmp_path):
        params = {"w": jnp.zeros((256, 256))}
        path = save(tmp_path, {"params": params, "opt_state": optax.adamw(1e-3).init(params)})
        for other in (optax.adafactor(1e-3), optax.sgd(1e-3)):
            like = jax.eval_shape(
                lambda other=other: {"params": params, "opt_state": other.init(params)}
            )
            with pytest.raises(CheckpointError) as refused:
                checkpoint.restore(path, like)
            assert "another optimizer: opt_state." in str(refused.value)
            assert "Use the optimizer's config that it was saved with" in str(refused.value)


class TestADamagedCheckpoint:
    def test_is_noticed_by_one_flipped_bit(self, saved):
        name = largest(saved)
        flip_a_bit(saved / name)
        with pytest.raises(CheckpointError, match=f"{name} is not what was written"):
            checkpoint.restore(saved, LIKE)

    def test_needs_its_manifest(self, tmp_path):
        (tmp_path / "00000003").mkdir()
        assert checkpoint.complete(tmp_path) == []
        with pytest.raises(CheckpointError, match="not a complete checkpoint"):
            checkpoint.restore(tmp_path / "00000003", LIKE)

    @pytest.mark.parametrize("content", ["", "[]", '{"files": {}}', '{"files": {"a": 1}}', "\x00"])
    def test_may_have_a_damaged_manifest(self, saved, content):
        (saved / checkpoint.MANIFEST).write_text(content)
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            checkpoint.restore(saved, LIKE)


class TestVerified:
    def test_one_result_a_checkpoint_of_a_run(self, tmp_path):
        folder = tmp_path / checkpoint.FOLDER
        with Saver(folder) as saver:
            for step in (2, 10, 100_000_000):
                saver.save(step, TREE)
        flip_a_bit(folder / "00000010" / largest(folder / "00000010"))
        found = list(checkpoint.verified(tmp_path))
        assert [each.step for each in found] == [2, 10, 100_000_000]
        assert [each.problem is None for each in found] == [True, False, True]
        assert "is not what was written" in found[1].problem
        for each in found:
            files = (file for file in each.path.rglob("*") if file.is_file())
            others = checkpoint.WRITTEN_AFTER | {checkpoint.MANIFEST}
            assert each.bytes == sum(f.stat().st_size for f in files if f.name not in others)

    def test_one_checkpoint_whatever_its_name(self, saved):
        for path in (saved, shutil.copytree(saved, saved.with_name("copied"))):
            (found,) = checkpoint.verified(path)
            assert found.problem is None

    def test_what_lacks_its_manifest_is_a_problem(self, saved):
        (saved / checkpoint.MANIFEST).unlink()
        for place in (saved, saved.parent):
            (found,) = checkpoint.verified(place)
            assert "has no manifest.json" in found.problem

    def test_a_place_without_any_is_refused(self, tmp_path):
        for place in (tmp_path, tmp_path / "none"):
            with pytest.raises(UserError, match=r"give a run.* checkpoint's"):
                list(checkpoint.verified(place))

    def test_one_deleted_meanwhile_is_passed_over(self, tmp_path):
        with Saver(tmp_path) as saver:
            for step in (1, 2):
                saver.save(step, SMALL)
        results = checkpoint.verified(tmp_path)
        assert next(results).step == 1
        shutil.rmtree(tmp_path / "00000002")
        assert list(results) == []


class TestThePolicy:
    @given(SCORES, POLICIES)
    def test_keeps_what_it_says(self, scores, policy):
        stay = kept(scores, policy)
        newest = sorted(scores)[-policy.last :]
        milestones = {step for step in scores if policy.every and step % policy.every == 0}
        scored = {s: v for s, v in scores.items() if v is not None and not math.isnan(v)}
        best = stay - set(newest) - milestones
        assert stay >= {*newest, *milestones}
        assert best <= set(scored)
        assert len(stay & set(scored)) >= min(policy.best, len(scored))
        for step in best:  # fewer than `best` are better
            better = [s for s, v in scored.items() if (v, -s) < (scored[step], -step)]
            assert len(better) < policy.best

    @given(SCORES, POLICIES)
    def test_one_at_a_time_leaves_what_all_at_once_leaves(self, scores, policy):
        there = {}
        for step in sorted(scores):
            there[step] = scores[step]
            there = {step: there[step] for step in kept(there, policy)}
        assert set(there) == kept(scores, policy)

    @given(SCORES, POLICIES, st.integers(0, 3))
    def test_asked_for_more_it_keeps_no_less(self, scores, policy, more):
        wider = KeepPolicy(policy.last + more, policy.every, policy.best + more)
        assert kept(scores, policy) <= kept(scores, wider)

    @pytest.mark.parametrize("wrong", [{"last": 0}, {"every": 0}, {"best": -1}])
    def test_must_make_sense(self, wrong):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}=.* must be at least"):
            KeepPolicy(**wrong)


class TestASaver:
    def test_keeps_the_newest(self, tmp_path):
        with Saver(tmp_path, KeepPolicy(2)) as saver:
            for step in (1, 5, 10, 200):
                saver.save(step, TREE)
                saver.save(step, TREE)  # the same step again is the same checkpoint
        assert steps(tmp_path) == [10, 200]

    def test_keeps_milestones_and_the_best_even_across_restarts(self, tmp_path):
        losses = {2: 3.0, 4: 1.0, 6: None, 8: 2.0, 10: math.nan, 12: 1.5, 14: 1.6, 16: 1.7}
        for step, loss in losses.items():
            with Saver(tmp_path, KeepPolicy(1, every=6, best=2)) as saver:
                saver.save(step, SMALL, {} if loss is None else {checkpoint.SCORE: loss})
        assert steps(tmp_path) == [4, 6, 12, 16]

    def test_forgets_what_came_after_a_step_and_saves_it_anew(self, tmp_path):
        with Saver(tmp_path, KeepPolicy(9, best=9)) as saver:
            for step in (1, 2, 3):
                saver.save(step, SMALL, {checkpoint.SCORE: 1.0})
            saver.forget(after=1)
            assert steps(tmp_path) == [1]
            saver.save(3, {"x": jnp.ones(3)}, {checkpoint.SCORE: 2.0})
        assert steps(tmp_path) == [1, 3]
        restored = checkpoint.restore(
            checkpoint.path_of(tmp_path, 3), jax.eval_shape(lambda: SMALL)
        )
        assert restored["x"].sum() == 3

    def test_that_cannot_read_a_score_goes_on_without(self, tmp_path):
        best = save(tmp_path, SMALL, {checkpoint.SCORE: 0.0})
        (best / checkpoint.MANIFEST).write_text("{")
        for step in (2, 3):
            with Saver(tmp_path, KeepPolicy(1, best=1)) as saver:
                saver.save(step, SMALL, {checkpoint.SCORE: float(step)})
        assert steps(tmp_path) == [2, 3]

    def test_clears_what_a_killed_one_left(self, tmp_path):
        for name in ("00000003", "00000004.orbax-checkpoint-tmp-1"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "data").write_text("half")
        (tmp_path / "notes").mkdir()
        with Saver(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["notes"]

    def test_leaves_no_notes_behind(self, saved):
        assert not list(saved.glob("hashes*"))
        assert any(name.startswith("ocdbt.process_0/") for name in _listed(saved))


HOST = """
import sys
from pathlib import Path
import jax, numpy as np
from gptj import checkpoint
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
folder, do = Path(sys.argv[3]), sys.argv[4]
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Explicit,))
sharding = jax.NamedSharding(mesh, jax.P("fsdp"))
whole = np.arange(2 * 3 * 70_000, dtype=np.float32).reshape(2, 3, 70_000)
with jax.set_mesh(mesh):
    if do == "save":
        with checkpoint.Saver(folder, checkpoint.KeepPolicy(1, best=1)) as saver:
            for step in (1, 2, 3):
                part = lambda index: whole[index] + step
                tree = {"x": jax.make_array_from_callback(whole.shape, sharding, part)}
                saver.save(step, tree, {checkpoint.SCORE: abs(step - 1)})
                saver.save(step, tree)
    like = {"x": jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=sharding)}
    (shard,) = checkpoint.restore(checkpoint.path_of(folder, 3), like)["x"].addressable_shards
    np.testing.assert_array_equal(shard.data, whole[shard.index] + 3)
"""


class TestWhereARunHasThem:
    def test_in_its_own_folder_or_where_its_file_says(self, tmp_path):
        assert checkpoint.of_run(tmp_path) == tmp_path / "checkpoints"
        save(tmp_path / "other", SMALL)
        note = tmp_path / checkpoint.ELSEWHERE
        note.write_text(json.dumps({"folder": str(tmp_path / "other")}))
        assert checkpoint.of_run(tmp_path) == tmp_path / "other"
        assert [found.step for found in checkpoint.verified(tmp_path)] == [1]
        note.write_text("{")
        with pytest.raises(UserError, match=r"checkpoints\.json is damaged"):
            checkpoint.of_run(tmp_path)

    def test_not_where_orbax_cannot_write(self):
        with pytest.raises(UserError, match=r"not to s3://. Mount the bucket"):
            checkpoint.at("s3://bucket/run")


class TestTwoProcesses:
    """The same calls in each: all say the same, each writes and reads its own part."""

    @staticmethod
    def run(folder, do):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", HOST, address, str(index), str(folder), do],
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for index in range(2)
        ]
        said = [process.communicate(timeout=240)[1] for process in started]
        return [process.returncode for process in started], said

    def test_save_and_restore_and_refuse_together(self, tmp_path):
        codes, said = self.run(tmp_path, "save")
        assert codes == [0, 0], said
        assert steps(tmp_path) == [1, 3]
        newest = checkpoint.path_of(tmp_path, 3)
        files = _listed(newest)
        for index in range(2):  # each wrote a half, and hashed it
            own = (e["bytes"] for n, e in files.items() if n.startswith(f"ocdbt.process_{index}/"))
            assert sum(own) == pytest.approx(3 * 70_000 * 4, rel=0.02)
        assert not list(newest.glob("hashes*"))
        checkpoint.verify(newest)

        like = {"x": jax.ShapeDtypeStruct((2, 3, 70_000), jnp.float32)}
        alone = np.asarray(checkpoint.restore(newest, like)["x"]).reshape(-1)
        np.testing.assert_array_equal(alone, np.arange(2 * 3 * 70_000) + 3.0)

        flip_a_bit(newest / largest(newest))
        codes, said = self.run(tmp_path, "restore")
        assert 0 not in codes
        assert all("CheckpointError: checkpoint" in text for text in said), said
        assert sum("is not what was written" in text for text in said) == 1


def _listed(path):
    return json.loads((path / checkpoint.MANIFEST).read_text())["files"]


def test_a_run_belongs_to_one_process_at_a_time(tmp_path):
    held = run.exclusive(tmp_path)
    with held, pytest.raises(UserError, match="another process is training in"):
        run.exclusive(tmp_path).__enter__()
    with run.exclusive(tmp_path):
        pass
