"""Puts the CPU's native programs in a wheel, where they can be compiled.

They can with a C++ compiler and with jaxlib, which brings the headers; elsewhere, and with
`GPTJ_NATIVE=0`, the wheel is pure Python, and the programs are compiled at their first use.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).parent / "src" / "gptj" / "kernels"


def rules() -> ModuleType:
    """How they are compiled, without importing what lies above it."""
    name = "gptj_kernels_build"
    spec = importlib.util.spec_from_file_location(name, KERNELS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def include() -> str | None:
    """Where jaxlib's headers are, if it is here."""
    jaxlib = importlib.util.find_spec("jaxlib")
    return str(Path(jaxlib.origin).parent / "include") if jaxlib and jaxlib.origin else None


class Kernels(BuildHookInterface[Any]):
    """The libraries, and the tag that says whom they are for."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless the wheel only points here."""
        if version == "editable" or os.environ.get("GPTJ_NATIVE") == "0":
            return
        if not sys.platform.startswith("linux"):
            self.without("they are compiled ahead for Linux alone")
            return
        if (headers := include()) is None:
            self.without("jaxlib, which has the headers, is not installed here")
            return
        kernels = rules()
        self.made = tempfile.TemporaryDirectory()
        try:
            libraries = kernels.compile_all(Path(self.made.name), headers)
        except kernels.CannotBuild as error:
            self.without(str(error))
            return
        build_data["force_include"].update(
            {str(path): f"gptj/kernels/{path.name}" for path in libraries}
        )
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_')}"

    def without(self, why: str) -> None:
        """Say that the wheel has none."""
        self.app.display_warning(f"a pure Python wheel, without native programs: {why}")
