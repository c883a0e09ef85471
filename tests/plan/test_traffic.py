"""What each kind of instruction moves to and from main memory, counted by hand."""

import pytest

from gptj.plan import hlo
from gptj.plan.program import read
from gptj.plan.traffic import traffic

GIVEN = """
  %a = f32[100]{0} parameter(0)
  %b = f32[100]{0} parameter(1)
  %few = f32[10]{0} parameter(2)
  %chip = f32[100]{0:T(128)S(1)} parameter(3)
  %i = s32[] parameter(4)
  %at = s32[5]{0} parameter(5)
"""


def moved(line: str, fused: str = "") -> float:
    """By the last instruction of a program, which may call what is fused."""
    text = f"{fused}\n\nENTRY %main (a: f32[100]) -> f32[100] {{{GIVEN}  ROOT %out = {line}\n}}\n"
    computations, entry = hlo.parse(text)
    return traffic(computations[entry].root, computations[entry], computations)


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("f32[100]{0} add(%a, %b)", 400 + 400 + 400),
        ("f32[100]{0} negate(%a)", 400 + 400),
        ("f32[100]{0} add(%a, %chip)", 400 + 400),  # what lies on the chip is not moved
        ("f32[100]{0:S(1)} negate(%a)", 400),
        ("f32[100]{0:S(1)} negate(%chip)", 0),
        ("f32[10]{0} slice(%a), slice={[0:10]}", 40 + 40),
        ("f32[10]{0} dynamic-slice(%a, %i), dynamic_slice_sizes={10}", 40 + 40),
        ("f32[10]{0} gather(%a, %at), slice_sizes={1}", 40 + 40),
        ("f32[100]{0} dynamic-update-slice(%a, %few, %i)", 40 + 40),
        ("f32[100]{0} scatter(%a, %at, %few), to_apply=%add", 40 + 40),
    ],
)
def test_what_is_made_of_a_part_moves_the_part(line, size):
    assert moved(line) == size


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("(f32[100]{0:S(1)}, f32[100]{0}, u32[]) copy-start(%a)", 400),  # onto the chip
        ("(f32[100]{0}, f32[100]{0:S(1)}, u32[]) copy-start(%chip)", 400),  # and back
        ("(f32[100]{0}, f32[100]{0}, u32[]) copy-start(%a)", 800),
        ("((f32[100]{0}), f32[10]{0:S(1)}, s32[]) slice-start(%a)", 40),
        ("((f32[100]{0:S(1)}), f32[10]{0}, s32[]) slice-start(%chip)", 40),
        ("((f32[100]{0}), f32[10]{0}, s32[]) slice-start(%a)", 80),
    ],
)
def test_what_goes_on_meanwhile_is_counted_where_it_starts(line, size):
    assert moved(line) == size
    for done in ("copy-done", "slice-done", "all-gather-done"):
        assert moved(f"f32[100]{{0}} {done}(%a)") == 0


@pytest.mark.parametrize(
    "line",
    [
        *("f32[10,10]{1,0} bitcast(%a)", "(f32[100]{0}, s32[]) tuple(%a, %i)"),
        *("f32[100]{0} get-tuple-element(%a), index=0", "f32[] constant(3)"),
        *("f32[100]{0} opt-barrier(%a)", "f32[100]{0} conditional(%i, %a, %b)"),
        *("f32[100]{0} call(%a), to_apply=%f", "u32[] partition-id()", "u32[] replica-id()"),
        *("((f32[100]{0}), f32[10]{0}) async-start(%a)", "token[] after-all(%a)"),
        'f32[100]{0} custom-call(), custom_call_target="AllocateBuffer"',
        'f32[200]{0} custom-call(%a, %b), custom_call_target="ConcatBitcast"',
    ],
)
def test_names_and_calls_move_nothing_themselves(line):
    assert moved(line) == 0


def test_another_custom_call_moves_all_that_it_is_given_and_makes():
    assert moved('f32[10]{0} custom-call(%a), custom_call_target="TopK"') == 440


def fused(root: str, *lines: str, parameters: str = "f32[100]{0} %0, s32[] %1") -> str:
    """A computation for a fusion: its parameters are named x0, x1, and so on."""
    named = [
        f"  %x{i} = {each.rpartition(' ')[0]} parameter({i})"
        for i, each in enumerate(parameters.split(", "))
    ]
    body = [f"  {each}" for each in lines]
    return "\n".join(["%fused (x: f32[]) -> f32[] {", *named, *body, f"  ROOT %r = {root}", "}"])


SLICED = "%part = f32[10]{0} dynamic-slice(%x0, %x1), dynamic_slice_sizes={10}"


