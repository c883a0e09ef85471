"""Versions: of Python, of the packages that are needed, and of those that extras bring."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from gptj.doctor.finding import Finding

NAME = "gptj-jax"

EXTRAS = {
    "serve": "gptj serve, and completions that keep to a schema",
    "data": "Parquet, Arrow and TFRecords, mended text, near copies",
    "eval": "gptj eval with tasks",
    "cloud": "texts, models and checkpoints in gs:// and s3://",
    "ray": "--ray: a Ray cluster",
    "tpu": "TPUs; gptj plan for them",
    "cuda": "NVIDIA GPUs",
    "plot": "gptj plot, lr-find --out, pictures",
}
"""Those for users, and what each is for."""


def versions() -> Iterator[Finding]:
    """Of gptj, Python, and every package that it needs."""
    system = f"{platform.system()} {platform.machine()}"
    yield Finding("versions", "python", f"{platform.python_version()}, {system}, {sys.executable}")
    try:
        yield Finding("versions", NAME, metadata.version(NAME))
    except metadata.PackageNotFoundError:
        found = "not installed: it runs from its source"
        yield Finding("versions", NAME, found, "note", "pip install -e .")
    jaxlib = [each for each in required("jax") if each.name == "jaxlib"]
    wanted = (_version(each) for each in required(NAME) + jaxlib)
    yield from dict.fromkeys(wanted)  # what several ask for, once


def _version(wanted: Requirement) -> Finding:
    problem = trouble(wanted)
    found = problem or metadata.version(wanted.name)
    remedy = f"pip install '{wanted.name}{wanted.specifier}'" if problem else ""
    return Finding("versions", wanted.name, found, "broken" if problem else "good", remedy)


def extras() -> Iterator[Finding]:
    """Which extras are here as a whole, and what the others lack."""
    for extra, purpose in EXTRAS.items():
        found = [(each.name, trouble(each)) for each in required(NAME, extra)]
        lacking = [f"{name} {problem}" for name, problem in found if problem]
        if not found:
            yield Finding("extras", extra, "gptj-jax is not installed", "note")
        elif lacking:
            remedy = f"pip install '{NAME}[{extra}]'"
            yield Finding("extras", extra, f"{', '.join(lacking)}; {purpose}", "note", remedy)
        else:
            yield Finding("extras", extra, f"here: {purpose}")


def required(name: str, extra: str = "") -> list[Requirement]:
    """What a package asks for on this machine, itself or for one extra, those of extras spelt out.

    Nothing, where the package is not installed.
    """
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for each in map(Requirement, lines):
        applies = each.marker is None or each.marker.evaluate({"extra": extra})
        if not applies or (extra and each.marker is None):
            continue
        if extra and each.marker is not None and each.marker.evaluate({"extra": ""}):
            continue
        found.append(each)
        for inner in sorted(each.extras):
            found += required(each.name, inner)
    return found


def trouble(wanted: Requirement) -> str:
    """What is wrong with how a requirement is met; empty where nothing is."""
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return "is missing"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"{version} is not {wanted.specifier}"
    return ""
