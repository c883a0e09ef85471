"""What is released installs in new environments, from the network, and works there."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

import gptj as package
from gptj import kernels
from gptj.kernels import build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12")
KERNELS = [str(ROOT / "tests" / f"test_{name}.py") for name in ("kernels", "causal")]
NATIVE_HERE = sys.platform == "linux" and kernels.available()


@pytest.fixture(scope="module")
def parcels(tmp_path_factory) -> Path:
    """The folder with what `make dist` leaves of a copy of the source; GPTJ_DIST names another."""
    if made := os.environ.get("GPTJ_DIST"):
        return Path(made)
    copy = tmp_path_factory.mktemp("dist") / "source"
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "runs", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    command = ["make", "dist", f"PYTHON={sys.executable}"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    return copy / "dist"


@pytest.fixture(scope="module")
def environment(parcels, tmp_path_factory):
    """Makes an environment that holds the wheel and nothing else: returns its folder of programs.

    Args:
      python: a version that uv finds, or a path.
      extra: of the wheel's.
      pure: take the wheel without native programs.
    """

    def made(python: str = PYTHONS[0], extra: str = "", pure: bool = False) -> Path:
        where = tmp_path_factory.mktemp("venv")
        new_environment(where, python)
        wheel = wheel_of(parcels, pure)
        uv(*install(where), f"{wheel}[{extra}]" if extra else wheel)
        return where / "bin"

    return made


def new_environment(where: Path, python: str) -> None:
    command = [sys.executable, "-m", "uv", "python", "find", "--no-python-downloads", python]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"no Python {python} on this machine")
    uv("venv", "--quiet", "--python", python, where)


def uv(*words) -> str:
    command = [sys.executable, "-m", "uv", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def install(venv: Path) -> tuple[object, ...]:
    return "pip", "install", "--quiet", "--python", venv / "bin" / "python"


def wheel_of(parcels: Path, pure: bool = False) -> Path:
    """The wheel for everyone, or that for this machine where there is one."""
    (everyone,) = parcels.glob("*-py3-none-any.whl")
    own = [] if pure else parcels.glob("*-manylinux*.whl")
    return next(iter(own), everyone)


def told(programs: Path, *words, folder: Path) -> str:
    """What a verb says, run outside the source with a cache of its own."""
    settings = {"HOME": str(folder), "PATH": f"{programs}:/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [programs / "gptj", *map(str, words)],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestWhatIsBuilt:
    def test_source_wheels_and_a_list_of_parts(self, parcels):
        version = package.__version__
        names = {path.name for path in parcels.iterdir()}
        assert f"gptj_jax-{version}.tar.gz" in names
        assert f"gptj_jax-{version}-py3-none-any.whl" in names
        assert f"gptj-jax-{version}.cdx.json" in names
        assert (wheel_of(parcels) != wheel_of(parcels, pure=True)) == NATIVE_HERE

    @pytest.mark.parametrize("pure", [True, False])
    def test_a_wheel_has_types_sources_and_where_it_is_for_a_machine_every_level(
        self, parcels, pure
    ):
        wheel = wheel_of(parcels, pure)
        names = zipfile.ZipFile(wheel).namelist()
        assert {"gptj/py.typed", "gptj/kernels/decode.cc", "gptj/kernels/floats.h"} <= {*names}
        assert not [name for name in names if not name.startswith(("gptj/", "gptj_jax-"))]
        libraries = {Path(name).name for name in names if name.endswith(".so")}
        levels = {level.file for level in build.levels(platform.machine())}
        assert libraries == (set() if wheel.stem.endswith("-any") else levels)

    def test_the_source_makes_the_same_wheel(self, parcels, tmp_path):
        (source,) = parcels.glob("*.tar.gz")
        uv("build", "--quiet", "--wheel", "--python", sys.executable, "-o", tmp_path, source)
        (again,) = tmp_path.glob("*.whl")  # without jaxlib beside it: for everyone
        one, other = (
            {entry.filename: entry.CRC for entry in zipfile.ZipFile(path).infolist()}
            for path in (again, wheel_of(parcels, pure=True))
        )
        assert one == other

    def test_the_list_of_parts_is_the_lock(self, parcels):
        (file,) = parcels.glob("*.cdx.json")
        listed = json.loads(file.read_text())
        assert listed["bomFormat"] == "CycloneDX"
        assert listed["metadata"]["component"]["version"] == package.__version__
        pinned = re.findall(
            r"^([a-z0-9.-]+)==(\S+)", (ROOT / "locks/demo.txt").read_text(), re.MULTILINE
        )
        assert sorted((part["name"], part["version"]) for part in listed["components"]) == sorted(
            pinned
        )


class TestAnInstallation:
    @pytest.mark.parametrize("python", PYTHONS)
    @pytest.mark.parametrize("pure", [False, True], ids=["native", "pure"])
    def test_without_extras_it_generates(self, environment, python, pure, tiny_run, tmp_path):
        programs = environment(python, pure=pure)
        assert told(programs, "--version", folder=tmp_path) == f"gptj {package.__version__}\n"
        words = ("generate", tiny_run, "--prompt", "the cat", "--max-tokens", 8)
        assert told(programs, *words, "--temperature", 0, folder=tmp_path).startswith("the cat")
        found = json.loads(told(programs, "doctor", "--json", folder=tmp_path))
        assert found["broken"] == 0
        (native,) = (row for row in found["found"] if row["part"] == "kernels")
        if NATIVE_HERE:
            best = build.here().name
            whose = "compiled here" if pure else "a wheel's"
            assert native["found"].startswith(f"{whose}, for {best}: ")

    @pytest.mark.parametrize("level", build.levels(platform.machine()), ids=lambda each: each.name)
    @pytest.mark.skipif(not NATIVE_HERE, reason="no wheel with native programs is made here")
    def test_each_library_of_a_wheel_keeps_the_laws_of_the_native_programs(
        self, parcels, level, tmp_path
    ):
        if not level.features <= build.features():
            pytest.skip(f"this processor is not of the level {level.name}")
        zipfile.ZipFile(wheel_of(parcels)).extractall(tmp_path)
        (tmp_path / "of_a_level.py").write_text(
            "def pytest_configure():\n"  # as late as pytest wants
            "    from gptj import kernels\n"
            "    levels = {level.name: level for level in kernels.build.X86_64}\n"
            f"    kernels.build.here = lambda: levels[{level.name!r}]\n"
            f"    assert kernels.place().name == {level.file!r}\n"
        )
        words = ("-q", "-p", "no:cacheprovider", "-p", "of_a_level", *KERNELS)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    def test_the_instructions_in_each_library_are_those_of_its_level(self, parcels, tmp_path):
        if not (objdump := shutil.which("objdump")) or platform.machine() != "x86_64":
            pytest.skip("no objdump, or another kind of processor")
        zipfile.ZipFile(wheel_of(parcels)).extractall(tmp_path)
        registers = {"avx2": "%ymm", "avx512": "%zmm", "amx-bf16": "%tmm"}
        for place, level in enumerate(build.X86_64):
            library = tmp_path / "gptj" / "kernels" / level.file
            code = subprocess.run(
                [objdump, "-d", library], capture_output=True, text=True, check=True
            ).stdout
            for needs, register in registers.items():
                above = [each.name for each in build.X86_64[: place + 1]]
                assert (register in code) == (needs in above), (level.name, register)


class TestExtras:
    """Each alone: what it is for works, and no other is there."""

    @pytest.mark.parametrize("extra", ["tpu", "cuda"])
    def test_those_for_accelerators_resolve(self, parcels, extra, tmp_path):
        new_environment(tmp_path / "venv", PYTHONS[1])
        words = ("pip", "install", "--dry-run", "--python", tmp_path / "venv" / "bin" / "python")
        said = uv(*words, f"{wheel_of(parcels)}[{extra}]")
        assert {"tpu": "libtpu==", "cuda": "jax-cuda13-plugin=="}[extra] in said

    def test_data_prepares_a_table(self, environment, tmp_path):
        programs = environment(extra="data")
        code = (
            "import pyarrow as pa, pyarrow.parquet as pq\n"
            "pq.write_table(pa.table({'text': ['the cat sat. ' * 40] * 4}), 'texts.parquet')"
        )
        subprocess.run([programs / "python", "-c", code], cwd=tmp_path, check=True)
        words = ("prepare", "texts.parquet", "--out", "out", "--tokenizer", "bytes", "--ftfy")
        assert "tokens" in told(programs, *words, "--held-out", 0, folder=tmp_path)

    def test_plot_draws_a_run(self, environment, own_run, tmp_path):
        told(environment(extra="plot"), "plot", own_run, "--out", "curves.png", folder=tmp_path)
        assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"

    def test_eval_measures_a_task(self, environment, tiny_run, tmp_path):
        programs = environment(extra="eval")
        said = told(programs, "eval", "--help", folder=tmp_path)
        assert "--tasks" in said
        code = "import gptj.evaluate.harness, lm_eval.tasks, datasets"
        subprocess.run([programs / "python", "-c", code], cwd=tmp_path, check=True)
        text = tmp_path / "book.txt"
        text.write_text("the cat sat on the mat. " * 20)
        assert "bits" in told(programs, "eval", tiny_run, "--text", text, folder=tmp_path)

    @pytest.mark.parametrize("url", ["gs://no-such-bucket-of-anyone/a.txt", "s3://no-such/a.txt"])
    def test_cloud_opens_addresses(self, environment, tmp_path, url):
        programs = environment(extra="cloud")
        code = f"import fsspec; print(fsspec.core.url_to_fs({url!r}, anon=True)[1])"
        code = code if url.startswith("s3") else code.replace("anon=True", "token='anon'")
        done = subprocess.run([programs / "python", "-c", code], capture_output=True, check=True)
        assert b"a.txt" in done.stdout

    def test_ray_prepares_on_a_cluster(self, environment, tiny_text, tmp_path):
        words = ("--out", "out", "--tokenizer", "bytes", "--ray")
        said = told(environment(extra="ray"), "prepare", tiny_text, *words, folder=tmp_path)
        assert "tokens" in said

    def test_serve_answers(self, environment, tiny_run, tmp_path):
        programs = environment(extra="serve")
        settings = {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}
        command = [programs / "gptj", "serve", str(tiny_run), "--port", "8791"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as server:
            try:
                (choice,) = answers("http://127.0.0.1:8791/v1/completions", server)["choices"]
                assert choice["text"]
            finally:
                server.terminate()


def answers(url: str, server: subprocess.Popen, seconds: float = 120) -> dict:
    """What a server completes once it is up and warm."""
    asked = urllib.request.Request(
        url, b'{"prompt": "the cat", "max_tokens": 4}', {"Content-Type": "application/json"}
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(asked) as response:
                return json.load(response)
        except OSError:
            time.sleep(0.5)
    raise AssertionError(server.stdout.read().decode())