@pytest.mark.parametrize(
    ("inner", "size"),
    [
        # All of it, in one way or another.
        (fused("f32[10]{0} reduce(%x0, %x1)"), 400),
        (fused("f32[10]{0} add(%part, %q)", SLICED, "%q = f32[10]{0} reduce(%x0)"), 400),
        (fused("f32[10]{0} add(%part, %q)", SLICED, "%q = f32[10]{0} gather(%part, %x0)"), 400),
        # A slice, however it is come by.
        (fused("f32[10]{0} negate(%part)", SLICED), 40),
        (fused("f32[10]{0} gather(%x0, %x1), slice_sizes={10}"), 40),
        (
            fused(
                "f32[10]{0} dynamic-slice(%flat, %x1)",
                "%flat = f32[100]{0} bitcast(%square)",
                "%square = f32[10,10]{1,0} bitcast(%x0)",
            ),
            40,
        ),
        # Each slice counts, but all of them are not more than the whole.
        (
            fused(
                "f32[10]{0} add(%part, %other)",
                SLICED,
                "%other = f32[10]{0} dynamic-slice(%x0, %x1)",
            ),
            80,
        ),
        (
            fused(
                "f32[99]{0} add(%part, %other)",
                "%part = f32[99]{0} dynamic-slice(%x0, %x1)",
                "%other = f32[99]{0} dynamic-slice(%x0, %x1)",
            ),
            400,
        ),
    ],
)
def test_of_an_operand_a_fusion_reads_the_slices_it_takes(inner, size):
    line = "f32[10]{0} fusion(%a, %i), kind=kLoop, calls=%fused"
    assert moved(line, inner) == size + 4 + 40  # beside the index, and the result


def test_a_fusion_in_a_fusion_reads_no_more_than_it_takes_itself():
    nested = (
        "%inner (p: s32[], q: f32[100]) -> f32[10] {\n"
        "  %p = s32[] parameter(0)\n"
        "  %q = f32[100]{0} parameter(1)\n"
        "  ROOT %s = f32[10]{0} dynamic-slice(%q, %p), dynamic_slice_sizes={10}\n}\n\n"
    )
    around = fused("f32[10]{0} fusion(%x1, %x0), kind=kLoop, calls=%inner")
    line = "f32[10]{0} fusion(%a, %i), kind=kLoop, calls=%fused"
    assert moved(line, nested + around) == 40 + 4 + 40
    whole = nested.replace("dynamic-slice(%q, %p)", "reduce(%q, %p)")
    assert moved(line, whole + around) == 400 + 4 + 40


WRITTEN = "f32[100]{0} %0, s32[] %1, f32[10]{0} %2"


@pytest.mark.parametrize(
    ("inner", "size"),
    [
        (fused("f32[100]{0} dynamic-update-slice(%x0, %x2, %x1)", parameters=WRITTEN), 40),
        (
            fused(
                "f32[10,10]{1,0} bitcast(%flat)",
                "%flat = f32[100]{0} bitcast(%whole)",
                "%whole = f32[100]{0} dynamic-update-slice(%x0, %x2, %x1)",
                parameters=WRITTEN,
            ),
            40,
        ),
    ],
)
def test_a_fusion_that_updates_in_place_writes_the_update_alone(inner, size):
    line = "f32[100]{0} fusion(%a, %i, %few), kind=kLoop, calls=%fused"
    read_ = 4 + 40  # the index, and the update; of what is updated nothing
    assert moved(line, inner) == read_ + size


def test_a_fusion_that_updates_two_writes_both_updates():
    inner = fused(
        "(f32[100]{0}, f32[100]{0}) tuple(%one, %two)",
        "%one = f32[100]{0} dynamic-update-slice(%x0, %x2, %x1)",
        "%two = f32[100]{0} dynamic-update-slice(%x3, %x2, %x1)",
        parameters=f"{WRITTEN}, f32[100]{{0}} %3",
    )
    line = "(f32[100]{0}, f32[100]{0}) fusion(%a, %i, %few, %b), kind=kLoop, calls=%fused"
    assert moved(line, inner) == 4 + 40 + 40 + 40


def test_what_a_fusion_only_passes_on_is_neither_read_nor_written():
    passed = fused("(f32[100]{0}, f32[10]{0}) tuple(%x0, %part)", SLICED)
    line = "(f32[100]{0}, f32[10]{0}) fusion(%a, %i), kind=kLoop, calls=%fused"
    assert moved(line, passed) == 40 + 4 + 40
    # In a tuple that is not the result it may be passed to anything.
    inside = fused(
        "f32[10]{0} get-tuple-element(%t), index=1",
        "%t = (f32[100]{0}, s32[]) tuple(%x0, %x1)",
    )
    assert moved("f32[10]{0} fusion(%a, %i), kind=kLoop, calls=%fused", inside) == 400 + 4 + 40


def test_a_computation_that_nothing_calls_moves_nothing():
    text = (
        f"%idle (a: f32[100]) -> f32[100] {{{GIVEN}  ROOT %n = f32[100]{{0}} negate(%a)\n}}\n\n"
        f"ENTRY %main (a: f32[100]) -> f32[100] {{{GIVEN}  ROOT %n = f32[100]{{0}} negate(%a)\n}}\n"
    )
    assert read(text).traffic == 800
