"""The shape of the house: who may import whom, where foreign libraries enter, how large things are.

A room is a module or package directly under `src/gptj`. Everything here reads source text and
imports nothing from the project, so it also holds for code that needs hardware we lack.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gptj"

# From the ground up: a room imports only from itself and from the rows before its own.
LEVELS = [
    {"accelerators", "caches", "cores", "errors"},
    {"bpe", "circle", "cluster", "config", "files", "hardware", "hub", "kernels"},
    {"hosts", "sharding", "tokenizer"},
    {"quantised", "transcript"},
    {"data", "dense"},
    {"matrices"},
    {"attention", "cross_entropy", "remat"},
    {"model"},
    {"adapters", "checkpoint"},
    {"flops"},
    {"convert"},
    {"train", "engine"},
    {"api", "plot", "report", "serve"},
    {"bench", "doctor", "evaluate", "plan"},
    {"surface"},
]
SURFACE = {"__init__", "__main__", "cli"}
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# Each foreign library and the module or package that may import it; None: no module may.
DOORS = {
    "datasets": "evaluate",
    "fastapi": "serve",
    "fsspec": "files",
    "ftfy": "data.clean",
    "huggingface_hub": "hub",
    "llguidance": "engine.guide",
    "lm_eval": "evaluate",
    "matplotlib": "plot",
    "orbax": "checkpoint",
    "ray": ("cluster", "serve.replicas"),  # who connects, and who stays with it
    "safetensors": None,
    "starlette": "serve",
    "tiktoken": "bpe",
    "tokenizers": "tokenizer",
    "torch": None,
    "transformers": None,
    "uvicorn": "serve",
}
WITHOUT_JAX = {"errors", "config", "hub", "bpe", "tokenizer", "transcript", "data"}
JAX = {"jax", "jaxlib", "optax", "orbax"}

MODULE_LINES = 400
FUNCTION_LINES = 60

FILES = sorted(SOURCE.rglob("*.py"))


def name(file: Path) -> str:
    """The module's dotted name below `gptj`: `data/store.py` is `data.store`."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    first = module.split(".")[0]
    return "surface" if first in SURFACE else first


