"""The law: whatever a `kill -9` cuts, the run goes on from a complete checkpoint, to the same end.

A few kills here; `benchmarks/kills.py` does fifty, with the same code.
"""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def kills():
    """The benchmark as a module, which imports its neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        return importlib.import_module("kills")


def test_killed_in_the_middle_of_saves(kills, tmp_path):
    arena, run, whole = kills.Arena(tmp_path, steps=24), tmp_path / "run", tmp_path / "whole"
    assert arena.finish(whole) == 0
    lives = kills.kill_often(arena, run, kills=3, seed=1, moments=("writing", "written"))
    assert all(life.resumed == life.newest_before for life in lives)
    assert arena.finish(run) == lives[-1].newest
    kills.compare(run, whole)


def test_a_broken_promise_is_noticed(kills, own_run, tmp_path):
    life = kills.Life("any", 0.0, 12, 8, 12, False, False)
    with pytest.raises(SystemExit, match="went on from 8, not 12"):
        kills.check(own_run, life)
    life = kills.Life("any", 0.0, 16, 16, 12, False, False)
    with pytest.raises(SystemExit, match="checkpoint 16 is lost"):
        kills.check(own_run, life)
    (own_run / "checkpoints/00000008/_METADATA").write_text("")
    life = kills.Life("any", 0.0, 12, 12, 12, False, False)
    with pytest.raises(ValueError, match="_METADATA has 0 of"):
        kills.check(own_run, life)
