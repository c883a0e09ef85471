"""Flags to records: a mesh where one is needed, and help that reads as it was written."""

import dataclasses
import re
from contextlib import nullcontext
from typing import Literal

import jax
import pytest

from gptj import sharding
from gptj.cli.flags import MeshShape, parse
from gptj.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
    """Do a thing,
    at length.

    And say so.
    """

    size: int = 2
    """How large, in
    units."""
    mesh: MeshShape = MeshShape()
    most: int | None = None
    """No more than this. Default: any."""
    names: tuple[str, ...] = ()
    """Of whom."""
    kinds: tuple[Literal["big", "small"], ...] = ()
    """Of what kinds."""
    way: Literal["there", "back again"] | None = None
    """Which way."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size={self.size} must be at least 1")


def given(*words, default=None) -> Options:
    return parse(Options, "thing", words, "gptj thing --size 3", default)


def test_words_become_a_record():
    assert given() == Options()
    assert given("--size", "3", "--mesh.tensor", "4") == Options(3, MeshShape(tensor=4))


def test_a_flag_wins_over_a_default_that_is_given():
    assert given("--mesh.data", "2", default=Options(7)) == Options(7, MeshShape(data=2))


def test_a_record_that_refuses_says_its_own_sentence(capsys):
    with pytest.raises(UserError, match=r"^size=0 must be at least 1$"):
        given("--size", "0")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kinds", "big", "odd"), "--kinds=odd must be one of big, small"),
        (("--way", "it's (far)"), "--way=it's (far) must be one of None, back again, there"),
        (("--way", "far" + 40 * " off"), f"--way=far{40 * ' off'} must be one of "),
    ],
)
@pytest.mark.parametrize("colours", [False, True])
def test_a_word_that_a_flag_does_not_know_is_told_those_it_does(
    words, said, colours, capsys, monkeypatch
):
    monkeypatch.setenv("TERM", "xterm" if colours else "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: colours)
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        given(*words)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", [("--sise", "3"), ("--size", "x"), ("3",)])
def test_what_is_not_understood_ends_with_2_and_words_on_stderr(capsys, words):
    with pytest.raises(SystemExit) as stop:
        given(*words)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words[-1] in said.err


def test_underscores_are_no_flags():
    with pytest.raises(SystemExit):
        given("--mesh.fsdp_", "1")


def test_help_joins_the_lines_of_a_paragraph(capsys):
    with pytest.raises(SystemExit) as stop:
        given("--help")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: gptj thing [")
    assert "\nDo a thing, at length.\n\nAnd say so.\n\nExample: gptj thing --size 3\n" in said
    assert "How large, in units. (default: 2)" in " ".join(said.split())


def test_help_names_a_default_once_and_none_where_there_is_none(capsys):
    with pytest.raises(SystemExit):
        given("--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "No more than this. Default: any. --names" in said
    assert "Of whom. " in said
    assert said.count("(default: ") == said.count("(default: 2)") + said.count("(default: 1)") == 4


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        (MeshShape(), {}),
        (MeshShape(2), {"data": 2, "fsdp": 1, "tensor": 1}),
        (MeshShape(1, 2, 4), {"data": 1, "fsdp": 2, "tensor": 4}),
    ],
)
def test_a_mesh_is_set_where_there_is_more_than_one_device(shape, found):
    with shape.use():
        assert jax.sharding.get_mesh().shape == found
    assert jax.sharding.get_mesh().shape == {}


def test_of_many_hosts_each_has_a_mesh(monkeypatch):
    meshes = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(sharding, "make_mesh", lambda *shape: shape)
    monkeypatch.setattr(jax, "set_mesh", lambda mesh: meshes.append(mesh) or nullcontext())
    with MeshShape().use():
        assert meshes == [(1, 1, 1)]
