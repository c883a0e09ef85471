"""Load and convert a checkpoint of GPT-J-6B's size: seconds, GB a second, and peak memory.

    .venv/bin/python benchmarks/load_6b.py              needs 26 GB of disk and 18 GiB of memory

Run by hand: the weights are random, 12 GB of bfloat16 written as Hugging Face's files, and deleted
afterwards. The disk's own speed, reading the same files from start to end, stands beside. The
system's cache of the files is dropped before every reading; each job is a process of its own, so
that its peak of memory is its own, and the memory it will use is touched before it starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from figures import RESULTS, write

import gptj
from gptj.convert import convert as converting
from gptj.convert import names
from gptj.convert.source import Source
from gptj.convert.tensor import BFLOAT16, Tensor

BLOCK = 16 << 20
SETTLED = 18 << 30
"""Bytes of memory that are touched before each job."""


def make(folder: Path, layers: int) -> None:
    """Write the checkpoint, a tensor at a time."""
    config = dataclasses.replace(gptj.preset("gpt-j-6b"), layers=layers)
    draw = np.random.default_rng(0)

    def random(shape: tuple[int, ...]) -> Tensor:
        def read() -> np.ndarray:
            bits = draw.integers(0x3C00, 0x3D00, int(np.prod(shape)), np.uint16)
            return bits.view(BFLOAT16).reshape(shape)

        return Tensor(shape, BFLOAT16, read)

    table = {name: random(weight.shape) for name, weight in names.tensors(config).items()}
    converting.write(Source("random", str(folder), config, table), folder, "huggingface")


def read_disk(folder: Path, _: Path) -> None:
    """Read the files from start to end, and do nothing with them."""
    buffer = bytearray(BLOCK)
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as data:
            while data.readinto(buffer):
                pass


def load(folder: Path, _: Path) -> None:
    """Load the model as `gptj.load` does, in the type it is stored in."""
    jax.block_until_ready(gptj.load(folder).params)


def convert(folder: Path, out: Path) -> None:
    """Convert it to our own form, and see to it that it is on the disk."""
    converting.convert(converting.ConvertConfig(str(folder), out))
    os.sync()


JOBS: dict[str, Callable[[Path, Path], None]] = {
    "disk": read_disk,
    "load": load,
    "convert": convert,
}


def forget(folder: Path) -> None:
    """Drop the files from the system's cache."""
    os.sync()
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def settle() -> None:
    """Touch as much memory as a job needs, in a process of its own.

    A virtual machine may be given its memory only when it is first touched, at a tenth of the
    speed; that is not what is to be timed.
    """
    touch = f"import numpy as np; np.empty({SETTLED}, np.uint8)[::4096] = 1"
    subprocess.run([sys.executable, "-c", touch], check=True)


def measured(job: str, folder: Path) -> dict[str, float]:
    """One job in a process of its own."""
    out = folder.with_name(folder.name + "-converted")
    forget(folder)
    settle()
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder), "--out", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out, ignore_errors=True)
    found: dict[str, float] = json.loads(done.stdout)
    print(f"{job:8} {found['seconds']:7.1f} s   peak {found['peak_gib']:.2f} GiB", flush=True)
    return found


def run_job(job: str, folder: Path, out: Path) -> None:
    begin = time.perf_counter()
    JOBS[job](folder, out)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(json.dumps({"seconds": round(seconds, 2), "peak_gib": round(peak, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("data/random-6b"))
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.folder, args.layers)
        return
    if args.job:
        run_job(args.job, args.folder, args.out)
        return
    try:
        # In a process of its own: a child begins with its parent's peak of memory as its own.
        command = [sys.executable, __file__, "--make", "--folder", str(args.folder)]
        subprocess.run([*command, "--layers", str(args.layers)], check=True)
        size = sum(file.stat().st_size for file in args.folder.glob("*.safetensors"))
        rounds: dict[str, list[dict[str, float]]] = {job: [] for job in ("disk", "load")}
        for _ in range(args.rounds):
            for job, times in rounds.items():
                times.append(measured(job, args.folder))
        rounds["convert"] = [measured("convert", args.folder)]
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    report(size, rounds)


def report(size: int, rounds: dict[str, list[dict[str, float]]]) -> None:
    middle = {
        job: statistics.median(run["seconds"] for run in runs) for job, runs in rounds.items()
    }
    result = {
        "what": "GPT-J-6B's shapes, random bfloat16 in Hugging Face's files, read cold",
        "bytes": size,
        "seconds": middle,
        "gb_per_second": {job: round(size / s / 1e9, 3) for job, s in middle.items()},
        "load_over_disk": round(middle["disk"] / middle["load"], 3),
        "peak_gib": {job: max(run["peak_gib"] for run in runs) for job, runs in rounds.items()},
        "all_runs": rounds,
    }
    print(json.dumps(result["gb_per_second"]), "load over disk:", result["load_over_disk"])
    write(RESULTS / "load_6b.json", result)


if __name__ == "__main__":
    main()
