"""Asking the process that compiles."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from typing import Any

from gptj.errors import UserError
from gptj.plan import compiled
from gptj.plan.compiled import Compiled, Exchange, TooLarge
from gptj.plan.job import Job, Mesh
from gptj.plan.place import Place

_DEVICES = "--xla_force_host_platform_device_count"

# So that libtpu asks no metadata server and leaves the TPU's lock to those that compute on one.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v3-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def check_compiler(place: Place) -> None:
    """Refuse to plan for a TPU without its compiler.

    Raises:
      UserError: naming the extra that brings it.
    """
    if place.platform != "tpu" or os.environ.get("TPU_LIBRARY_PATH"):
        return
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"planning for {place.name} needs the TPU compiler, libtpu, which needs no TPU: "
            "pip install 'gptj-jax[tpu]'"
        )


def compile_step(job: Job) -> Compiled | TooLarge:
    """`compiled.compile_step` in a process of its own."""
    return facts(ask({"what": "step", "job": job.plain()}, job.place))


def axis_rates(place: Place, meshes: list[Mesh]) -> list[dict[str, float]]:
    """`compiled.axis_rates` of several meshes."""
    if place.platform != "tpu" or not meshes:
        return [compiled.axis_rates(mesh, place) for mesh in meshes]
    found = ask({"what": "rates", "place": place.name, "meshes": meshes}, place)["rates"]
    return list(found)


def facts(answer: dict[str, Any]) -> Compiled | TooLarge:
    """What the process found, as records."""
    found = answer["facts"]
    if answer["kind"] == "TooLarge":
        return TooLarge(**found)
    exchanges = (
        Exchange(**{**each, "axes": tuple(each["axes"]), "arrays": tuple(each["arrays"])})
        for each in found["exchanges"]
    )
    return Compiled(**{**found, "exchanges": tuple(exchanges)})


def ask(request: dict[str, Any], place: Place) -> dict[str, Any]:
    """Start the process, tell it what is wanted, and wait; Ctrl-C ends it.

    Raises:
      UserError: it found a mistake of the user's.
      RuntimeError: it failed; with the last that it said.
    """
    check_compiler(place)
    command = [sys.executable, "-m", "gptj.plan.worker"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(place),
        text=True,
    ) as process:
        try:
            said, complaints = process.communicate(json.dumps(request))
        except BaseException:
            process.kill()
            raise
    if process.returncode or not said:
        last = "\n".join(complaints.strip().splitlines()[-20:])
        raise RuntimeError(f"compiling for {place.name} failed ({process.returncode}):\n{last}")
    answer: dict[str, Any] = json.loads(said)
    if "mistake" in answer:
        raise UserError(answer["mistake"])
    return answer


def environment(place: Place) -> dict[str, str]:
    """What a process needs in its environment to have the devices, and to be quiet."""
    flags = re.sub(rf"{_DEVICES}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    if place.platform == "cpu":
        flags += f" {_DEVICES}={place.devices}"
    paths = os.pathsep.join(path for path in sys.path if path)
    return os.environ | (_NO_TPU if place.platform == "tpu" else {}) | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags.strip(),
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a program from there does not show its text
        "PYTHONPATH": paths,
    }  # fmt: skip
