"""`gptj doctor`: it tells what is here, survives what is not, and blames only what is needed."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from gptj import kernels
from gptj.cli import doctor as verb
from gptj.doctor import examine, machine, packages
from gptj.doctor.finding import Finding, size, told
from gptj.kernels import build

PARTS = {"versions", "devices", "kernels", "memory", "disk", "extras"}


def states(found) -> dict[str, str]:
    return {each.what: each.state for each in found}


class TestTheVerb:
    def test_as_json_it_tells_of_every_part(self, gptj):
        code, out, err = gptj("doctor", "--json")
        said = json.loads(out)
        assert (code, err, said["broken"]) == (0, "", 0)
        assert {row["part"] for row in said["found"]} - {"settings"} == PARTS
        assert {row["what"] for row in said["found"] if row["part"] == "extras"} == {
            *packages.EXTRAS
        }

    def test_for_people_each_remedy_stands_under_what_it_mends(self, gptj, monkeypatch):
        rows = [
            Finding("extras", "plot", "matplotlib is missing", "note", "pip install 'x[plot]'"),
            Finding("devices", "cpu", "1 x cpu"),
        ]
        monkeypatch.setattr(verb, "examine", lambda here: iter(rows))
        code, out, _ = gptj("doctor")
        assert code == 0
        lines = [" ".join(line.split()) for line in out.splitlines()]
        at = lines.index("extras plot note matplotlib is missing")
        assert lines[at + 1] == "pip install 'x[plot]'"
        assert "devices cpu 1 x cpu" in lines

    def test_what_is_broken_is_the_exit_status(self, gptj, monkeypatch):
        broken = Finding("devices", "jax", "RuntimeError", "broken", "mend it")
        monkeypatch.setattr(verb, "examine", lambda here: [broken])
        assert gptj("doctor").code == 1
        assert json.loads(gptj("doctor", "--json").out)["broken"] == 1

    @pytest.mark.parametrize("module", ["jax", "numpy"])
    def test_without_what_it_needs_it_says_so_and_tells_the_rest(self, module, tmp_path):
        (tmp_path / f"{module}.py").write_text("raise ImportError('gone\\nfor good')\n")
        done = run("doctor", "--json", paths=(tmp_path,), JAX_PLATFORMS="cpu")
        said = json.loads(done.stdout)
        assert (done.returncode, said["broken"]) == (1, 1)
        assert {row["part"] for row in said["found"]} >= PARTS
        (device,) = (row for row in said["found"] if row["part"] == "devices")
        assert "gone" in device["found"] or module != "jax"  # JAX has its own words for others
        assert "for good" not in device["found"]
        assert device["remedy"]

    def test_a_platform_that_is_not_there_is_named_with_the_setting_that_asked_for_it(self):
        done = run("doctor", "--json", JAX_PLATFORMS="rocket")
        said = json.loads(done.stdout)
        (device,) = (row for row in said["found"] if row["part"] == "devices")
        assert (done.returncode, device["state"]) == (1, "broken")
        assert "'rocket'" in device["remedy"]


def run(*words, paths=(), **settings) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which `paths` come before all packages."""
    source = Path(packages.__file__).parents[2]
    path = os.pathsep.join(map(str, (*paths, source)))
    return subprocess.run(
        [sys.executable, "-m", "gptj.cli", *words],
        env={**os.environ, **settings, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_check_that_fails_is_told_in_one_line():
    def check():
        yield Finding("disk", "one", "good")
        raise OSError("no such thing\nand more")

    first, last = told("disk", check, "note")
    assert first.what == "one"
    assert last == Finding("disk", "disk", "OSError: no such thing", "note")
    (broken,) = told("versions", lambda: 1 / 0)
    assert (broken.state, bool(broken.remedy)) == ("broken", True)


def test_every_part_may_fail_and_the_others_are_told(monkeypatch, tmp_path):
    def failing(*_):
        raise RuntimeError

    for module, names in {
        machine: ("devices", "native", "memory", "disk"),
        packages: ("versions", "extras"),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, failing)
    found = [each for each in examine(tmp_path) if each.part != "settings"]
    assert {each.part for each in found} == PARTS
    assert {each.part for each in found if each.state == "broken"} == {"versions", "devices"}


class TestPackages:
    @pytest.mark.parametrize(
        ("wanted", "problem"),
        [
            ("pytest", ""),
            ("pytest>=1", ""),
            ("pytest<1", f"{metadata.version('pytest')} is not <1"),
            ("no-such-package", "is missing"),
        ],
    )
    def test_a_requirement_is_met_or_it_is_said_how_not(self, wanted, problem):
        assert packages.trouble(Requirement(wanted)) == problem

    def test_extras_of_requirements_are_spelt_out(self, monkeypatch):
        said = {
            packages.NAME: [
                *("jax", 'z; python_version>"3"'),
                *('jax[tpu]; extra == "tpu"', 'x; extra == "plot"'),
            ],
            "jax": ["numpy", 'libtpu; extra == "tpu"', 'y; extra == "tpu" and python_version<"3"'],
        }
        monkeypatch.setattr(metadata, "requires", said.get)
        assert [each.name for each in packages.required(packages.NAME)] == ["jax", "z"]
        assert [each.name for each in packages.required(packages.NAME, "tpu")] == ["jax", "libtpu"]

    def test_what_is_needed_and_missing_is_broken_and_an_extra_is_not(self, monkeypatch):
        wanted = ["no-such>=1", 'nor-this; extra == "plot"']
        monkeypatch.setattr(metadata, "requires", lambda name: wanted)
        (needed,) = (each for each in packages.versions() if each.what == "no-such")
        assert (needed.state, needed.remedy) == ("broken", "pip install 'no-such>=1'")
        extras = {each.what: each for each in packages.extras()}
        assert extras["plot"].state == "note"
        assert extras["plot"].found.startswith("nor-this is missing; ")
        assert extras["plot"].remedy == "pip install 'gptj-jax[plot]'"

    def test_from_its_source_it_says_that_it_is_not_installed(self, monkeypatch):
        def absent(name):
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "requires", absent)
        monkeypatch.setattr(metadata, "version", absent)
        assert states(packages.versions())[packages.NAME] == "note"
        assert set(states(packages.extras()).values()) == {"note"}


class TestTheMachine:
    def test_it_counts_the_devices_of_a_kind(self, monkeypatch):
        kept = [SimpleNamespace(device_kind="H100", platform="gpu") for _ in range(3)]
        for device in kept:
            device.memory_stats = lambda: {"bytes_limit": 80e9}
        kept[-1].memory_stats = lambda: 1 / 0
        monkeypatch.setattr("jax.local_devices", lambda: kept)
        found = [each.found for each in machine.devices() if each.state == "good"]
        assert found == ["2 x H100, 80 GB each", "1 x H100"]

    @pytest.mark.parametrize(("file", "extra"), [("nvidia0", "cuda"), ("accel0", "tpu")])
    def test_an_accelerator_that_is_not_used_is_named_with_the_extra(self, file, extra, tmp_path):
        assert list(machine.unused({"cpu"}, tmp_path)) == []
        (tmp_path / file).touch()
        (found,) = machine.unused({"cpu"}, tmp_path)
        assert (found.state, f"gptj-jax[{extra}]" in found.remedy) == ("note", True)
        assert list(machine.unused({"cuda", "tpu"}, tmp_path)) == []

    @pytest.mark.skipif(kernels.left_out() or not shutil.which("g++"), reason="no g++, or no wish")
    def test_where_there_is_a_compiler_there_are_native_programs(self):
        """Or else all that is tested of them would be skipped, and nobody told."""
        assert kernels.available()

    def test_of_native_programs_it_says_where_or_why_not(self, monkeypatch, tmp_path):
        def told() -> Finding:
            (found,) = machine.native()
            return found

        library = tmp_path / "decode.so"
        monkeypatch.setattr(kernels, "place", lambda: library)
        monkeypatch.setattr(build, "compiler", lambda: "/bin/g++")
        assert told().found.endswith("by /bin/g++")
        monkeypatch.setattr(build, "compiler", lambda: None)
        assert "install g++" in told().remedy
        library.touch()
        assert told().found.startswith("compiled here, for ")
        monkeypatch.setattr(kernels, "place", lambda: build.SOURCE)
        assert told().found.startswith("a wheel's, for ")
        monkeypatch.setenv("GPTJ_NATIVE", "0")
        assert told().remedy == "unset GPTJ_NATIVE"

    def test_a_container_says_its_own_memory(self, monkeypatch):
        monkeypatch.setattr(machine, "_limit", lambda _: 10**9)
        assert "limited to 1 GB here" in [each.found for each in machine.memory()][-1]

    @pytest.mark.parametrize(("text", "limit"), [("max\n", None), ("1024\n", 1024), (None, None)])
    def test_a_limit_is_read_as_it_is_told(self, text, limit, tmp_path):
        file = tmp_path / "memory.max"
        if text is not None:
            file.write_text(text)
        assert machine._limit(file) == limit

    def test_a_cache_is_weighed_and_a_folder_to_be_is_not_made(self, tmp_path, monkeypatch):
        (tmp_path / "hub" / "deep").mkdir(parents=True)
        (tmp_path / "hub" / "deep" / "file").write_bytes(b"x" * 2000)
        monkeypatch.setattr("gptj.hub.folder", lambda: tmp_path / "hub")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "to-be"))
        models, programs, runs = machine.disk(tmp_path)
        assert ": 2 kB held, " in models.found
        assert f"{tmp_path / 'to-be' / 'gptj'}: 0 B held, " in programs.found
        assert runs.found.startswith(f"{tmp_path}: ")
        assert not (tmp_path / "to-be").exists()

    def test_a_full_disk_and_one_that_cannot_be_written_are_worth_a_word(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=5e8))
        assert "free some, or set HF_HOME" in next(iter(machine.disk(tmp_path))).remedy
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert {each.found.split(": ")[-1] for each in machine.disk(tmp_path)} == {
            "cannot be written"
        }

    def test_settings_are_shown_and_secrets_are_not(self, monkeypatch):
        monkeypatch.setenv("GPTJ_NATIVE", "1")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        found = {each.what: each.found for each in machine.settings()}
        assert found["GPTJ_NATIVE"] == "1"
        assert "hf_secret" not in found.values()


