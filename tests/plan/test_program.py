"""What devices exchange in compiled programs, and what they read and write."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from gptj.plan.program import first_group, read
from gptj.sharding import make_mesh

OUTER, INNER, ROWS = 5, 3, 64


def program(function, *arguments):
    return read(jax.jit(function).lower(*arguments).compile().as_text())


def placed(shape, *spec):
    return jnp.zeros(shape, out_sharding=P(*spec))


def nested(x, w):
    """Sums over `tensor` after a product: once before, and in a loop within a loop."""

    def product(x):
        partial = jnp.einsum("rd,de->re", x, w, out_sharding=P(None, None, unreduced={"tensor"}))
        return jax.reshard(jax.reshard(partial, P(None, None)), P(None, "tensor"))

    def inner(x, _):
        return jnp.tanh(product(x)), None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, length=INNER)[0], None

    return jax.lax.scan(outer, product(x), None, length=OUTER)[0]


def test_a_collective_counts_as_often_as_the_loops_around_it_go_round():
    with jax.set_mesh(make_mesh(tensor=8)):
        found = program(nested, placed((ROWS, 64), None, "tensor"), placed((64, 64), "tensor"))
    sums = [x for x in found.collectives if x.kind == "all-reduce"]
    assert sum(x.times for x in sums) == 1 + OUTER * INNER
    assert sorted(x.times for x in sums) == [1, OUTER * INNER]
    assert {x.bytes for x in sums} == {ROWS * 64 * 4}
    assert {x.group for x in sums} == {tuple(range(8))}
    assert not any(x.is_hidden for x in sums)
    assert found.open_loops == 0


def test_groups_tell_which_axis_is_crossed():
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        x = placed((8, 8), ("data", "fsdp"), "tensor")
        found = program(lambda x: jax.reshard(x, P(("data", "fsdp"), None)), x)
    (gathered,) = found.collectives
    assert gathered.kind == "all-gather"
    assert gathered.group == (0, 1)
    assert gathered.bytes == 2 * 8 * 4


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, to_apply=%a", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", (0, 1, 4, 5)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=8] {'axis_1'}, use", tuple(range(8))),
        ("replica_groups=mesh['a'=4,'b'=8] {'a'}, use", (0, 8, 16, 24)),
        (
            "replica_groups=mesh['a'=8,'b'=1,'c'=4], device_ids=([4,8]T(1,0)) {'a'}, use",
            tuple(range(8)),
        ),
        ("source_target_pairs={{0,3},{3,0}}", (0, 3)),
        ("replica_groups={}", ()),
    ],
)
def test_every_notation_of_groups(written, group):
    assert first_group(written) == group


SCATTERED = """HloModule m, entry_computation_layout={(f32[64]{0})->f32[8]{0}}

%scattering (of: f32[64], at: s32[]) -> f32[1,8] {
  %of = f32[64]{0} parameter(0)
  %at = s32[] parameter(1)
  %sum = f32[64]{0} all-reduce(%of), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %part = f32[8]{0} dynamic-slice(%OF, %at), dynamic_slice_sizes={8}
  ROOT %out = f32[1,8]{1,0} bitcast(%part)
}

ENTRY %main (x: f32[64], i: s32[]) -> f32[1,8] {
  %x = f32[64]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %fusion = f32[1,8]{1,0} fusion(%x, %i), kind=kCustom, calls=%scattering
}
"""


@pytest.mark.parametrize(("operand", "kind"), [("sum", "reduce-scatter"), ("of", "all-reduce")])
def test_a_sum_of_which_a_device_keeps_its_part_is_scattered(operand, kind):
    (found,) = read(SCATTERED.replace("%OF", f"%{operand}")).collectives
    assert (found.kind, found.bytes, found.times) == (kind, 256, 1)


def exchanged(line: str) -> tuple[str, int, bool, tuple[str, ...]]:
    """Of the one collective of a program."""
    text = (
        "ENTRY %main (x: f32[8], y: bf16[4]) -> f32[8] {\n"
        "  %x = f32[8]{0} parameter(0)\n"
        "  %y = bf16[4]{0:T(128)} parameter(1)\n"
        f"  ROOT %out = {line}\n}}\n"
    )
    (found,) = read(text).collectives
    return found.kind, found.bytes, found.is_hidden, found.arrays


@pytest.mark.parametrize(
    ("line", "kind", "size", "is_hidden"),
    [
        ("f32[8]{0} all-reduce(%x), to_apply=%add", "all-reduce", 32, False),
        ("f32[8]{0} all-reduce-start(%x), to_apply=%add", "all-reduce", 32, True),
        ("f32[64]{0} all-gather(%x), dimensions={0}", "all-gather", 256, False),
        ("f32[8]{0} collective-permute(%x)", "collective-permute", 32, False),
        # What is started holds its operand beside the result.
        ("(f32[8]{0}, f32[64]{0}) all-gather-start(%x), dimensions={0}", "all-gather", 256, True),
        (
            "(f32[8]{0}, f32[8]{0}, u32[]) collective-permute-start(%x)",
            "collective-permute",
            32,
            True,
        ),
        ("f32[1]{0} reduce-scatter(%x), to_apply=%add", "reduce-scatter", 32, False),
        ("f32[8]{0} all-to-all(%x)", "all-to-all", 32, False),
        ("f32[8]{0} collective-broadcast(%x)", "collective-broadcast", 32, False),
    ],
)
def test_what_a_device_holds_of_it_when_it_is_whole(line, kind, size, is_hidden):
    assert exchanged(line) == (kind, size, is_hidden, ("f32[8]",))


def test_several_arrays_may_be_one_collective():
    line = "(f32[8]{0}, bf16[4]{0}) all-reduce(%x, %y), to_apply=%add"
    assert exchanged(line) == ("all-reduce", 32 + 8, False, ("f32[8]", "bf16[4]"))


@pytest.mark.parametrize(
    ("root", "kind"),
    [
        ("f32[1,8]{1,0} bitcast(%part)", "reduce-scatter"),
        ("bf16[8]{0} convert(%part)", "reduce-scatter"),
        ("f32[8]{0} copy(%part)", "reduce-scatter"),
        ("f32[8]{0} add(%part, %part)", "all-reduce"),  # more than a part of it
        ("f32[8]{0} negate(%part)", "all-reduce"),
        ("f32[64]{0} copy(%sum)", "all-reduce"),  # all of it
    ],
)
def test_a_sum_is_scattered_if_its_part_is_all_that_is_left(root, kind):
    text = SCATTERED.replace("%OF", "%sum").replace("f32[1,8]{1,0} bitcast(%part)", root)
    assert [each.kind for each in read(text).collectives] == [kind]
    wide = text.replace("dynamic-slice(%sum,", "dynamic-slice(%same,").replace(
        "  %part =", "  %same = f32[64]{0} reshape(%sum)\n  %part ="
    )
    assert [each.kind for each in read(wide).collectives] == [kind]


SPREAD = """HloModule m

