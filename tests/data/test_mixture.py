"""Mixtures: weights hold exactly, each part has its own epochs, and a step says all."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.data.batches import EvalBatches, TrainBatches
from gptj.data.mixture import ROUND, MixConfig, Mixture, Order, mix, weights_of
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

    def test_another_tokenizer(self, folders, tmp_path):
        text = tmp_path / "other.txt"
        text.write_text("some other text " * 99)
        prepare(PrepareConfig((str(text),), tmp_path / "other", "train:300"))
        with pytest.raises(UserError, match=r"another tokenizer .* prepare it again"):
            mix(MixConfig((f"{folders['few']}=1", f"{tmp_path / 'other'}=1"), tmp_path / "mixed"))

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
