"""What can be asked for, how it is counted, and how it is told to another process."""

import dataclasses
import json

import pytest

from gptj.adapters import LoRAConfig
from gptj.config import named
from gptj.errors import UserError
from gptj.plan.config import mesh_from
from gptj.plan.job import Job, check_adapters, check_mesh, mesh_words
from gptj.plan.place import find
from gptj.plan.serve import ServeJob

MESHES = [
    ("data=32,tensor=8", (32, 1, 8)),
    (" tensor = 8 , data = 32 ", (32, 1, 8)),
    ("fsdp=4", (1, 4, 1)),
    ("data=1", (1, 1, 1)),
    ("tensor=2,fsdp=3,data=5", (5, 3, 2)),
]


@pytest.mark.parametrize(("words", "mesh"), MESHES)
def test_a_mesh_in_words(words, mesh):
    assert mesh_from(words) == mesh
    assert mesh_from(mesh_words(mesh)) == mesh
    if mesh != (1, 1, 1):
        assert "=1" not in mesh_words(mesh)


@pytest.mark.parametrize(
    "words", ["", "8", "data", "data=", "data=-2", "data=2.0", "data=2,", "rows=2", "data=2,data=2"]
)
def test_other_words_are_no_mesh(words):
    with pytest.raises(UserError, match=r"is not like data=32,tensor=8, of the axes data, fsdp, "):
        mesh_from(words)


def test_a_model_by_preset_or_by_file(tiny_model, tmp_path):
    assert named("gpt-j-6b").layers == 28
    assert named(str(tiny_model)).layers == 2
    with pytest.raises(UserError, match=r"neither a preset .* nor a JSON file"):
        named(str(tmp_path))


@pytest.mark.parametrize("beta", [None, 0.1])
def test_how_a_batch_is_split_and_counted(small_job, beta):
    job = small_job("h100:8", (2, 2, 2), lora=LoRAConfig(rank=8), dpo_beta=beta)
    times = 2 if beta else 1
    assert (job.ways, job.rows) == (4, 2)
    assert job.width == 257 * times
    assert job.tokens_at_once == 512 * times
    assert job.tokens == 16 * 256 * times == job.tokens_at_once * job.ways * job.accumulate
    assert job.unit == ("pairs of rows" if beta else "rows")
    assert (job.pairs, job.adapts) == (bool(beta), True)
    assert (job.step.examples, job.step.pairs) == (bool(beta), bool(beta))
    assert dataclasses.replace(job.step, examples=False, pairs=False) == job.compute
    plain = small_job("h100:8", (2, 2, 2))
    assert (plain.adapts, plain.sequential) == (False, False)


@pytest.mark.parametrize("batch", [4, 8, 24])
def test_a_batch_must_divide_into_equal_parts(small_job, batch):
    """Of four devices, twice."""
    if batch % 8:
        with pytest.raises(UserError, match=r"of 4 rows .* = 4 devices in accumulate=2 .* 8, or"):
            small_job("h100:8", (2, 2, 2), batch=batch)
    else:
        assert small_job("h100:8", (2, 2, 2), batch=batch).rows == batch // 8


def test_a_row_may_be_as_long_as_the_models_context(small_job):
    assert small_job("h100:8", (2, 2, 2), seq=256).seq == 256
    with pytest.raises(UserError, match="seq=257 is longer than the model's context of 256 tok"):
        small_job("h100:8", (2, 2, 2), seq=257)


@pytest.mark.parametrize(
    ("changes", "mesh", "said"),
    [
        ({}, (0, 1, 8), "mesh data=0 must be at least 1"),
        ({}, (8, 1, -1), "mesh tensor=-1 must be at least 1"),
        ({}, (2, 2, 1), "data=2,fsdp=2 is of 4 devices, h100:8 has 8: their product"),
        ({"heads": 6, "d_model": 768}, (1, 1, 8), "tensor=8 does not divide the model's heads=6"),
        ({"d_ff": 1022}, (2, 1, 4), "tensor=4 does not divide the model's d_ff=1022: choose"),
        ({"padded_vocab_size": 514}, (2, 1, 4), "model's padded_vocab_size=514: choose a divisor"),
        ({"d_model": 252, "rotary_dims": 2}, (1, 8, 1), "fsdp=8 does not divide .* d_model=252"),
    ],
)
def test_a_mesh_must_divide_the_devices_and_the_model(small_job, changes, mesh, said):
    model = dataclasses.replace(small_job("h100:8", (8, 1, 1)).model, **changes)
    check_mesh(model, (8, 1, 1), find("h100:8"))
    with pytest.raises(UserError, match=said):
        check_mesh(model, mesh, find("h100:8"))


def test_adapters_only_are_checked_as_adapters(small_job):
    job = small_job("h100:8", (2, 2, 2))
    original = dataclasses.replace(job.optimizer, kind="gptj-2021", b1=None, b2=None)
    check_adapters(job.model, original, job.compute.lora)
    with pytest.raises(UserError, match="optimizer=gptj-2021 trains no adapters: choose another"):
        check_adapters(job.model, original, LoRAConfig(rank=4))
    with pytest.raises(UserError, match="lora-rank=257 is above 256"):
        check_adapters(job.model, job.optimizer, LoRAConfig(rank=257))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": LoRAConfig(4, targets=("q", "v"), quantize="int8"), "dpo_beta": 0.2},
        {"sequential": True, "attention": "xla", "remat": "dots"},
    ],
)
def test_another_process_is_told_the_same(small_job, changes):
    job = small_job("v3-8", (2, 2, 2), **changes)
    assert Job.of(json.loads(json.dumps(job.plain()))) == job


def test_so_it_is_of_an_engine(small_job):
    model = small_job("h100:8", (8, 1, 1)).model
    job = ServeJob(find("v3-8"), model, (4, 1, 2), 8, 200, "float32", "int8", "int8", 3, 20)
    assert ServeJob.of(json.loads(json.dumps(job.plain()))) == job
