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


def test_a_loop_that_the_data_may_end_before_its_counter_counts_once_and_is_told():
    def body(state):
        i, x = state
        return i + 1, jnp.sin(x) @ x

    text = jax.jit(
        lambda x: jax.lax.while_loop(lambda s: (s[0] < 7) & (jnp.sum(s[1]) < 100), body, (0, x))
    )
    found = read(text.lower(jnp.ones((8, 8))).compile().as_text())
    assert found.open_loops == 1


def rounds(changes):
    """Of the loop above, with some of its text replaced."""
    text = LOOP
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    found = read(text)
    return found.open_loops, sum(each.times for each in found.collectives)


LIMIT = "%n = s32[]{:T(128)} constant(28)"
COMPARE = "ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT"
BEGIN = "%begin = s32[]{:T(128)} constant(4)"


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 24),
        ({"direction=LT": "direction=LE"}, 25),
        ({"constant(28)": "constant(4)"}, 0),
        ({"constant(28)": "constant(3)"}, 0),
        ({"constant(28)": "constant(3)", "direction=LT": "direction=LE"}, 0),
        ({"constant(4)": "constant(-4)"}, 32),
        ({"copy(%begin)": "bitcast(%begin)"}, 24),
        ({"copy(%begin)": "add(%begin, %begin)"}, 28),  # it cannot be seen
        ({BEGIN: "%begin = s32[]{:T(128)} parameter(1)"}, 28),
        ({"constant(4)": "constant({4})"}, 28),
        ({"%t = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%copied, %x)\n": ""}, 28),
        # A constant that is no number limits nothing.
        ({LIMIT: f"{LIMIT}\n  %false = pred[] constant(false)"}, 24),
        # The number and the comparison may stand in a fusion.
        (
            {
                "%condition.1 (p": (
                    "%less (a: s32[]) -> pred[] {\n  %a = s32[] parameter(0)\n"
                    "  %n = s32[] constant(28)\n"
                    "  ROOT %lt = pred[] compare(%a, %n), direction=LT\n}\n\n%condition.1 (p"
                ),
                f"  {LIMIT}\n": "",
                COMPARE: "ROOT %f = pred[] fusion(%i), kind=kLoop, calls=%less",
            },
            24,
        ),
        # Beside a counter that is not the first of what goes round.
        (
            {
                "ROOT %lt": "%unused = s32[] add(%i, %i)\n  ROOT %lt",
                "get-tuple-element(%p), index=0\n  %unused": "get-tuple-element(%p), index=1\n"
                "  %unused",
                "tuple(%copied, %x)": "tuple(%x, %copied)",
            },
            24,
        ),
    ],
)
def test_how_often_a_loop_goes_round(changes, count):
    assert rounds(changes) == (0, count)


@pytest.mark.parametrize(
    "changes",
    [
        {LIMIT: f"{LIMIT}\n  %m = s32[] constant(3)"},  # which of them?
        {"constant(28)": "constant({28})"},  # none
        {COMPARE: f"%other = pred[] compare(%n, %i), direction=GT\n  {COMPARE}"},
        {COMPARE: "ROOT %not = pred[] not(%i)"},
        {COMPARE: f"%y = f32[8] get-tuple-element(%p), index=1\n  {COMPARE}"},
    ],
)
def test_where_that_cannot_be_told_it_counts_once(changes):
    assert rounds(changes) == (1, 1)


NESTED = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%left.1 (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%a)
}

%right (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %c = f32[8]{0} call(%a), to_apply=%left.1
}

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %i = s32[] constant(0)
  ROOT %c = f32[8]{0} conditional(%i, %p, %p), branch_computations={%left.1, %right}
}

%condition (p: f32[8]) -> pred[] {
  %p = f32[8]{0} parameter(0)
  ROOT %t = pred[] constant(true)
}

ENTRY %main (x: f32[8]) -> f32[] {
  %x = f32[8]{0} parameter(0)
  %inner = f32[8]{0} while(%x), condition=%condition, body=%body, COUNT
  %zero = f32[] constant(0)
  ROOT %sum = f32[] reduce(%inner, %zero), dimensions={0}, to_apply=%add
}
"""


@pytest.mark.parametrize(
    ("count", "rounds", "open_loops"),
    [('backend_config={"known_trip_count":{"n":"5"}}', 5, 0), ("x=1", 1, 1)],
)
def test_every_computation_runs_as_often_as_what_calls_it(count, rounds, open_loops):
    computations, entry = hlo.parse(NESTED.replace("COUNT", count))
    times, found = hlo.run_counts(computations, entry)
    assert entry == "main"
    assert found == open_loops
    assert dict(times) == {
        "main": 1, "add": 1, "body": rounds, "condition": rounds, "right": rounds,
        "left.1": 2 * rounds,  # as a branch, and called by the other
    }  # fmt: skip


def test_a_line_of_a_program_has_its_parts():
    computations, _ = hlo.parse(NESTED.replace("COUNT", "x=1"))
    chosen = computations["body"].root
    assert (chosen.name, chosen.opcode, chosen.type) == ("c", "conditional", "f32[8]{0}")
    assert chosen.operands == ("i", "p", "p")
    assert chosen.called() == chosen.called("branch_computations") == ["left.1", "right"]
    assert chosen.called("calls") == []
    loop = computations["main"].instructions["inner"]
    assert loop.called() == ["condition", "body"]
    assert loop.called("body") == ["body"]
    assert not loop.is_root
    zero = computations["main"].instructions["zero"]
    assert (zero.literal, zero.operands, zero.rest) == ("0", (), "")
    assert list(computations["add"].instructions) == ["a", "b", "s"]


def test_a_line_that_names_nothing_is_no_instruction():
    text = "ENTRY main () -> s32[] {\n  // a word beside\n  ROOT c = s32[] constant(3)\n}\n"
    (computation,) = hlo.parse(text)[0].values()
    assert list(computation.instructions) == ["c"]


def test_a_type_in_parentheses_is_one_type():
    text = (
        "ENTRY main (x: f32[2]) -> (f32[2], (s8[3], f32[])) {\n"
        "  x = f32[2]{0:T(2)} parameter(0)\n"
        '  ROOT t = (f32[2]{0:T(2)}, (s8[3]{0}, f32[])) custom-call(x), target="f(%y)"\n'
        "}\n"
    )
    (computation,) = hlo.parse(text)[0].values()
    assert computation.root.type == "(f32[2]{0:T(2)}, (s8[3]{0}, f32[]))"
    assert hlo.arrays(computation.root.type) == ["f32[2]{0:T(2)}", "s8[3]{0}", "f32[]"]
    assert computation.root.opcode == "custom-call"
    assert computation.root.literal == "x"
    assert computation.root.rest == ', target="f(%y)"'
    assert computation.root.operands == ()


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("f8e4m3fn[3]", 3),
        ("s4[3]{0:E(4)}", 2),  # halves of a byte are rounded up
        ("(s4[3], s4[3])", 3),  # all together
        ("bf16[0]", 0),
        ("c64[2,2]", 32),
        ("opaque[]", 0),
        ("u32[]", 4),
        ("()", 0),
    ],
)
def test_of_narrow_and_odd_types_too(written, size):
    assert hlo.array_bytes(written) == size
