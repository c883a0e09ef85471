"""What is asked of a preparation: where its inputs lie, what has fields, how much is learnt."""

import dataclasses
import json
import os
import tarfile
from pathlib import Path

import pytest

from gptj.data import portions
from gptj.data.clean import CleanConfig
from gptj.data.examples import lacking
from gptj.data.find import Inputs, Source
from gptj.data.portions import ReadConfig
from gptj.data.prepare import PrepareConfig, _changed, _everywhere, _vocab_to_train, prepare
from gptj.data.read import TEXT
from gptj.errors import UserError
from gptj.files import File


def inputs(*names: str) -> Inputs:
    return Inputs(tuple(Source(File(name, 1), name) for name in names), 0)


class TestFields:
    def check(self, field: str, *names: str) -> None:
        ReadConfig(field, None, False, CleanConfig()).check(inputs(*names))

    @pytest.mark.parametrize("kind", [".jsonl", ".ndjson", ".parquet", ".arrow", ".tar"])
    def test_one_file_that_may_have_them_is_enough(self, kind):
        self.check("body", f"a{kind}")
        self.check("body", "a.txt", f"b{kind}", "c.idx")

    @pytest.mark.parametrize("kind", [".txt", ".json", ".tfrecords", ".idx"])
    def test_where_none_has_any_none_may_be_named(self, kind):
        self.check(TEXT, f"a{kind}")
        with pytest.raises(UserError, match=rf"--text-field body is of .* none, as a\{kind}: "):
            self.check("body", f"a{kind}", "b.txt")


def test_of_what_a_field_holds_instead_of_a_text_forty_characters_are_shown():
    said = str(lacking("a.jsonl:1", {"text": list("abc" * 9), "n": {"m": 1}}, "text", "name it"))
    value = json.dumps(list("abc" * 9))[:40]
    assert said == (
        f"a.jsonl:1 has no text in a field 'text' but {value} (it holds 'text', 'n.m'): name it, "
        "or mend or remove the record"
    )


def test_of_a_cluster_each_process_finds_the_inputs_by_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, url = ("in/a.txt", Path("b.txt"), "/there/../c.txt"), "gs://bucket/in"
    here = PrepareConfig((*given, url), Path("out"))
    assert _everywhere(here) == ["in/a.txt", "b.txt", "/there/../c.txt", url]
    far = PrepareConfig((*given, url), Path("out"), ray="auto")
    assert _everywhere(far) == [f"{tmp_path}/in/a.txt", f"{tmp_path}/b.txt", "/c.txt", url]


def test_files_are_told_apart_by_when_they_changed_and_an_index_by_its_data_too(tmp_path):
    for number, name in enumerate(("b.idx", "b.bin", "c.idx", "d.bin")):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, ns=(99, number))
    found = {name: _changed(f"{tmp_path}/{name}") for name in ("b.idx", "c.idx", "d.bin")}
    assert found == {"b.idx": [0, 1], "c.idx": [2], "d.bin": [3]}
    assert _changed("gs://bucket/b.idx") == []


def test_bytes_and_the_end_of_text_are_the_least_to_learn(tmp_path):
    assert _vocab_to_train("train:257") == 257
    assert _vocab_to_train("bytes") == 0
    (tmp_path / "a.txt").write_text("the cat sat on the mat, the cat " * 9)
    config = PrepareConfig((f"{tmp_path}/a.txt",), tmp_path / "out", "train:300", held_out=0)
    learnt = prepare(config)
    assert learnt.asked_size == 300
    assert 257 < learnt.vocab_size < 300
    assert prepare(dataclasses.replace(config, tokenizer="bytes", force=True)).asked_size == 0


def test_what_is_passed_over_is_counted_in_folders_and_in_archives(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.txt", "b.jpg", "c.jpg"):
        (tmp_path / "in" / name).write_text("x")
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        archive.add(tmp_path / "in" / "b.jpg", "b.jpg")
        archive.add(tmp_path / "in" / "a.txt", "d.txt")
    (tmp_path / "in.tar").rename(tmp_path / "in" / "in.tar")
    report = prepare(PrepareConfig((f"{tmp_path}/in",), tmp_path / "out", "bytes", held_out=0))
    assert (report.files, report.skipped_files) == (2, 3)
    assert report.groups[0].train.documents == 2
    assert (tmp_path / "out" / "train" / "00000-000.tokens").exists()


def test_poor_documents_are_the_reason_that_nothing_is_left_whatever_else_was(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(portions, "PORTION_BYTES", 1)
    for name in "ab":  # of which the second holds nothing but a copy
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "aaaa"}))
    clean = CleanConfig(copies="exact", min_unique_tokens=3)
    config = PrepareConfig((f"{tmp_path}/*.jsonl",), tmp_path / "out", "bytes", 0, clean=clean)
    with pytest.raises(UserError, match="for train without the documents of fewer than 3 diff"):
        prepare(config)
