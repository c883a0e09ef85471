"""Others' sides: that they are asked for the same work, with libraries that only note it."""

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import get_args
from unittest.mock import MagicMock

import numpy as np
import pytest

from gptj.bench import own, peers
from gptj.bench.config import (
    Bench,
    DecodeBench,
    LoadBench,
    Peer,
    PrefillBench,
    ServeBench,
    TrainBench,
)
from gptj.bench.inputs import batches, prompts
from gptj.bench.records import Unavailable
from gptj.bench.serve import mix
from gptj.config import ModelConfig
from gptj.engine.config import EngineConfig
from gptj.errors import UserError
from gptj.train.optimizer import OptimizerConfig

MODEL = ModelConfig(2, 32, 4, 4, 64, 257, 384, context=64)


@pytest.fixture
def clock(monkeypatch):
    """The time, which passes only where a stand-in lets it."""
    made = SimpleNamespace(now=50.0)
    monkeypatch.setattr(peers, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


@pytest.fixture
def asked(clock, monkeypatch):
    """What PyTorch is asked to draw: 100 s to read, a second a token."""
    calls = []

    def draw(rows, new):
        calls.append((rows, new))
        clock.now += 100 + new

    monkeypatch.setattr(peers, "_torch", lambda config, stored: draw)
    return calls


class TestTheSameWork:
    def test_drawing_is_timed_without_the_reading(self, asked):
        bench = DecodeBench(slots=(1, 4), read=10, new=20)
        cases = peers.runs("transformers", bench, MODEL, "float32")
        assert {*cases} == {"1 slot", "4 slots"}
        assert cases["4 slots"]() == 20
        assert asked == [(prompts(MODEL, 4, 10), 21), (prompts(MODEL, 4, 10), 1)]

    def test_reading_is_timed_to_the_first_token(self, asked):
        (run,) = peers.runs("transformers", PrefillBench(tokens=30), MODEL, "float32").values()
        assert run() == 101
        assert asked == [(prompts(MODEL, 1, 30), 1)]

    @pytest.mark.parametrize(("count", "parts"), [(4, [2, 2]), (5, [2, 2, 1]), (1, [1])])
    def test_the_mix_is_answered_as_many_at_a_time_as_we_have_slots(self, asked, count, parts):
        bench = ServeBench(
            requests=count, shortest=2, longest=9, new_tokens=7, engine=EngineConfig(slots=2)
        )
        (run,) = peers.runs("transformers", bench, MODEL, "float32").values()
        assert run() == 107 * len(parts)
        assert [len(rows) for rows, _ in asked] == parts
        assert {new for _, new in asked} == {7}
        given = [row for rows, _ in asked for row in rows]
        assert given == [request.prompt for request in mix(bench, 257)]


def test_every_peer_says_what_it_can_do_and_all_of_them_something():
    assert set(peers.SUBJECTS) == {*get_args(Peer)}
    for kinds in peers.SUBJECTS.values():
        assert {*kinds} <= {*get_args(Bench)}
    assert {*peers.TYPES} <= {*peers.SUBJECTS}


class Torch:
    """As much of PyTorch as is asked to draw and to load."""

    float32, bfloat16 = "as float32", "as bfloat16"

    def __init__(self) -> None:
        self.threads, self.log = 0, []

    def set_num_threads(self, count):
        self.threads = count

    def inference_mode(self):
        return nullcontext()

    def tensor(self, rows):
        return rows


class Transformers:
    """As much of transformers."""

    def __init__(self, torch) -> None:
        self.torch, self.GPTJForCausalLM = torch, self
        self.shape: dict[str, object] = {}

    def GPTJConfig(self, **shape):
        self.shape = shape
        return shape

    def __call__(self, shape):
        assert shape is self.shape
        return self

    def eval(self):
        return self

    def to(self, dtype):
        self.torch.log.append(dtype)
        return self

    def generate(self, ids, attention_mask, **options):
        self.torch.log.append((ids, attention_mask, options))

    def from_pretrained(self, model, dtype):
        self.torch.log.append((model, dtype))


@pytest.fixture
def libraries(monkeypatch):
    torch = Torch()
    known = {"torch": torch, "transformers": Transformers(torch)}
    monkeypatch.setattr(peers, "_imported", lambda library, _: known[library])
    return SimpleNamespace(**known)


class TestPyTorch:
    def test_its_model_has_our_shape_and_all_threads(self, libraries, monkeypatch):
        monkeypatch.setattr(peers.cores, "usable", lambda: 13)
        peers._torch_model(MODEL)
        assert libraries.torch.threads == 13
        sizes = {"vocab_size": 384, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
        expected = {**sizes, "n_inner": 64, "rotary_dim": 4, "eos_token_id": 383}
        assert expected.items() <= libraries.transformers.shape.items()
        dropped = {name: p for name, p in libraries.transformers.shape.items() if "pdrop" in name}
        assert dropped == dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)

    def test_prompts_are_padded_on_the_left_and_the_padding_is_not_seen(self, libraries):
        peers._torch(MODEL, "bfloat16")([[5, 6, 7], [8]], 9)
        dtype, (ids, seen, options) = libraries.torch.log
        assert dtype == "as bfloat16"
        assert ids == [[5, 6, 7], [0, 0, 8]]
        assert seen == [[1, 1, 1], [0, 0, 1]]
        assert (options["min_new_tokens"], options["max_new_tokens"]) == (9, 9)
        assert options["do_sample"] is False

    @pytest.mark.parametrize("stored", ["float32", "bfloat16"])
    def test_its_step_is_ours_in_every_part_and_is_over_when_its_loss_is_known(
        self, clock, monkeypatch, stored
    ):
        torch, model, ours = MagicMock(), MagicMock(), OptimizerConfig().for_run(1000)
        loss = torch.nn.functional.cross_entropy.return_value
        optimizer = torch.optim.AdamW.return_value

        def item():
            clock.now += 5

        loss.item.side_effect = item
        log = []
        calls = {
            **{"zero": optimizer.zero_grad, "backward": loss.backward},
            **{"clip": torch.nn.utils.clip_grad_norm_, "step": optimizer.step},
        }
        for name, call in calls.items():
            call.side_effect = lambda *_, name=name, **__: log.append(name)
        monkeypatch.setattr(peers, "_imported", lambda *_: torch)
        monkeypatch.setattr(peers, "_torch_model", lambda config: model)
        bench = TrainBench(seq=6, batch=2)
        (step,) = peers.runs("transformers", bench, MODEL, stored).values()
        assert [step(), step()] == [5, 5]
        assert log == ["zero", "backward", "clip", "step"] * 2
        made = torch.optim.AdamW.call_args.kwargs
        assert (made["lr"], made["betas"]) == (ours.lr, (ours.b1, ours.b2))
        assert made["weight_decay"] == ours.weight_decay
        assert torch.nn.utils.clip_grad_norm_.call_args.args[1] == ours.clip
        torch.autocast.assert_called_with("cpu", torch.bfloat16, enabled=stored == "bfloat16")
        rows = batches(bench, MODEL)
        for (given,), _ in torch.from_numpy.call_args_list:
            np.testing.assert_array_equal(given, rows())
        assert model.train.return_value.config.use_cache is False

    def test_it_loads_the_same_files_forgotten_first(self, libraries, clock, monkeypatch, tmp_path):
        log = libraries.torch.log
        (tmp_path / "x.safetensors").touch()
        monkeypatch.setattr(own, "forget", log.append)
        bench = LoadBench(str(tmp_path))
        assert peers.runs("transformers", bench, None, "float32")["from disk"]() == 0
        assert log == [[tmp_path / "x.safetensors"], (str(tmp_path), "as float32")]


class TestCTranslate2:
    @pytest.fixture
    def generator(self, monkeypatch, tmp_path):
        """What is converted and asked of a library that has no bfloat16."""
        log: list[object] = []
        saved: list[str] = []

        class Converter:
            def __init__(self, folder):
                log.append(Path(folder).is_dir() and folder in saved)

            def convert(self, out, quantization):
                log.append((self.load_model("x"), quantization))
                vocabulary = self.load_tokenizer("x")
                log.append((vocabulary.eos_token, len(vocabulary.get_vocab())))

        class Generator:
            def __init__(self, place, **options):
                log.append(options)

            def generate_batch(self, texts, **options):
                log.append((texts, options))

        library = SimpleNamespace(
            get_supported_compute_types=lambda device: {"float32", "int8"},
            converters=SimpleNamespace(TransformersConverter=Converter),
            Generator=Generator,
        )
        model = SimpleNamespace(config=SimpleNamespace(save_pretrained=saved.append))
        monkeypatch.setattr(peers, "_imported", lambda *_: library)
        monkeypatch.setattr(peers, "_torch_model", lambda config: model)
        monkeypatch.setattr(peers, "features", lambda: self.flags)
        monkeypatch.setattr(peers.cores, "usable", lambda: 13)
        for name in ("CT2_FORCE_CPU_ISA", "CT2_VERBOSE"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        self.flags, self.model = ["avx2"], model
        return log

    def test_its_model_is_ours_in_the_type_that_was_asked_for(self, generator):
        draw = peers._ctranslate2(MODEL, "int8")
        assert os.environ["CT2_VERBOSE"] == "-3"  # or it speaks of what it is not asked
        assert generator[:3] == [True, (self.model, "int8"), ("383", 384)]
        options = generator[3]
        assert options["compute_type"] == "int8"
        assert (options["inter_threads"], options["intra_threads"]) == (1, 13)
        draw([[5, 6], [7, 8]], 9)
        texts, asked = generator[4]
        assert texts == [["5", "6"], ["7", "8"]]
        assert (asked["min_length"], asked["max_length"], asked["max_batch_size"]) == (9, 9, 2)
        assert (asked["sampling_topk"], asked["end_token"]) == (1, "383")
        assert asked["include_prompt_in_result"] is False

    def test_a_type_the_processor_lacks_is_left_out(self, generator):
        with pytest.raises(Unavailable, match="ctranslate2 has no bfloat16 on this processor"):
            peers._ctranslate2(MODEL, "bfloat16")
        assert generator == []

    def test_it_is_told_of_avx_512_where_there_is_any(self, generator):
        peers._ctranslate2(MODEL, "int8")
        assert "CT2_FORCE_CPU_ISA" not in os.environ
        self.flags.append("avx512f")
        peers._ctranslate2(MODEL, "int8")
        assert os.environ["CT2_FORCE_CPU_ISA"] == "AVX512"
        os.environ["CT2_FORCE_CPU_ISA"] = "AVX2"  # what a person says stands
        peers._ctranslate2(MODEL, "int8")
        assert os.environ["CT2_FORCE_CPU_ISA"] == "AVX2"


def test_a_library_that_is_here_is_imported_and_another_is_named():
    assert peers._imported("json", "json").dumps([1]) == "[1]"
    with pytest.raises(UserError, match="--peer needs torch: pip install torch"):
        peers._imported("no_such_library", "torch")
