"""Groups of data: which folder each has, and which cannot have one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.data.groups import LONGEST, folder_of, place_of, plan_groups
from gptj.data.read import Document
from gptj.errors import UserError


@pytest.mark.parametrize(
    ("group", "folder"),
    [
        ("", ""), ("web", "web"), ("Pile-CC", "Pile-CC"), ("PubMed (2020)", "PubMed-(2020)"),
        ("a/b\\c", "a-b-c"), ("..", "-"), (".hidden", "hidden"), ("--", "-"), (" a  b ", "a-b"),
        ("große Bücher", "große-Bücher"), ("a.b_c", "a.b_c"), ("?", "-"), ("-a-.", "a"),
    ],
)  # fmt: skip
def test_a_folder_has_a_name_that_every_system_takes(group, folder):
    assert folder_of(group) == folder


@given(st.text(min_size=1))
def test_of_any_group_it_is_one_name_in_the_folder_and_the_same_again(group):
    folder = folder_of(group)
    assert folder
    assert "/" not in folder
    assert not folder.startswith(".")
    assert folder_of(folder) == folder


@pytest.mark.parametrize(("held", "name"), [(False, "train"), (True, "heldout")])
def test_each_has_two_stores_and_data_without_groups_too(held, name):
    assert place_of("a b", held, Path("out")) == Path("out", "a-b", name)
    assert place_of("", held, Path("out")) == Path("out", name)


def of(*groups: str) -> list[Document]:
    return [
        Document("in.jsonl", f"text {number}", group=group) for number, group in enumerate(groups)
    ]


class TestPlans:
    def test_each_group_is_divided_for_itself(self):
        documents = of(*["a"] * 30, *["b"] * 3)
        found = plan_groups(documents, 0.1, 0, "kind", is_whole=False)
        assert {name: split.unit for name, split in found.items()} == {"a": "document", "b": "tail"}

    def test_none_is_cut_that_must_stay_whole(self):
        found = plan_groups(of("a", "a"), 0.1, 0, "kind", is_whole=True)
        assert found["a"].unit == "document"

    def test_without_groups_and_with_nothing_held_out_nothing_is_read(self):
        found = plan_groups(iter(()), 0, 7, None, is_whole=False)
        assert [(name, each.unit, each.seed) for name, each in found.items()] == [
            ("", "nothing", 7)
        ]
        kept = plan_groups(of("a"), 0, 7, "kind", is_whole=False)
        assert [(name, each.unit) for name, each in kept.items()] == [("a", "nothing")]

    def test_two_names_of_one_folder_are_refused_and_one_twice_is_not(self):
        said = "kind is 'a b' and 'a/b', which would be one folder: rename one of them, or leave"
        with pytest.raises(UserError, match=said):
            plan_groups(of("a b", "a b", "a/b"), 0, 0, "kind", is_whole=False)

    @pytest.mark.parametrize("group", ["", "train", "heldout"])
    def test_what_would_be_a_folder_of_another_meaning_is_refused(self, group):
        said = f"kind is {group!r} in in.jsonl, which cannot be the name of a folder of OUT"
        with pytest.raises(UserError, match=said):
            plan_groups(of("a", group), 0.1, 0, "kind", is_whole=False)

    def test_a_name_may_be_as_long_as_file_systems_take_in_bytes(self):
        assert LONGEST == 255
        fits = "é" * 127 + "a"
        assert list(plan_groups(of(fits), 0, 0, "kind", is_whole=False)) == [fits]
        with pytest.raises(UserError, match=f"kind is '{'é' * 40}'... in in.jsonl, too long"):
            plan_groups(of("é" * 128), 0, 0, "kind", is_whole=False)
