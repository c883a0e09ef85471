"""Where a conversion may write, what it notes, and by which names models and configs are found."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from gptj import PRESETS, ModelConfig, Tokenizer, UserError
from gptj.checkpoint import CheckpointError
from gptj.convert.convert import ConvertConfig, convert, write
from gptj.convert.mesh_transformer import FIELDS
from gptj.convert.open import config_named, open_source
from gptj.convert.source import from_params
from gptj.model import weights

CONFIG = ModelConfig(1, 16, 8, 2, 32, 257, 264, context=16)


def made(tokenizer=None, **changes):
    config, draw = replace(CONFIG, **changes), np.random.default_rng(0)
    drawn = jax.tree.map(lambda w: draw.normal(size=w.shape).astype("f4"), weights(config))
    return from_params(config, drawn, tokenizer)


@pytest.mark.parametrize("to", ["gptj", "huggingface"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokenizer", [None, Tokenizer.bytes()])
def test_what_does_not_come_along_is_noted_and_nothing_else(to, bias, tokenizer, tmp_path):
    write(made(tokenizer, embedding_bias=bias), tmp_path / "model")
    found = convert(ConvertConfig(str(tmp_path / "model"), tmp_path / "out", to)).notes
    assert found == (
        *(["the embedding's bias is added into the embedding"] * (bias and to == "huggingface")),
        *(["there is no tokenizer to write: name one with --tokenizer"] * (tokenizer is None)),
    )


def test_a_type_that_is_asked_for_is_that_of_a_slim_one_too(tmp_path):
    write(made(), tmp_path / "model")
    for dtype, expected in ((None, "bfloat16"), ("float16", "float16")):
        asked = ConvertConfig(str(tmp_path / "model"), tmp_path / expected, dtype=dtype, slim=True)
        convert(asked)
        assert open_source(tmp_path / expected).dtype.name == expected


def test_as_many_shards_as_the_released_model_has(tmp_path):
    write(made(), tmp_path / "a", "mesh-transformer")
    convert(ConvertConfig(str(tmp_path / "a"), tmp_path / "b", "mesh-transformer"))
    for name in "ab":
        assert len(list((tmp_path / name).glob("shard_*"))) == 8


class TestWhereItMayWrite:
    def test_a_folder_that_is_empty_or_whose_parents_are_not_there(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for out in (tmp_path / "empty", tmp_path / "deep" / "deeper" / "out"):
            write(made(), out)
            assert open_source(out).config == CONFIG
            assert not list(out.parent.glob(".*"))

    def test_not_below_a_file(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(CheckpointError, match=r"file/out could not be written \(.+\): free"):
            write(made(), tmp_path / "file" / "out")

    def test_what_was_left_unfinished_is_no_hindrance(self, tmp_path):
        (tmp_path / ".out.unfinished").mkdir()
        (tmp_path / ".out.unfinished" / "rest").write_text("of before")
        write(made(), tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert not (tmp_path / "out" / "rest").exists()


class TestNames:
    def test_a_folder_here_is_no_hub_id(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write(made(), tmp_path / "someone" / "model")
        assert open_source("someone/model").config == CONFIG

    def test_of_several_folders_none_is_the_model(self, tmp_path):
        for name in "ab":
            write(made(), tmp_path / "both" / name)
        with pytest.raises(UserError, match=f"no model at {tmp_path}/both: give"):
            open_source(tmp_path / "both")

    @pytest.mark.parametrize("names", [(), ("notes.txt",), ("shard_0/0.npz",)])
    def test_a_folder_of_one_thing_or_none_is_not_a_model(self, names, tmp_path):
        (tmp_path / "model").mkdir()
        for name in names:
            (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "model" / name).write_text("x")
        with pytest.raises(UserError, match=str(tmp_path / "model")):
            open_source(tmp_path / "model")

    def test_a_file_that_is_no_archive_and_an_archive_that_is_not_there(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        for name in ("notes.txt", "model.tar"):
            with pytest.raises(UserError, match=f"no model at {tmp_path}/{name}: give"):
                open_source(tmp_path / name)

    def test_what_a_damaged_archive_left_is_removed_once(self, monkeypatch, tmp_path):
        at_the_end = []
        monkeypatch.setattr("atexit.register", at_the_end.append)
        (tmp_path / "model.tar").write_bytes(b"x")
        with pytest.raises(UserError, match=r"model\.tar"):
            open_source(tmp_path / "model.tar")
        (remove,) = at_the_end
        remove()  # as the program ends: nothing is there any more, of which nothing is said
        assert [path.name for path in tmp_path.iterdir()] == ["model.tar"]


class TestConfigs:
    def test_none_a_preset_ours_or_the_originals(self, tmp_path):
        assert config_named(None) is None
        assert config_named("gpt-j-6b") == PRESETS["gpt-j-6b"]
        CONFIG.save(tmp_path / "ours.json")
        assert config_named(str(tmp_path / "ours.json")) == CONFIG
        theirs = {name: getattr(CONFIG, ours) for name, ours in FIELDS.items()}
        (tmp_path / "theirs.json").write_text(json.dumps(theirs))
        found = config_named(str(tmp_path / "theirs.json"))
        assert found == replace(CONFIG, vocab_size=264, d_ff=64)

    @pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000])
    def test_what_is_no_text_or_too_deep(self, content, tmp_path):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.json is not JSON.*: it must hold a model's"):
            config_named(str(tmp_path / "x.json"))

    def test_what_is_not_there(self, tmp_path):
        for name in ("nosuch", str(tmp_path)):
            with pytest.raises(UserError, match=f"no config '{name}': give a JSON file or one of"):
                config_named(name)
