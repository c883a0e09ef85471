"""What is written, to the letter, and when: others may read it, and years later."""

import hashlib
import os

import numpy as np

from gptj.data import write
from gptj.data.mixture import MixConfig, mix
from gptj.data.read import Document
from gptj.data.store import TokenStore
from gptj.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()


def wrote(path, texts) -> TokenStore:
    with write.StoreWriter(path, BYTES) as writer:
        for source, text in texts:
            writer.add(Document(source, text))
    write.finish(path, BYTES, [writer.written()])
    return TokenStore.open(path)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


MANIFEST = """\
{
 "format": 2,
 "dtype": "<u2",
 "vocab_size": 257,
 "tokens": 7,
 "documents": 2,
 "bytes": 5,
 "fingerprint": "%s",
 "tokenizer": "%s",
 "shards": [
  {
   "name": "00000-000",
   "tokens": 7,
   "documents": 2,
   "checks": [
    "%s"
   ],
   "documents_check": "%s"
  }
 ],
 "sources": [
  {
   "name": "本.txt",
   "bytes": 5,
   "sha256": "%s",
   "first_document": 0,
   "documents": 2,
   "tokens": 7
  }
 ],
 "examples": null
}
"""


def test_a_manifest(tmp_path):
    wrote(tmp_path, [("本.txt", "abc"), ("本.txt", "de")])
    ids, starts = [97, 98, 99, 256, 100, 101, 256], [0, 4, 7]
    check = sha256(np.array(ids, "<u2").tobytes())
    starts_check = sha256(np.array(starts, "<i8").tobytes())
    fingerprint = sha256((BYTES.sha256 + check + starts_check).encode())
    said = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    assert said == MANIFEST % (fingerprint, BYTES.sha256, check, starts_check, sha256(b"abcde"))


def test_a_mixture(tmp_path):
    for name in "ab":
        wrote(tmp_path / name / "train", [("x", name)])
    mix(MixConfig((f"{tmp_path}/a=0.5", f"{tmp_path}/b=2"), tmp_path / "within" / "mixed"))
    parts = (
        f'  {{\n   "path": "../../{name}",\n   "weight": {weight}\n  }}'
        for name, weight in (("a", 0.5), ("b", 2.0))
    )
    said = '{\n "format": 1,\n "parts": [\n' + ",\n".join(parts) + "\n ]\n}\n"
    assert (tmp_path / "within" / "mixed" / "mixture.json").read_text() == said


def test_a_shard_from_its_first_character_on(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_TOKENS", 5)
    monkeypatch.setattr(write, "_FLUSH_CHARACTERS", 4)
    store = wrote(tmp_path, [("a", text) for text in ("abc", "d", "e", "f")])
    assert [each.tokens for each in store.manifest.shards] == [6, 4]  # a d was needed for four


def test_a_file_grows_by_what_is_held_and_no_more_is_held_than_that(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "_HELD_BYTES", 12)
    file = write._Growing(tmp_path / "file")
    sizes = []
    for _ in range(7):
        file.write(b"abc")
        sizes.append((tmp_path / "file").stat().st_size)
    assert sizes == [0, 0, 0, 12, 12, 12, 12]
    file.close()
    assert (tmp_path / "file").read_bytes() == b"abc" * 7


def test_a_text_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    path, synced = tmp_path / "a.json", []
    path.write_text("old")
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append((os.fstat(file).st_size, path.read_text()))
    )
    write.replace_text(path, "new é")
    assert synced == [(6, "old")]
    assert path.read_text(encoding="utf-8") == "new é"
    assert list(tmp_path.iterdir()) == [path]
