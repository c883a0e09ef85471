"""Score multiple choices beside the harness's Hugging Face adapter on the same CPU, A B A B.

    .venv/bin/python benchmarks/eval_cpu.py --rounds 3

The model is the 125m preset with random weights in float32 (12 layers, d_model 768, 12 heads,
50,400 rows of vocabulary). The questions have the shape of HellaSwag's with GPT-2's tokens: four
endings of 8 to 53 tokens after one context of 12 to 91 (the means, 30 and 51, are those of 1,000
questions of the real one). Each side gets token ids, so that no tokenizer is measured, in a process
of its own; they take turns, and the first turn warms up. Theirs takes `--batch` requests at a time,
as many as fill our batch. Both sides' answers are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from figures import RESULTS, write

from gptj import cores

VOCAB, ENDINGS = 50257, 4
SIDES = ("ours", "harness")

Answer = Callable[[], list[tuple[float, bool]]]


def questions(count: int) -> list[tuple[list[int], list[int]]]:
    """Contexts and endings, an ending a request."""
    draw = np.random.default_rng(count)

    def tokens(low: int, high: int) -> list[int]:
        return draw.integers(0, VOCAB, draw.integers(low, high + 1)).tolist()

    contexts = [tokens(12, 91) for _ in range(count)]
    return [(context, tokens(8, 53)) for context in contexts for _ in range(ENDINGS)]


def save(folder: Path) -> None:
    """The model as both sides load it. Padding rows are made impossible: theirs counts them in."""
    import jax

    from gptj.api import Model
    from gptj.config import preset
    from gptj.convert.convert import ConvertConfig, convert
    from gptj.model import init

    config = preset("125m")
    params = init(jax.random.key(0), config)
    bias = params.output_bias.at[config.vocab_size :].set(-1e9)
    Model(config, dataclasses.replace(params, output_bias=bias), None).save(folder / "own")
    convert(ConvertConfig(str(folder / "own"), folder / "hf", to="huggingface"))


def ours(folder: Path, count: int, batch: int) -> Answer:
    """By `gptj eval`'s scorer."""
    import gptj
    from gptj.engine.packing import Asked
    from gptj.engine.scoring import score

    model = gptj.load(folder / "own")
    asked = [Asked.of(context, ending) for context, ending in questions(count)]
    return lambda: [(each[0], each[1]) for each in score(model.params, model.config, asked)]


def harness(folder: Path, count: int, batch: int) -> Answer:
    """By the harness's own adapter for transformers, which wants a tokenizer without using it."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    from gptj.tokenizer import END_OF_TEXT, Tokenizer

    torch.set_num_threads(cores.usable())
    Tokenizer.bytes().save(folder / "bytes.json")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "bytes.json"), eos_token=END_OF_TEXT
    )
    model = HFLM(
        str(folder / "hf"), tokenizer=tokenizer, dtype="float32", device="cpu", batch_size=batch
    )
    asked = [(("", ""), *pair) for pair in questions(count)]
    return lambda: model._loglikelihood_tokens(asked, disable_tqdm=True)


def work(side: str, folder: Path, count: int, batch: int) -> None:
    """A worker: for each line on stdin answer everything, and print how fast and what."""
    answer = {"ours": ours, "harness": harness}[side](folder, count, batch)
    for _ in sys.stdin:
        begin = time.perf_counter()
        found = answer()
        print(json.dumps([time.perf_counter() - begin, found]), flush=True)


def turn(worker: subprocess.Popen[str]) -> tuple[float, list[tuple[float, bool]]]:
    assert worker.stdin
    assert worker.stdout
    print(file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a worker stopped with status {worker.wait()}")
    seconds, found = json.loads(line)
    return seconds, found


def measure(rounds: int, count: int, batch: int, folder: Path) -> dict[str, object]:
    words, pipe = [sys.executable, __file__, "--folder", str(folder)], subprocess.PIPE
    words += ["--questions", str(count), "--batch", str(batch), "--worker"]
    workers = {
        side: subprocess.Popen([*words, side], stdin=pipe, stdout=pipe, text=True) for side in SIDES
    }
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    answers = {}
    for number in range(rounds + 1):
        for side, worker in workers.items():
            seconds, answers[side] = turn(worker)
            speed = ENDINGS * count / seconds
            if number:
                speeds[side].append(speed)
            print(f"{number or 'warm-up':8} {side:8} {speed:7.2f} requests/s", flush=True)
    for worker in workers.values():
        worker.communicate()
    apart = max(abs(a[0] - b[0]) for a, b in zip(*answers.values(), strict=True))
    medians = {side: round(statistics.median(each), 2) for side, each in speeds.items()}
    return {
        "command": f"python benchmarks/eval_cpu.py --rounds {rounds} --questions {count} "
        f"--batch {batch}",
        "what": "requests a second, 125m preset, float32, four endings of each context",
        "requests_per_second": medians,
        "ratio": round(medians["ours"] / medians["harness"], 3),
        "largest_difference_in_nats": apart,
        "all": speeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="counted turns of each side")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16, help="the harness's requests at a time")
    parser.add_argument("--out", type=Path, default=RESULTS / "eval_cpu.json")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.folder, args.questions, args.batch)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        result = measure(args.rounds, args.questions, args.batch, Path(folder))
    print("ours over the harness's:", result["ratio"])
    write(args.out, result)


if __name__ == "__main__":
    main()
