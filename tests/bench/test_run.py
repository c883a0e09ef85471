"""`gptj bench`: that the sides do the work they are credited with, and the figures fit together."""

import dataclasses
import datetime
import json
import os
from pathlib import Path

import numpy as np
import pytest

from gptj.bench import own, peers, turns
from gptj.bench import run as module
from gptj.bench.config import (
    DataBench,
    DecodeBench,
    LoadBench,
    PrefillBench,
    ServeBench,
    TrainBench,
)
from gptj.bench.records import Limits, Side, Unavailable
from gptj.bench.run import run, sides_of
from gptj.bench.work import works
from gptj.cli import bench as cli_bench
from gptj.config import ModelConfig, preset
from gptj.engine.engine import Engine
from gptj.errors import UserError
from gptj.model import count_parameters

OURS32, OURS8 = Side("gptj", "float32"), Side("gptj", "int8")
LIMITS = Limits("cpu", 10e9, {"float32": 100e9, "bfloat16": 200e9})


@pytest.fixture
def in_this_process(monkeypatch):
    """Sides are workers without a process, whose turns take what is written here."""
    took = {"gptj": [9.0, 2.0, 4.0, 3.0], "transformers": [9.0, 6.0, 6.0, 6.0]}
    heard = []

    class Worker:
        def __init__(self, side, bench, config, mesh):
            if side.stored == "bfloat16" and side.system != "gptj":
                raise Unavailable("no such type here")
            self.side, self.seconds = side, iter(took.get(side.system, []))

        def run(self, case):
            heard.append((str(self.side), case))
            return next(self.seconds), 1000 + len(heard)

        def limits(self):
            return LIMITS

        def close(self):
            pass

    monkeypatch.setattr(turns, "Worker", Worker)
    return heard


def test_sides_take_turns_and_the_first_is_not_counted(in_this_process):
    bench = TrainBench(stored=("float32",))
    result = run("train", bench, ["transformers"], 3, "gptj bench train")
    sides = [side for side, _ in in_this_process]
    assert sides == ["gptj float32", "transformers float32"] * 4
    ours, theirs = result.figures
    assert (ours.seconds, theirs.seconds) == ([2.0, 4.0, 3.0], [6.0, 6.0, 6.0])
    assert ours.median == 3
    assert ours.rate == 4 * 512 / 3
    (ratio,) = result.ratios
    assert (ratio.median, ratio.least, ratio.most) == (2, 1.5, 3)
    share, bound = result.share(ours)
    assert bound == "compute"
    assert share == pytest.approx(ours.work.flops / 100e9 / 3)
    assert json.loads(json.dumps(result.as_json()))["figures"][0]["share"] == share


def test_what_a_peer_cannot_do_here_is_left_out_and_said(in_this_process):
    result = run("train", TrainBench(), ["transformers"], 1, "")
    assert [str(each.side) for each in result.figures] == [
        "gptj float32", "gptj bfloat16", "transformers float32"
    ]  # fmt: skip
    assert result.left_out == ["no such type here"]


class TestWork:
    """What a side is credited with, counted another way."""

    def test_a_token_drawn_reads_every_matrix_once_and_each_key_and_value(self):
        config = ModelConfig(2, 32, 4, 4, 64, 257, 384, context=64)
        layers, output = 2 * (4 * 32 * 32 + 2 * 32 * 64), 32 * 384
        for stored, size in (("float32", 4), ("bfloat16", 2), ("int8", 1), ("int4", 0.5)):
            kept = 2 * 2 * 32 * (4 if stored == "float32" else 2)
            bench = DecodeBench(slots=(3,), read=10, new=20)
            (work,) = works(bench, config, Side("gptj", stored)).values()
            assert work.amount == 3 * 20
            matrices = layers * size + output * max(size, 1)  # int4's own output is in int8
            assert work.bytes == 20 * (matrices + 3 * 20 * kept)
            int8 = dataclasses.replace(bench, kv_cache="int8")
            (less,) = works(int8, config, Side("gptj", stored)).values()
            assert less.bytes == 20 * (matrices + 3 * 20 * 2 * 2 * 32)
            (same,) = works(int8, config, Side("transformers", stored)).values()
            assert same == work

    def test_training_costs_six_operations_a_weight_and_token_and_attention_besides(self):
        config = preset("125m")
        (work,) = works(TrainBench(), config, OURS32).values()
        products = count_parameters(config) - 50400 * 768
        assert 1 < work.flops / (6 * products * 2048) < 1.05

    def test_a_prompt_costs_a_third_of_training_on_it_and_draws_once(self):
        config = preset("125m")
        (read,) = works(PrefillBench(tokens=512), config, OURS32).values()
        (learnt,) = works(TrainBench(batch=1), config, OURS32).values()
        output = 2 * 511 * 50400 * 768
        assert read.flops == pytest.approx((learnt.flops / 3) - output)