def is_within(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def imports(tree: ast.Module, file: Path) -> Iterator[tuple[int, str]]:
    """Each import anywhere in the module as (line, absolute dotted name); lazy ones count too."""
    package = ("gptj", *file.relative_to(SOURCE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from gptj import model` names a room; `from gptj.model import Params` names a thing.
            yield from (
                (node.lineno, f"{base}.{alias.name}" if base == "gptj" else base)
                for alias in node.names
            )


def own_room(imported: str) -> str | None:
    """The room of ours that an absolute import reaches, or None for a foreign library."""
    if not is_within(imported, "gptj"):
        return None
    target = imported.removeprefix("gptj").lstrip(".").split(".")[0]
    known = target in LEVEL_OF or (SOURCE / target).is_dir() or (SOURCE / f"{target}.py").is_file()
    return room(target) if target and known else "surface"


def doors(found: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The modules that may import a library."""
    return (found,) if isinstance(found, str) else found or ()


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def agree(complaints: list[str]) -> None:
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {file: parse(file) for file in FILES}


def test_every_room_has_a_level():
    agree(
        sorted(
            {
                f"the room gptj/{room(name(file))} has no level: add it to LEVELS in "
                "tests/test_architecture.py, in a row after everything it imports"
                for file in FILES
                if room(name(file)) not in LEVEL_OF
            }
        )
    )


def test_imports_point_downward(trees):
    complaints = []
    for file, tree in trees.items():
        here = room(name(file))
        for line, imported in imports(tree, file):
            there = own_room(imported)
            if there is None or there == here:
                continue
            if LEVEL_OF.get(there, len(LEVELS)) >= LEVEL_OF.get(here, -1):
                complaints.append(
                    f"{file.relative_to(ROOT)}:{line}: {here} may not import {there}; a room "
                    "imports only from lower levels, so pass it in or move what both need down"
                )
    agree(complaints)


def test_each_foreign_library_has_one_door(trees):
    agree(
        [
            f"{file.relative_to(ROOT)}:{line}: {imported} enters only through "
            f"{'tests and benchmarks' if door is None else 'gptj.' + door}"
            for file, tree in trees.items()
            for line, imported in imports(tree, file)
            for library, door in DOORS.items()
            if is_within(imported, library)
            if not any(is_within(name(file), each) for each in doors(door))
        ]
    )


def test_the_data_side_knows_no_jax(trees):
    agree(
        [
            f"{file.relative_to(ROOT)}:{line}: {imported}; preparing data must not start JAX"
            for file, tree in trees.items()
            if room(name(file)) in WITHOUT_JAX
            for line, imported in imports(tree, file)
            if imported.split(".")[0] in JAX
        ]
    )


def test_modules_and_functions_stay_readable(trees):
    complaints = []
    for file, tree in trees.items():
        where = file.relative_to(ROOT)
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            complaints.append(f"{where} has {lines} lines; at most {MODULE_LINES}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    complaints.append(
                        f"{where}:{node.lineno}: {node.name} has {length} lines; "
                        f"at most {FUNCTION_LINES}"
                    )
    agree(complaints)


def test_what_is_public_is_documented(trees):
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    agree(
        [
            f"{file.relative_to(ROOT)}:{node.lineno}: {node.name} has no docstring"
            for file, tree in trees.items()
            for node in tree.body
            if isinstance(node, definitions) and not node.name.startswith("_")
            if ast.get_docstring(node) is None
        ]
    )


@pytest.mark.parametrize(
    ("place", "source", "expected"),
    [
        ("model.py", "import gptj.config", ["config"]),
        ("model.py", "from gptj import config, forward", ["config", "surface"]),
        ("model.py", "def f():\n    from gptj.errors import UserError", ["errors"]),
        ("train/step.py", "from . import state", ["train"]),
        ("train/step.py", "from ..engine import cache", ["engine"]),
        ("train/step.py", "from .. import engine", ["engine"]),
        ("train/step.py", "import gptjx, jax", [None, None]),
    ],
)
def test_every_way_to_import_is_understood(place, source, expected):
    found = [own_room(imported) for _, imported in imports(ast.parse(source), SOURCE / place)]
    assert found == expected


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def plain(requirement: str) -> str:
    """A requirement's normalised name: `jax[cuda13]>=0.10` is `jax`."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, f"{requirement!r} does not start with a package name"
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def locked(lock: str) -> list[str]:
    """The lock's requirements, each with its continuation lines joined."""
    text = (ROOT / "locks" / f"{lock}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("lock", ["demo", "dist", "test"])
def test_a_lock_names_no_host_and_hashes_everything(lock):
    assert "://" not in (ROOT / "locks" / f"{lock}.txt").read_text(encoding="utf-8")
    agree(
        [
            f"locks/{lock}.txt: {requirement[:60]!r} is not a pinned version with a hash"
            for requirement in locked(lock)
            if not re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", requirement)
        ]
    )


@pytest.mark.parametrize(
    ("lock", "extras"), [("demo", ["plot"]), ("test", ["plot", "test", "dev"])]
)
def test_a_lock_holds_what_the_project_asks_for(lock, extras):
    wanted = [*PROJECT["dependencies"], *(each for extra in extras for each in EXTRAS[extra])]
    own_name = PROJECT["name"]
    for own in [each for each in wanted if plain(each) == own_name]:  # gptj-jax[serve]: its parts
        wanted.remove(own)
        inside = own.removeprefix(f"{own_name}[").removesuffix("]")
        wanted += [each for extra in inside.split(",") for each in EXTRAS[extra]]
    missing = {plain(each) for each in wanted} - {plain(each) for each in locked(lock)}
    assert not missing, f"locks/{lock}.txt lacks {sorted(missing)}: run `make lock`"


def test_torch_is_in_no_lock():
    assert "torch" not in {plain(each) for lock in ("demo", "test") for each in locked(lock)}


def test_dependencies_are_names_not_addresses():
    everything = [*PROJECT["dependencies"], *(each for extra in EXTRAS.values() for each in extra)]
    assert [each for each in everything if "@" in each or "://" in each] == []
