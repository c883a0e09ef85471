"""What is held out: how near its share, however texts come in parts, and where they are cut."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gptj.data import split as splitting
from gptj.data.read import Document
from gptj.data.split import ENOUGH, Split, SplitPlan, digest_of


def texts_of(count: int, files: int = 1) -> list[Document]:
    return [
        Document(f"{n % files}.txt", f"text {n} " + "x" * (7 * n % 90), number=n)
        for n in range(count)
    ]


def plan_split(
    documents: list[Document], fraction: float, seed: int, is_whole: bool = False
) -> Split:
    plan = SplitPlan(fraction, seed, is_whole)
    for document in documents:
        plan.add(document)
    return plan.decide()


def held_of(split: Split, documents: list[Document]) -> list[Document]:
    divide = split.begin()
    return [part for each in documents for held, part in divide(each) if held]


def size(documents: list[Document]) -> int:
    return sum(len(each.content) for each in documents)


class TestUnits:
    @pytest.mark.parametrize(
        ("count", "files", "unit"),
        [
            (ENOUGH, ENOUGH, "file"), (ENOUGH - 1, ENOUGH - 1, "tail"),
            (ENOUGH, ENOUGH - 1, "document"), (ENOUGH, 1, "document"), (ENOUGH - 1, 1, "tail"),
        ],
    )  # fmt: skip
    def test_are_the_largest_of_which_there_are_enough(self, count, files, unit):
        assert plan_split(texts_of(count, files), 0.1, 0).unit == unit

    def test_of_one_text_count_once(self):
        copies = [Document(f"{n}.txt", f"text {n % (ENOUGH - 1)}") for n in range(3 * ENOUGH)]
        assert plan_split(copies, 0.1, 0).unit == "tail"
        more = [*copies, Document("more.txt", "another")]
        assert plan_split(more, 0.1, 0).unit == "file"

    def test_nothing_is_looked_at_where_nothing_is_held_out(self):
        split = plan_split(texts_of(30), 0, 5)
        assert (split.unit, split.seed) == ("nothing", 5)
        assert held_of(split, texts_of(30)) == []

    def test_few_may_have_to_stay_whole(self):
        documents = texts_of(3)
        (held,) = held_of(plan_split(documents, 0.3, 0, is_whole=True), documents)
        assert held in documents

    @pytest.mark.parametrize("files", [1, ENOUGH])
    @given(fraction=st.floats(0.05, 0.6), seed=st.integers(0, 9))
    def test_their_bytes_are_as_near_the_share_as_one_of_them(self, files, fraction, seed):
        documents = texts_of(60, files)
        held = size(held_of(plan_split(documents, fraction, seed), documents))
        units = {n: [each for each in documents if each.source == f"{n}.txt"] for n in range(files)}
        largest = max(map(size, units.values() if files > 1 else [[d] for d in documents]))
        assert abs(held - fraction * size(documents)) <= largest / 2

    @pytest.mark.parametrize(
        ("sizes", "fraction", "held"),
        [
            ((10, 4), 0.5, "a"), ((4, 10), 0.5, "a"), ((10, 8, 2), 0.25, "b"), ((9, 1), 0.01, "b"),
            ((3, 3, 3), 0.01, "a"), ((2, 2, 2, 2), 0.5, "ab"), ((1, 8, 1), 0.2, "ac"),
            ((6, 6, 6), 0.5, "a"), ((6, 6, 6), 0.51, "ab"),
        ],
    )  # fmt: skip
    def test_each_is_taken_that_brings_the_sum_nearer(self, sizes, fraction, held):
        named = dict(zip("abcd", sizes, strict=False))
        assert splitting._choose(named, fraction) == frozenset(held)

    def test_a_file_is_its_documents_in_their_order(self):
        def files(*, turned: bool):
            return [
                Document(f"{n}.txt", text)
                for n in range(ENOUGH)
                for text in (("a", f"b{n}") if turned else (f"b{n}", "a"))
            ]

        one, other = (plan_split(files(turned=turned), 0.3, 0) for turned in (False, True))
        assert one.unit == other.unit == "file"
        assert one.held != other.held

    def test_another_seed_orders_them_anew(self):
        documents = texts_of(40)
        assert plan_split(documents, 0.2, 0).held != plan_split(documents, 0.2, 1).held
        assert digest_of(b"text", 0) != digest_of(b"text", 1)
        assert len(digest_of(b"text", 0)) == 32  # sixteen bytes

    def test_the_choice_is_the_same_for_ever(self):
        # Change one of these and what a model was trained on is what it is measured on.
        assert (ENOUGH, splitting.MANY) == (20, 200_000)
        assert digest_of(b"text", 3) == hashlib.sha256(b"3:text").hexdigest()[:32]
        held = [each.number for each in held_of(plan_split(texts_of(40), 0.2, 0), texts_of(40))]
        assert held == [2, 3, 9, 13, 30, 31, 32, 33, 38]


class TestOfVeryMany:
    def test_a_digests_own_value_decides(self, monkeypatch):
        monkeypatch.setattr(splitting, "MANY", 50)
        assert plan_split(texts_of(50), 0.25, 0).held is not None
        split = plan_split(texts_of(51), 0.25, 0)
        assert (split.unit, split.held) == ("document", None)
        many = [Document("x", f"text {n}") for n in range(4000)]
        held = held_of(split, many)
        assert abs(len(held) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5
        assert {each.text for each in held} == {
            each.text for each in many if int(digest_of(each.content, 0), 16) < 2**126
        }

    def test_files_enough_are_held_out_whole_even_so(self, monkeypatch):
        monkeypatch.setattr(splitting, "MANY", 5)
        assert plan_split(texts_of(40, ENOUGH), 0.25, 0).unit == "file"


def in_parts(text: str, sizes: list[int]) -> list[Document]:
    """A document as it comes in parts of these sizes, and the rest."""
    cuts = [0, *np.cumsum(sizes).tolist()]
    cuts = [*[cut for cut in cuts if cut < len(text)], len(text)]
    return [Document("a", text[a:b], continues=b < len(text)) for a, b in itertools.pairwise(cuts)]


class TestTails:
    LINES = st.text("ab\n", min_size=1, max_size=60)

    def cut_of(self, parts: list[str], tail: int) -> int:
        """Where the last of the lines begins that begin near the place, in the part it lies in."""
        begun, place = 0, sum(map(len, parts)) - tail
        for part in parts:
            lines = [at for at in range(1, len(part) + 1) if part[at - 1] == "\n"]
            if 0 < place - begun <= len(part):
                near = [at for at in lines if place - tail // 2 < begun + at <= place]
                return begun + near[-1] if near else place
            begun += len(part)
        return place

    @given(
        text=LINES,
        fraction=st.floats(0.05, 0.9),
        sizes=st.just([]) | st.lists(st.integers(1, 9), max_size=9),
    )
    def test_head_and_tail_are_the_text_and_each_ends_once(self, text, fraction, sizes):
        parts = in_parts(text, sizes)
        divide = plan_split(parts, fraction, 0).begin()
        sides = [side for part in parts for side in divide(part)]
        head, tail = (
            [part for is_held, part in sides if is_held == side] for side in (False, True)
        )
        assert sides == [*((False, part) for part in head), *((True, part) for part in tail)]
        cut = self.cut_of([part.text for part in parts], round(len(text) * fraction))
        assert "".join(part.text for part in head) == text[:cut]
        assert "".join(part.text for part in tail) == text[cut:]
        for own in (head, tail):
            assert all(part.text for part in own)
            assert all(part.continues for part in own[:-1])
            assert not any(part.continues for part in own[-1:])

    @pytest.mark.parametrize(("begins", "cut"), [(8, 12), (9, 9), (11, 11), (12, 12), (13, 12)])
    def test_a_line_is_near_within_half_the_tail(self, begins, cut):
        text = "x" * (begins - 1) + "\n" + "x" * (20 - begins)
        document = Document("a", text)  # of which eight characters are to be held out
        (_, head), _ = plan_split([document], 0.4, 0).begin()(document)
        assert len(head.text) == cut

    @given(count=st.integers(1, 50), fraction=st.floats(0.01, 0.99))
    def test_of_tokens_it_is_the_share_rounded(self, count, fraction):
        document = Document("a", "", ids=np.arange(count))
        (divide,) = [Split("tail", fraction, 0).begin()]
        sides = list(divide(document))
        assert np.concatenate([part.ids for _, part in sides]).tolist() == list(range(count))
        held = sum(len(part.ids) for is_held, part in sides if is_held)
        assert held == round(count * fraction)
        assert all(len(part.ids) for _, part in sides)

    def test_a_new_document_is_counted_from_its_beginning(self):
        parts = [*in_parts("abcdefghij", [4]), *in_parts("klmnopqrst", [4])]
        parts = [
            Document(each.source, each.text, number=n // 2, continues=each.continues)
            for n, each in enumerate(parts)
        ]
        divide = plan_split(parts, 0.2, 0).begin()
        held = [part.text for each in parts for is_held, part in divide(each) if is_held]
        assert held == ["ij", "st"]


@given(
    texts=st.lists(st.text(min_size=1, max_size=12), min_size=ENOUGH, max_size=30, unique=True),
    cut=st.integers(1, 6),
)
def test_a_document_in_parts_is_held_out_with_all_of_them_as_when_it_is_whole(texts, cut):
    assume(any(len(text) > cut for text in texts))
    whole = [Document("a", text, number=n) for n, text in enumerate(texts)]
    parts = [
        Document("a", text[at : at + cut], number=n, continues=at + cut < len(text))
        for n, text in enumerate(texts)
        for at in range(0, len(text), cut)
    ]
    one, other = plan_split(whole, 0.4, 0), plan_split(parts, 0.4, 0)
    assert one.held == other.held
    assert not one.long  # only what comes in parts has to be remembered
    assert set(other.long) == {("a", n) for n, text in enumerate(texts) if len(text) > cut}
    expected = [each.text for each in held_of(one, whole)]
    found: dict[int, str] = {}
    for each in held_of(other, parts):
        found[each.number] = found.get(each.number, "") + each.text
    assert list(found.values()) == expected