class TestSides:
    """Each side really does it, on a model that takes no time."""

    def test_ours_draw(self, tiny_model, monkeypatch):
        config, drawn = ModelConfig.load(tiny_model), []
        drawing = DecodeBench(str(tiny_model), slots=(4,), read=3, new=5)
        cases = own.runs(drawing, config, "int8")
        assert cases.keys() == works(drawing, config, OURS8).keys()
        plain = Engine.run

        def counted(self, asked):
            found = plain(self, asked)
            drawn.append([len(one.tokens) for (one,) in found])
            return found

        monkeypatch.setattr(Engine, "run", counted)
        cases["4 slots"]()
        assert drawn == [[6] * 4, [1] * 4]

    def test_ours_train(self, tiny_model):
        bench = TrainBench(str(tiny_model), seq=16, batch=2)
        step = own.runs(bench, ModelConfig.load(tiny_model), "float32")["a step"]
        assert step() > 0
        assert step() > 0

    @pytest.mark.parametrize("system", ["transformers", "ctranslate2"])
    def test_peers_draw_as_many(self, tiny_model, system, monkeypatch):
        pytest.importorskip("torch")
        library, config = pytest.importorskip(system), ModelConfig.load(tiny_model)
        drawn = []
        model = library.GPTJForCausalLM if system == "transformers" else library.Generator
        name = "generate" if system == "transformers" else "generate_batch"
        plain = getattr(model, name)

        def counted(self, given, **options):
            found = plain(self, given, **options)
            rows = found[:, given.shape[1] :] if system == "transformers" else found
            drawn.extend(
                len(row) if system == "transformers" else len(row.sequences_ids[0]) for row in rows
            )
            return found

        monkeypatch.setattr(model, name, counted)
        bench = DecodeBench(str(tiny_model), slots=(2,), read=3, new=5)
        cases = peers.runs(system, bench, config, "float32")
        assert cases.keys() == works(bench, config, Side(system, "float32")).keys()
        cases["2 slots"]()
        assert drawn == [6, 6, 1, 1]
        mix = ServeBench(str(tiny_model), requests=3, shortest=2, longest=4, new_tokens=2)
        assert peers.runs(system, mix, config, "float32")["the mix"]() > 0

    def test_a_peer_trains(self, tiny_model):
        torch = pytest.importorskip("torch")
        bench, before = TrainBench(str(tiny_model), seq=16, batch=2), torch.get_num_threads()
        config = ModelConfig.load(tiny_model)
        for stored in ("float32", "bfloat16"):
            assert peers.runs("transformers", bench, config, stored)["a step"]() > 0
        torch.set_num_threads(before)


def test_in_processes_of_their_own(gptj, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    found, bars = tmp_path / "found.json", tmp_path / "bars.png"
    words = (
        "--seq",
        16,
        "--batch",
        4,
        "--rows",
        40,
        "--rounds",
        2,
        "--json",
        found,
        "--plot",
        bars,
    )
    code, said, err = gptj("bench", "data", tiny_data, *words)
    assert (code, err) == (0, "")
    assert "GB/s, multiplies" in said
    assert "shuffled rows" in said
    figures = json.loads(found.read_text())["data"]
    assert figures["command"].startswith("gptj bench data ")
    assert figures["machine"]["threads"] == len(os.sched_getaffinity(0))
    (figure,) = figures["figures"]
    assert len(figure["seconds"]) == 2
    assert figure["peak_bytes"] > 1e7
    assert figure["per_second"] == pytest.approx(40 / np.median(figure["seconds"]))
    assert bars.stat().st_size > 1000


def test_what_a_process_refuses_is_said(tmp_path):
    bench = DecodeBench(str(tmp_path), stored=("float32",))

    with pytest.raises(UserError, match="no model at"):
        turns.Worker(Side("gptj", "float32"), bench, preset("demo"), (1, 1, 1))


def test_a_file_of_figures_keeps_those_of_other_subjects(tmp_path):
    out = tmp_path / "new" / "found.json"
    cli_bench._write(out, "train", {"a": 1})
    cli_bench._write(out, "decode", {"b": 2})
    cli_bench._write(out, "train", {"a": 3})
    assert json.loads(out.read_text()) == {"train": {"a": 3}, "decode": {"b": 2}}
    out.write_text('{"something": "else"}')
    with pytest.raises(UserError, match="holds something else"):
        cli_bench._write(out, "train", {})
    assert out.read_text() == '{"something": "else"}'


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bench", "nothing"), "say what to measure: gptj bench train, decode"),
        (("bench", "decode", "--slots", 0), "slots=(0,) must each be at least 1"),
        (("bench", "decode", "--new", 5000), "read=32 and new=5000 are together more than"),
        (("bench", "prefill", "--tokens", 2048), "tokens=2048 is more than the model's context"),
        (("bench", "train", "--rounds", 0), "rounds=0 must be at least 1"),
        (("bench", "train", "--plot", "x.gif"), "plot=x.gif must end in"),
        (("bench", "train", "--stored"), "stored names no type"),
        (("bench", "load", "no/such"), "no/such must be a folder or a file on this disk"),
        (("bench", "serve", "--rate", 1, "--peer", "transformers"), "rate=1.0 cannot be asked"),
        (("bench", "serve", "--plot", "x.png"), "plot=x.png needs a --peer"),
        (("bench", "serve", "--rounds", 3), "rounds=3 needs a --peer"),
        (("bench", "data", "data", "--rows", 10), "rows=10 must be a multiple of batch=64"),
    ],
)
def test_mistakes(refused, words, said):
    refused(*words, said=(said,))


