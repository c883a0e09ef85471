"""What is read out of compiled programs: collectives, loops multiplied out, and traffic."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from gptj.plan import hlo
from gptj.sharding import make_mesh

OUTER, INNER, ROWS = 5, 3, 64


def program(function, *arguments):
    return hlo.read(jax.jit(function).lower(*arguments).compile().as_text())


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


@pytest.mark.parametrize(("begin", "end"), [(0, 7), (3, 10), (0, 1)])
def test_a_loop_from_anywhere(begin, end):
    def body(_, x):
        return jnp.sin(x) @ x

    text = jax.jit(lambda x: jax.lax.fori_loop(begin, end, body, x)).lower(jnp.ones((8, 8)))
    computations, entry = hlo.parse(text.compile().as_text())
    times, open_loops = hlo.run_counts(computations, entry)
    assert max(times.values()) == end - begin
    assert open_loops == 0


def test_a_loop_that_only_the_data_end_counts_once_and_is_told():
    def body(x):
        return jnp.sin(x) @ x

    found = program(
        lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) < 100, body, x), jnp.ones((8, 8))
    )
    assert found.open_loops == 1


LOOP = """
%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8]{0:T(128)} get-tuple-element(%p), index=1
  %sum = f32[8]{0:T(128)} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %t = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%i, %sum)
}

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(28)
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0)
  %begin = s32[]{:T(128)} constant(4)
  %copied = s32[]{:T(128)} copy(%begin)
  %t = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%copied, %x)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%t), condition=%condition.1, body=%body.1
  ROOT %y = f32[8]{0:T(128)} get-tuple-element(%loop), index=1
}
"""


def test_the_tpu_compilers_loops_do_not_say_how_often_but_compare():
    found = hlo.read(LOOP)
    assert [(x.times, x.group) for x in found.collectives] == [(24, (0, 1))]
    noted = 'body=%body.1, backend_config={"known_trip_count":{"n":"9"}}'
    assert hlo.read(LOOP.replace("body=%body.1", noted)).collectives[0].times == 9


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
    assert hlo.first_group(written) == group


@pytest.mark.parametrize(
    ("written", "bytes", "in_main_memory"),
    [
        ("f32[2,3]{1,0}", 24, 24),
        ("bf16[28,1,2048]{2,1,0:T(8,128)(2,1)}", 114688, 114688),
        ("f32[4]{0:T(128)S(1)}", 16, 0),
        ("(f32[2]{0}, /*index=1*/pred[3]{0:T(8)S(6)}, token[])", 11, 8),
        ("s4[5]{0}", 3, 3),
        ("f32[]", 4, 4),
    ],
)
def test_the_bytes_of_types(written, bytes, in_main_memory):
    assert hlo.array_bytes(written) == bytes
    assert hlo.array_bytes(written, on_chip=False) == in_main_memory


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
