"""Train a small GPT-J on real text in about three minutes on two CPU cores, and let it write.

    make demo                   the sources and documentation of Python's own standard library
    make demo TEXT=my-texts/    your own: a .txt, .md, .py, .jsonl[.gz|.zst] file, or a folder

Expect held-out bits per byte well below what `gzip -9` needs for the same files.
Leaves runs/demo/ (or runs/NAME/): the model, its curves and summary.json.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import gptj
from gptj.cli import guarded
from gptj.cli.data import show_prepared
from gptj.plot import PlotConfig, plot
from gptj.train.metrics import read_metrics

STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
NOT_ITS_TEXT = ("site-packages", "dist-packages", "test", "tests", "idle_test", "config-*")

SEQ = 256


def recipe(data: Path = Path("data/demo"), out: Path = Path("runs/demo")) -> gptj.TrainConfig:
    """A GPT-J of 4 layers and 5 million parameters, shown 650 thousand tokens."""
    return gptj.TrainConfig(
        data=data,
        out=out,
        model="demo",
        steps=320,
        batch=8,
        seq=SEQ,
        eval_every=100,
        save_every=100,
        log_every=25,
        optimizer=gptj.OptimizerConfig(lr=3e-3, end_lr=1e-4, warmup_steps=30),
    )


def demo(text: Path | None) -> None:
    """Prepare, train, evaluate, sample, draw, and say what to do next."""
    begin = time.perf_counter()
    name = "demo" if text is None else f"demo-{text.resolve().stem}"
    config = recipe(Path("data") / name, Path("runs") / name)

    heading(f"1/4  Text: {text or f'the Python standard library in {STANDARD_LIBRARY}'}")
    read, exclude = (text, ()) if text else (STANDARD_LIBRARY, NOT_ITS_TEXT)
    prepared = gptj.PrepareConfig(inputs=(str(read),), exclude=exclude, out=config.data, force=True)
    show_prepared(gptj.prepare(prepared))

    set_aside_other_text(config)
    heading("2/4  Training (Ctrl-C saves and stops; the same command goes on)")
    result = gptj.train(config)
    if result.step < config.steps:
        return
    assert result.held_out is not None and result.held_out.bits_per_byte is not None

    heading("3/4  Held-out text, never trained on")
    heldout = gptj.TokenStore.open(config.data / "heldout")
    compressed = gzip_bits_per_byte(heldout)
    print(f"  gzip -9, each file alone   {compressed:.3f} bits a byte")
    print(f"  this model                 {result.held_out.bits_per_byte:.3f} bits a byte")

    heading("4/4  Samples")
    samples = write_samples(gptj.load(config.out), heldout)

    plot(PlotConfig(runs=(config.out,), out=config.out / "curves.png"))
    steps = [row["step_seconds"] for row in read_metrics(config.out) if "step_seconds" in row]
    summary = {
        "heldout_bits_per_byte": result.held_out.bits_per_byte,
        "gzip_bits_per_byte": compressed,
        "train_tokens_per_second": config.batch * SEQ / statistics.mean(steps),
        "seconds": time.perf_counter() - begin,
        "steps": result.step,
        "heldout_loss": result.held_out.loss,
        "samples": samples,
    }
    (config.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(NEXT.format(run=config.out, seconds=summary["seconds"]))


def set_aside_other_text(config: gptj.TrainConfig) -> None:
    """Rename a run of this name that learnt another text: a run keeps to one."""
    course = config.out / "run.json"
    if not course.is_file():
        return
    learnt = json.loads(course.read_text())["data"]
    if learnt != gptj.TokenStore.open(config.data / "train").fingerprint:
        kept = config.out.with_name(f"{config.out.name}-{learnt[:8]}")
        config.out.rename(kept)
        print(f"  {config.out} was trained on another text; it is now {kept}")


NEXT = """
Done in {seconds:.0f} s. In {run}: curves.png, summary.json, metrics.jsonl, checkpoints.

What next:
  .venv/bin/gptj generate {run} --prompt "import " --temperature 0.8
  .venv/bin/gptj train --help           a longer run, a larger model
  make demo TEXT=my-texts/              the same on your own text
"""


def heading(text: str) -> None:
    """A line that opens a part of the demo."""
    print(f"\n{text}", flush=True)


def gzip_bits_per_byte(store: gptj.TokenStore) -> float:
    """What `gzip -9` needs for the store's files, each compressed alone."""
    packed = total = 0
    for source in store.sources:
        documents = range(source.first_document, source.first_document + source.documents)
        text = "".join(store.text(document) for document in documents).encode()
        packed += len(gzip.compress(text, compresslevel=9, mtime=0))
        total += len(text)
    return 8 * packed / total


def write_samples(model: gptj.Model, heldout: gptj.TokenStore) -> list[dict[str, Any]]:
    """Go on from the middles of three held-out documents, and print what comes."""
    samples: list[dict[str, Any]] = []
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0},
        *({"top_p": 0.9, "seed": n} for n in (1, 2)),
    ]
    for index, sampling in enumerate(ways):
        prompt = opening(heldout.text(index * heldout.manifest.documents // 3))
        how = "greedy" if "temperature" in sampling else "p=0.9"
        print(f"\n--- {how} ---\n{prompt}", end="", flush=True)
        text = model.generate(
            prompt,
            max_tokens=96,
            on_text=lambda _, piece: print(piece, end="", flush=True),
            **sampling,
        )[0]
        print()
        samples.append({"sampling": sampling, "prompt": prompt, "text": text})
    return samples


def opening(text: str, length: int = 120) -> str:
    """Some lines from the middle of a text, to the end of a word: what a sample goes on from."""
    begin = text.find("\n", len(text) // 2) + 1
    return text[begin : begin + length].rsplit(" ", 1)[0]


def main() -> int:
    """The command line: no argument, or the path of the text."""
    text = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    return guarded("demo", lambda: demo(text))


if __name__ == "__main__":
    sys.exit(main())
