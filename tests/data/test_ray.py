"""`gptj prepare --ray` on a cluster of two nodes, one of which is killed in the middle."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from gptj.cli import data
from gptj.data import portions
from gptj.data import prepare as preparing
from gptj.data.prepare import PrepareConfig, prepare
from gptj.errors import UserError

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")

PROGRAM = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from gptj.data import portions
import gptj.data.prepare as of

texts, out = map(Path, sys.argv[1:])
portions.PORTION_BYTES = 1

class Slow(portions.Writing):
    def __call__(self, number):
        time.sleep(0.5)
        super().__call__(number)

quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}
head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
nodes = Cluster(initialize_head=True, head_node_args=head)
second = nodes.add_node(num_cpus=1)

def done():
    return len(list(out.parent.glob(f".{out.name}.partial/done/*.json")))

def kill():
    while done() < 4:
        time.sleep(0.05)
    nodes.remove_node(second, allow_graceful=False)
    print("killed after", done(), flush=True)

of.Writing = Slow
watching = threading.Thread(target=kill)
watching.start()
of.prepare(of.PrepareConfig((texts,), out, "bytes", held_out=0.2, ray=nodes.address))
watching.join()
nodes.shutdown()
"""


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
@needs_ray
def test_a_cluster_that_loses_a_node_writes_the_same_bytes(tmp_path, monkeypatch):
    texts = tmp_path / "in"
    texts.mkdir()
    for number in range(16):
        rows = [json.dumps({"text": f"text {number}, {line}"}) for line in range(50)]
        (texts / f"{number}.jsonl").write_text("\n".join(rows))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, texts, tmp_path / "out"],
        stdout=subprocess.PIPE, text=True, check=True, timeout=300,
    )  # fmt: skip
    count = int(done.stdout.partition("killed after ")[2].split()[0])
    assert 4 <= count < 16
    monkeypatch.setattr(portions, "PORTION_BYTES", 1)
    prepare(PrepareConfig((texts,), tmp_path / "here", "bytes", held_out=0.2))
    assert content(tmp_path / "out") == content(tmp_path / "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "in", "out"]


def test_without_an_address_it_is_the_cluster_of_this_machine(monkeypatch):
    found = []
    monkeypatch.setattr(data, "prepare", lambda config: found.append(config.ray))
    monkeypatch.setattr(data, "show_prepared", lambda report: None)
    for words in ("--ray", "--ray --seed 1", "--ray head:6379", ""):
        data.run_prepare(["a.txt", "--out", "o", *words.split()])
    assert found == ["auto", "auto", "head:6379", None]


def test_nodes_that_write_elsewhere_are_noticed(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text")
    monkeypatch.setattr("gptj.data.prepare.cluster.each", lambda address, work, numbers: None)
    given = PrepareConfig((tmp_path / "a.txt",), tmp_path / "out", "bytes", held_out=0, ray="auto")
    said = f"a node of the cluster wrote to a {tmp_path} that is not this machine's: give an --out"
    with pytest.raises(UserError, match=said):
        prepare(given)
    assert not (tmp_path / "out").exists()


class TestWhatAClusterIsGiven:
    """Whichever it is: here a stand-in, which needs no Ray."""

    @pytest.fixture
    def given(self, tmp_path, monkeypatch) -> PrepareConfig:
        monkeypatch.setattr(portions, "PORTION_BYTES", 1)
        monkeypatch.chdir(tmp_path)
        for name in "abc":
            (tmp_path / f"{name}.txt").write_text(f"text {name}")
        names = tuple(f"{name}.txt" for name in "abc")
        return PrepareConfig(names, Path("out"), "bytes", held_out=0, ray="head:6379")

    def each(self, monkeypatch, done: Sequence[int]) -> list[tuple]:
        """Has a cluster do these alone; says what it was asked for."""
        asked = []

        def work(address, writing, numbers):
            read = [source.file.path for part in writing.portions for source in part.sources]
            asked.append((address, list(numbers), read))
            for number in done:
                writing(number)

        monkeypatch.setattr("gptj.cluster.each", work)
        return asked

    def test_are_paths_that_are_right_anywhere_and_all_that_is_missing(
        self, given, tmp_path, monkeypatch
    ):
        asked = self.each(monkeypatch, [0, 1, 2])
        prepare(given)
        paths = [f"{tmp_path}/{name}.txt" for name in "abc"]
        assert asked == [("head:6379", [0, 1, 2], paths)]
        prepare(dataclasses.replace(given, out=Path("here"), ray=None))
        assert content(tmp_path / "out") == content(tmp_path / "here")

    def test_is_nothing_where_nothing_is_missing(self, given, monkeypatch):
        asked, sides = self.each(monkeypatch, [0, 1, 2]), preparing._sides
        monkeypatch.setattr(preparing, "_sides", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(given)
        monkeypatch.setattr(preparing, "_sides", sides)
        prepare(given)
        assert len(asked) == 1


@needs_ray
def test_what_is_no_address_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    given = PrepareConfig((tmp_path / "a.txt",), tmp_path / "out", "bytes", held_out=0)
    with pytest.raises(UserError, match="nonsense is no address of a Ray cluster: give HOST:PORT"):
        prepare(dataclasses.replace(given, ray="nonsense"))


@pytest.mark.slow
@needs_ray
def test_a_mistake_found_by_a_worker_is_one_sentence(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"other": 1}\n')
    done = subprocess.run(
        [
            *(sys.executable, "-m", "gptj.cli", "prepare", tmp_path / "a.jsonl"),
            *("--out", tmp_path / "out", "--held-out", "0", "--tokenizer", "bytes", "--ray"),
        ],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "a.jsonl:2 has no text in a field 'text'" in done.stderr


@needs_ray
def test_an_address_at_which_nobody_answers_is_said_at_once(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    given = PrepareConfig((tmp_path / "a.txt",), tmp_path / "out", "bytes", held_out=0)
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127.0.0.1:1 \(.*\): check"):
        prepare(dataclasses.replace(given, ray="127.0.0.1:1"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
