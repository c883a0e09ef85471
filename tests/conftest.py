"""Eight host devices for every test, set before anything imports JAX; and a run to share."""

import contextlib
import gc
import importlib.util
import json
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

EIGHT = "--xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test touches the network
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "gptj-tests")
if importlib.util.find_spec("libtpu"):  # here for its compiler alone; nothing is to look for a TPU
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}".strip()

# Compiled programs are kept while the tests run, for the many processes that want the same ones:
# of all workers, in a folder that the first makes and removes. Nothing is left behind, or found.
PROGRAMS = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    PROGRAMS = tempfile.TemporaryDirectory(prefix="gptj-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

LONGEST = (
    "test_notebook.py",
    "test_replicas.py",
    "test_hosts.py",
    "test_kills.py",
    "test_resume.py",
    "test_reproducible.py",
    "test_speculate.py",
    "test_step.py",
    "test_meshes.py",
    "test_quantised.py",
    "test_memory.py",
)
MOST_MAPS = 30_000


def pytest_unconfigure() -> None:
    """Remove what was kept."""
    if PROGRAMS:
        PROGRAMS.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that processes that share the tests end together."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drop compiled programs between modules: each maps memory, which Linux allows 65,530 times."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


class Outcome(NamedTuple):
    """What a command left behind: its exit status, and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def gptj(capsys) -> Callable[..., Outcome]:
    """The `gptj` command, run in this process."""
    from gptj.cli import main

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(gptj):
    """A command that must exit with 2 and one line on stderr that holds all of `said`."""

    def check(*words: object, said: tuple[str, ...]) -> str:
        code, _, err = gptj(*words)
        assert code == 2
        assert err.startswith(f"gptj {words[0]}: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert "Traceback" not in err
        missing = [word for word in said if word not in err]
        assert not missing, f"{missing} not in {err}"
        return err

    return check


@pytest.fixture
def full_disk() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """A context in which files cannot grow past so many bytes: to the program, a full disk.

    Not for a whole test: pytest's own report must be written.
    """

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """A text of 200 lines that is quick to learn something of."""
    draw, words = random.Random(0), ["the", "a", "cat", "dog", "sat", "on", "mat", "ran", "far"]
    lines = (" ".join(draw.choices(words, k=12)) for _ in range(200))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def tiny_data(tiny_text) -> Path:
    """The text as bytes, with a held-out part. Not to be written to."""
    from gptj.data.prepare import PrepareConfig, prepare

    out = tiny_text.parent / "data"
    prepare(PrepareConfig((tiny_text,), out, "bytes"))
    return out


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The JSON file of a model that compiles and runs in no time."""
    from gptj.config import ModelConfig

    path = tmp_path_factory.mktemp("model") / "tiny.json"
    ModelConfig(2, 32, 4, 4, 64, 257, 384, context=64).save(path)
    return path


@pytest.fixture(scope="session")
def train_flags(tiny_data, tiny_model) -> Callable[..., list[str]]:
    """The flags of a run of 12 steps in `out`, with changes; `None` leaves a flag out."""

    def flags(out: Path, **changes: object) -> list[str]:
        options = {
            **{"data": tiny_data, "out": out, "model": tiny_model, "steps": 12, "batch": 4},
            **{"save_every": 4, "eval_every": 6, "lr": 0.01, "warmup_steps": 2},
            **changes,
        }
        given = ((name, value) for name, value in options.items() if value is not None)
        return [word for k, v in given for word in (f"--{k.replace('_', '-')}", str(v))]

    return flags


@pytest.fixture(scope="session")
def tiny_run(train_flags, tmp_path_factory) -> Path:
    """A run of 12 steps, finished, with checkpoints 4, 8 and 12. Not to be written to."""
    from gptj.cli import main

    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", *train_flags(out)]) == 0
    return out


@pytest.fixture
def own_run(tiny_run, tmp_path) -> Path:
    """A copy of the finished run, to damage at will."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def stopped_run(own_run) -> Path:
    """The run as it stood after its first checkpoint."""
    for step in ("00000008", "00000012"):
        shutil.rmtree(own_run / "checkpoints" / step)
    rows = (own_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (own_run / "metrics.jsonl").write_text("".join(r for r in rows if json.loads(r)["step"] <= 4))
    return own_run
