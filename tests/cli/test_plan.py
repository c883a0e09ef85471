"""`gptj plan`: what is planned follows from the flags, the recipe, the defaults, in that order."""

import dataclasses

import pytest

from gptj.adapters import LoRAConfig
from gptj.cli import plan
from gptj.cli.plan import PlanCommand
from gptj.config import named
from gptj.errors import UserError
from gptj.plan.config import TOKENS
from gptj.plan.place import find

GPUS = find("h100:8")


def job(model="125m", mesh="data=8", place=GPUS, **flags):
    return plan._job(PlanCommand(str(model), "h100:8", mesh, **flags), place)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import gptj\n"
        "def recipe():\n"
        "    compute = gptj.StepConfig(remat='dots', attention='xla', lora=gptj.LoRAConfig(4))\n"
        "    optimizer = gptj.OptimizerConfig('lion', lr=1e-5, end_lr=0.0, b2=0.9)\n"
        "    return gptj.TrainConfig('d', 'o', '1.3b', from_='m', batch=48, accumulate=3,\n"
        "        seq=512, compute=compute, optimizer=optimizer)\n"
    )
    return path


class TestWhatIsPlanned:
    def test_by_default(self):
        found = job()
        assert (found.seq, found.batch) == (2048, TOKENS // 2048)
        assert found.mesh == (8, 1, 1)
        assert found.accumulate == found.batch // 8  # a row a device at a time
        assert (found.compute.dtype, found.compute.remat) == ("bfloat16", "block")
        assert (found.optimizer.kind, found.optimizer.anneal_steps) == ("adamw", 900)

    def test_by_a_recipe(self, recipe):
        found = job(recipe)
        assert (found.model.d_model, found.seq, found.batch, found.accumulate) == (2048, 512, 48, 3)
        assert (found.compute.remat, found.compute.dtype) == ("dots", "float32")
        assert found.compute.lora == LoRAConfig(4)
        assert (found.optimizer.kind, found.optimizer.b2) == ("lion", 0.9)

    @pytest.mark.parametrize(("flag", "value"), [("batch", 24), ("accumulate", 6), ("seq", 128)])
    def test_a_flag_wins_over_a_recipe(self, recipe, flag, value):
        before, after = job(recipe), job(recipe, **{flag: value})
        assert getattr(after, flag) == value
        assert dataclasses.replace(after, **{flag: getattr(before, flag)}) == before

    @pytest.mark.parametrize(
        ("flag", "value"),
        [("remat", "none"), ("dtype", "bfloat16"), ("lora", LoRAConfig(8, targets=("q",)))],
        ids=str,
    )
    def test_so_it_does_of_how_a_step_computes(self, recipe, flag, value):
        before, after = job(recipe), job(recipe, **{flag: value})
        assert after.compute == dataclasses.replace(before.compute, **{flag: value})

    def test_another_optimizer_has_its_own_rates(self, recipe):
        found = job(recipe, optimizer="muon", moments="bfloat16").optimizer
        assert (found.kind, found.b1, found.b2, found.moments) == ("muon", 0.9, 0.95, "bfloat16")
        assert found.lr == 1e-5
        assert job(recipe, moments="bfloat16").optimizer.b2 == 0.9

    @pytest.mark.parametrize(
        ("before", "after"), [("'gptj-2021'", "adamw"), ("'adamw', eps=1e-6", "lion")]
    )
    def test_what_only_the_recipes_own_looks_at_is_left_behind(self, recipe, before, after):
        text = recipe.read_text().replace("'lion', lr=1e-5, end_lr=0.0, b2=0.9", before)
        recipe.write_text(text.replace(", lora=gptj.LoRAConfig(4)", "").replace("from_='m', ", ""))
        assert job(recipe, optimizer=after).optimizer.kind == after

    def test_pairs_are_two_rows_each(self):
        found = job(lora=LoRAConfig(4), preferences=True)
        assert found.compute.dpo_beta == 0.1
        assert found.batch == TOKENS // 2 // 2048

    def test_a_batch_of_long_rows_is_one_at_least(self, monkeypatch):
        monkeypatch.setattr(plan, "TOKENS", 100)
        assert job(mesh="tensor=4", place=find("h100:4")).batch == 1

    def test_what_changes_nothing_by_formula_is_refused(self, recipe, tmp_path):
        with pytest.raises(UserError, match="attention=xla changes nothing of a plan for h100:8"):
            job(recipe, attention="xla")
        assert job(recipe).compute.attention == "xla"  # as it trains
        recipe.write_text(recipe.read_text().replace("'xla'", "'splash'"))
        with pytest.raises(UserError, match="attention=splash changes nothing"):
            job(recipe)


class TestWhatIsServed:
    @pytest.mark.parametrize(
        ("model", "place", "mesh"),
        [
            ("gpt-j-6b", "h100:8", (1, 1, 8)),
            ("125m", "h100:8", (2, 1, 4)),  # of 12 heads 8 is no divisor
            ("125m", "h100", (1, 1, 1)),
        ],
    )
    def test_as_much_tensor_as_divides_the_heads(self, model, place, mesh):
        assert plan._serving_mesh(named(model), find(place)) == mesh

    def test_an_arrangement_there_is_none_of(self, monkeypatch):
        monkeypatch.setattr(plan.searching, "meshes", lambda *_: [(1, 8, 1)])
        with pytest.raises(UserError, match="no mesh of 8 devices divides the model: choose"):
            plan._serving_mesh(named("125m"), GPUS)


class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ({"price": 2.0}, "price=2.0 says nothing without tokens: add --tokens 400e9"),
            ({"price": 0.0, "tokens": 1.0}, "price=0.0 must be above 0"),
            ({"seq": 0}, "seq=0 must be at least 1"),
            ({"serve": True, "slots": 0}, "slots=0 must be at least 1"),
            ({"serve": True, "batch": 4}, "batch is not looked at when planning for serve: leave"),
            ({"serve": True, "tokens": 1.0}, "tokens is not looked at when planning for serve"),
            ({"kv_cache": "int8"}, "kv_cache is not looked at when planning for training: leave"),
            ({"search": True, "accumulate": 2}, "search tries every mesh, accumulate and remat"),
            ({"search": True, "remat": "none"}, "search tries every mesh, accumulate and remat"),
            ({"search": True, "sequential": True}, "search compares many: leave out sequential"),
            ({"serve": True, "max_adapter_rank": 4}, "max_adapter_rank=4 is of adapters, and"),
        ],
        ids=str,
    )
    def test_what_would_not_be_looked_at(self, flags, said):
        with pytest.raises(UserError) as failure:
            PlanCommand("125m", "h100", **flags)
        assert said in str(failure.value)

    def test_each_flag_is_of_training_of_serving_or_of_both(self):
        both = {"model", "on", "mesh", "dtype", "serve", "json", "html"}
        looked_at = {"training": set(both), "serve": set(both)}
        other = {"remat": "none", "attention": "xla", "optimizer": "lion", "moments": "bfloat16"}
        other |= {"quantize": "int8", "kv_cache": "int8", "lora": LoRAConfig(4), "price": 1.0}
        for field in dataclasses.fields(PlanCommand):
            if field.name in both:
                continue
            value = other.get(field.name, 1)
            tokens = {"tokens": 1.0} if field.name == "price" else {}
            room = {"max_adapters": 1} if field.name == "max_adapter_rank" else {}
            for kind, serve in (("training", False), ("serve", True)):
                try:
                    PlanCommand(
                        "125m", "h100", serve=serve, **{field.name: value}, **tokens, **room
                    )
                except UserError as error:
                    assert f"is not looked at when planning for {kind}" in str(error)  # noqa: PT017
                else:
                    looked_at[kind].add(field.name)
        assert looked_at["training"] & looked_at["serve"] == both
        assert looked_at["training"] | looked_at["serve"] == {
            field.name for field in dataclasses.fields(PlanCommand)
        }