class TestWhatIsSaid:
    def test_a_failure_without_a_word_is_told_too(self):
        def fail():
            raise RuntimeError(" \n")

        (found,) = told("disk", fail)
        assert (found.found, found.part) == ("RuntimeError: no reason given", "disk")

    def test_a_release_before_the_first_meets_what_asks_for_more(self, monkeypatch):
        monkeypatch.setattr(metadata, "version", lambda name: "2.0rc1")
        assert packages.trouble(Requirement("x>=1.5")) == ""
        assert packages.trouble(Requirement("x>=2")) == "2.0rc1 is not >=2"

    def test_ourselves_come_first_jaxlib_is_not_forgotten_and_each_is_told_once(self, monkeypatch):
        said = {packages.NAME: ["jax", "jax"], "jax": ["jaxlib>=1", "other"]}
        monkeypatch.setattr(metadata, "requires", said.get)
        monkeypatch.setattr(metadata, "version", lambda name: "1.5")
        found = [(each.what, each.found) for each in packages.versions()]
        assert found[0][1].endswith(sys.executable)
        expected = ["python", packages.NAME, "jax", "jaxlib"]
        assert [what for what, _ in found] == expected
        assert {text for _, text in found[1:]} == {"1.5"}

    def test_jax_without_a_setting_is_to_be_reinstalled(self, monkeypatch):
        def fail():
            raise RuntimeError("broken\nby much")

        monkeypatch.setattr("jax.local_devices", fail)
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        (found,) = machine.devices()
        assert (found.state, found.found) == ("broken", "RuntimeError: broken")
        assert found.remedy == "pip install --force-reinstall 'gptj-jax'"
        monkeypatch.setenv("JAX_PLATFORMS", "tpu")
        (found,) = machine.devices()
        assert found.remedy == "unset JAX_PLATFORMS, which is 'tpu', or mend what it names"

    @pytest.mark.parametrize("platform", ["gpu", "cuda"])
    def test_a_gpu_that_is_used_is_not_missed_by_either_name(self, platform, tmp_path):
        for name in ("nvidia0", "accel0"):
            (tmp_path / name).touch()
        assert [each.what for each in machine.unused({platform}, tmp_path)] == ["tpu"]
        assert [each.what for each in machine.unused({"tpu"}, tmp_path)] == ["gpu"]
        (tmp_path / "nvidia0").rename(tmp_path / "nvidiactl")
        assert list(machine.unused({"tpu"}, tmp_path)) == []

    def test_a_processor_too_old_has_no_native_programs(self, monkeypatch):
        monkeypatch.setattr(kernels, "left_out", lambda: False)
        monkeypatch.setattr(build, "here", lambda: None)
        (found,) = machine.native()
        assert (found.state, found.found) == (
            "note",
            "none for a processor without AVX2 and FMA: slower",
        )


