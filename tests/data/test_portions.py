"""Inputs in portions: the same whoever writes them, gone on with, appended."""

import dataclasses
import errno
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import pytest

from gptj.data import append, portions
from gptj.data.append import JOURNAL
from gptj.data.mixture import Mixture
from gptj.data.prepare import PrepareConfig, prepare
from gptj.data.store import TokenStore
from gptj.errors import UserError
from gptj.files import File
from gptj.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Every file is a portion of its own."""
    monkeypatch.setattr(portions, "PORTION_BYTES", 1)


def lines(path: Path, name: str, documents: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {"text": f"{name} {n}: {'é' * (n % 7)}\n", "kind": "ab"[n % 2]} for n in range(documents)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def corpus(tmp_path) -> Path:
    for name in "abcde":
        lines(tmp_path / "in" / f"{name}.jsonl", name)
    return tmp_path / "in"


def config(*inputs: Path, out: Path, **options) -> PrepareConfig:
    return PrepareConfig(inputs, out, **{"tokenizer": "bytes", "held_out": 0.2, **options})


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def texts(store: TokenStore) -> list[str]:
    return [store.text(number) for number in range(store.manifest.documents)]


def everything(out: Path) -> list[str]:
    stores = [TokenStore.open(path.parent) for path in sorted(out.rglob("manifest.json"))]
    for store in stores:
        store.verify()
    return sorted(text for store in stores for text in texts(store))


class Stop(Exception):
    """Somebody pulled the plug."""


@pytest.fixture
def stop_after(monkeypatch):
    """Has writing stop when so many portions are done; counts those begun since."""
    begun: list[int] = []
    write = portions.Writing._write

    def at(count: int | None, error: BaseException | None = None) -> list[int]:
        begun.clear()

        def limited(self, number, place):
            if len(begun) == count:
                raise error or Stop
            begun.append(number)
            return write(self, number, place)

        monkeypatch.setattr(portions.Writing, "_write", limited)
        return begun

    return at


class TestGoingOn:
    def test_what_was_done_is_not_done_again_and_all_is_the_same(
        self, corpus, tmp_path, stop_after
    ):
        prepare(config(corpus, out=tmp_path / "whole"))
        stop_after(3)
        with pytest.raises(Stop):
            prepare(config(corpus, out=tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        begun = stop_after(None)
        prepare(config(corpus, out=tmp_path / "out"))
        assert begun == [3, 4]
        assert content(tmp_path / "out") == content(tmp_path / "whole")
        assert not list(tmp_path.glob(".*"))

    def test_a_full_disk_is_said_and_gone_on_from(self, corpus, tmp_path, stop_after):
        stop_after(3, OSError(28, "No space left on device"))
        kept = r"No space left on device\) and is left as it was, what is done is kept in .*partial"
        with pytest.raises(UserError, match=kept):
            prepare(config(corpus, out=tmp_path / "out"))
        begun = stop_after(None)
        prepare(config(corpus, out=tmp_path / "out"))
        assert begun == [3, 4]

    def test_however_paths_are_spelt(self, corpus, tmp_path, stop_after, monkeypatch):
        (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
        stop_after(3)
        with pytest.raises(Stop):
            prepare(config(corpus, out=tmp_path / "link"))
        begun = stop_after(None)
        monkeypatch.chdir(corpus)
        report = prepare(config(Path("../in"), out=Path("../real/out")))
        assert begun == [3, 4]
        assert report.groups[0].train.path == Path("../real/out/train")
        assert len(everything(tmp_path / "link")) == 150
        monkeypatch.chdir(tmp_path / "real" / "out")
        more = lines(tmp_path / "more" / "m.jsonl", "m")
        prepare(config(more, out=Path(), append=True, tokenizer=None))
        assert len(everything(tmp_path / "link")) == 180
        prepare(config(more, out=tmp_path / "link", force=True))
        assert (tmp_path / "link").is_symlink()
        assert len(everything(tmp_path / "real" / "out")) == 30
        assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["out"]

    @pytest.mark.parametrize("change", ["option", "file"])
    def test_another_preparation_begins_anew(self, change, corpus, tmp_path, stop_after):
        stop_after(3)
        with pytest.raises(Stop):
            prepare(config(corpus, out=tmp_path / "out"))
        if change == "file":
            lines(corpus / "a.jsonl", "a", 31)
        seed = {"seed": 1} if change == "option" else {}
        begun = stop_after(None)
        prepare(config(corpus, out=tmp_path / "out", **seed))
        assert len(begun) == 5
        assert len(everything(tmp_path / "out")) == 150 + (change == "file")

    def test_a_mistake_in_between_loses_nothing(self, corpus, tmp_path, stop_after):
        stop_after(3)
        with pytest.raises(Stop):
            prepare(config(corpus, out=tmp_path / "out"))
        with pytest.raises(UserError, match="no input"):
            prepare(config(tmp_path / "absent", out=tmp_path / "out"))
        begun = stop_after(None)
        prepare(config(corpus, out=tmp_path / "out"))
        assert begun == [3, 4]

    def test_what_is_refused_on_the_way_loses_nothing(self, corpus, tmp_path, stop_after):
        """Such as a file behind a URL that cannot be reached for a while."""
        stop_after(3, UserError("it cannot be reached"))
        with pytest.raises(UserError, match="cannot be reached"):
            prepare(config(corpus, out=tmp_path / "out"))
        begun = stop_after(None)
        prepare(config(corpus, out=tmp_path / "out"))
        assert begun == [3, 4]

    def test_two_at_once_write_the_same(self, corpus, tmp_path):
        """As when a node that was thought to be lost comes back."""
        found: list[portions.Writing] = []
        write = portions.Writing.__call__

        def twice(self, number):
            found.append(pickle.loads(pickle.dumps(self)))
            write(found[-1], number)
            before = content(self.folder / "new")
            write(self, number)
            assert content(self.folder / "new") == before

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(portions.Writing, "__call__", twice)
            prepare(config(corpus, out=tmp_path / "out"))
        prepare(config(corpus, out=tmp_path / "once"))
        assert content(tmp_path / "out") == content(tmp_path / "once")

    def test_reports_are_those_of_one_portion(self, corpus, tmp_path, monkeypatch):
        (corpus / "f.jsonl").write_bytes(b'{"text": "bad \xff"}\n{"text": "aaaa"}\n')
        clean = portions.CleanConfig(min_unique_tokens=3, copies="exact")
        many = prepare(config(corpus, out=tmp_path / "many", clean=clean))
        monkeypatch.setattr(portions, "PORTION_BYTES", 1 << 30)
        one = prepare(config(corpus, out=tmp_path / "one", clean=clean))
        assert (many.replaced, many.dropped) == (one.replaced, one.dropped)
        assert many.replaced == 1
        assert everything(tmp_path / "many") == everything(tmp_path / "one")


def prepare_in_another_process(given: PrepareConfig, begun, go_on) -> None:
    def slowly(self, number):
        begun.set()
        go_on.wait(30)

    portions.Writing.__call__ = slowly
    prepare(given)


def test_a_second_writer_is_refused(corpus, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    begun, go_on = spawn.Event(), spawn.Event()
    given = config(corpus, out=tmp_path / "out")
    first = spawn.Process(target=prepare_in_another_process, args=(given, begun, go_on))
    first.start()
    try:
        assert begun.wait(60)
        with pytest.raises(UserError, match=r"another process is writing .*out: wait for it"):
            prepare(given)
    finally:
        first.kill()
        first.join()
    prepare(given)  # the system let go of what the dead one held
    assert len(everything(tmp_path / "out")) == 150


def test_what_is_done_is_read_back(corpus, tmp_path):
    found: list[portions.Done] = []
    of = portions.Done.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portions.Done, "of", lambda text: found.append(of(text)) or found[-1])
        prepare(config(corpus, out=tmp_path / "out", split_by="kind"))
    assert len(found) == 5
    assert all(of(done.to_json()) == done for done in found)


def test_a_file_and_a_tokenizer_go_to_another_process(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    file = File(str(tmp_path / "a"), 3)
    assert file.read().tobytes() == b"abc"  # it is open here
    assert pickle.loads(pickle.dumps(file)).__dict__ == {
        field.name: getattr(file, field.name) for field in dataclasses.fields(File)
    }
    assert pickle.loads(pickle.dumps(Tokenizer.bytes())).to_json() == Tokenizer.bytes().to_json()


class TestAppend:
    @pytest.fixture
    def first(self, corpus, tmp_path) -> Path:
        prepare(config(corpus, out=tmp_path / "out"))
        return tmp_path / "out"

    def more(self, first: Path, **options) -> PrepareConfig:
        path = lines(first.parent / "more" / "m.jsonl", "m")
        options = {"tokenizer": None, "append": True, **options}
        return config(path, out=first, **options)

    def test_what_was_there_stays_and_the_new_comes_after(self, first):
        before, old = everything(first), content(first)
        stores = {name: texts(TokenStore.open(first / name)) for name in ("train", "heldout")}
        report = prepare(self.more(first))
        assert everything(first) == sorted(
            [*before, *(f"m {n}: {'é' * (n % 7)}\n" for n in range(30))]
        )
        for name, found in stores.items():
            store = TokenStore.open(first / name)
            assert texts(store)[: len(found)] == found
            assert store.sources[-1].name == "m.jsonl"
            assert store.sources[-1].first_document == len(found)
        assert {name: content(first)[name] for name in old if "manifest" not in name} == {
            name: data for name, data in old.items() if "manifest" not in name
        }
        assert report.groups[0].train.documents == len(texts(TokenStore.open(first / "train")))
        assert [path.name for path in first.iterdir() if path.name.startswith(".")] == []

    def test_of_nothing_but_trained_texts_none_is_held_out(self, first):
        before = {name: texts(TokenStore.open(first / name)) for name in ("heldout", "train")}
        path = first.parent / "again.jsonl"
        lines = (json.dumps({"text": text}) + "\n" for text in before["train"])
        path.write_text("".join(lines))
        prepare(config(path, out=first, tokenizer=None, append=True))
        assert texts(TokenStore.open(first / "heldout")) == before["heldout"]
        again = texts(TokenStore.open(first / "train"))[len(before["train"]) :]
        assert set(again) <= set(before["train"])
        assert 0 < len(again) < len(before["train"])  # without those that a split would hold out

    def test_appending_twice_is_appending_both(self, first, tmp_path):
        one, two = (lines(tmp_path / "more" / f"{name}.jsonl", name) for name in "xy")
        for path in (one, two):
            prepare(config(path, out=first, tokenizer=None, append=True, held_out=0))
        other = tmp_path / "other"
        prepare(config(tmp_path / "in", out=other))
        prepare(config(one, two, out=other, tokenizer=None, append=True, held_out=0))
        assert content(first / "train") == content(other / "train")

    @pytest.mark.parametrize("at", ["journal", "first manifest", "second manifest"])
    def test_all_of_it_or_nothing_wherever_it_is_cut(self, at, first, monkeypatch):
        before = everything(first)
        steps = ["journal", "first manifest", "second manifest"]
        done: list[Path] = []
        write = append.replace_text

        def cut(path, text):
            if len(done) == steps.index(at):
                raise Stop
            done.append(path)
            write(path, text)

        monkeypatch.setattr(append, "replace_text", cut)
        with pytest.raises(Stop):
            prepare(self.more(first))
        monkeypatch.undo()
        monkeypatch.setattr(portions, "PORTION_BYTES", 1)
        if at == "journal":
            assert everything(first) == before
            prepare(self.more(first))
        else:  # it is decided, as readers see, and the next who appends completes it
            assert (first / JOURNAL).exists()
            manifests = [path.read_text() for path in sorted(first.rglob("manifest.json"))]
            assert sum("m.jsonl" in text for text in manifests) == steps.index(at) - 1
            assert len(everything(first)) == len(before) + 30
            assert Mixture.open(first).parts[0].store.sources[-1].name == "m.jsonl"
            with pytest.raises(UserError, match=r"m\.jsonl is in .*out already"):
                prepare(self.more(first))
        assert len(everything(first)) == len(before) + 30

    def test_groups_are_appended_to_their_own_and_new_ones_appear(
        self, corpus, tmp_path, monkeypatch
    ):
        out = tmp_path / "out"
        prepare(config(corpus, out=out, split_by="kind"))
        held: list[Path] = []
        at_journal: set[Path] = set()
        write, sync = append.replace_text, append.sync_entry
        monkeypatch.setattr(append, "sync_entry", lambda path: held.append(path) or sync(path))

        def written(path, text):
            at_journal.update(held if path.name == JOURNAL else ())
            write(path, text)

        monkeypatch.setattr(append, "replace_text", written)
        path = tmp_path / "more.jsonl"
        rows = [{"text": f"more {n} of it", "kind": "bc"[n % 2]} for n in range(60)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = prepare(config(path, out=out, split_by="kind", tokenizer=None, append=True))
        assert [group.name for group in report.groups] == ["b", "c"]
        assert sorted(path.name for path in out.iterdir()) == ["a", "b", "c"]
        folders = {out / name / side for name in "bc" for side in ("train", "heldout")}
        new = {out / "c" / side / "tokenizer.json" for side in ("train", "heldout")}
        assert at_journal >= {out, out / "c", *folders, *new}  # on the disk before it is decided
        assert len(everything(out)) == 150 + 60

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"tokenizer": "train:300"}, "out has another tokenizer than train:300"),
            ({"split_by": "kind"}, "out is not divided by a field: leave out --split-by"),
            ({"force": True}, "--append keeps what is in OUT and --force replaces it"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, options, complaint, first):
        before = content(first)
        with pytest.raises(UserError, match=complaint):
            prepare(self.more(first, **options))
        assert content(first) == before

    def test_its_own_tokenizer_may_be_named_and_it_may_lie_on_another_disk(
        self, first, monkeypatch
    ):
        def rename(path, goal):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "rename", rename)
        prepare(self.more(first, tokenizer="bytes"))
        assert len(everything(first)) == 180

    def test_text_that_is_there_is_refused(self, first, corpus, tmp_path):
        with pytest.raises(UserError, match=r"a\.jsonl is in .* already: leave it out"):
            prepare(config(corpus, out=first, tokenizer=None, append=True))
        for name in ("other", "b"):  # of which the latter is there, and not by this name
            other = lines(tmp_path / "other" / "a.jsonl", name)
            said = r"out has other text that is called a\.jsonl: rename"
            with pytest.raises(UserError, match=said):
                prepare(config(other, out=first, tokenizer=None, append=True))

    def test_nothing_to_append_to_is_said(self, first, corpus, tmp_path):
        (tmp_path / "file").write_text("x")
        for out, said in (
            (tmp_path / "absent", "absent holds no prepared data to append to: leave out --append"),
            (tmp_path / "file", "file holds no prepared data to append to: leave out --append"),
            (first / "train", "out/train is one store of prepared data: append to .*out around it"),
            (first / "train" / "tokenizer.json", "tokenizer.json holds no prepared data"),
        ):
            with pytest.raises(UserError, match=said):
                prepare(config(corpus, out=out, tokenizer=None, append=True))
        assert not list(tmp_path.rglob(".*"))

    def test_what_was_prepared_apart_with_other_tokenizers(self, corpus, tmp_path):
        for name, tokenizer in (("a", "bytes"), ("b", "train:300")):
            prepare(config(corpus, out=tmp_path / "out" / name, tokenizer=tokenizer))
        given = config(corpus, out=tmp_path / "out", tokenizer=None, append=True, split_by="kind")
        with pytest.raises(UserError, match=r"b/heldout has another tokenizer than .*a/heldout"):
            prepare(given)

    def test_without_a_held_out_part_none_is_begun(self, corpus, tmp_path):
        prepare(config(corpus, out=tmp_path / "out", held_out=0))
        with pytest.raises(UserError, match="holds nothing out: append with --held-out 0"):
            prepare(self.more(tmp_path / "out"))
        prepare(self.more(tmp_path / "out", held_out=0))
        assert len(everything(tmp_path / "out")) == 180
