"""`gptj bench`: what it refuses, and the file that keeps each subject's figures."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptj.bench.config import ServeBench
from gptj.cli import bench
from gptj.cli.bench import SUBJECTS, Outcome
from gptj.errors import UserError


def test_without_a_subject_it_names_them(refused, gptj):
    names = "train, decode, prefill, serve, load, data"
    refused("bench", said=(f"say what to measure: gptj bench {names}",))
    refused("bench", "flight", said=(names,))
    for word in ("-h", "--help"):
        code, out, _ = gptj("bench", word)
        assert code == 0
        assert all(f"\n  {name} " in out for name in SUBJECTS)
        assert bench.EXAMPLE in out


@pytest.mark.parametrize("subject", SUBJECTS)
def test_each_has_an_example_that_is_understood(gptj, monkeypatch, subject):
    heard = []
    monkeypatch.setattr(bench, "_in_turns", lambda *what: heard.append(what[:3]))
    monkeypatch.setattr(bench, "_serve", lambda command, _: heard.append((subject, command, "")))
    words = SUBJECTS[subject][1].split()
    assert gptj("bench", subject, *words).code == 0
    ((name, command, said),) = heard
    assert (name, type(command.bench)) == (subject, SUBJECTS[subject][0])
    if subject != "serve":
        assert said == " ".join(["gptj", "bench", subject, *words])


@pytest.mark.parametrize(("peer", "alone"), [((), True), (("--peer", "transformers"), False)])
def test_a_mix_of_requests_is_served_alone_unless_beside_a_peer(gptj, monkeypatch, peer, alone):
    heard = []
    monkeypatch.setattr(bench, "_in_turns", lambda *_: heard.append(False))
    monkeypatch.setattr(bench, "_serve", lambda *_: heard.append(True))
    assert gptj("bench", "serve", *peer).code == 0
    assert heard == [alone]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--plot", "bars.txt"), "plot=bars.txt"),
        (("--json", "{folder}/other.json"), "other.json is there and holds something else: choose"),
    ],
)
def test_where_figures_cannot_go_nothing_is_measured(refused, monkeypatch, tmp_path, words, said):
    (tmp_path / "other.json").write_text('{"thesis": 1}')
    monkeypatch.setattr(bench, "_in_turns", None)
    refused("bench", "decode", *(word.format(folder=tmp_path) for word in words), said=(said,))
    assert (tmp_path / "other.json").read_text() == '{"thesis": 1}'


@pytest.mark.parametrize(("name", "value"), [("plot", Path("b.png")), ("rounds", 1)])
def test_alone_there_is_nothing_to_draw_or_take_turns_with(name, value):
    command = SimpleNamespace(bench=ServeBench(), outcome=Outcome(**{name: value}))
    with pytest.raises(UserError, match=f"^{name}={value} needs a --peer to "):
        bench._serve(command, None)


class TestTheFile:
    def test_keeps_what_it_has_of_other_subjects(self, tmp_path):
        path = tmp_path / "deep" / "figures.json"
        bench._write(path, "decode", {"speed": 1})
        bench._write(path, "train", {"speed": Path("x")})
        bench._write(path, "decode", {"speed": 3})
        assert json.loads(path.read_text()) == {"decode": {"speed": 3}, "train": {"speed": "x"}}
        assert bench._known(path).keys() == {"decode", "train"}

    def test_that_is_not_there_has_none(self, tmp_path):
        assert bench._known(tmp_path / "none.json") == {}

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"decode": 1, "mine": 2}'])
    def test_of_something_else_is_left_alone(self, tmp_path, text):
        path = tmp_path / "figures.json"
        path.write_text(text)
        with pytest.raises(UserError, match="is there and holds something else: choose another"):
            bench._write(path, "decode", {})
        assert path.read_text() == text

    def test_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"json=.* cannot be written \(.*\): choose another"):
            bench._write(tmp_path / "file" / "figures.json", "decode", {})
