"""Mixtures: weights hold exactly, each part has its own epochs, and a step says all."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.data.batches import EvalBatches, TrainBatches
from gptj.data.mixture import (
    ROUND,
    MixConfig,
    Mixture,
    Order,
    _name,
    _shares,
    groups_of,
    held_out_beside,
    is_data,
    mix,
    weights_of,
)  # fmt: skip
from gptj.data.prepare import PrepareConfig, prepare
from gptj.errors import UserError

RECIPE = Path(__file__).parents[2] / "recipes" / "pile.py"
SIZES = {"few": 30, "some": 90, "many": 300}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Prepared texts of different lengths, each of its own letter."""
    root = tmp_path_factory.mktemp("mixture")
    for letter, (name, count) in zip("abc", SIZES.items(), strict=True):
        lines = (json.dumps({"text": f"{letter * 9}{number}"}) for number in range(count))
        (root / f"{name}.jsonl").write_text("\n".join(lines))
        prepare(PrepareConfig((str(root / f"{name}.jsonl"),), root / name, "bytes", held_out=0.1))
    return {name: root / name for name in SIZES}


@pytest.fixture
def mixed(folders, tmp_path):
    def make(**weights: float) -> Mixture:
        named = {str(folders[name]): weight for name, weight in weights.items()}
        mix(MixConfig(weights_of(named), tmp_path / "mixed", force=True))
        return Mixture.open(tmp_path / "mixed")

    return make


