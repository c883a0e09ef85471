"""A mistake of the user's: one sentence that names the thing and the remedy, and nothing lost."""

import gzip
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from gptj import checkpoint


class TestPrepare:
    @pytest.fixture
    def out(self, tmp_path) -> Path:
        return tmp_path / "out"

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("empty.txt", b"", "is empty: leave it out"),
            ("picture.txt", b"\x89PNG\0\1\2", "is binary"),
            ("latin.txt", b"caf\xe9 au lait", "is not UTF-8 text"),
            ("cut.txt.gz", gzip.compress(b"hello " * 999, mtime=0)[:40], "is corrupt or cut short"),
            ("not.txt.gz", b"not gzip at all", "is corrupt or cut short"),
            ("not.txt.zst", b"not zstandard at all", "is corrupt or cut short"),
            ("lines.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "--text-field"),
            ("lines.jsonl", b"{oops\n", "lines.jsonl:1 is not JSON"),
        ],
    )
    def test_a_file_that_is_no_text(self, refused, tmp_path, out, name, content, said):
        (tmp_path / name).write_bytes(content)
        words = ("prepare", tmp_path / name, "--out", out, "--tokenizer", "bytes", "--strict")
        refused(*words, said=(str(tmp_path / name), said))
        assert {path.name for path in tmp_path.iterdir()} == {name}

    def test_a_folder_without_text(self, refused, tmp_path, out):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos/1.png").write_bytes(b"png")
        words = ("prepare", tmp_path / "photos", "--out", out)
        refused(*words, said=("no text file in the folder", "photos", ".jsonl"))

    def test_a_path_that_is_not_there(self, refused, out):
        refused("prepare", "nowhere.txt", "--out", out, said=("no input nowhere.txt: give",))

    def test_no_path_at_all(self, refused, out):
        refused("prepare", "--out", out, said=("no input given: name the text files",))

    def test_a_place_that_is_taken(self, refused, tiny_text, tiny_data):
        words = ("prepare", tiny_text, "--out", tiny_data)
        refused(*words, said=(f"{tiny_data} exists", "--force"))

    def test_force_does_not_delete_a_run(self, refused, tiny_text, own_run):
        words = ("prepare", tiny_text, "--out", own_run, "--force")
        refused(*words, said=(f"{own_run} is not prepared data", "choose another --out"))
        assert checkpoint.complete(own_run / "checkpoints")

    @pytest.mark.parametrize(
        ("option", "value", "said"),
        [
            ("--tokenizer", "two words", "no tokenizer 'two words': give `bytes`"),
            ("--tokenizer", "nowhere.json", "no tokenizer 'nowhere.json': give `bytes`"),
            ("--tokenizer", "train:100", "write train:VOCAB with a number from 257"),
            ("--tokenizer", "train:many", "write train:VOCAB with a number from 257"),
            ("--held-out", "0.9", "held_out=0.9 must be a fraction from 0 to 0.5"),
            ("--held-out", "-0.1", "held_out=-0.1 must be a fraction from 0 to 0.5"),
            ("--held-out", "nan", "held_out=nan must be a fraction from 0 to 0.5"),
        ],
    )
    def test_an_option_out_of_range(self, refused, tiny_text, out, option, value, said):
        refused("prepare", tiny_text, "--out", out, option, value, said=(said,))
        assert not out.exists()


