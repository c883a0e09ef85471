"""How fast text becomes tokens, beside `datasets.map` on one core, and rows are found and read.

    .venv/bin/python benchmarks/data.py --rounds 3

Both sides take one processor, the same JSON lines (books of Project Gutenberg where ../shared holds
them, else Python's standard library) and the same fast tokenizer, and write what they made: a token
store, and the Arrow file that `map` keeps. They take turns, each in a process of its own that has
imported all it needs before the clock starts. Rows of 2,049 tokens are drawn in shuffled order from
a sparse store of a billion tokens, and from 100 million random ones, which TensorStore also has to
read from zarr3 (chunks of 16,384 ids, uncompressed, in shards of 2^24). Then two gigabytes are
prepared, as a command would, for the most memory that it takes, and the 125m preset is trained for
some steps, for the share of the time in which it waits for rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import RESULTS, write

SHARED = Path(__file__).parents[2] / "shared" / "data"
SIDES = ("ours", "datasets")
BILLION = 10**9


def corpus(out: Path, megabytes: int) -> None:
    """JSON lines of so many bytes of text, repeated where there is not so much."""
    books = SHARED / "gutenberg_en" / "books.jsonl"
    if books.exists():
        texts = [json.loads(line)["text"] for line in books.read_text().splitlines()]
    else:
        sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        texts = [path.read_text(errors="replace") for path in sources]
    pieces = [text[at : at + 20_000] for text in texts for at in range(0, len(text), 20_000)]
    size = number = 0
    with out.open("w") as file:
        while size < megabytes * 1_000_000:
            text = f"{number} {pieces[number % len(pieces)]}"
            file.write(json.dumps({"text": text}) + "\n")
            size, number = size + len(text.encode()), number + 1


def work(side: str, text: Path, tokenizer: Path, out: Path) -> float:
    """The seconds that one side takes."""
    if side == "ours":
        from gptj.data.prepare import PrepareConfig, prepare

        begin = time.perf_counter()
        prepare(PrepareConfig((str(text),), out / "store", str(tokenizer), held_out=0))
        return time.perf_counter() - begin
    import datasets
    import tokenizers

    datasets.disable_progress_bars()
    encoder = tokenizers.Tokenizer.from_file(str(tokenizer))
    begin = time.perf_counter()
    loaded = datasets.load_dataset(
        "json", data_files=str(text), split="train", cache_dir=str(out / "cache")
    )
    loaded.map(
        lambda rows: {"ids": [each.ids for each in encoder.encode_batch_fast(rows["text"])]},
        batched=True,
        remove_columns=["text"],
    )
    return time.perf_counter() - begin


def turn(side: str, text: Path, tokenizer: Path) -> float:
    with tempfile.TemporaryDirectory(dir=text.parent) as out:
        command = [sys.executable, __file__, "--worker", side, "--files", text, tokenizer, out]
        one = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            ["taskset", "-c", "0", *map(str, command)],
            env=os.environ | one,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return float(done.stdout.splitlines()[-1])


def memory(folder: Path, tokenizer: Path, megabytes: int) -> dict[str, float]:
    """What preparing so much text takes, some of it in a single long document."""
    texts = folder / "texts"
    texts.mkdir()
    corpus(texts / "many.jsonl", megabytes * 3 // 4)
    with (texts / "one.txt").open("w") as long, (texts / "many.jsonl").open() as lines:
        for line in lines:
            long.write(json.loads(line)["text"])
            if long.tell() > megabytes * 250_000:
                break
    begin, size = time.perf_counter(), sum(path.stat().st_size for path in texts.iterdir())
    words = ["-m", "gptj.cli", "prepare", texts, "--out", folder / "data", "--tokenizer", tokenizer]
    peak = 0
    with subprocess.Popen([sys.executable, *map(str, words)]) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:  # what `wait` tells includes what its parent had
            said = status.read_text().splitlines()
            peak = max([peak, *(int(x.split()[1]) for x in said if x.startswith("VmHWM"))])
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit("preparing did not succeed")
    return {
        "gigabytes": round(size / 1e9, 2),
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_gib": round(peak / 2**20, 3),
    }


def waiting(folder: Path, text: Path, tokenizer: Path, steps: int) -> dict[str, float]:
    """Of a run on this processor, what of its time goes into waiting for rows."""
    from gptj.data.prepare import PrepareConfig, prepare

    prepare(PrepareConfig((str(text),), folder / "train", str(tokenizer), held_out=0))
    command = ["-m", "gptj.cli", "train", "--data", folder / "train", "--out", folder / "run"]
    shape = ["--model", "125m", "--seq", "512", "--batch", "4", "--steps", str(steps)]
    shape += ["--warmup-steps", "1"]
    subprocess.run([sys.executable, *map(str, [*command, *shape])], check=True)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    found = {kind: rows[-1][f"seconds_{kind}"] for kind in ("data", "step")}
    return {
        "seconds_a_step": round(found["step"] / (steps - 1), 3),
        "share_waiting_for_rows": round(found["data"] / sum(found.values()), 5),
    }


def sparse_store(folder: Path, tokens: int) -> None:
    """A store of which nearly nothing is on the disk."""
    from gptj.data.store import TOKENIZER, Manifest, ShardRecord, SourceRecord
    from gptj.tokenizer import Tokenizer

    folder.mkdir()
    tokenizer = Tokenizer.bytes()
    shard = ShardRecord("00000-000", tokens, 1, (hashlib.sha256().hexdigest(),), "")
    for name, size in shard.files("<u2").items():
        (folder / name).touch()
        os.truncate(folder / name, size)
    source = SourceRecord("zeros", tokens, "", 0, 1, tokens)
    tokenizer.save(folder / TOKENIZER)
    manifest = Manifest.of(tokenizer, [shard], [source])
    (folder / "manifest.json").write_text(manifest.to_json())


def rows_a_second(folder: Path) -> dict[str, float]:
    """Opening a store of a billion tokens, finding rows in it, and reading them."""
    from gptj.data.batches import TrainBatches
    from gptj.data.mixture import Mixture
    from gptj.data.store import TokenStore

    sparse_store(folder / "sparse", BILLION)
    begin = time.perf_counter()
    batches = TrainBatches(Mixture.of(TokenStore.open(folder / "sparse")), 2048, 512)
    opened = time.perf_counter() - begin
    found = {"open_seconds": round(opened, 4)}
    steps = 100
    for name, work in (("ids", batches.row_ids), ("rows", batches.batch)):
        times = []
        for start in range(0, 5 * steps, steps):
            begin = time.perf_counter()
            for step in range(start, start + steps if name == "ids" else start + 10):
                work(step)
            count = steps if name == "ids" else 10
            times.append(512 * count / (time.perf_counter() - begin))
        found[f"{name}_a_second"] = round(statistics.median(times))
    return found


def beside_zarr(folder: Path) -> dict[str, int]:
    """Rows of 2,049 ids a second at random places: of our store's files, and of zarr3's."""
    import tensorstore

    from gptj.data.store import TokenStore

    draw, seq = np.random.default_rng(0), 2048
    tokens = draw.integers(0, 50257, 10**8, np.uint16)
    sparse_store(folder / "flat", len(tokens))
    tokens.tofile(folder / "flat" / "00000-000.tokens")
    chunk = [{"name": "bytes", "configuration": {"endian": "little"}}]
    inner = {"chunk_shape": [1 << 14], "codecs": chunk}
    grid = {"name": "regular", "configuration": {"chunk_shape": [1 << 24]}}
    zarr = tensorstore.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder / "zarr")},
            "metadata": {
                "shape": [len(tokens)],
                "data_type": "uint16",
                "chunk_grid": grid,
                "codecs": [{"name": "sharding_indexed", "configuration": inner}],
            },
        },
        create=True,
    ).result()
    zarr.write(tokens).result()
    flat = TokenStore.open(folder / "flat").tokens
    sides: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "flat": lambda starts: flat.windows(starts, seq + 1),
        "zarr3": lambda starts: np.stack(
            [r.result() for r in [zarr[s : s + seq + 1].read() for s in starts.tolist()]]
        ),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(6):
        starts = draw.integers(0, len(tokens) - seq - 1, 512)
        for side, read in sides.items():
            begin = time.perf_counter()
            found = read(starts)
            times[side].append(512 / (time.perf_counter() - begin))
            assert found[0].tolist() == tokens[starts[0] : starts[0] + seq + 1].tolist()
    return {side: round(statistics.median(each[1:])) for side, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--memory-megabytes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=8, help="of training; 0 for none")
    parser.add_argument("--out", type=Path, default=RESULTS / "data.json")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(work(args.worker, *args.files))
        return
    from gptj.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        text, tokenizer = Path(folder) / "text.jsonl", Path(folder) / "tokenizer.json"
        corpus(text, args.megabytes)
        bpe = SHARED / "gpt2_bpe"
        found = (
            Tokenizer.load(str(bpe))
            if bpe.exists()
            else Tokenizer.train([text.read_text()[: 10**7]], 32_768)
        )
        found.save(tokenizer)
        speeds: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(args.rounds):
            for side in SIDES:
                speeds[side].append(args.megabytes / turn(side, text, tokenizer))
                print(f"{number} {side:9} {speeds[side][-1]:6.2f} MB/s a core", flush=True)
        rows = rows_a_second(Path(folder))
        print(rows, flush=True)
        formats = beside_zarr(Path(folder))
        print(formats, flush=True)
        prepared = memory(Path(folder), tokenizer, args.memory_megabytes)
        print(prepared, flush=True)
        trained = waiting(Path(folder), text, tokenizer, args.steps) if args.steps else None
    medians = {side: round(statistics.median(each), 2) for side, each in speeds.items()}
    pairs = [a / b for a, b in zip(*speeds.values(), strict=True)]
    ratio = round(float(np.median(pairs)), 2)
    print(f"ours over datasets.map: {ratio}; {trained}")
    write(
        args.out,
        {
            "what": "megabytes of text a second on one processor, read, tokenised and written; and "
            "rows of 2,049 tokens out of a billion, shuffled",
            "megabytes_a_second": medians,
            "ratio": ratio,
            "all": speeds,
            "rows": rows,
            "rows_a_second_by_format": formats,
            "preparing": prepared,
            "training": trained,
        },
    )


if __name__ == "__main__":
    main()
