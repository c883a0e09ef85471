"""A run made ready: what decides its course, what it says of itself, and what cannot be run."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import pytest

import gptj
from gptj import model
from gptj.config import ModelConfig
from gptj.data.mixture import MixConfig, mix
from gptj.errors import UserError
from gptj.sharding import make_mesh
from gptj.train import setup as setups
from gptj.train.evaluators import Evaluator
from gptj.train.setup import Setup

MODEL = ModelConfig(1, 8, 2, 2, 12, 257, 264, 64)


@pytest.fixture
def config(tiny_data, tmp_path):
    optimizer = gptj.OptimizerConfig(warmup_steps=2)
    return gptj.TrainConfig(
        tiny_data, tmp_path / "run", model=MODEL, steps=20, batch=4, optimizer=optimizer
    )


@pytest.fixture
def base(tmp_path):
    """A model to start from, of nothing but zeros."""
    zeros = jax.tree.map(lambda weight: jnp.zeros(weight.shape), model.weights(MODEL))
    gptj.Model(MODEL, zeros, gptj.Tokenizer.bytes()).save(tmp_path / "base")
    return str(tmp_path / "base")


def adapted(config, base, **lora):
    compute = gptj.StepConfig(lora=gptj.LoRAConfig(**{"rank": 2} | lora))
    return dataclasses.replace(config, model="demo", from_=base, compute=compute)


class TestTheCourse:
    def test_what_decides_the_weights_is_in_it_and_in_the_folder(self, config):
        setup = Setup(config)
        course = setup.course()
        assert {name: course[name] for name in ("seq", "batch", "accumulate", "seed", "from")} == {
            "seq": 64, "batch": 4, "accumulate": 1, "seed": 0, "from": None
        }  # fmt: skip
        assert (course["rewind_after"], course["fresh_opt"]) == (8, False)
        assert course["optimizer"]["anneal_steps"] == 18
        assert course["compute"]["end_of_text"] == 256  # the data's, not GPT-2's
        assert "base" not in course
        known = json.loads((config.out / "run.json").read_text())
        assert known == json.loads(json.dumps({"model": dataclasses.asdict(MODEL), **course}))

    @pytest.mark.parametrize(
        "changes",
        [
            {"eval_every": 3, "eval_batches": None, "save_every": 7, "keep": 1, "keep_every": 2},
            {"log_every": 1, "prompts": ("a",), "profile": "2:3", "log_to": (), "keep_best": 1},
        ],
    )
    def test_how_it_is_watched_is_not(self, config, changes):
        before = Setup(config).course()
        assert Setup(dataclasses.replace(config, **changes)).course() == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"seq": 32}, {"batch": 8}, {"accumulate": 2}, {"seed": 1}, {"rewind_after": 9},
            {"steps": 21}, {"compute": gptj.StepConfig(dtype="bfloat16")},
        ],
        ids=str,
    )  # fmt: skip
    def test_anything_else_is(self, config, changes):
        before = Setup(config).course()
        assert Setup(dataclasses.replace(config, **changes)).course() != before

    def test_beside_adapters_it_says_which_model_they_stand(self, config, base):
        asked = dataclasses.replace(config, out=config.out / "adapted")
        course = Setup(adapted(asked, base)).course()
        assert course["base_dtype"] == "float32"
        assert course["base"]
        assert course["from"] == base

    def test_of_data_without_a_limit_a_row_is_the_models_context(self, config):
        assert Setup(config).seq == 64
        assert Setup(dataclasses.replace(config, seq=16)).seq == 16


class TestWhatCannotBeRun:
    def refused(self, config, said, evaluators=()):
        with pytest.raises(UserError, match=said):
            Setup(config, evaluators)
        assert not config.out.exists()

    def test_adapters_of_nothing(self, config):
        compute = gptj.StepConfig(lora=gptj.LoRAConfig(rank=2))
        said = "lora-rank trains adapters of a model: name it with --from MODEL"
        self.refused(dataclasses.replace(config, compute=compute), said)

    def test_a_shape_beside_a_model(self, config, base):
        said = f"the model's shape is that of from={base}: leave out model"
        self.refused(dataclasses.replace(config, from_=base), said)

    def test_adapters_larger_than_a_matrix(self, config, base):
        self.refused(adapted(config, base, rank=9), "lora-rank=9 is above 8, the smaller dim of")

    def test_adapters_by_the_originals_step(self, config, base):
        original = gptj.OptimizerConfig("gptj-2021", warmup_steps=2)
        asked = dataclasses.replace(adapted(config, base), optimizer=original)
        said = "optimizer=gptj-2021 trains no adapters: choose another"
        self.refused(asked, said)

    @pytest.mark.parametrize("keep_best", [1, 0])
    def test_the_best_of_nothing(self, config, tiny_text, tmp_path, keep_best):
        prepare = gptj.PrepareConfig((str(tiny_text),), tmp_path / "data", "bytes", held_out=0)
        gptj.prepare(prepare)
        asked = dataclasses.replace(config, data=tmp_path / "data", keep_best=keep_best)
        if keep_best:
            self.refused(asked, "keep_best=1 needs held-out text, and .* has none: prepare it with")
        else:
            assert Setup(asked).data.held_out is None

    @pytest.mark.parametrize("hosts", [2, 1])
    def test_prompts_of_several_hosts(self, config, monkeypatch, hosts):
        asked = dataclasses.replace(config, prompts=("a",))
        if hosts == 1:
            assert Setup(asked)
            return
        monkeypatch.setattr(jax, "process_count", lambda: hosts)
        self.refused(asked, "prompts cannot be written on from by 2 hosts yet: leave them out")

    def test_what_an_evaluator_cannot_measure_on(self, config):
        def check(seq):
            raise UserError(f"not on {seq}")

        self.refused(config, "not on 64", [Evaluator(1, None, check)])

    @pytest.mark.parametrize(
        ("compute", "said"),
        [
            ({"dpo_beta": 0.2}, "dpo_beta=0.2 is for data of preferences, and .* holds texts"),
            ({"attention": "cudnn"}, "attention=cudnn"),
        ],
    )
    def test_what_the_data_or_the_device_do_not_have(self, config, compute, said):
        asked = dataclasses.replace(config, compute=gptj.StepConfig(**compute))
        self.refused(asked, said)


class TestTheIntroduction:
    def test_of_a_new_run(self, config):
        said = Setup(config).introduction(0)
        tokens = len(gptj.TokenStore.open(config.data / "train"))
        count = gptj.count_parameters(MODEL)
        assert said == (
            f"{count / 1000:.3g}k parameters on cpu (one device), attention by XLA; "
            f"{tokens / 1000:.3g}k tokens of text, 256 a step; new run in {config.out}"
        )

    def test_of_one_that_goes_on_from_a_model(self, config, base):
        asked = dataclasses.replace(config, model="demo", from_=base, seq=16, accumulate=2)
        assert (
            Setup(asked)
            .introduction(7)
            .endswith(f"64 a step; going on from step 7 in {config.out}, from {base}")
        )

    @pytest.mark.parametrize("kind", ["adamw", "gptj-2021"])
    def test_attention_is_by_what_the_step_computes_in(self, config, kind, monkeypatch):
        """Which is float32 for the original's, whatever its weights are rounded to."""
        asked = []
        backend = lambda *what: asked.append(what) or "native"  # noqa: E731
        monkeypatch.setattr(setups, "default_backend", backend)
        compute = gptj.StepConfig(dtype="bfloat16")
        optimizer = gptj.OptimizerConfig(kind, warmup_steps=2)
        setup = Setup(dataclasses.replace(config, compute=compute, optimizer=optimizer))
        assert ", attention by our native program; " in setup.introduction(0)
        assert asked == [("float32" if kind == "gptj-2021" else "bfloat16", 4)]

    def test_of_a_mixture_on_a_mesh(self, config, tiny_data, tmp_path):
        other = shutil.copytree(tiny_data, tmp_path / "other")
        mix(MixConfig((f"{tiny_data}=1", f"{other}=3"), tmp_path / "mixed"))
        asked = dataclasses.replace(config, data=tmp_path / "mixed", steps=65)
        with jax.set_mesh(make_mesh(2, 2)):
            said = Setup(asked).introduction(0)
        assert "({'data': 2, 'fsdp': 2, 'tensor': 1})" in said
        # 65 batches of 4 rows, a quarter and three of them, of 130 rows each.
        assert said.endswith("; times that each text is read: data 0.5, other 1.5")


def test_what_every_host_must_do_alike_has_all_that_decides_when(config, monkeypatch):
    asked = {}
    monkeypatch.setattr(setups.hosts, "same_everywhere", asked.update)
    setup = Setup(dataclasses.replace(config, keep_every=3, profile="2:4"))
    names = ("steps", "eval_every", "eval_batches", "save_every", "keep", "keep_every", "keep_best")
    assert {name: asked[name] for name in names} == {
        name: getattr(setup.config, name) for name in names
    }
    assert asked["profile"] == "2:4"
    assert asked["model"] == dataclasses.asdict(MODEL)
    assert asked["heldout"] == setup.data.held_out.fingerprint
    assert (asked["out"], asked["checkpoints"], asked["mesh"]) == ("run", None, {})
    assert asked.keys() >= setup.course().keys()