class TestTrain:
    @pytest.fixture
    def refused_run(self, refused, train_flags, tmp_path):
        """A run that must be refused before anything of it is on disk."""

        def check(*said: str, **changes: object) -> None:
            refused("train", *train_flags(tmp_path / "run", **changes), said=said)
            assert not (tmp_path / "run").exists()

        return check

    @pytest.fixture
    def model_with(self, tiny_model, tmp_path):
        def write(**changes: object) -> Path:
            path = tmp_path / "changed.json"
            path.write_text(json.dumps(json.loads(tiny_model.read_text()) | changes))
            return path

        return write

    def test_data_that_is_not_there(self, refused_run):
        refused_run("nowhere holds no prepared data", "prepare", data="nowhere")

    def test_data_that_is_not_prepared(self, refused_run, tiny_text):
        where = tiny_text.parent
        refused_run(f"{where} holds no prepared data", "prepare", data=where)

    def test_data_cut_short(self, refused_run, tiny_data, tmp_path):
        data = shutil.copytree(tiny_data, tmp_path / "data")
        os.truncate(data / "train/00000-000.tokens", 100)
        refused_run(f"{data}/train/00000-000.tokens has 100 bytes, not", "prepare", data=data)

    def test_data_with_a_file_missing(self, refused_run, tiny_data, tmp_path):
        data = shutil.copytree(tiny_data, tmp_path / "data")
        (data / "heldout/tokenizer.json").unlink()
        refused_run(f"{data}/heldout/tokenizer.json is missing", "prepare", data=data)

    def test_a_preset_there_is_none_of(self, refused_run):
        refused_run("model 'huge' is neither a preset (demo, 125m,", "JSON file", model="huge")

    def test_a_vocabulary_smaller_than_the_tokenizers(self, refused_run, model_with):
        model = model_with(vocab_size=200, padded_vocab_size=256)
        refused_run("vocab_size=200 is smaller than", "257", "own tokenizer", model=model)

    def test_a_model_with_an_unknown_field(self, refused_run, model_with):
        refused_run("['experts']", "expected exactly", model=model_with(experts=8))

    @pytest.mark.parametrize("text", ["", "{", "[]", "\0"])
    def test_a_model_that_is_no_json_object(self, refused_run, tmp_path, text):
        (tmp_path / "broken.json").write_text(text)
        refused_run(str(tmp_path / "broken.json"), "JSON", model=tmp_path / "broken.json")

    @pytest.mark.parametrize(
        ("mesh", "said"),
        [
            ({"mesh.tensor": 8}, ("tensor=8 does not divide the model's heads=4", "a divisor")),
            ({"mesh.data": 16}, ("data=16", "needs 16 devices, there are 8", "lower")),
            ({"mesh.data": 8}, ("a batch of 4 rows", "= 8 devices", "use a multiple of 8")),
            (
                {"mesh.data": 4, "accumulate": 2},
                ("a batch of 2 rows", "use a multiple of 4"),
            ),
        ],
    )
    def test_a_mesh_that_does_not_fit(self, refused_run, mesh, said):
        refused_run(*said, **mesh)

    @pytest.mark.parametrize(
        ("option", "value", "said"),
        [
            ("seq", 65, "seq=65 is longer than the model's context of 64 tokens: lower seq"),
            ("seq", 0, "seq=0 must be at least 1"),
            ("eval_batches", 0, "eval_batches=0 must be at least 1"),
            ("seed", -1, "seed=-1 must be from 0 to"),
            ("seed", 2**32, "seed=4294967296 must be from 0 to"),
            ("steps", 0, "steps=0 must be at least 1"),
            ("batch", 0, "batch=0 must be at least 1"),
            ("keep", 0, "keep=0 must be at least 1"),
            ("accumulate", 3, "accumulate=3 equal parts: choose a divisor of the batch"),
            ("warmup_steps", 12, "warmup_steps=12 leaves nothing of the run's 12 steps: lower"),
            ("warmup_steps", 13, "warmup_steps=13 leaves nothing of the run's 12 steps: lower"),
            ("lr", 0, "lr=0.0 must be above 0"),
            ("lr", "nan", "lr=nan must be above 0"),
            ("clip", 0, "clip=0.0"),
            ("b1", 1, "b1=1.0"),
            ("z_loss", -1, "z_loss=-1.0 must not be below 0"),
        ],
    )
    def test_an_option_out_of_range(self, refused_run, option, value, said):
        refused_run(said, **{option: value})

    def test_rows_longer_than_the_data(self, refused_run, gptj, tmp_path):
        (tmp_path / "short.txt").write_text("a short text")
        data = tmp_path / "data"
        gptj("prepare", tmp_path / "short.txt", "--out", data, "--tokenizer", "bytes")
        refused_run(f"seq=64 is longer than the data: {data}/train holds", "prepare", data=data)

    def test_an_option_there_is_none_of(self, gptj, train_flags, tmp_path):
        code, _, err = gptj("train", *train_flags(tmp_path / "run"), "--learning-rate", "1")
        assert code == 2
        assert "--learning-rate" in err

    def test_a_place_that_holds_something_else(self, refused, train_flags, tmp_path):
        (tmp_path / "thesis.txt").write_text("years of work")
        said = (f"{tmp_path} is not empty and holds no run", "choose another folder")
        refused("train", *train_flags(tmp_path), said=said)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize("under", ["", "below/"])
    def test_a_place_that_is_a_file(self, refused, train_flags, tmp_path, under):
        (tmp_path / "file").write_text("a file")
        out = tmp_path / "file" / under
        said = (f"folder {out} cannot be written", "choose another folder")
        refused("train", *train_flags(out), said=said)
        assert (tmp_path / "file").read_text() == "a file"

    @pytest.mark.parametrize(
        ("change", "key", "values"),
        [
            ({"batch": 8}, "batch", ("4", "8")),
            ({"seed": 1}, "seed", ("0", "1")),
            ({"seq": 32}, "seq", ("64", "32")),
            ({"lr": 0.02}, "optimizer.lr", ("0.01", "0.02")),
            ({"steps": 24}, "optimizer.anneal_steps", ("10", "22", "follows from steps")),
            ({"dtype": "bfloat16"}, "compute.dtype", ("'float32'", "'bfloat16'")),
        ],
    )
    def test_another_course_on_the_same_place(
        self, refused, train_flags, own_run, change, key, values
    ):
        saved = checkpoint.complete(own_run / "checkpoints")
        said = (f"{own_run} was started with {key}=", *values, "use the first value")
        refused("train", *train_flags(own_run, **change), said=said)
        assert checkpoint.complete(own_run / "checkpoints") == saved

    def test_another_model_on_the_same_place(self, refused, train_flags, own_run, model_with):
        said = (f"{own_run} was started with model.d_ff=64, now it is 128", "another folder")
        refused("train", *train_flags(own_run, model=model_with(d_ff=128)), said=said)

    def test_another_text_on_the_same_place(self, refused, gptj, train_flags, own_run, tmp_path):
        (tmp_path / "other.txt").write_text("another text " * 100)
        data = tmp_path / "data"
        gptj("prepare", tmp_path / "other.txt", "--out", data, "--tokenizer", "bytes")
        said = (f"the data are not those that {own_run} was started with", "--allow-data-change")
        refused("train", *train_flags(own_run, data=data), said=said)

    def test_a_record_of_the_run_that_is_damaged(self, refused, train_flags, own_run):
        (own_run / "run.json").write_text("{")
        said = (f"{own_run}/run.json is damaged", "choose another folder")
        refused("train", *train_flags(own_run), said=said)

    def test_metrics_that_are_damaged(self, refused, train_flags, own_run):
        lines = (own_run / "metrics.jsonl").read_text().splitlines(keepends=True)
        damaged = "".join([*lines[:3], "oops\n", *lines[3:]])
        (own_run / "metrics.jsonl").write_text(damaged)
        said = (f"{own_run}/metrics.jsonl:4", "delete that line")
        refused("train", *train_flags(own_run), said=said)
        assert (own_run / "metrics.jsonl").read_text() == damaged


