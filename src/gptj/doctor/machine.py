"""The machine: its devices, native programs, memory, and room on its disks."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptj import cores, hub
from gptj.doctor.finding import Finding, size

SETTINGS = (
    *("CUDA_VISIBLE_DEVICES", "CXX", "GPTJ_NATIVE", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"),
    *("JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS", "LIBTPU_INIT_ARGS", "XDG_CACHE_HOME"),
    *("XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"),
)
"""Of the environment: what changes what the program does, and holds no secret."""

SMALL = 1e9
"""Bytes of room below which a disk is worth a word."""


def devices() -> Iterator[Finding]:
    """What JAX finds, and accelerators that it does not."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # to look takes no memory
    try:
        import jax

        from gptj.hardware import hush_libtpu

        hush_libtpu()
        found = jax.local_devices()
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        asked = os.environ.get("JAX_PLATFORMS")
        remedy = f"unset JAX_PLATFORMS, which is {asked!r}, or mend what it names"
        mend = remedy if asked else "pip install --force-reinstall 'gptj-jax'"
        yield Finding("devices", "jax", f"{type(error).__name__}: {lines[0]}", "broken", mend)
        return
    for (kind, on, memory), count in Counter(map(_described, found)).items():
        yield Finding("devices", on, f"{count} x {kind}{memory}")
    yield from unused({device.platform for device in found})


def _described(device: Any) -> tuple[str, str, str]:
    """Its kind, its platform, and its memory where that is known."""
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # a platform that cannot say
        limit = None
    return device.device_kind, device.platform, f", {size(limit)} each" if limit else ""


def unused(platforms: set[str], dev: Path = Path("/dev")) -> Iterator[Finding]:
    """Accelerators that the system has and JAX does not use."""
    if any(dev.glob("nvidia[0-9]*")) and not platforms & {"gpu", "cuda"}:
        yield Finding(
            "devices", "gpu", "an NVIDIA GPU that JAX does not use", "note",
            "pip install 'gptj-jax[cuda]', with a driver that CUDA 13 takes",
        )  # fmt: skip
    if any(dev.glob("accel[0-9]*")) and "tpu" not in platforms:
        yield Finding(
            "devices", "tpu", "a TPU that JAX does not use", "note",
            "pip install 'gptj-jax[tpu]', and end the program that holds the TPU, if one does",
        )  # fmt: skip


def native() -> Iterator[Finding]:
    """Whether the CPU's native programs are here, for which instructions, or why not."""
    from gptj import kernels
    from gptj.kernels import build

    level = build.here()
    if kernels.left_out():
        yield Finding(
            "kernels", "CPU", "left out by GPTJ_NATIVE=0: slower", "note", "unset GPTJ_NATIVE"
        )
    elif level is None:
        yield Finding("kernels", "CPU", "none for a processor without AVX2 and FMA: slower", "note")
    elif (path := kernels.place()).exists():
        whose = "a wheel's" if path.parent == build.SOURCE.parent else "compiled here"
        yield Finding("kernels", "CPU", f"{whose}, for {level.name}: {path}")
    elif compiler := build.compiler():
        yield Finding(
            "kernels", "CPU", f"to be compiled at first use, for {level.name}, by {compiler}"
        )
    else:
        yield Finding(
            "kernels", "CPU", "not here, and no compiler to make them: slower", "note",
            "install g++, or name a C++ compiler in CXX",
        )  # fmt: skip


def memory() -> Iterator[Finding]:
    """Cores, and the memory there is and may be used."""
    yield Finding("memory", "cores", str(cores.usable()))
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = _available(Path("/proc/meminfo"))
    said = size(whole) + (f", {size(free)} available" if free is not None else "")
    if (limit := _limit(Path("/sys/fs/cgroup/memory.max"))) is not None and limit < whole:
        said += f"; limited to {size(limit)} here"
    yield Finding("memory", "RAM", said)


def _available(meminfo: Path) -> int | None:
    """Bytes that programs could take, as Linux says it."""
    text = meminfo.read_text() if meminfo.exists() else ""
    found = re.search(r"^MemAvailable: +(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _limit(cgroup: Path) -> int | None:
    """Bytes that a container may take, if it is told."""
    text = cgroup.read_text().strip() if cgroup.exists() else "max"
    return int(text) if text.isdigit() else None


def disk(here: Path) -> Iterator[Finding]:
    """The folders that files go to: what is in the caches, and the room beside it."""
    models = "downloaded models", hub.folder(), "HF_HOME"
    yield _room(*models, weigh=True)
    from gptj import caches  # needs JAX

    yield _room("compiled programs", caches.folder(), "XDG_CACHE_HOME", weigh=True)
    yield _room("runs, from here", here, "")


def _room(what: str, folder: Path, setting: str, weigh: bool = False) -> Finding:
    """How much is in a folder and how much more could be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{size(free)} free"
    if weigh:
        found = f"{size(_weight(folder))} held, {found}"
    elsewhere = f"set {setting} to a folder elsewhere" if setting else "work in another folder"
    if not os.access(there, os.W_OK):
        return Finding("disk", what, f"{folder}: cannot be written", "note", elsewhere)
    if free < SMALL:
        return Finding("disk", what, f"{folder}: {found}", "note", f"free some, or {elsewhere}")
    return Finding("disk", what, f"{folder}: {found}")


def _weight(folder: Path) -> int:
    """Bytes of the files in a folder, links not followed."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(at, name)).st_size
            except OSError:  # gone meanwhile
                continue
    return total


def settings() -> Iterator[Finding]:
    """What the environment sets."""
    for name in SETTINGS:
        if name in os.environ:
            yield Finding("settings", name, os.environ[name])