%starting (of: bf16[64]) -> (bf16[64], bf16[512]) {
  %of = bf16[64]{0} parameter(0)
  %all = bf16[512]{0} all-gather(%of), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %o = (bf16[64]{0}, bf16[512]{0}) custom-call(%all), custom_call_target="AsyncCollectiveStart"
}

%product.1 (of: bf16[64], into: bf16[512], x: f32[256]) -> (f32[256], bf16[64], bf16[512]) {
  %x = f32[256]{0} parameter(2)
  %sine = f32[256]{0} sine(%x)
  %of = bf16[64]{0} parameter(0)
  %into = bf16[512]{0} parameter(1)
  %all = bf16[512]{0} all-gather(%of), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %out = (f32[256]{0}, bf16[64]{0}, bf16[512]{0}, bf16[512]{0}) tuple(%sine, %of, %into, %all)
}

%ending (of: bf16[64], into: bf16[512]) -> bf16[512] {
  %of = bf16[64]{0} parameter(0)
  %into = bf16[512]{0} parameter(1)
  %all = bf16[512]{0} all-gather(%of), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %out = bf16[512]{0} custom-call(%of, %into, %all), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (w: bf16[64], x: f32[256]) -> bf16[512] {
  %w = bf16[64]{0} parameter(0)
  %x = f32[256]{0} parameter(1)
  %begun = (bf16[64]{0}, bf16[512]{0}) fusion(%w), kind=kCustom, calls=%starting
  %b0 = bf16[64]{0} get-tuple-element(%begun), index=0
  %b1 = bf16[512]{0} get-tuple-element(%begun), index=1
  %on = (f32[256], bf16[64]{0}, bf16[512]{0}, bf16[512]{0}) fusion(%b0, %b1, %x), calls=%product.1
  %o0 = bf16[64]{0} get-tuple-element(%on), index=1
  %o1 = bf16[512]{0} get-tuple-element(%on), index=2
  ROOT %end = bf16[512]{0} fusion(%o0, %o1), kind=kCustom, calls=%ending
}
"""


def test_a_collective_that_goes_on_during_products_is_one():
    """The TPU's compiler writes it into the fusion of each product, and passes its arrays along."""
    found = read(SPREAD)
    (gathered,) = found.collectives
    assert (gathered.kind, gathered.bytes, gathered.times) == ("all-gather", 1024, 1)
    assert gathered.is_hidden
    begun, product = 128 + 128 + 1024, 2 * 1024
    assert found.traffic == begun + product


def test_traffic_is_what_a_program_reads_and_writes():
    x = jnp.zeros((512, 512))
    assert program(lambda x: x + 1, x).traffic == pytest.approx(2 * x.nbytes, rel=0.01)


def test_a_loop_over_layers_reads_each_layer_once():
    """And not all of them every time, as their stack's type would have it."""
    stack, x = jnp.zeros((20, 128, 128)), jnp.zeros((128, 128))
    loop = functools.partial(jax.lax.scan, lambda x, w: (jnp.sin(x @ w), None))
    found = program(lambda x, stack: loop(x, stack)[0], x, stack)
    layer = x.nbytes
    assert stack.nbytes < found.traffic < 20 * 8 * layer


def test_writing_into_a_large_array_moves_what_is_written():
    def body(i, x):
        return jax.lax.dynamic_update_slice_in_dim(x, jnp.sin(x[i][None]), i, 0)

    large = jnp.zeros((50, 4096))
    found = program(lambda x: jax.lax.fori_loop(0, 50, body, x), large)
    assert found.traffic < 12 * large.nbytes
