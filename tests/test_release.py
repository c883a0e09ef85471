"""What is released: it is of one version, light, and declares what it uses.

That it installs is in `test_installation.py`.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gptj as package
from gptj import kernels
from gptj.doctor import packages
from gptj.kernels import build

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gptj"
SOURCE_OF_NAMES = (SOURCE / "__init__.py").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOR_DEVELOPERS = {"test", "dev", "docs"}
EXTRAS = {
    name: wanted
    for name, wanted in PROJECT["optional-dependencies"].items()
    if name not in FOR_DEVELOPERS
}

MODULE = {
    "google-crc32c": "google_crc32c",
    "huggingface-hub": "huggingface_hub",
    "lm-eval": "lm_eval",
    "ml-dtypes": "ml_dtypes",
    "orbax-checkpoint": "orbax",
    "prometheus-client": "prometheus_client",
    "tensorboardx": "tensorboardX",
}
"""Where the module is not named as the package is."""

NOT_IMPORTED = {
    "gcsfs": "fsspec loads it for gs://",
    "s3fs": "fsspec loads it for s3://",
}
"""Declared and imported nowhere, and why."""

BROUGHT = {"pydantic_core": "pydantic"}
"""A module that is another package's own half, pinned by it."""

USERS = {
    "serve": {"serve", "cli.serve", "engine.guide", "transcript"},
    "data": {"data"},
    "eval": {"evaluate", "cli.evaluate", "data.clean"},
    "cloud": set(),
    "ray": {"cluster", "serve.replicas"},
    "tpu": set(),
    "cuda": set(),
    "plot": {"plot"},
}
"""The modules whose verbs need an extra; no other may import what it alone brings."""


