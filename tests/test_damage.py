"""A damaged checkpoint and a full disk: it is said which, and everything good before it stays."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import gptj as package
from gptj.train.metrics import read_metrics

LIMITED = """
import resource, sys
from gptj.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""
"""The command where no file can grow past so many bytes: as far as it can tell, a full disk."""


def with_file_limit(limit: int, *words: object) -> subprocess.CompletedProcess[str]:
    # Of the compiled programs' own cache, which is too large for it too, JAX warns.
    own = {"PYTHONDONTWRITEBYTECODE": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **own},
    )


def leave_out(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def assert_same_weights(run: Path, other: Path) -> None:
    jax.tree.map(
        np.testing.assert_array_equal, package.load(run).params, package.load(other).params
    )


@pytest.mark.parametrize("damage", [leave_out, cut_short, flip_a_bit])
class TestADamagedCheckpoint:
    @pytest.fixture
    def damaged(self, own_run, damage) -> tuple[Path, Path]:
        """A run whose newest checkpoint has a damaged file, and that file."""
        files = (own_run / "checkpoints/00000012").rglob("*")
        file = max(files, key=lambda path: path.stat().st_size * path.is_file())
        damage(file)
        return own_run, file

    def test_generate_names_the_checkpoint_the_file_and_the_remedy(self, refused, damaged):
        run, file = damaged
        newest = run / "checkpoints/00000012"
        said = (f"checkpoint {newest} is damaged", str(file.relative_to(newest)), "Delete that")
        refused("generate", run, "--prompt", "the ", said=said)

    def test_verify_says_which_of_all_it_is(self, gptj, damaged):
        run, file = damaged
        code, out, _ = gptj("verify", run)
        assert code == 2
        whole, also, last = out.splitlines()
        assert whole.endswith("  whole")
        assert also.endswith("  whole")
        assert f"checkpoint {run}/checkpoints/00000012 is damaged: " in last
        assert file.name in last
        assert gptj("verify", run / "checkpoints/00000008", run / "checkpoints/00000004").code == 0

    def test_so_does_train_and_the_remedy_works(
        self, refused, gptj, train_flags, damaged, tiny_run
    ):
        run, file = damaged
        newest = run / "checkpoints/00000012"
        said = (f"checkpoint {newest} is damaged", str(file.relative_to(newest)), "Delete that")
        refused("train", *train_flags(run), said=said)
        assert len(read_metrics(run)) == 12

        shutil.rmtree(newest)
        code, out, _ = gptj("train", *train_flags(run))
        assert code == 0
        assert "going on from step 8" in out
        assert_same_weights(run, tiny_run)


def test_verify_refuses_where_there_is_nothing_to_verify(refused, tiny_data, tmp_path):
    refused("verify", said=("give the folder of a run",))
    refused("verify", tmp_path / "none", said=("no checkpoint at", "give a run's folder"))
    refused("verify", tiny_data, said=("holds no checkpoint", "give a run that has saved one"))


class TestAFullDisk:
    def test_a_checkpoint_fails_and_the_one_before_it_is_whole(
        self, gptj, train_flags, stopped_run, tiny_run
    ):
        folder = stopped_run / "checkpoints"
        done = with_file_limit(20_000, "train", *train_flags(stopped_run))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(
            f"gptj train: checkpoint {folder}/00000008 could not be written: "
        )
        assert "File too large" in done.stderr
        assert f"the last good checkpoint is {folder}/00000004" in done.stderr
        assert [path.name for path in folder.iterdir()] == ["00000004"]
        assert package.load(stopped_run).config.layers == 2

        code, out, _ = gptj("train", *train_flags(stopped_run))
        assert code == 0
        assert "going on from step 4" in out
        assert [row["step"] for row in read_metrics(stopped_run)] == list(range(1, 13))
        assert_same_weights(stopped_run, tiny_run)

    def test_a_new_run_that_cannot_even_begin_can_be_begun_again(self, gptj, train_flags, tmp_path):
        run = tmp_path / "run"
        done = with_file_limit(500, "train", *train_flags(run))
        assert done.returncode == 2
        assert done.stderr == (
            f"gptj train: the run's folder {run} cannot be written (File too large): free space, "
            "or choose another folder for the run\n"
        )
        assert gptj("train", *train_flags(run)).code == 0

    def test_prepare_leaves_nothing(self, tiny_text, tmp_path):
        place = tmp_path / "place"
        words = ("prepare", tiny_text, "--out", place / "data", "--tokenizer", "bytes")
        done = with_file_limit(4000, *words)
        assert done.returncode == 2
        assert done.stderr == (
            f"gptj prepare: {place / 'data'} cannot be written (File too large) and is left as "
            "it was: free space, or choose another --out\n"
        )
        assert not place.exists()