class TestOrder:
    @given(shares=st.lists(st.integers(1, 1000), min_size=1, max_size=22), data=st.data())
    @settings(deadline=None, max_examples=20)
    def test_any_run_of_rows_keeps_the_weights(self, shares, data):
        shares = [share * ROUND // sum(shares) for share in shares]
        shares[0] += ROUND - sum(shares)
        order = Order(shares)
        start = data.draw(st.integers(0, 3 * ROUND))
        count = data.draw(st.integers(1, 5000))
        parts, numbers = order.turns(np.arange(start, start + count))
        before, after = order.counts(start), order.counts(start + count)
        for part, share in enumerate(shares):
            mine = numbers[parts == part].tolist()
            assert mine == list(range(int(before[part]), int(after[part])))
            for rows, found in ((start, before), (start + count, after)):
                weight = share / ROUND
                assert abs(found[part] - rows * weight) <= (1 + len(shares) * weight) / 2 + 1e-6

    def test_a_round_holds_each_share_exactly(self):
        order = Order([ROUND - 100, 93, 7])
        assert order.counts(ROUND).tolist() == [ROUND - 100, 93, 7]
        assert order.counts(5 * ROUND).tolist() == [5 * (ROUND - 100), 465, 35]


class TestMixture:
    def test_rows_come_by_weight_and_from_their_part(self, mixed):
        data = mixed(few=0.5, many=0.3, some=0.2)
        batches = TrainBatches(data, seq=8, batch=100)
        letters = {part.name: "abc"[list(SIZES).index(part.name)] for part in data.parts}
        rows = batches.batch(0)
        texts = [data.tokenizer.decode(row.tolist()) for row in rows]
        for name, count in {"few": 50, "many": 30, "some": 20}.items():
            assert sum(letters[name] in text for text in texts) == count
        for row, text in zip(batches.row_ids(0).tolist(), texts, strict=True):
            store, tokens = batches.place(row)
            assert data.tokenizer.decode(store.tokens[tokens.start : tokens.stop].tolist()) == text

    def test_each_part_has_epochs_of_its_own(self, mixed):
        data = mixed(few=3, many=1)
        batches = TrainBatches(data, seq=8, batch=7)
        steps = 100
        ids = np.concatenate([batches.row_ids(step) for step in range(steps)])
        few = ids[ids < batches.place(0)[0].manifest.tokens // 8]
        size = (len(data.parts[0].store) - 1) // 8
        for epoch in range(len(few) // size):
            assert sorted(few[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert batches.epochs(steps)[0] == pytest.approx(len(few) / size, abs=0.1)

    def test_a_step_is_the_same_whatever_came_before(self, mixed):
        data = mixed(few=3, some=1, many=1)
        wanted = [10**9, 3, 70]
        alone = [TrainBatches(data, 8, 6).batch(step) for step in wanted]
        batches = TrainBatches(data, 8, 6)
        for step, rows in zip(wanted, alone, strict=True):
            np.testing.assert_array_equal(batches.batch(step), rows)

    def test_without_weights_every_part_is_read_as_often(self, folders, tmp_path):
        out = tmp_path / "mixed"
        report = mix(MixConfig(tuple(map(str, folders.values())), out))
        assert [each.name for each in report] == list(SIZES)
        assert [each.epochs for each in report] == pytest.approx([1, 1, 1], rel=1e-3)

    def test_weights_and_texts_tell_a_mixture_from_others(self, mixed):
        prints = {
            mixed(few=1, many=1).fingerprint, mixed(few=1, many=2).fingerprint,
            mixed(few=1, some=1).fingerprint, mixed(few=1, many=1, some=1).fingerprint,
        }  # fmt: skip
        assert len(prints) == 4
        assert mixed(few=2, many=2).fingerprint in prints

    def test_the_held_out_text_is_that_of_all_parts(self, mixed, folders):
        data = mixed(few=1, many=9)
        own = [Mixture.open(folders[name]).held_out for name in ("few", "many")]
        expected = [ids for store in own for ids in store.tokens[:].tolist()]
        assert data.held_out.tokens[:].tolist() == expected
        assert {each.name for each in data.held_out.sources} == {
            "few/few.jsonl",
            "many/many.jsonl",
        }
        scored = [t[:, 1:][w == 1].tolist() for t, w in EvalBatches(data.held_out, 8, 3)]
        assert [id for ids in scored for id in ids] == expected
        last = data.held_out.manifest.documents - 1
        assert data.held_out.text(last) == own[1].text(own[1].manifest.documents - 1)

    def test_it_moves_with_its_parts(self, folders, tmp_path):
        out = folders["few"].parent / "mixed"
        mix(MixConfig(weights_of({str(folders[name]): 1 for name in SIZES}), out))
        assert [each["path"] for each in json.loads((out / "mixture.json").read_text())["parts"]]
        moved = folders["few"].parent.rename(folders["few"].parent.with_name("moved"))
        try:
            assert len(Mixture.open(moved / "mixed").parts) == 3
        finally:
            moved.rename(folders["few"].parent)


class TestMistakes:
    @pytest.mark.parametrize(
        ("parts", "said"),
        [
            (["few=1"], "at least two parts"),
            (["few=1", "few=2"], "twice"),
            (["few=1", "few/=2"], "twice"),
            (["few=1", "many"], "some parts have a weight and others none"),
            (["few=1", "many=much"], "does not say how much"),
            (["few=1", "many=0"], "must be a number above 0"),
            (["few=1", "many=nan"], "must be a number above 0"),
            (["few=1", "none=1"], "holds no prepared data"),
            (["few=1", "few/train=1"], "train is one store of prepared data: name .*few around it"),
            (["few=1", "=1"], r"but in folders of it: name one, such as .*/few, or weigh"),
        ],
    )
    def test_are_named_and_nothing_is_written(self, parts, said, folders, tmp_path):
        root = folders["few"].parent
        with pytest.raises(UserError, match=said):
            mix(MixConfig(tuple(f"{root}/{each}" for each in parts), tmp_path / "mixed"))
        assert not (tmp_path / "mixed").exists()

    def test_one_folder_by_two_names(self, folders, tmp_path):
        (tmp_path / "link").symlink_to(folders["few"])
        with pytest.raises(UserError, match="link is among the parts twice: name it once"):
            mix(MixConfig((f"{folders['few']}=1", f"{tmp_path}/link=2"), tmp_path / "mixed"))

    def test_another_tokenizer(self, folders, tmp_path):
        text, first, other = tmp_path / "other.txt", folders["few"], tmp_path / "other"
        text.write_text("some other text " * 99)
        prepare(PrepareConfig((str(text),), other, "train:300"))
        said = f"{other} has another tokenizer than {first}: prepare it again with --tokenizer "
        with pytest.raises(UserError, match=f"^{said}{first}/train$"):
            mix(MixConfig((f"{first}=1", f"{other}=1"), tmp_path / "mixed"))

    def test_a_mixture_of_mixtures(self, mixed, folders, tmp_path):
        made = mixed(few=1, many=1)
        with pytest.raises(UserError, match="is a mixture itself"):
            mix(MixConfig((f"{made.place}=1", f"{folders['some']}=1"), tmp_path / "more"))

    def test_force_replaces_a_mixture_alone(self, mixed, folders, tmp_path):
        mixed(few=1, many=1)
        mixed(few=1, some=1)
        parts = weights_of({str(folders[name]): 1 for name in SIZES})
        with pytest.raises(UserError, match="few is not a mixture, so --force does not"):
            mix(MixConfig(parts, folders["few"], force=True))
        (tmp_path / "mixed" / "notes.txt").write_text("of mine")
        with pytest.raises(UserError, match=r"mixed also holds notes\.txt, which is not a mixture"):
            mixed(few=1, many=1)
        assert (tmp_path / "mixed" / "notes.txt").exists()


def test_the_command_says_how_often_each_text_is_read(gptj, folders, tmp_path):
    few, many = folders["few"], folders["many"]
    code, said, err = gptj("mix", f"{few}=3", f"{many}=1", "--out", tmp_path / "mixed")
    assert (code, err) == (0, "")
    assert "few" in said
    assert "75.00 % of the rows" in said
    rows = TrainBatches(Mixture.open(tmp_path / "mixed"), seq=8, batch=4)
    assert len(rows.epochs(100)) == 2


def test_the_piles_weights_are_those_of_its_paper():
    """Of arXiv:2101.00027, table 1, in percent."""
    spec = importlib.util.spec_from_file_location("pile", RECIPE)
    pile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pile)
    found = {name: round(100 * weight, 2) for name, weight in pile.weights().items()}
    assert len(found) == 22
    published = {"Pile-CC": 18.11, "Books3": 12.07, "Github": 7.59, "Enron Emails": 0.14}
    for name, percent in published.items():
        assert found[name] == pytest.approx(percent, abs=0.011)
    config = pile.recipe()
    assert config.steps * config.batch * 2048 == pytest.approx(402e9, rel=1e-3)


class TestTurns:
    """In rounds of twelve rows, which can be written down."""

    @pytest.fixture(autouse=True)
    def twelve(self, monkeypatch):
        monkeypatch.setattr("gptj.data.mixture.ROUND", 12)

    @pytest.mark.parametrize(
        ("shares", "round"),
        [
            ([12], "aaaaaaaaaaaa"),
            ([6, 6], "abababababab"),
            ([3, 3, 3, 3], "abcdabcdabcd"),  # of equals the first goes first
            ([9, 3], "aabaaabaaaba"),  # b in the middle of each third
            ([3, 9], "babbbabbbabb"),
            ([11, 1], "aaaaaabaaaaa"),
            ([8, 3, 1], "abaaabcaaaba"),
        ],
    )
    def test_are_at_even_places_and_the_same_in_every_round(self, shares, round):
        order = Order(shares)
        rows = "".join("abcd"[part] for part in order.turns(np.arange(36))[0])
        assert rows == 3 * round
        for count in range(37):
            parts, numbers = order.turns(np.arange(count))
            assert (
                order.counts(count).tolist()
                == [rows[:count].count(c) for c in "abcd"][: len(shares)]
            )
            for at, (part, number) in enumerate(zip(parts, numbers, strict=True)):
                assert number == rows[:at].count("abcd"[part])

    def test_any_rows_may_be_asked_for(self):
        parts, numbers = Order([9, 3]).turns(np.array([10**9 * 12 + 2, 0, 14]))
        assert parts.tolist() == [1, 0, 1]
        assert numbers.tolist() == [3 * 10**9, 0, 3]


class TestShares:
    @given(weights=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=12))
    def test_are_of_a_round_and_as_near_the_weights_as_whole_rows_are(self, weights):
        shares = _shares(weights)
        assert sum(shares) == ROUND
        assert min(shares) >= 1
        exact = [weight / sum(weights) * ROUND for weight in weights]
        raised = sum(each < 1 for each in exact)  # to one, which the largest pays for
        for share, each in zip(shares, exact, strict=True):
            assert each - 1 - raised < share < each + 1 + 1e-6 or share == 1

    @pytest.mark.parametrize(
        ("weights", "shares"),
        [
            ([5.0], [ROUND]),
            ([1, 3], [ROUND // 4, 3 * ROUND // 4]),
            ([1, 1, 1], [349526, 349525, 349525]),  # 2**20 is 3 x 349,525 and 1: to the first
            ([1, 2], [349525, 699051]),  # .33 and .67: to the one that lost more
            ([2, 1], [699051, 349525]),
            ([1e-30, 1, 1e-30], [1, ROUND - 2, 1]),
        ],
    )
    def test_what_is_left_goes_to_those_that_lost_most(self, weights, shares):
        assert _shares(weights) == shares


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["/data/web", "/data/books"], ["web", "books"]),
        (["/data/web/text", "/data/books/text"], ["web-text", "books-text"]),
        (["/a/x/text", "/b/x/text", "/b/y"], ["/a/x/text", "/b/x/text", "y"]),
        (["/data/web", "/data/myweb"], ["web", "myweb"]),
        (["gs://bucket/web/", "/data/web"], ["bucket-web", "/data/web"]),
        (["/text", "/data/text"], ["/text", "/data/text"]),
    ],
)
def test_a_part_has_the_shortest_name_that_no_other_has_or_all_of_its_path(places, names):
    assert [_name(place, places) for place in places] == names


class TestTheFile:
    @pytest.fixture
    def out(self, mixed) -> Path:
        mixed(few=1, many=1)
        return Path(mixed(few=1, many=1).place)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda _: "{", "is not a mixture: write it with `gptj mix`"),
            (lambda _: "7", "is not a mixture"),
            (lambda each: {**each, "format": 2}, "has format 2, not 1: mix again"),
            (lambda each: {"parts": each["parts"]}, "is not a mixture"),
            (lambda each: {"format": 1}, "is not a mixture"),
            (lambda each: {**each, "parts": [{"path": "a"}]}, "is not a mixture"),
            (lambda each: {**each, "parts": [{"path": "a", "weight": "x"}]}, "is not a mixture"),
        ],
    )
    def test_that_is_none_is_named(self, change, said, out):
        changed = change(json.loads((out / "mixture.json").read_text()))
        text = changed if isinstance(changed, str) else json.dumps(changed)
        (out / "mixture.json").write_text(text)
        with pytest.raises(UserError, match=rf"mixture\.json {said}"):
            Mixture.open(out)

    def test_says_paths_from_where_it_lies_and_weights_as_given(self, out, folders):
        found = json.loads((out / "mixture.json").read_text())
        assert found["format"] == 1
        assert [each["weight"] for each in found["parts"]] == [1, 1]
        places = [(out / each["path"]).resolve() for each in found["parts"]]
        assert places == [folders["few"].resolve(), folders["many"].resolve()]
        assert not any(Path(each["path"]).is_absolute() for each in found["parts"])