class TestWhoTakesPart:
    @pytest.mark.parametrize(
        ("bench", "peers", "sides"),
        [
            (TrainBench(), [], "gptj float32, gptj bfloat16"),
            (
                DecodeBench(stored=("int8", "int4")),
                ["ctranslate2"],
                "gptj int8, gptj int4, ctranslate2 int8",
            ),
            (
                PrefillBench(stored=("float32",)),
                ["ctranslate2", "transformers"],
                "gptj float32, ctranslate2 float32, transformers float32",
            ),
            (LoadBench("x"), [], "gptj bfloat16, a plain reading"),
            (
                LoadBench("x"),
                ["transformers"],
                "gptj bfloat16, transformers bfloat16, a plain reading",
            ),
            (TrainBench(stored=("float32",)), ["original"], "gptj float32"),  # it is recalled only
            (DataBench(Path("x")), [], "gptj"),
        ],
    )
    def test_ours_of_each_type_then_each_peer_of_those_that_it_has(self, bench, peers, sides):
        assert ", ".join(map(str, sides_of("it", bench, peers))) == sides

    @pytest.mark.parametrize(
        ("bench", "peer", "said"),
        [
            (
                DecodeBench(stored=("int4", "int8")),
                "transformers",
                "peer=transformers has no int4 or int8: ask for one of float32, bfloat16",
            ),
            (
                LoadBench("x"),
                "ctranslate2",
                "peer=ctranslate2 has nothing to measure for it: choose of transformers",
            ),
            (
                TrainBench(),
                "ctranslate2",
                "peer=ctranslate2 has nothing to measure for it: choose of transformers, original",
            ),
            (
                DataBench(Path("x")),
                "transformers",
                "peer=transformers has nothing to measure for it: leave it out",
            ),
        ],
    )
    def test_who_cannot_is_refused_with_who_can(self, bench, peer, said):
        with pytest.raises(UserError) as refusal:
            sides_of("it", bench, [peer])
        assert str(refusal.value) == said


class TestTheWhole:
    @pytest.fixture
    def measured(self, monkeypatch):
        """What is asked to be measured, and nothing is."""
        calls = []

        def measure(*given):
            calls.append(given)
            return LIMITS, [], []

        monkeypatch.setattr(module, "measure", measure)
        return calls

    def test_every_side_gets_its_work_and_the_result_says_what_was_asked(self, measured):
        bench = DecodeBench(stored=("float32",), slots=(3,))
        result = run("decode", bench, ["transformers"], 4, "gptj bench decode", (2, 1, 1), print)
        ((given, sides, config, rounds, mesh, tell),) = measured
        assert (given, config, rounds, mesh, tell) == (bench, preset("125m"), 4, (2, 1, 1), print)
        assert sides == {
            side: works(bench, config, side) for side in (OURS32, Side("transformers", "float32"))
        }
        assert result.asked == json.loads(json.dumps(dataclasses.asdict(bench)))
        assert (result.subject, result.command) == ("decode", "gptj bench decode")
        assert result.date == datetime.date.today().isoformat()
        assert {"processor", "threads", "python"} <= {*result.machine}

    def test_paths_are_written_as_text(self, measured):
        result = run("data", DataBench(Path("data/mine")), [], 1, "")
        assert result.asked["data"] == "data/mine"
        _, _, shape, _, mesh, _ = measured[0]
        assert (shape, mesh) == (None, (1, 1, 1))

    def test_beside_a_peer_the_likeliest_token_is_drawn_by_all(self, measured):
        run("serve", ServeBench(temperature=0.8), ["transformers"], 1, "")
        assert measured[0][0] == ServeBench(temperature=0.0)

    @pytest.mark.parametrize(
        ("bench", "rounds", "said"),
        [
            (TrainBench(), 0, "rounds=0 must be at least 1"),
            (ServeBench(longest=2000), 1, "longest=2000 and new_tokens=64 are together more than"),
            (DecodeBench(read=2000), 1, "read=2000 and new=64 are together more than"),
            (PrefillBench(tokens=2048), 1, "tokens=2048 is more than"),
            (ServeBench(rate=0.5), 1, "rate=0.5 cannot be asked of a peer: leave it out"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_begins(self, measured, bench, rounds, said):
        with pytest.raises(UserError, match=said):
            run("it", bench, [], rounds, "")
        assert measured == []