class TestMemory:
    @pytest.fixture
    def sizes(self, monkeypatch):
        monkeypatch.setattr(
            os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4_000_000}.__getitem__
        )
        told = {"_available": 10**9, "_limit": None}
        for name in told:
            monkeypatch.setattr(machine, name, lambda _, name=name: told[name])
        return told

    @pytest.mark.parametrize(
        ("available", "limit", "said"),
        [
            (10**9, None, "4 GB, 1 GB available"),
            (None, None, "4 GB"),
            (0, 2 * 10**9, "4 GB, 0 B available; limited to 2 GB here"),
            (None, 4 * 10**9, "4 GB"),  # which is no limit
        ],
    )
    def test_there_is_so_much_and_so_much_may_be_used(
        self, sizes, available, limit, said, monkeypatch
    ):
        sizes.update(_available=available, _limit=limit)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5})
        monkeypatch.setattr(os, "cpu_count", lambda: 12)
        assert [each.found for each in machine.memory()] == ["3", said]
        monkeypatch.delattr(os, "sched_getaffinity")
        assert [each.found for each in machine.memory()] == ["12", said]

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("MemTotal:  9 kB\nMemAvailable:   70 kB\n", 70 * 1024),
            *(("MemTotal:  9 kB\n", None), (None, None)),
        ],
    )
    def test_what_is_available_is_as_linux_says(self, text, size, tmp_path):
        file = tmp_path / "meminfo"
        if text:
            file.write_text(text)
        assert machine._available(file) == size