class TestGenerate:
    @pytest.mark.parametrize("what", ["nowhere", "folder", "file"])
    def test_a_place_without_a_model(self, refused, tmp_path, what):
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("a file")
        words = ("generate", tmp_path / what, "--prompt", "x")
        refused(*words, said=(f"no model at {tmp_path / what}: give a `gptj train` run or",))

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--beams", 0), "beams=0 must be at least 1"),
            (("--length-penalty", 2.0), "length_penalty=2.0 is for a search: add --beams 4"),
            (("--beams", 2, "--temperature", 0.5), "leave out temperature"),
            (("--beams", 2, "--n", 3), "n=3 must be at most beams=2"),
        ],
    )
    def test_a_search_and_a_draw_at_once(self, refused, tiny_run, words, said):
        refused("generate", tiny_run, "--prompt", "x", *words, said=(said,))

    def test_a_run_without_a_checkpoint(self, refused, own_run):
        shutil.rmtree(own_run / "checkpoints")
        said = (f"the run {own_run} has no complete checkpoint yet", "train on")
        refused("generate", own_run, "--prompt", "x", said=said)

    @pytest.mark.parametrize("file", ["model.json", "tokenizer.json"])
    @pytest.mark.parametrize("text", ["", "{}", "[]", "\0"])
    def test_a_damaged_description(self, refused, own_run, file, text):
        (own_run / file).write_text(text)
        name = "" if (file, text) == ("model.json", "{}") else str(own_run / file)
        refused("generate", own_run, "--prompt", "x", said=(name,))

    def test_another_models_weights(self, refused, own_run):
        path = own_run / "model.json"
        path.write_text(path.read_text().replace('"layers": 2', '"layers": 3'))
        said = (
            f"{own_run}/checkpoints/00000012 is of another model",
            "layers is 2 there and 3 here",
        )
        refused("generate", own_run, "--prompt", "x", said=said)

    @pytest.mark.parametrize("length", [64, 65, 1000])
    def test_a_prompt_that_leaves_no_room(self, gptj, tiny_run, length):
        code, out, err = gptj("generate", tiny_run, "--prompt", "x" * length)
        assert (code, out) == (2, "")
        assert err == (
            f"gptj generate: prompt 0 has {length} tokens and the model's context is 64: shorten "
            "the prompt to at most 63\n"
        )

    @pytest.mark.parametrize(
        ("option", "value", "said"),
        [
            ("--temperature", "-1", "temperature=-1.0 must be a finite number"),
            ("--temperature", "inf", "temperature=inf must be a finite number"),
            ("--top-p", "0", "top_p=0.0 must be above 0 and at most 1"),
            ("--top-p", "1.5", "top_p=1.5 must be above 0 and at most 1"),
            ("--top-k", "-1", "top_k=-1 must be 0 (off)"),
            ("--max-tokens", "0", "max_tokens=0 must be at least 1"),
            ("--seed", "-1", "seed=-1 must be between 0 and 4294967295"),
            ("--stop", "", "stop=('',) must be a tuple of strings, none of them empty"),
            ("--mesh.tensor", "8", "tensor=8 does not divide the model's heads=4"),
            ("--mesh.tensor", "9", "there are 8"),
        ],
    )
    def test_an_option_out_of_range(self, refused, tiny_run, option, value, said):
        refused("generate", tiny_run, "--prompt", "x", option, value, said=(said,))

    @pytest.mark.parametrize(
        ("option", "value"), [("--heat", "1"), ("--temperature", "hot"), ("--max-tokens", "1.5")]
    )
    def test_an_option_that_is_not_understood(self, gptj, tiny_run, option, value):
        code, out, err = gptj("generate", tiny_run, "--prompt", "x", option, value)
        assert (code, out) == (2, "")
        assert option in err
        assert "--help" in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("words", [("generate", "run"), ("generate", "--prompt", "x")])
    def test_an_option_that_is_missing(self, gptj, words):
        code, _, err = gptj(*words)
        assert code == 2
        assert "required" in err

    def test_a_prompt_that_is_no_text(self, refused, tiny_run):
        refused("generate", tiny_run, "--prompt", "\udcff", said=("surrogate", "remove it"))

    def test_standard_input_that_is_no_text(self, refused, tiny_run, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ok\xff"), "utf-8"))
        said = ("standard input is not UTF-8", "at byte 2", "iconv")
        refused("generate", tiny_run, "--prompt", "-", said=said)
