"""Which stores go together in a mixture, and where they may lie; with stores made by hand."""

import json
import re
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from gptj.data.mixture import ROUND, MixConfig, Mixture, mix
from gptj.data.read import Document
from gptj.data.write import StoreWriter, finish
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()


def prepared(out: Path, text: str = "some", kind=None, held: str = "", tokenizer=BYTES) -> Path:
    for side, content in (("train", text), ("heldout", held)):
        if content:
            with StoreWriter(out / side, tokenizer, examples=kind) as writer:
                writer.add(Document("a", ids=np.frombuffer(content.encode(), np.uint8)))
            finish(out / side, tokenizer, [writer.written()], kind)
    return out


def mixed(out: Path, *parts: object, force: bool = False) -> Mixture:
    mix(MixConfig(tuple(map(str, parts)), out, force))
    return Mixture.open(out)


@pytest.mark.parametrize("kinds", [(None, None), ("chats", "chats"), ("completions",) * 3])
def test_all_of_one_kind(kinds, tmp_path):
    parts = [prepared(tmp_path / str(n), "x" * (n + 1), kind) for n, kind in enumerate(kinds)]
    data = mixed(tmp_path / "mixed", *parts)
    assert data.examples == kinds[0]
    assert [part.name for part in data.parts] == [str(n) for n in range(len(kinds))]
    assert sum(part.share for part in data.parts) == ROUND


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ((None, "chats"), "/0 holds texts and .*/1 chats: mix"),
        (("chats", None), "/0 holds chats and .*/1 texts: mix"),
        (("completions", "completions", "chats"), "/0 holds completions and .*/2 chats: mix"),
    ],
)
def test_of_several_kinds_it_is_said_which(kinds, said, tmp_path):
    parts = [prepared(tmp_path / str(n), kind=kind) for n, kind in enumerate(kinds)]
    with pytest.raises(UserError, match=f"{said} what is of one kind$"):
        mixed(tmp_path / "mixed", *parts)


def test_the_tokenizer_is_that_of_the_first(tmp_path):
    other = Tokenizer.train(["the cat sat on the mat"] * 4, 270)
    parts = [prepared(tmp_path / n, tokenizer=other if n == "c" else BYTES) for n in "abc"]
    said = rf"c has another tokenizer than {parts[0]}: .* --tokenizer {parts[0]}/train$"
    with pytest.raises(UserError, match=said):
        mixed(tmp_path / "mixed", *parts)
    assert mixed(tmp_path / "mixed", *parts[:2]).tokenizer.sha256 == BYTES.sha256


def test_a_part_that_was_prepared_anew_with_another_tokenizer_is_noticed(tmp_path):
    a, b = (prepared(tmp_path / name) for name in "ab")
    mixed(tmp_path / "mixed", a, b)
    shutil.rmtree(b)
    prepared(b, tokenizer=Tokenizer.train(["the cat sat on the mat"] * 4, 270))
    with pytest.raises(UserError, match=r"/b has another tokenizer than .*/a: prepare it again"):
        Mixture.open(tmp_path / "mixed")


def test_where_there_is_nothing_it_is_said_how_data_are_made(tmp_path):
    said = f"{tmp_path} holds no prepared data: make it with `gptj prepare TEXT --out {tmp_path}`"
    with pytest.raises(UserError, match=re.escape(said)):
        Mixture.open(tmp_path)


def test_what_is_held_out_of_some_is_held_out(tmp_path):
    a, b, c = (prepared(tmp_path / name, name, held=name * 2 * (name != "b")) for name in "abc")
    data = mixed(tmp_path / "mixed", a, b, c)
    assert [each.name for each in data.held_out.sources] == ["a/a", "c/a"]
    assert [data.held_out.text(n) for n in range(2)] == ["aa", "cc"]
    assert mixed(tmp_path / "of b", b, prepared(tmp_path / "d")).held_out is None


@pytest.mark.parametrize("weight", ["inf", "-1", "0", "nan"])
def test_a_weight_is_a_number_above_0(weight, tmp_path):
    a, b = (prepared(tmp_path / name) for name in "ab")
    with pytest.raises(UserError, match=f"b={weight}: a weight must be a number above 0"):
        mixed(tmp_path / "mixed", f"{a}=1", f"{b}={weight}")


def test_a_mixture_that_is_there_stays_unless_it_is_to_go(tmp_path):
    a, b, c = (prepared(tmp_path / name) for name in "abc")
    mixed(tmp_path / "mixed", a, b)
    with pytest.raises(UserError, match="mixed exists: choose another --out, or replace it with"):
        mix(MixConfig((str(a), str(c)), tmp_path / "mixed"))
    assert [part.name for part in Mixture.open(tmp_path / "mixed").parts] == ["a", "b"]
    data = mixed(tmp_path / "mixed", a, c, force=True)
    assert [part.name for part in data.parts] == ["a", "c"]


def test_a_part_may_lie_behind_a_url(tmp_path):
    local, far = prepared(tmp_path / "local", "abc"), prepared(tmp_path / "far", "de", held="f")
    remote = fsspec.filesystem("memory")
    for path in far.rglob("*.*"):
        remote.pipe(f"/mixed/far/{path.relative_to(far).as_posix()}", path.read_bytes())
    url = "memory://mixed/far"
    with pytest.raises(UserError, match="far/ is among the parts twice: name it once"):
        mixed(tmp_path / "mixed", local, url, f"{url}/")
    data = mixed(tmp_path / "mixed", f"{local}=1", f"{url}=3")
    said = json.loads((tmp_path / "mixed/mixture.json").read_text())["parts"]
    assert [each["path"] for each in said] == ["../local", url]
    assert [part.store.text(0) for part in data.parts] == ["abc", "de"]
    assert [part.share for part in data.parts] == [ROUND // 4, 3 * ROUND // 4]
    assert data.held_out.text(0) == "f"