class TestDisks:
    def test_each_has_its_own_remedy(self, tmp_path, monkeypatch):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9 - 1))
        remedies = [each.remedy for each in machine.disk(tmp_path)]
        assert remedies == [
            "free some, or set HF_HOME to a folder elsewhere",
            "free some, or set XDG_CACHE_HOME to a folder elsewhere",
            "free some, or work in another folder",
        ]
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e9))
        assert {each.state for each in machine.disk(tmp_path)} == {"good"}

    def test_the_room_is_of_the_nearest_folder_there_is(self, tmp_path, monkeypatch):
        asked = []

        def usage(path):
            asked.append(path)
            return SimpleNamespace(free=5e9)

        monkeypatch.setattr(machine.shutil, "disk_usage", usage)
        found = machine._room("runs", tmp_path / "a" / "b", "")
        assert (asked, found.found) == ([tmp_path], f"{tmp_path / 'a' / 'b'}: 5 GB free")

    def test_a_link_weighs_its_own_bytes(self, tmp_path):
        (tmp_path / "big").write_bytes(b"x" * 5000)
        (tmp_path / "link").symlink_to("big")
        assert machine._weight(tmp_path) == 5000 + len("big")


@pytest.mark.parametrize(
    ("count", "said"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1500, "1.5 kB"), (999_499, "999 kB")),
        *((999_700, "1 MB"), (7.2e10, "72 GB"), (2e12, "2 TB"), (3.4e15, "3.4 PB")),
    ],
)
def test_sizes_are_for_people(count, said):
    assert size(count) == said
