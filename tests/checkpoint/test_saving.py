"""A save that fails: what is said, what is left, and that the next one is like any other."""

import jax.numpy as jnp
import pytest

from gptj.checkpoint import saving
from gptj.checkpoint.keep import KeepPolicy
from gptj.checkpoint.manifest import CheckpointError, complete, step_of
from gptj.checkpoint.saving import SCORE, Saver

SMALL, LARGE = {"x": jnp.zeros(3)}, {"x": jnp.arange(100_000.0)}


def steps(folder):
    return [step_of(path) for path in complete(folder)]


def written(saver, step):
    saver.save(step, LARGE)
    saver.wait()


def test_it_names_the_last_good_one_and_leaves_nothing_of_itself(tmp_path, full_disk):
    with Saver(tmp_path) as saver:
        with full_disk(100_000), pytest.raises(CheckpointError) as first:
            written(saver, 1)
        saver.save(2, SMALL)
        with full_disk(100_000), pytest.raises(CheckpointError) as second:
            written(saver, 3)
        assert [path.name for path in tmp_path.iterdir()] == ["00000002"]
        saver.save(3, LARGE)  # the same step is another try
    assert steps(tmp_path) == [2, 3]
    for failed, step, good in ((first, 1, "none yet"), (second, 3, tmp_path / "00000002")):
        said = str(failed.value)
        assert said.startswith(f"checkpoint {tmp_path / f'{step:08d}'} could not be written: ")
        assert "too large" in said
        assert said.endswith(
            f"Free some space (or raise the limit) and run the same command again; the last good "
            f"checkpoint is {good}"
        )


@pytest.mark.parametrize(
    ("error", "said"), [(None, "could not be written"), (LookupError("our own"), "our own")]
)
def test_leaving_waits_and_tells_of_it_unless_something_else_went_wrong(
    tmp_path, full_disk, error, said
):
    def left():
        with Saver(tmp_path) as saver:
            saver.save(1, LARGE)
            if error:
                raise error

    with full_disk(100_000), pytest.raises((CheckpointError, LookupError), match=said):
        left()
    assert list(tmp_path.iterdir()) == []


class TestWhatStays:
    """By the scores that manifests hold, each of which is read once and only where it matters."""

    @pytest.fixture
    def read(self, monkeypatch):
        """The steps whose metadata were read; what they say."""
        asked, scores = [], {}

        def metadata(path):
            asked.append(step_of(path))
            if step_of(path) not in scores:
                raise CheckpointError("damaged")
            return scores[step_of(path)]

        monkeypatch.setattr(saving, "metadata", metadata)
        return asked, scores

    @pytest.fixture
    def folder(self, tmp_path):
        """Four checkpoints, as far as their names and manifests say."""
        for step in (1, 2, 3, 4):
            (tmp_path / f"{step:08d}").mkdir()
            (tmp_path / f"{step:08d}" / "manifest.json").write_text("{}")
        return tmp_path

    def test_the_best_by_score_and_what_has_none_is_not(self, folder, read):
        asked, scores = read
        scores |= {1: {SCORE: 2}, 2: {SCORE: "1.5"}, 4: {"note": "no score"}}
        with Saver(folder, KeepPolicy(1, best=1)) as saver:
            saver.wait()
            assert steps(folder) == [2, 4]
            saver.wait()
        assert asked == [1, 2, 3, 4]
        assert {path.name for path in folder.iterdir()} == {"00000002", "00000004"}

    def test_no_score_is_read_where_none_is_asked_for(self, folder, read):
        with Saver(folder, KeepPolicy(2)):
            pass
        assert read[0] == []
        assert steps(folder) == [3, 4]

    def test_what_is_there_already_is_not_saved_again(self, folder, monkeypatch):
        with Saver(folder, KeepPolicy(9)) as saver:
            monkeypatch.setattr(saver._writer, "save", pytest.fail)
            saver.save(4, SMALL)
            monkeypatch.undo()
            saver.forget(after=2)
            assert steps(folder) == [1, 2]
            monkeypatch.setattr(saver._writer, "save", pytest.fail)
            saver.save(2, SMALL)
            monkeypatch.undo()
            saver.save(4, SMALL)
        assert steps(folder) == [1, 2, 4]


@pytest.mark.parametrize("is_first", [True, False])
def test_of_several_processes_the_first_alone_deletes(tmp_path, is_first):
    for step in (1, 2, 3):
        (tmp_path / f"{step:08d}").mkdir()
        (tmp_path / f"{step:08d}" / "manifest.json").write_text("{}")
    (tmp_path / "00000004").mkdir()  # of a killed one
    with Saver(tmp_path, KeepPolicy(9)) as saver:
        assert not (tmp_path / "00000004").exists()
        (tmp_path / "00000004").mkdir()
        saver._is_first, saver.keep = is_first, KeepPolicy(1)
        saver._remove_unfinished()
        assert (tmp_path / "00000004").exists() is not is_first
        saver.wait()
        assert steps(tmp_path) == ([3] if is_first else [1, 2, 3])
        saver.forget(after=0)
        assert steps(tmp_path) == ([] if is_first else [1, 2, 3])
