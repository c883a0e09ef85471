"""What the compilers make of the training step: the laws of tensor parallelism, on real TPUs'
programs too."""

import importlib.util

import pytest

from gptj.errors import UserError
from gptj.plan import remote
from gptj.plan.estimate import estimated
from gptj.plan.plan import plan_of, saving

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
LARGE = {"batch": 64, "dtype": "float32", "remat": "none"}  # as in test_memory.py
ON_TPU = [
    pytest.param("v5e-8", (4, 1, 2), marks=needs_libtpu),
    pytest.param("v5p-8", (1, 2, 2), marks=needs_libtpu),
    pytest.param("v3-8", (2, 1, 4), marks=[needs_libtpu, pytest.mark.slow]),
    pytest.param("v4-8", (1, 1, 4), marks=[needs_libtpu, pytest.mark.slow]),
    pytest.param("v6e-8", (2, 2, 2), marks=[needs_libtpu, pytest.mark.slow]),
    pytest.param("v2-8", (2, 2, 2), marks=[needs_libtpu, pytest.mark.slow]),
]


def of_blocks(job, found):
    """How often a device all-reduces a whole stream of a layer over tensor, in one layer."""
    rows = job.rows * job.seq
    sizes = {f"{dtype}[{rows},{job.model.d_model}]" for dtype in ("f32", "bf16")}
    over = [
        each
        for each in found.exchanges
        if each.axes == ("tensor",) and each.kind == "all-reduce" and set(each.arrays) <= sizes
    ]
    return sum(x.times * len(x.arrays) for x in over) / job.model.layers / job.accumulate


@pytest.mark.parametrize(("on", "mesh"), ON_TPU)
def test_a_block_costs_one_all_reduce_each_way(on, mesh, small_job, compile_once):
    assert of_blocks(small_job(on, mesh), compile_once(on, mesh)) == 2
    assert compile_once(on, mesh).attention == "xla"


@needs_libtpu
@pytest.mark.parametrize(
    ("on", "mesh"),
    [
        ("v5e-8", (4, 1, 2)),
        pytest.param("v4-8", (1, 1, 4), marks=pytest.mark.slow),
        pytest.param("v5p-8", (1, 2, 2), marks=pytest.mark.slow),
        pytest.param("v6e-8", (2, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_so_it_does_with_splash_attention(on, mesh, small_job, compile_once):
    found = compile_once(on, mesh, attention="splash")
    assert found.attention == "splash"
    assert of_blocks(small_job(on, mesh), found) == 2


def test_so_it_does_on_a_cpu(small_job, compile_once):
    job, found = (make("cpu:8", (2, 2, 2), **LARGE) for make in (small_job, compile_once))
    assert of_blocks(job, found) == 2


@needs_libtpu
def test_a_sequential_block_costs_more_and_the_saving_is_shown(small_job, compile_once):
    """Two each way, and another where layers are computed again: the feed-forward needs it."""
    on, mesh = "v5e-8", (4, 1, 2)
    other = small_job(on, mesh, sequential=True)
    assert of_blocks(other, compile_once(on, mesh, sequential=True)) == 5
    ours = small_job(on, mesh)
    plan = plan_of(ours, compile_once(on, mesh))
    found = saving_with(plan, compile_once(on, mesh, sequential=True))
    stream = ours.rows * ours.seq * ours.model.d_model * 2
    more = 3 * ours.model.layers * ours.accumulate
    assert found.sequential - found.parallel == more * stream
    assert found.sequential_times - found.parallel_times == more
    assert found.seconds > 0


def saving_with(plan, other):
    """`saving` without compiling again what a test has compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "compile_step", lambda job: other if job.sequential else None)
        return saving(plan)


def test_without_tensor_there_is_nothing_to_save(small_job):
    job = small_job("h100:8", (8, 1, 1))
    formula = estimated(job, {"data": 1e9})
    with pytest.raises(UserError, match="data=8 splits nothing over tensor"):
        saving(plan_of(job, formula))
    assert not any("tensor" in each.axes for each in formula.exchanges)


def test_gradients_cross_the_batch_axes_once_a_microbatch(small_job, compile_once):
    job, found = (make("cpu:8", (2, 2, 2), **LARGE) for make in (small_job, compile_once))
    over = [x for x in found.exchanges if set(x.axes) == {"data", "fsdp"}]
    assert {x.times for x in over} >= {job.model.layers * job.accumulate, job.accumulate}
    assert all(x.devices == 4 for x in over)
    assert found.open_loops == 0


@needs_libtpu
def test_on_a_tpu_weights_are_gathered_and_their_gradients_scattered(small_job, compile_once):
    job, found = small_job("v5p-8", (1, 2, 2)), compile_once("v5p-8", (1, 2, 2))
    kinds = {x.kind for x in found.exchanges if x.axes == ("fsdp",)}
    assert {"all-gather", "reduce-scatter"} <= kinds
    assert "libtpu" in found.versions
    assert found.arguments >= found.weights + found.optimizer
    assert job.place.accelerator.memory > found.memory


@needs_libtpu
def test_a_program_that_has_no_room_says_how_much_it_lacks(small_job):
    from gptj.config import preset

    job = small_job("v5e-8", (8, 1, 1), model=preset("gpt-j-6b"), batch=8, accumulate=1)
    found = remote.compile_step(job)
    assert found.needed > 60 * 2**30 > found.available
    assert "exceeds available HBM" in found.words


def test_a_tpu_without_its_compiler(monkeypatch, small_job):
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda _: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(UserError, match=r"pip install 'gptj-jax\[tpu\]'"):
        remote.compile_step(small_job("v5e-8", (8, 1, 1)))


@needs_libtpu
def test_an_arrangement_that_the_compiler_does_not_have(small_job):
    job = small_job("v5e:3x3", (9, 1, 1), batch=18)
    with pytest.raises(UserError, match="libtpu does not know v5e:3x3"):
        remote.compile_step(job)