class TestOneAndMany:
    def test_one_store_is_a_mixture_of_itself(self, folders):
        data = Mixture.open(folders["few"])
        (part,) = data.parts
        assert (part.name, part.share) == ("", ROUND)
        assert not data.is_mixed
        assert len(data) == len(part.store)
        assert data.fingerprint == part.store.fingerprint
        assert data.held_out.fingerprint == held_out_beside(part.store).fingerprint
        assert data.examples is None
        assert data.tokenizer.sha256 == part.store.manifest.tokenizer

    def test_several_are_as_long_as_all_of_them(self, mixed, folders):
        data = mixed(few=3, some=1)
        assert data.is_mixed
        assert [part.share for part in data.parts] == [3 * ROUND // 4, ROUND // 4]
        assert len(data) == sum(len(Mixture.open(folders[name])) for name in ("few", "some"))

    def test_a_report_says_shares_and_how_often_each_is_read(self, folders, tmp_path):
        parts = weights_of({str(folders["few"]): 3, str(folders["many"]): 1})
        few, many = mix(MixConfig(parts, tmp_path / "mixed"))
        assert (few.share, many.share) == (0.75, 0.25)
        whole = few.tokens + many.tokens
        assert few.epochs * few.tokens == pytest.approx(0.75 * whole)
        assert many.epochs * many.tokens == pytest.approx(0.25 * whole)
        assert few.tokens == len(Mixture.open(folders["few"]))


def test_groups_are_the_folders_of_data_and_nothing_else(folders, tmp_path):
    root = folders["few"].parent
    found = groups_of(root)
    assert set(SIZES) <= set(found)
    assert all((root / name / "train").is_dir() for name in found)
    assert groups_of(folders["few"]) == []
    assert groups_of(folders["few"] / "train") == []
    assert groups_of(tmp_path / "nowhere") == []
    assert is_data(folders["few"])
    assert not is_data(root)
