"""Checkpoints are complete or absent, kept by number, and never read when damaged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptj import checkpoint
from gptj.checkpoint import CheckpointError
from gptj.errors import UserError
from gptj.train import run

TREE = {"params": {"a": jnp.arange(40_000.0), "b": jnp.ones((3, 4), jnp.bfloat16)}, "step": 7}
LIKE = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, TREE))


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "one", TREE, {"note": "x"})
    return tmp_path / "one"


def test_what_is_saved_is_restored_bit_for_bit(saved):
    restored = checkpoint.restore(saved, LIKE)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), restored, TREE)
    assert checkpoint.metadata(saved) == {"note": "x"}


def test_a_part_is_restored_by_name(saved):
    part = {"params": {"b": LIKE["params"]["b"]}}
    assert jax.tree.structure(checkpoint.restore(saved, part)) == jax.tree.structure(part)


def test_another_shape_is_named(saved):
    other = {"params": {"a": jax.ShapeDtypeStruct((5,), jnp.float32)}}
    with pytest.raises(CheckpointError, match=r"params\.a is \(40000,\) there and \(5,\) here"):
        checkpoint.restore(saved, other)
    with pytest.raises(CheckpointError, match=r"params\.c is missing there"):
        checkpoint.restore(saved, {"params": {"c": jax.ShapeDtypeStruct((5,), jnp.float32)}})


def test_one_flipped_bit_is_noticed(saved):
    files = json.loads((saved / checkpoint.MANIFEST).read_text())["files"]
    name = max(files, key=lambda name: files[name]["bytes"])
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is not what was written"):
        checkpoint.restore(saved, LIKE)


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path):
    (tmp_path / "00000003").mkdir()
    assert checkpoint.complete(tmp_path) == []
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        checkpoint.restore(tmp_path / "00000003", LIKE)


def test_the_newest_are_kept(tmp_path):
    with checkpoint.Saver(tmp_path, keep=2) as saver:
        for step in (1, 5, 10, 200):
            saver.save(step, TREE)
            saver.save(step, TREE)  # the same step again is the same checkpoint
    assert [checkpoint.step_of(path) for path in checkpoint.complete(tmp_path)] == [10, 200]


def test_a_saver_clears_what_a_killed_one_left(tmp_path):
    for name in ("00000003", "00000004.orbax-checkpoint-tmp-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("half")
    (tmp_path / "notes").mkdir()
    with checkpoint.Saver(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_run_belongs_to_one_process_at_a_time(tmp_path):
    held = run.exclusive(tmp_path)
    with held, pytest.raises(UserError, match="another process is training in"):
        run.exclusive(tmp_path).__enter__()
    with run.exclusive(tmp_path):
        pass
