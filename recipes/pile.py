"""GPT-J's own data: the 22 texts of The Pile, each as often as its authors weighed it.

    gptj prepare pile/ --split-by meta.pile_set_name --tokenizer gpt2 --out data/pile
    python recipes/pile.py data/pile data/pile-mixed     mix what was prepared by the weights below
    gptj train recipes/pile.py --mesh.data 32 --mesh.tensor 8

A text that is not there is left out, and the others keep their weights beside one another. The last
line trains GPT-J itself, with today's defaults: docs/differences.md has the original's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gptj
from gptj.cli import guarded
from gptj.data.groups import folder_of
from gptj.data.mixture import weights_of

PILE = {
    "Pile-CC": (227.12, 1.0),
    "PubMed Central": (90.27, 2.0),
    "Books3": (100.96, 1.5),
    "OpenWebText2": (62.77, 2.0),
    "ArXiv": (56.21, 2.0),
    "Github": (95.16, 1.0),
    "FreeLaw": (51.15, 1.5),
    "StackExchange": (32.20, 2.0),
    "USPTO Backgrounds": (22.90, 2.0),
    "PubMed Abstracts": (19.26, 2.0),
    "Gutenberg (PG-19)": (10.88, 2.5),
    "OpenSubtitles": (12.98, 1.5),
    "Wikipedia (en)": (6.38, 3.0),
    "DM Mathematics": (7.75, 2.0),
    "Ubuntu IRC": (5.52, 2.0),
    "BookCorpus2": (6.30, 1.5),
    "EuroParl": (4.59, 2.0),
    "HackerNews": (3.90, 2.0),
    "YoutubeSubtitles": (3.73, 2.0),
    "PhilPapers": (2.38, 2.0),
    "NIH ExPorter": (1.89, 2.0),
    "Enron Emails": (0.88, 2.0),
}
"""GiB of each, and how often it is read in one reading of the whole (arXiv:2101.00027, table 1)."""


def weights() -> dict[str, float]:
    """The share of the whole that each text is; they sum to 1."""
    whole = sum(size * epochs for size, epochs in PILE.values())
    return {name: size * epochs / whole for name, (size, epochs) in PILE.items()}


def recipe(data: Path = Path("data/pile-mixed"), out: Path = Path("runs/pile")) -> gptj.TrainConfig:
    """GPT-J: 383,500 steps of 512 rows, 402 billion tokens."""
    return gptj.TrainConfig(
        data=data,
        out=out,
        model="gpt-j-6b",
        steps=383_500,
        batch=512,
        accumulate=16,
        eval_every=500,
        save_every=500,
        optimizer=gptj.OptimizerConfig(lr=1.2e-4, end_lr=1.2e-5, warmup_steps=3000),
        compute=gptj.StepConfig(dtype="bfloat16", remat="block"),
    )


def mixed(prepared: Path, out: Path) -> None:
    """Mix those of the texts that were prepared."""
    found = {prepared / folder_of(name): weight for name, weight in weights().items()}
    there = {str(path): weight for path, weight in found.items() if path.is_dir()}
    print(f"{len(there)} of the {len(PILE)} texts are in {prepared}")
    for part in gptj.mix(gptj.MixConfig(weights_of(there), out, force=True)):
        print(f"  {part.name}: {100 * part.share:.2f} % of the rows, read {part.epochs:.2f} times")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} PREPARED OUT")
    sys.exit(guarded("pile", lambda: mixed(Path(sys.argv[1]), Path(sys.argv[2]))))
