"""Which learning rate fine-tuning wants: the held-out loss after as many steps at each of some.

    python benchmarks/finetune_lr.py               about ten minutes on two cores
    python benchmarks/finetune_lr.py --draw        only draw what was found again

A model of 4 million parameters learns books (Project Gutenberg, of ../shared) and then plays by
Shakespeare: all weights, or LoRA of rank 16, each at six rates. What `gptj lr-find` suggests stands
beside. The figures go to benchmarks/results, the curves to docs/images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from figures import write
from matplotlib.figure import Figure

import gptj
from gptj.train.lr_find import LrFindConfig, lr_find

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results" / "finetune_lr.json"
PICTURE = ROOT / "docs" / "images" / "finetune-lr.png"
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
KINDS = {
    "all weights": gptj.StepConfig(),
    "LoRA, rank 16": gptj.StepConfig(lora=gptj.LoRAConfig(rank=16)),
}
STEPS = 80


def prepared(text: Path, out: Path, tokenizer: str) -> Path:
    """A text as data, its end held out."""
    gptj.prepare(gptj.PrepareConfig((str(text),), out, tokenizer))
    return out


def measured(folder: Path) -> dict[str, Any]:
    """The losses of each kind by rate, and what is suggested."""
    books = prepared(SHARED / "gutenberg_en" / "books.jsonl", folder / "books", "train:2048")
    base = folder / "base"
    shape: dict[str, Any] = {
        "seq": 256,
        "batch": 8,
        "eval_every": 1000,
        "save_every": 1000,
        "log_every": 100,
    }
    gptj.train(gptj.TrainConfig(books, base, steps=400, **shape))
    plays = prepared(SHARED / "tinyshakespeare" / "input.txt", folder / "plays", str(base))
    run = gptj.TrainConfig(plays, folder, from_=str(base), steps=STEPS, eval_batches=None, **shape)
    found: dict[str, Any] = {"steps": STEPS, "kinds": {}}
    for name, compute in KINDS.items():
        test = LrFindConfig(plays, from_=str(base), seq=256, batch=8, compute=compute)
        losses = {}
        for rate in RATES:
            optimizer = gptj.OptimizerConfig(lr=rate, end_lr=rate / 10, warmup_steps=8)
            out = folder / f"{name} {rate}"
            config = dataclasses.replace(run, out=out, optimizer=optimizer, compute=compute)
            held_out = gptj.train(config).held_out
            assert held_out is not None
            losses[rate] = held_out.loss
        found["kinds"][name] = {"suggested": lr_find(test).suggested, "losses": losses}
    return found


def draw(kinds: dict[str, Any]) -> None:
    """The losses by rate, and each suggestion."""
    figure = Figure(figsize=(6, 3.6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, (name, found) in enumerate(kinds.items()):
        rates, losses = [*map(float, found["losses"])], [*found["losses"].values()]
        axes.plot(rates, losses, "o-", color=f"C{number}", markersize=4, label=name)
        label = f"lr-find suggests {found['suggested']:.1e}"
        axes.axvline(found["suggested"], color=f"C{number}", linestyle="--", label=label)
    axes.set_xscale("log")
    axes.set_title("held-out cross-entropy (nats a token)", loc="left", fontsize=10)
    axes.set_xlabel("learning rate")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true")
    if not parser.parse_args().draw:
        with tempfile.TemporaryDirectory() as folder:
            write(RESULTS, measured(Path(folder)))
    draw(json.loads(RESULTS.read_text())["kinds"])


if __name__ == "__main__":
    main()
