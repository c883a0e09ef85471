"""Preparing data: nothing lost, nothing in both splits, the same again, all or nothing."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj.data.clean import CleanConfig
from gptj.data.groups import plan_groups
from gptj.data.prepare import GroupReport, PrepareConfig, PrepareReport, prepare
from gptj.data.read import Document
from gptj.data.store import TokenStore
from gptj.data.write import StoreWriter
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

BYTES = json.loads(Tokenizer.bytes().to_json())
SHAKESPEARE = Path(__file__).parents[2] / "../shared/data/tinyshakespeare/input.txt"


def save(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def jsonl(path: Path, texts: list[str]) -> Path:
    return save(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def run(*inputs: Path, out: Path, tokenizer: str = "bytes", **options) -> GroupReport:
    """What was written, of data that are not divided."""
    return whole(*inputs, out=out, tokenizer=tokenizer, **options).groups[0]


def whole(*inputs: Path, out: Path, tokenizer: str = "bytes", **options) -> PrepareReport:
    return prepare(PrepareConfig(inputs, out, tokenizer, **options))


def texts(path: Path) -> list[str]:
    store = TokenStore.open(path)
    store.verify()
    return [store.text(document) for document in range(store.manifest.documents)]


def splits(out: Path) -> tuple[list[str], list[str]]:
    return texts(out / "train"), texts(out / "heldout")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "place" / "out"


@pytest.fixture
def corpus(tmp_path) -> Path:
    """25 files of different lengths, in a folder."""
    for number in range(25):
        save(tmp_path / f"corpus/{number:02}.txt", f"file {number}\n" * (number + 1))
    return tmp_path / "corpus"


@pytest.fixture
def lines(tmp_path) -> Path:
    """One file of 40 documents."""
    return jsonl(tmp_path / "lines.jsonl", [f"document {n} " * (n + 1) for n in range(40)])


class TestWhatIsHeldOut:
    def test_files_where_there_are_twenty(self, corpus, out):
        report = run(corpus, out=out, held_out=0.2)
        train, held = splits(out)
        assert report.held_out_unit == "file"
        everything = [path.read_text() for path in sorted(corpus.iterdir())]
        assert sorted(train + held) == sorted(everything)
        assert not set(train) & set(held)
        share = report.held_out.bytes / (report.held_out.bytes + report.train.bytes)
        assert 0.15 < share < 0.25

    def test_documents_where_there_are_twenty_in_fewer_files(self, lines, out):
        report = run(lines, out=out, held_out=0.1)
        train, held = splits(out)
        assert report.held_out_unit == "document"
        assert sorted(train + held) == sorted(f"document {n} " * (n + 1) for n in range(40))
        assert not set(train) & set(held)

    def test_all_documents_of_a_held_out_file(self, tmp_path, out):
        for file in range(20):
            jsonl(tmp_path / f"in/{file}.jsonl", [f"{file}:{n}" for n in range(5)])
        run(tmp_path / "in", out=out, held_out=0.1)
        held = texts(out / "heldout")
        assert len(held) == 10
        assert len({text.partition(":")[0] for text in held}) == 2

    def test_the_end_of_each_document_where_there_are_few(self, tmp_path, out):
        verses = "".join(f"verse {number}\n" for number in range(100))
        inputs = save(tmp_path / "a.txt", verses), save(tmp_path / "b.txt", verses.upper())
        report = run(*inputs, out=out)
        train, held = splits(out)
        assert report.held_out_unit == "tail"
        assert [head + tail for head, tail in zip(train, held, strict=True)] == [
            verses,
            verses.upper(),
        ]
        assert all(head.endswith("\n") for head in train)  # cut at a line's end
        assert 0.04 < report.held_out.bytes / len(verses) / 2 < 0.06

    def test_the_cut_is_at_its_place_where_no_line_ends_near(self, tmp_path, out):
        run(save(tmp_path / "a.txt", "title\n" + "x" * 994), out=out, held_out=0.1)
        train, held = splits(out)
        assert (len(train[0]), len(held[0])) == (900, 100)

    def test_nothing_if_so_asked(self, corpus, out):
        report = run(corpus, out=out, held_out=0)
        assert report.held_out is None
        assert report.held_out_unit == "nothing"
        assert [path.name for path in out.iterdir()] == ["train"]
        assert report.train.documents == 25

    def test_at_least_one_unit_however_small_the_fraction(self, corpus, out):
        report = run(corpus, out=out, held_out=1e-6)
        assert texts(out / "heldout") == ["file 0\n"]  # the smallest
        assert report.train.documents == 24

    def test_copies_are_never_on_both_sides(self, tmp_path, out):
        for number in range(60):
            save(tmp_path / f"in/{number}.txt", f"text {number % 30}")
        run(tmp_path / "in", out=out, held_out=0.3)
        train, held = splits(out)
        assert not set(train) & set(held)
        assert len(train) + len(held) == 60

    @given(
        found=st.lists(st.text(min_size=1), min_size=20, max_size=60, unique=True),
        fraction=st.floats(0.01, 0.5),
        order=st.randoms(),
    )
    @settings(deadline=None)
    def test_the_choice_depends_on_texts_and_seed_alone(self, found, fraction, order):
        documents = [Document("a", text) for text in found]
        shuffled = [Document("b", text) for text in order.sample(found, len(found))]
        plan = plan_groups(documents, fraction, 3, None, False)[""]
        again = plan_groups(shuffled, fraction, 3, None, False)[""]
        assert plan == again
        divide = plan.begin()
        sides = [side for document in documents for side in divide(document)]
        assert [document.text for _, document in sides] == found
        assert {held for held, _ in sides} == {False, True}

    def test_another_seed_is_another_choice(self, lines, tmp_path):
        held = set()
        for seed in range(5):
            run(lines, out=tmp_path / str(seed), seed=seed)
            held.add(tuple(texts(tmp_path / str(seed) / "heldout")))
        assert len(held) == 5


class TestLongTexts:
    """In parts as whole: a text that is too long to be held gives the same store."""

    @pytest.mark.parametrize("tokenizer", ["bytes", "train:300", "uncut"])
    @pytest.mark.parametrize("count", [3, 30])
    def test_they_are_prepared_as_if_held(self, count, tokenizer, tmp_path, monkeypatch):
        for number in range(count):
            save(tmp_path / f"in/{number:02}.txt", f"some words of {number}\n" * (number + 9))
        if tokenizer == "uncut":
            tokenizer = str(tmp_path / "uncut.json")
            save(Path(tokenizer), json.dumps({**BYTES, "normalizer": {"type": "NFC"}}))
        run(tmp_path / "in", out=tmp_path / "whole", tokenizer=tokenizer, held_out=0.4)
        monkeypatch.setattr("gptj.data.read.PART_CHARACTERS", 40)
        monkeypatch.setattr("gptj.data.unpack.CHUNK_BYTES", 16)
        run(tmp_path / "in", out=tmp_path / "parts", tokenizer=tokenizer, held_out=0.4)
        for side in ("train", "heldout"):
            stores = [TokenStore.open(tmp_path / name / side) for name in ("whole", "parts")]
            assert stores[0].manifest.documents == stores[1].manifest.documents
            if count == 30:  # few are cut near the same place, at the start of a line in the part
                assert stores[0].manifest == stores[1].manifest
        texts = sorted(path.read_text() for path in (tmp_path / "in").iterdir())
        train, held = splits(tmp_path / "parts")
        found = map("".join, zip(train, held, strict=True)) if count == 3 else [*train, *held]
        assert sorted(found) == texts

    def test_documents_of_many_are_held_out_by_their_digests(self, lines, out, monkeypatch):
        monkeypatch.setattr("gptj.data.split.MANY", 10)
        run(lines, out=out, held_out=0.3)
        train, held = splits(out)
        assert sorted(train + held) == sorted(f"document {n} " * (n + 1) for n in range(40))
        assert 4 <= len(held) <= 20
        others = [Document("other", text) for text in train + held]
        divide = plan_groups(others, 0.3, 0, None, False)[""].begin()
        assert [h for text in held for h, _ in divide(Document("x", text))] == [True] * len(held)


class TestGroups:
    @pytest.fixture
    def pile(self, tmp_path) -> Path:
        records = [
            {"text": f"text {n} of many", "meta": {"pile_set_name": ("ArXiv", "Pile CC")[n % 2]}}
            for n in range(60)
        ]
        return save(tmp_path / "pile.jsonl", "\n".join(map(json.dumps, records)))

    def test_each_has_stores_of_its_own(self, pile, out):
        found = whole(pile, out=out, split_by="meta.pile_set_name", held_out=0.1)
        assert [group.name for group in found.groups] == ["ArXiv", "Pile CC"]
        assert sorted(path.name for path in out.iterdir()) == ["ArXiv", "Pile-CC"]
        for number, group in enumerate(found.groups):
            assert group.held_out_unit == "document"
            train, held = splits(group.train.path.parent)
            assert sorted(train + held) == sorted(f"text {n} of many" for n in range(number, 60, 2))
            assert len(held) == 3
        whole(pile, out=out, split_by="meta.pile_set_name", force=True)

    def test_two_that_would_be_one_folder(self, pile, out):
        with pile.open("a") as file:
            file.write('\n{"text": "x", "meta": {"pile_set_name": "Pile/CC"}}')
        with pytest.raises(UserError, match="'Pile CC' and 'Pile/CC', which would be one folder"):
            run(pile, out=out, split_by="meta.pile_set_name")

    def test_a_text_names_no_group(self, pile, out):
        with pile.open("a") as file:
            file.write("\n" + json.dumps({"text": "x" * 300, "meta": {"pile_set_name": "x"}}))
        with pytest.raises(UserError, match=r"text is 'x{40}'\.\.\. in pile\.jsonl, too long for"):
            run(pile, out=out, split_by="text")


class TestTokens:
    """Files of tokens are stored as they are, and what they stand for is known."""

    @pytest.fixture
    def tokens(self, tfrecords, tmp_path) -> Path:
        tokenizer = Tokenizer.bytes()
        texts = [f"document {number} é" for number in range(30)]
        stream = [id for text in texts for id in (*tokenizer.encode(text), tokenizer.eos_id)]
        records = [stream[at : at + 64] for at in range(0, len(stream), 64)]
        return tfrecords(tmp_path / "a.tfrecords", records)

    def test_they_are_the_texts(self, tokens, out):
        report = run(tokens, out=out, held_out=0.2)
        train, held = splits(out)
        assert sorted(train + held) == sorted(f"document {number} é" for number in range(30))
        assert report.train.bytes == sum(len(text.encode()) for text in train)

    def test_few_are_divided_at_their_ends(self, tokens, out, monkeypatch):
        monkeypatch.setattr("gptj.data.split.ENOUGH", 99)
        run(tokens, out=out, held_out=0.2)
        train, held = splits(out)
        assert [a + b for a, b in zip(train, held, strict=True)] == [
            f"document {number} é" for number in range(30)
        ]

    def test_they_need_their_own_tokenizer(self, tokens, tfrecords, tmp_path, out):
        with pytest.raises(UserError, match=r"a\.tfrecords holds tokens .* --tokenizer"):
            run(tokens, out=out, tokenizer="train:300")
        wrong = tfrecords(tmp_path / "wrong.tfrecords", [[65, 257]])
        with pytest.raises(UserError, match=r"wrong\.tfrecords holds the token 257, .* has 257"):
            run(wrong, out=out, held_out=0)


class TestTokenizers:
    def test_training_sees_the_training_split_alone(self, lines, tmp_path, out):
        run(lines, out=out, tokenizer="train:300")
        expected = Tokenizer.train(texts(out / "train"), 300)
        for split in ("train", "heldout"):
            assert TokenStore.open(out / split).tokenizer.sha256 == expected.sha256

    def test_one_that_exists_is_loaded(self, lines, tmp_path, out):
        Tokenizer.train(["abc " * 9], 260).save(tmp_path / "tokenizer.json")
        report = whole(lines, out=out, tokenizer=str(tmp_path / "tokenizer.json"))
        assert report.vocab_size == 260

    @pytest.mark.parametrize("spec", ["train:", "train:many", "train:256", "train:-1"])
    def test_a_vocabulary_that_cannot_be_is_refused(self, spec, lines, out):
        with pytest.raises(UserError, match=f"tokenizer '{spec}' does not say .* train:4096"):
            run(lines, out=out, tokenizer=spec)
        assert not out.parent.exists()


class TestReport:
    def test_it_counts_what_is_on_disk(self, corpus, out):
        (corpus / "photo.jpg").write_bytes(b"\xff")
        found = whole(corpus, out=out)
        assert (found.files, found.skipped_files, found.vocab_size) == (25, 1, 257)
        [report] = found.groups
        for split in (report.train, report.held_out):
            store = TokenStore.open(split.path)
            assert (split.tokens, split.bytes) == (len(store), store.bytes)
            assert split.tokens == split.bytes + split.documents  # bytes and ends of text
            assert split.bytes_per_token == split.bytes / split.tokens

    def test_the_same_input_is_the_same_store(self, corpus, tmp_path):
        corpus = corpus.rename(tmp_path / "moved")
        again = [run(corpus, out=tmp_path / name, tokenizer="train:300") for name in "ab"]
        for split in ("train", "heldout"):
            first, second = (TokenStore.open(tmp_path / name / split) for name in "ab")
            assert first.fingerprint == second.fingerprint
            assert first.manifest == second.manifest
        assert again[0].train.tokens == again[1].train.tokens

    def test_the_command_line_sets_every_field(self):
        arguments = "a b --out o --tokenizer bytes --held-out 0.1 --exclude x y* "
        arguments += "--text-field t --split-by m.n --seed 1 --strict --force --append --ray r"
        arguments += " --ftfy --detokenize --split-end-of-text --min-unique-tokens 9 --copies near"
        clean = CleanConfig(True, True, True, 9, "near")
        expected = PrepareConfig(
            ("a", "b"), Path("o"), "bytes", 0.1, ("x", "y*"), "t", "m.n", 1, True, True, True, "r",
            clean,
        )  # fmt: skip
        assert tyro.cli(PrepareConfig, args=arguments.split()) == expected

    @pytest.mark.skipif(not SHAKESPEARE.exists(), reason=f"tinyshakespeare is not {SHAKESPEARE}")
    def test_a_real_text(self, out):
        found = whole(SHAKESPEARE, out=out, tokenizer="train:1024")
        train, held = splits(out)
        assert train[0] + held[0] == SHAKESPEARE.read_bytes().decode()
        assert found.vocab_size == 1024
        [report] = found.groups
        ids = TokenStore.open(out / "train").tokenizer.encode(train[0])
        assert report.train.tokens == len(ids) + 1  # pieces, and an end of text
        assert 0.049 < report.held_out.bytes / SHAKESPEARE.stat().st_size < 0.051


class TestAllOrNothing:
    def nothing_is_left(self, out: Path) -> bool:
        return not out.exists() and not list(out.parent.glob(".*"))

    def test_only_the_result_is_left(self, corpus, out):
        run(corpus, out=out)
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        assert sorted(path.name for path in out.iterdir()) == ["heldout", "train"]

    def test_an_existing_folder_is_refused_before_any_work(self, tmp_path, out):
        out.mkdir(parents=True)
        with pytest.raises(UserError, match=r"out exists: .* --force"):
            run(tmp_path / "absent", out=out)

    def test_force_replaces_prepared_data(self, corpus, lines, out):
        run(corpus, out=out)
        run(lines, out=out, force=True, held_out=0)
        assert len(texts(out / "train")) == 40
        assert [path.name for path in out.parent.iterdir()] == ["out"]

    @pytest.mark.parametrize("split_by", [None, "kind"])
    def test_force_replaces_what_an_interrupted_append_left(self, split_by, tmp_path, out):
        rows = [{"text": f"text {n}", "kind": "ab"[n % 2]} for n in range(60)]
        path = save(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
        whole(path, out=out, split_by=split_by)
        save(out / ".append.json", "{}")
        whole(path, out=out, split_by=split_by, force=True)
        assert not (out / ".append.json").exists()

    def test_force_does_not_delete_anything_else(self, corpus, out):
        save(out / "thesis.tex", "years of work")
        with pytest.raises(UserError, match=r"out is not prepared data, so --force"):
            run(corpus, out=out, force=True)
        with pytest.raises(UserError, match=r"out exists, and is not prepared data: choose"):
            run(corpus, out=out)
        assert (out / "thesis.tex").read_text() == "years of work"

    def test_nor_a_file(self, lines, out):
        save(out, "years of work")
        for force, said in ((True, "so --force does not delete it: choose"), (False, "choose")):
            with pytest.raises(UserError, match=f"is not prepared data.*{said}"):
                run(lines, out=out, force=force)
        assert out.read_text() == "years of work"

    def test_an_empty_folder_may_be_replaced(self, lines, out):
        out.mkdir(parents=True)
        with pytest.raises(UserError, match=r"out exists: .* --force"):
            run(lines, out=out)
        assert run(lines, out=out, force=True).train.documents

    def test_what_stands_in_the_way_is_said_and_no_folder_is_left(self, lines, tmp_path):
        save(tmp_path / "file", "x")
        with pytest.raises(UserError, match=r"\(Not a directory\) .*: move away the file"):
            run(lines, out=tmp_path / "file" / "out")
        with pytest.raises(UserError, match="no input"):
            run(tmp_path / "absent", out=tmp_path / "a" / "b" / "out")
        assert not (tmp_path / "a").exists()

    def test_a_folder_that_may_not_be_looked_into(self, lines, out, monkeypatch):
        def closed(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "exists", closed)
        with pytest.raises(UserError, match=r"\(Permission denied\) .*: allow yourself"):
            run(lines, out=out)

    @pytest.mark.parametrize("name", ["raw/a.txt", "train/a.txt"])
    def test_force_does_not_delete_what_else_lies_there(self, name, corpus, lines, out):
        run(corpus, out=out)
        save(out / name, "the inputs themselves")
        with pytest.raises(UserError, match=r"out also holds .* so --force does not delete it"):
            run(lines, out=out, force=True)
        assert (out / name).read_text() == "the inputs themselves"

    def test_force_does_not_delete_several_that_were_prepared_apart(self, lines, out):
        for name in ("mine", "crawl"):
            run(lines, out=out / name)
        with pytest.raises(UserError, match=r"out is not prepared data, so --force does not"):
            run(lines, out=out, force=True)
        assert sorted(path.name for path in out.iterdir()) == ["crawl", "mine"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_an_interruption_leaves_nothing(self, error, corpus, out, monkeypatch):
        def interrupted(self):
            raise error

        monkeypatch.setattr(StoreWriter, "_flush", interrupted)
        with pytest.raises(error):
            run(corpus, out=out)
        assert self.nothing_is_left(out)

    def test_an_interrupted_replacement_leaves_the_old(self, corpus, lines, out, monkeypatch):
        run(corpus, out=out)
        before = splits(out)
        rename = Path.rename

        def fail_to_appear(self, target):
            if self.name == "new":
                raise OSError(5, "Input/output error")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail_to_appear)
        with pytest.raises(UserError, match=r"out cannot be written \(Input/output error\)"):
            run(corpus, out=out, force=True)
        assert splits(out) == before
        monkeypatch.undo()
        run(lines, out=out, force=True)  # what was done meanwhile is not of these inputs
        assert len(texts(out / "train")) < 40
        assert not list(out.parent.glob(".*"))

    @pytest.mark.parametrize("existing", [False, True])
    def test_a_full_disk_leaves_nothing_new(self, existing, tmp_path, corpus, out):
        if existing:
            run(corpus, out=out)
            before = splits(out)
        program = """if True:
            import resource, sys
            from pathlib import Path
            from gptj.data.prepare import PrepareConfig, prepare
            from gptj.errors import UserError
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                prepare(PrepareConfig((Path(sys.argv[1]),), Path(sys.argv[2]), "bytes", force=True))
            except UserError as error:
                print(error)
        """
        text = save(tmp_path / "large.txt", "a line of text\n" * 100_000)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, text, out],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith(f"{out} cannot be written (File too large)")
        assert done.stderr == ""
        assert splits(out) == before if existing else self.nothing_is_left(out)


class TestMistakes:
    def refused(self, complaint: str, *inputs: Path, out: Path, **options) -> None:
        with pytest.raises(UserError, match=complaint) as error:
            run(*inputs, out=out, **options)
        assert "\n" not in str(error.value)
        assert not out.exists()
        assert not out.parent.exists() or not list(out.parent.iterdir())

    @pytest.mark.parametrize("fraction", [-0.1, 0.6, float("nan")])
    def test_a_fraction_out_of_range(self, fraction, lines, out):
        self.refused("held_out=.* from 0 to 0.5", lines, out=out, held_out=fraction)

    def test_a_url_is_no_place_to_prepare_in(self, lines):
        with pytest.raises(UserError, match=r"out=gs:/bucket/data must be a folder"):
            run(lines, out=Path("gs://bucket/data"))

    def test_a_missing_input(self, tmp_path, out):
        self.refused(r"no input .*absent", tmp_path / "absent", out=out)

    def test_a_bad_line_deep_inside(self, lines, out):
        with lines.open("a") as file:
            file.write("{}\n")
        self.refused(r"lines\.jsonl:41 has no text in a field 'text'", lines, out=out)

    def test_bad_input_found_while_writing(self, lines, out, monkeypatch):
        with lines.open("a") as file:
            file.write("{}\n")
        self.refused(r"lines\.jsonl:41 ", lines, out=out, held_out=0)

    def test_text_too_short_to_hold_any_out(self, tmp_path, out):
        path = save(tmp_path / "a.txt", "tiny")
        self.refused("no text is left for heldout: .* --held-out 0", path, out=out)
        assert run(path, out=out, held_out=0).train.tokens == 5

    def test_plain_text_has_no_fields(self, lines, corpus, tmp_path, out):
        path = save(tmp_path / "a.json", '{"body": "x"}')
        complaint = r"--text-field body is of JSON lines and .* none, as .*a\.json: leave it"
        self.refused(complaint, path, corpus, out=out, text_field="body")
        self.refused("no text in a field 'body'", path, lines, out=out, text_field="body")

    def test_what_names_nothing(self, lines, out):
        self.refused("--text-field '' names no field", lines, out=out, text_field="")
        self.refused("--split-by '' names no field", lines, out=out, split_by="")
        for pattern in ("", "tests/", "a/*.txt"):
            said = rf"--exclude '{re.escape(pattern)}' is no pattern of names"
            self.refused(said, lines, out=out, exclude=(pattern,))

    def test_nothing_is_left_of_poor_documents(self, lines, out):
        clean = CleanConfig(min_unique_tokens=99)
        complaint = "no text is left for train without the documents of fewer than 99 .* a lower --"
        self.refused(complaint, lines, out=out, clean=clean, held_out=0)

    @pytest.mark.parametrize("option", ["ftfy", "detokenize", "split_end_of_text"])
    def test_tokens_have_no_text_to_mend(self, option, lines, tfrecords, tmp_path, out):
        tokens = tfrecords(tmp_path / "a.tfrecords", [[1, 2]])
        complaint = rf"a\.tfrecords holds tokens and --{option.replace('_', '-')} mends text"
        self.refused(complaint, lines, tokens, out=out, clean=CleanConfig(**{option: True}))

    @pytest.mark.parametrize("name", ["", "train", "heldout"])
    def test_a_group_that_cannot_be_a_folder(self, name, tmp_path, out):
        rows = [{"text": f"{n}", "kind": name if n else "fine"} for n in range(30)]
        path = save(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
        complaint = (
            rf"kind is '{re.escape(name)}' in a\.jsonl, which cannot be the name of a folder"
        )
        self.refused(complaint, path, out=out, split_by="kind")

    def test_what_names_no_tokenizer_or_no_cluster(self, lines, out):
        self.refused("tokenizer='' names none", lines, out=out, tokenizer="")
        said = r"lines\.jsonl lies on this machine and is no address .* --ray auto, another as"
        self.refused(said, lines, out=out, ray=str(lines))
        self.refused(
            "word is no address of a Ray cluster: give HOST:PORT", lines, out=out, ray="word"
        )

    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            (OSError(errno.ENOSPC, "full"), r"out cannot be written \(full\) .*: free space, or"),
            (OSError(errno.EACCES, "closed"), r"\(closed\) .*: allow yourself to write there, or"),
            (
                OSError(errno.EMFILE, "many"),
                r"\(many\) .*: allow more open files \(ulimit -n\), or",
            ),
            (ConnectionError("a lost cluster"), r"\(a lost cluster\) .* as it was: try again, or"),
        ],
    )
    def test_the_remedy_is_that_of_the_error(self, error, remedy, lines, out, monkeypatch):
        def fail(self, number):
            raise error

        monkeypatch.setattr("gptj.data.portions.Writing.__call__", fail)
        self.refused(remedy, lines, out=out)

    def test_a_place_that_cannot_be_written(self, tmp_path, lines):
        save(tmp_path / "file", "x")
        with pytest.raises(UserError, match=r"file/out cannot be written"):
            run(lines, out=tmp_path / "file" / "out")


def test_the_command_says_what_there_is_and_what_came_to_it(gptj, tmp_path):
    a, b = save(tmp_path / "a.txt", "some text " * 40), save(tmp_path / "b.txt", "other " * 40)
    words = ("--out", tmp_path / "out")
    code, said, _ = gptj("prepare", a, *words, "--tokenizer", "bytes")
    assert code == 0
    assert said.startswith("1 file; vocabulary of 257 tokens\n  train     1 document, 380 bytes,")
    assert said.endswith("the end of each document, as they are fewer than 20\n")
    said = gptj("prepare", b, *words, "--append").out
    assert said.startswith("1 more file; vocabulary of 257 tokens\nwith what was there before:\n")
    assert "train     2 documents" in said
    said = gptj("prepare", a, "--out", tmp_path / "few", "--tokenizer", "train:999").out
    assert re.search(
        r"vocabulary of \d+ tokens and not 999, as the text has no more to learn", said
    )
