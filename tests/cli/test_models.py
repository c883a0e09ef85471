"""The verbs about a model: what reaches it, and what is printed of what it wrote."""

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptj.cli import models
from gptj.cli.models import GenerateCommand
from gptj.convert.convert import ConvertConfig
from gptj.engine.beam import BeamParams
from gptj.engine.request import SamplingParams
from gptj.errors import UserError


@pytest.fixture
def model(monkeypatch):
    """A model that writes what it is told to, in pieces, and notes what it was asked."""
    asked = []

    def generate(prompt, *, on_text, **options):
        asked.append((prompt, options))
        for piece in (" wrote", " this"):
            on_text(0, piece)
        return [" wrote this", " and that"][: options["n"]]

    def search(prompt, **options):
        asked.append((prompt, options))
        return [" found"] * options["n"]

    def load(place, **how):
        asked.append((place, how))
        return SimpleNamespace(generate=generate, search=search, params=place, config=None)

    monkeypatch.setattr(models, "load", load)
    return asked


OF_A_DRAW = {
    **{"temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "typical_p": 0.5, "seed": 1},
    **{"repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.1},
    **{"logit_bias": {1: 1.0}, "allowed_tokens": (1,), "banned_tokens": (1,), "stop": ("x",)},
    **{"stop_tokens": (1,), "ignore_eos": True, "min_tokens": 1, "json_schema": "{}"},
    **{"regex": "a", "grammar": 'start: "a"', "best_of": 2, "logprobs": 1, "prompt_logprobs": 1},
    **{"overflow": "slide"},
}
PLAIN = {"dtype": None, "quantize": None, "tokenizer": None}


class TestGenerate:
    def test_pieces_come_after_the_prompt_as_they_are_drawn(self, gptj, model):
        code, out, _ = gptj("generate", "m", "--prompt", "It", "--seed", 4, "--top-k", 3)
        assert (code, out) == (0, "It wrote this\n")
        loaded, (prompt, options) = model
        assert loaded == ("m", PLAIN)
        assert prompt == "It"
        sampling = vars(SamplingParams(seed=4, top_k=3))
        assert options == {"speculate": 0, "draft": None, "kv_cache": "model", **sampling}

    def test_several_are_numbered_once_they_are_whole(self, gptj, model):
        out = gptj("generate", "m", "--prompt", "It", "--n", 2).out
        assert out == "--- 1 ---\nIt wrote this\n--- 2 ---\nIt and that\n"

    def test_a_search_is_printed_after_the_prompt(self, gptj, model):
        words = ("--beams", 4, "--max-tokens", 9, "--length-penalty", 0.5)
        out = gptj("generate", "m", "--prompt", "It", *words, "--early-stopping", "full").out
        assert out == "It found\n"
        assert model[1] == (
            "It",
            {
                **{"beams": 4, "max_tokens": 9, "n": 1},
                **{"length_penalty": 0.5, "early_stopping": "full"},
            },
        )
        out = gptj("generate", "m", "--prompt", "It", "--beams", 2, "--n", 2).out
        assert out == "--- 1 ---\nIt found\n--- 2 ---\nIt found\n"

    def test_how_it_is_stored_and_guessed_for_arrives(self, gptj, model):
        stored = ("--dtype", "bfloat16", "--quantize", "int8", "--tokenizer", "t.json")
        words = ("--draft", "small", "--speculate", 3, "--kv-cache", "int8")
        assert gptj("generate", "m", "--prompt", "It", *stored, *words).code == 0
        how = {"dtype": "bfloat16", "quantize": "int8", "tokenizer": "t.json"}
        assert model[:2] == [("m", how), ("small", {"dtype": "bfloat16"})]
        options = model[2][1]
        assert options["draft"].params == "small"
        assert (options["speculate"], options["kv_cache"]) == (3, "int8")

    def test_a_dash_is_standard_input(self, gptj, model, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO("from\nthere"))
        assert gptj("generate", "m", "--prompt", "-").out == "from\nthere wrote this\n"


class TestASearch:
    def options(self, beams=4, **changes):
        sampling = SamplingParams(**changes.pop("sampling", {}))
        return models._beam(GenerateCommand("m", "It", beams, sampling=sampling, **changes))

    def test_of_one_beam_is_none(self):
        drawn = {"temperature": 0.5, "stop": ("x",), "seed": 3}
        assert self.options(1, sampling=drawn, speculate=2, draft="d", kv_cache="int8") == {}

    @pytest.mark.parametrize("beams", [0, -1])
    def test_has_a_beam_or_more(self, beams):
        with pytest.raises(UserError, match=f"^beams={beams} must be at least 1$"):
            self.options(beams)

    @pytest.mark.parametrize(
        ("name", "value"), [("length_penalty", 0.5), ("early_stopping", "never")]
    )
    def test_has_options_of_its_own(self, name, value):
        assert self.options(**{name: value})[name] == value
        with pytest.raises(UserError, match=f"^{name}={value} is for a search: add --beams 4, or"):
            self.options(1, **{name: value})

    @pytest.mark.parametrize(
        ("name", "value"), [("kv_cache", "int8"), ("speculate", 1), ("draft", "small")]
    )
    def test_guesses_nothing(self, name, value):
        with pytest.raises(UserError, match=f"--beams draws nothing at random: leave out {name}"):
            self.options(**{name: value})

    def test_looks_at_no_other_field_of_a_draw(self):
        names = {field.name for field in dataclasses.fields(SamplingParams)}
        assert names == {"max_tokens", "n", *OF_A_DRAW}  # a new one is looked at, or refused
        for name, value in OF_A_DRAW.items():
            with pytest.raises(UserError, match=f"draws nothing at random: leave out {name}$"):
                self.options(sampling={name: value})

    def test_that_cannot_be_is_refused_before_a_model_is_loaded(self, refused, model):
        refused("generate", "m", "--prompt", "x", "--beams", 2, "--n", 3, said=("n=3",))
        assert model == []
        names = {field.name for field in dataclasses.fields(BeamParams)}
        assert self.options().keys() == names


class TestFiles:
    @pytest.fixture
    def converted(self, monkeypatch):
        asked = []
        done = SimpleNamespace(out=Path("there"), notes=("it was rounded",))
        monkeypatch.setattr(models, "convert", lambda config: asked.append(config) or done)
        return asked

    def test_what_was_converted_and_what_is_to_be_known_of_it(self, gptj, converted):
        words = ("convert", "a", "b", "--to", "huggingface")
        assert gptj(*words) == (0, "note: it was rounded\nwrote there\n", "")
        assert converted == [ConvertConfig("a", Path("b"), "huggingface")]

    def test_a_merge_is_a_conversion_of_adapters(self, gptj, converted, monkeypatch):
        monkeypatch.setattr(models, "adapter_at", lambda place: "adapters")
        words = ("merge", "a", "b", "--base", "c", "--dtype", "bfloat16")
        assert gptj(*words) == (0, "note: it was rounded\nwrote there\n", "")
        assert converted == [ConvertConfig("a", Path("b"), "gptj", "bfloat16", base="c")]

    def test_a_merge_of_nothing(self, refused, converted, monkeypatch):
        monkeypatch.setattr(models, "adapter_at", lambda place: None)
        said = ("a holds no adapters to merge: gptj convert writes models",)
        refused("merge", "a", "b", said=said)
        assert converted == []

    @pytest.mark.parametrize(("same", "code"), [(True, 0), (False, 1)])
    def test_a_difference_is_the_exit_status(self, gptj, monkeypatch, same, code):
        found = SimpleNamespace(same_bits=same, sentence=lambda: "so and so")
        opened = []
        monkeypatch.setattr(models, "open_source", lambda place, **how: opened.append((place, how)))
        monkeypatch.setattr(models, "config_named", lambda name: name)
        monkeypatch.setattr(models, "diff", lambda a, b: found)
        words = ("diff", "a", "b", "--config-a", "demo", "--config-b", "125m")
        assert gptj(*words) == (code, "so and so\n", "")
        assert opened == [("a", {"config": "demo"}), ("b", {"config": "125m"})]

    def test_models_of_other_shapes_differ(self, gptj, monkeypatch):
        monkeypatch.setattr(models, "open_source", lambda place, **_: place)
        monkeypatch.setattr(models, "diff", lambda a, b: f"{a} is not like {b}")
        assert gptj("diff", "a", "b") == (1, "a is not like b\n", "")


class TestInspect:
    @pytest.mark.parametrize(
        "words", [("--documents", 1), ("--seed", 1), ("--lengths", "a.png")], ids=str
    )
    def test_a_model_has_no_documents(self, refused, tmp_path, words):
        said = (f"{tmp_path} holds no prepared data: leave out documents, seed and lengths",)
        refused("inspect", tmp_path, *words, said=said)

    def test_texts_are_to_be_prepared_first(self, refused, tmp_path):
        (tmp_path / "a.txt").write_text("a text")
        said = f"{tmp_path} holds texts that are not prepared yet: gptj prepare {tmp_path} --out "
        refused("inspect", tmp_path, said=(said,))
        (tmp_path / "picture.png").touch()
        refused("inspect", tmp_path, said=(f"no model at {tmp_path}",))

    def test_data_have_no_config(self, refused, tiny_data):
        said = (f"{tiny_data} holds data, which have no config: leave it out",)
        refused("inspect", tiny_data, "--config", "demo", said=said)

    @pytest.mark.parametrize(("flag", "hashed"), [((), True), (("--no-hash",), False)])
    def test_a_model_is_read_to_be_hashed_unless_told(self, gptj, monkeypatch, flag, hashed):
        monkeypatch.setattr(models, "open_source", lambda place, **how: (place, how))
        monkeypatch.setattr(models, "describe", lambda source, reads: [f"{source[0]} {reads}"])
        assert gptj("inspect", "nowhere", *flag).out == f"nowhere {hashed}\n"