def plain(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def module_of(requirement: str) -> str:
    return MODULE.get(plain(requirement), plain(requirement))


def foreign_imports() -> dict[str, set[str]]:
    """Each foreign module at the top of an import in `src/`, and our modules that do it."""
    found: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        ours = ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for top in {name.split(".")[0] for name in names}:
                if top not in sys.stdlib_module_names and top != "gptj":
                    found.setdefault(BROUGHT.get(top, top), set()).add(ours)
    return found


class TestDependencies:
    def test_every_one_is_imported_or_has_a_reason(self):
        imported = foreign_imports()
        declared = {each for wanted in EXTRAS.values() for each in wanted}
        unused = {
            plain(each)
            for each in {*PROJECT["dependencies"], *declared}
            if module_of(each) not in imported and plain(each) not in NOT_IMPORTED
        }
        assert not unused, "declared in pyproject.toml and imported nowhere in src/"
        assert not [name for name in NOT_IMPORTED if module_of(name) in imported]

    def test_every_import_is_declared_where_its_verb_finds_it(self):
        core = {module_of(each) for each in PROJECT["dependencies"]}
        complaints = [
            f"{ours} imports {module}, which is neither in the core nor in an extra of its verb"
            for module, users in foreign_imports().items()
            if module not in core
            for ours in sorted(users)
            if not any(
                module in map(module_of, wanted)
                and any(ours == user or ours.startswith(f"{user}.") for user in USERS[extra])
                for extra, wanted in EXTRAS.items()
            )
        ]
        assert not complaints, "\n".join(complaints)

    def test_the_doctor_knows_every_extra(self):
        assert set(packages.EXTRAS) == set(EXTRAS) == set(USERS)


class TestVersion:
    def test_it_is_one(self, gptj):
        version = PROJECT["version"]
        assert package.__version__ == version
        assert gptj("--version").out == f"gptj {version}\n"
        cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
        assert cited[1] == version

    def test_it_is_semantic_and_the_changelog_says_what_that_promises(self):
        assert re.fullmatch(r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?", PROJECT["version"])
        log = (ROOT / "CHANGELOG.md").read_text()
        assert "Semantic Versioning" in log
        assert "## [Unreleased]" in log


class TestLightness:
    """Counted in modules rather than in seconds, which depend on the machine."""

    @pytest.mark.parametrize("words", [["--help"], ["--version"], []])
    def test_the_command_itself_loads_nothing_foreign(self, words):
        program = (
            f"import sys; from gptj import cli; cli.main({words!r})\n"
            "print(*sorted(sys.modules), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-S", "-c", program],  # without what the environment itself loads
            env={**os.environ, "PYTHONPATH": str(SOURCE.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
        loaded = done.stderr.split()
        tops = {name.split(".")[0] for name in loaded} - {"__main__", "gptj"}
        assert tops <= sys.stdlib_module_names
        assert {name for name in loaded if name.startswith("gptj")} == {
            *("gptj", "gptj.cli", "gptj.errors")
        }

    def test_every_public_name_is_found_where_it_lives(self):
        homes = [(home, name) for home, names in package._HOMES.items() for name in names]
        assert sorted(name for _, name in homes) == sorted(package.__all__)
        for home, name in homes:
            assert getattr(package, name) is getattr(importlib.import_module(f"gptj.{home}"), name)
        typed = re.findall(r"^    from gptj\.(\S+) import (.*)$", SOURCE_OF_NAMES, re.MULTILINE)
        assert {home: tuple(names.split(", ")) for home, names in typed} == package._HOMES
        assert set(package.__all__) <= set(dir(package))

    def test_train_stays_the_function_when_the_package_of_that_name_is_loaded(self):
        package.train = importlib.import_module("gptj.train")  # as the import system does
        assert callable(package.train)
        package.train = replaced = object()
        assert package.train is replaced
        del package.train
        assert callable(package.train)

    def test_another_name_is_refused(self):
        with pytest.raises(AttributeError, match="has no attribute 'trian'"):
            package.trian  # noqa: B018


class TestLevels:
    """Which of a wheel's libraries a processor gets."""

    def test_each_runs_all_that_those_before_it_do(self):
        for lower, higher in zip(build.X86_64, build.X86_64[1:], strict=False):
            assert lower.features < higher.features

    @pytest.mark.parametrize(
        ("has", "level"),
        [
            ((), None),
            (build.X86_64[3].features - {"fma"}, None),
            (build.X86_64[0].features, "avx2"),
            (build.X86_64[0].features | {"avx512f", "avx512_bf16"}, "avx2"),
            (build.X86_64[1].features | {"amx_bf16", "amx_tile"}, "avx512"),
            (build.X86_64[2].features | {"sha_ni"}, "avx512-bf16"),
            (build.X86_64[3].features, "amx-bf16"),
        ],
    )
    def test_a_processor_gets_the_best_that_it_runs_whole(self, has, level):
        found = build.best("x86_64", has)
        assert (found and found.name) == level

    def test_elsewhere_there_is_one_for_all(self):
        assert build.best("aarch64", ()).flags == ()

    def test_a_source_tree_ships_none(self):
        assert build.shipped() is None

    def test_without_a_compiler_the_reason_and_the_remedy_are_said(self, monkeypatch, tmp_path):
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(build.CannotBuild, match="install g\\+\\+, or name one in CXX"):
            build.compile_to(tmp_path / "made.so", "nowhere")

    def test_a_compiler_that_fails_leaves_nothing(self, monkeypatch, tmp_path):
        compiler = tmp_path / "compiler"
        compiler.write_text("#!/bin/sh\necho 'decode.cc:1: error: no such header' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        with pytest.raises(build.CannotBuild, match="no such header"):
            build.compile_to(tmp_path / "out" / "made.so", "nowhere")
        assert list((tmp_path / "out").iterdir()) == []

    def test_what_is_compiled_is_there_whole_or_the_folder_is_named(self, monkeypatch, tmp_path):
        compiler = tmp_path / "compiler"
        compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n')
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        build.compile_to(tmp_path / "out" / "made.so", "nowhere")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["made.so"]
        with pytest.raises(build.CannotBuild, match="compiler cannot be written: "):
            build.compile_to(compiler / "made.so", "nowhere")

    def test_where_there_are_none_that_is_no_error(self, monkeypatch, tmp_path):
        monkeypatch.setattr(kernels, "place", lambda: tmp_path / "made.so")
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert kernels._library.__wrapped__() is None
        monkeypatch.setenv("GPTJ_NATIVE", "0")
        monkeypatch.setattr(build, "compile_to", lambda *_: pytest.fail("they were asked for"))
        assert kernels._library.__wrapped__() is None

    @pytest.mark.skipif(not kernels.available(), reason="no g++ to build them with")
    def test_one_made_for_a_later_jax_is_left_alone(self, monkeypatch, tmp_path):
        header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
        header.parent.mkdir(parents=True)
        here = kernels.place()
        assert kernels._serves(here)
        monkeypatch.setattr("jax.ffi.include_dir", lambda: str(tmp_path))
        for version, serves in {(0, 0): False, (0, 99): True, (1, 99): False}.items():
            major, minor = version
            header.write_text(
                f"#define XLA_FFI_API_MAJOR {major}\n#define XLA_FFI_API_MINOR {minor}\n"
            )
            assert kernels._serves(here) == serves
