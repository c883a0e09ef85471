"""How much work each case is, counted by hand, and which files a model is."""

import dataclasses
from pathlib import Path

import pytest

from gptj.bench.config import (
    DataBench,
    DecodeBench,
    LoadBench,
    PrefillBench,
    ServeBench,
    TrainBench,
)
from gptj.bench.records import Side
from gptj.bench.work import name_of, weight_bytes, weight_files, works
from gptj.config import ModelConfig
from gptj.errors import UserError

MODEL = ModelConfig(2, 32, 4, 4, 64, 257, 384, context=64)
LAYERS, OUTPUT = 2 * (4 * 32 * 32 + 2 * 32 * 64), 32 * 384
OURS = Side("gptj", "float32")


class TestOfAModel:
    def test_a_step_trains_on_every_token_of_every_row(self):
        (work,) = works(TrainBench(batch=3, seq=16), MODEL, OURS).values()
        attention = 2 * 2 * 32 * 16  # the causal half: 16 / 2 keys, two products, two operations
        forward = 2 * (LAYERS + OUTPUT) + attention
        assert (work.unit, work.amount) == ("tokens", 3 * 16)
        assert work.flops == 3 * 16 * 3 * forward
        assert work.bytes == 0

    def test_a_prompt_is_read_once_with_the_weights_and_draws_one_token(self):
        for stored, size in (("float32", 4), ("bfloat16", 2), ("int8", 1)):
            (work,) = works(PrefillBench(tokens=20), MODEL, Side("gptj", stored)).values()
            assert (work.unit, work.amount) == ("tokens", 20)
            assert work.flops == 20 * (2 * LAYERS + 2 * 2 * 32 * 20) + 2 * OUTPUT
            assert work.bytes == size * (LAYERS + OUTPUT)

    def test_a_token_drawn_sees_half_of_what_is_drawn_before_it(self):
        bench = DecodeBench(slots=(1, 5), read=10, new=20)
        found = works(bench, MODEL, OURS)
        seen = 10 + 20 // 2
        a_token = 2 * (LAYERS + OUTPUT) + 2 * 2 * 2 * 32 * seen
        assert {name: work.flops for name, work in found.items()} == {
            "1 slot": 20 * a_token,
            "5 slots": 20 * 5 * a_token,
        }
        assert [work.amount for work in found.values()] == [20, 100]

    def test_slots_share_the_reading_of_the_weights_and_not_of_their_keys(self):
        bench = DecodeBench(slots=(1, 5), read=10, new=20)
        one, five = (work.bytes for work in works(bench, MODEL, OURS).values())
        kept = 20 * (2 * 2 * 32 * 20 * 4)  # each time keys and values of 2 layers, 20 positions
        assert five - one == 4 * kept
        assert one - kept == 20 * 4 * (LAYERS + OUTPUT)

    def test_of_the_mix_only_what_is_drawn_counts(self):
        bench = ServeBench(requests=7, new_tokens=5)
        (work,) = works(bench, MODEL, OURS).values()
        assert (work.unit, work.amount, work.flops, work.bytes) == ("tokens", 35, 0, 0)

    def test_four_bits_leave_the_output_in_eight(self):
        assert weight_bytes(MODEL, "int4") == LAYERS / 2 + OUTPUT
        assert weight_bytes(MODEL, "int8") == LAYERS + OUTPUT


def test_every_case_has_a_name_of_its_own():
    assert [name_of(n) for n in (1, 2, 16)] == ["1 slot", "2 slots", "16 slots"]
    data = DataBench(Path("x"), batch=1, rows=1)
    names = {
        name
        for bench in (TrainBench(), PrefillBench(tokens=9), DecodeBench(), ServeBench())
        for name in works(bench, MODEL, OURS)
    } | {*works(data, None, OURS)}
    assert names == {"a step", "9 tokens", "1 slot", "8 slots", "the mix", "shuffled rows"}


def test_a_row_is_read_with_the_token_after_it():
    """Two bytes of each token on the disk, and four in the batch."""
    (work,) = works(DataBench(Path("x"), seq=9, batch=4, rows=40), None, OURS).values()
    assert (work.unit, work.amount, work.bytes, work.flops) == ("rows", 40, 40 * 10 * 6, 0)


class TestFiles:
    def write(self, place: Path, *names: str) -> list[Path]:
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"x" * 1000)
        return [place / name for name in names]

    def test_a_model_in_one_file_is_that_file(self, tmp_path):
        (path, _) = self.write(tmp_path, "a.pt", "b.pt")
        assert weight_files(str(path)) == [path]
        assert works(LoadBench(str(path)), None, OURS)["from disk"].amount == 1e-6

    def test_safetensors_go_before_the_same_weights_in_another_form(self, tmp_path):
        self.write(tmp_path, "pytorch_model.bin", "config.json")
        named = self.write(tmp_path, "deep/b.safetensors", "model.safetensors")
        assert weight_files(str(tmp_path)) == named
        (work,) = works(LoadBench(str(tmp_path)), None, OURS).values()
        assert (work.unit, work.amount, work.bytes) == ("GB", 2e-6, 0)

    def test_without_them_all_files_below_are_the_model_in_order(self, tmp_path):
        named = self.write(tmp_path, "shard_0/1.npz", "shard_0/2.npz", "shard_1/0.npz")
        assert weight_files(str(tmp_path)) == named

    def test_a_folder_without_a_file_is_no_model(self, tmp_path):
        (tmp_path / "empty").mkdir()
        for place in (tmp_path, tmp_path / "not there"):
            with pytest.raises(UserError, match="must be a folder or a file on this disk, with so"):
                weight_files(str(place))

    def test_a_run_is_to_be_converted(self, tmp_path):
        self.write(tmp_path, "model.safetensors", "run.json")
        with pytest.raises(UserError, match=f"model={tmp_path} is a run, .*: convert it, and name"):
            weight_files(str(tmp_path))


def test_a_model_of_twice_the_layers_costs_twice_but_for_its_output():
    deeper = dataclasses.replace(MODEL, layers=4)
    assert weight_bytes(deeper, "int8") - OUTPUT == 2 * (weight_bytes(MODEL, "int8") - OUTPUT)
