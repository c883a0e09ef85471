"""How the CPU's native programs are compiled: for this machine alone, or for a wheel.

A wheel has a library for each level of x86-64 processors, and the best that the processor can run
is loaded: one library for all would share its inline functions between them, of which the linker
keeps the first, whatever the processor. `hatch_build.py` loads this file by its path, so that it
imports nothing of the project's, nor JAX.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parent / "decode.cc"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-Wno-psabi")
NATIVE = ("-march=native",)
SMALL = ("-s",)


class CannotBuild(Exception):
    """The programs cannot be compiled here; the message says why and what to do."""


@dataclass(frozen=True)
class Level:
    """Processors that can run the same library."""

    name: str
    flags: tuple[str, ...]
    """What the compiler is told."""
    features: frozenset[str] = frozenset()
    """What Linux says such a processor has."""

    @property
    def file(self) -> str:
        """The library's name."""
        return f"decode-{self.name}.so"


_V2 = frozenset(["cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"])
_V3 = _V2 | frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"])
_V4 = _V3 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])
_PAIRS = _V4 | frozenset(["avx512_bf16", "avx512vbmi", "avx512_vnni"])
_BF16 = ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vbmi", "-mavx512vnni")
_AMX = ("-mamx-tile", "-mamx-bf16")
X86_64 = (
    Level("avx2", ("-march=x86-64-v3",), _V3),
    Level("avx512", ("-march=x86-64-v4",), _V4),
    Level("avx512-bf16", _BF16, _PAIRS),
    Level("amx-bf16", (*_BF16, *_AMX), _PAIRS | {"amx_tile", "amx_bf16"}),
)
"""Each can run all that those before it can. A processor that cannot multiply and add at once has
none: there a row's bits would depend on its company."""


def levels(machine: str) -> Sequence[Level]:
    """What a wheel for such machines has: elsewhere than on x86-64 one library for all."""
    return X86_64 if machine in ("x86_64", "AMD64") else (Level(machine, ()),)


def features() -> frozenset[str]:
    """What the processor has and the system lets programs use, where that is Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.M)
    return frozenset(found[1].split() if found else ())


def best(machine: str, has: Iterable[str]) -> Level | None:
    """The last level that such a processor can run, if it can any."""
    here = [level for level in levels(machine) if level.features <= frozenset(has)]
    return here[-1] if here else None


def here() -> Level | None:
    """That of this machine."""
    return best(platform.machine(), features())


def shipped() -> Path | None:
    """The library of this installation for this processor, if a wheel brought one."""
    level, folder = here(), SOURCE.parent
    return folder / level.file if level and (folder / level.file).exists() else None


def compiler() -> str | None:
    """The C++ compiler there is: `CXX`, or else g++."""
    return shutil.which(os.environ.get("CXX", "g++"))


def compile_to(path: Path, include: str, flags: Sequence[str] = NATIVE) -> None:
    """Compile the library, in some seconds; it is there whole or not at all.

    Args:
      include: where the headers are that jaxlib brings.

    Raises:
      CannotBuild: there is no compiler, it failed, or the folder cannot be written.
    """
    if (found := compiler()) is None:
        raise CannotBuild("no C++ compiler: install g++, or name one in CXX")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / "made.so"
            command = [found, *FLAGS, *flags, f"-isystem{include}", str(SOURCE), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(path)  # others may be building the same
    except OSError as error:
        raise CannotBuild(f"{path.parent} cannot be written: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        complaint = next((line for line in error.stderr.splitlines() if "error" in line), "")
        raise CannotBuild(f"{found} failed ({complaint.strip() or error.returncode})") from error


def compile_all(folder: Path, include: str) -> list[Path]:
    """The libraries of a wheel for machines of this kind.

    Raises:
      CannotBuild: one of them cannot be compiled here.
    """
    made = []
    for level in levels(platform.machine()):
        compile_to(folder / level.file, include, (*level.flags, *SMALL))
        made.append(folder / level.file)
    return made
