"""What is read out of compiled programs: types, and loops multiplied out."""

import jax
import jax.numpy as jnp
import pytest

from gptj.plan import hlo
from gptj.plan.program import read


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

    text = jax.jit(lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) < 100, body, x))
    found = read(text.lower(jnp.ones((8, 8))).compile().as_text())
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
    found = read(LOOP)
    assert [(x.times, x.group) for x in found.collectives] == [(24, (0, 1))]
    noted = 'body=%body.1, backend_config={"known_trip_count":{"n":"9"}}'
    assert read(LOOP.replace("body=%body.1", noted)).collectives[0].times == 9


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
