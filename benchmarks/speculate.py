"""What guessing ahead gains: tokens a second without, by prompt lookup, and by a draft model.

    .venv/bin/python benchmarks/speculate.py                  a small model, trained first
    .venv/bin/python benchmarks/speculate.py gpt-j-6b/ wiki.test.raw

Each prompt is 128 tokens of a text the model was not trained on, written on by 128 tokens, greedily
and at temperature 0.8, on one slot and on eight. The draft is the model itself in 4 bits. Guessing
is switched off for a request where it draws fewer tokens a step than such a step costs, which the
engine measures; `forced` is the speed where it never is. The ways take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

from figures import RESULTS, write
from quantisation import trained_on_novels

import gptj
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.engine.step import Draft

PROMPT, NEW, GUESSES = 128, 128, 4
PLAIN, CHOOSING = "without", ("lookup", "draft")


def prompts(model: gptj.Model, text: str, count: int) -> list[list[int]]:
    """Passages of the text, one after the other."""
    assert model.tokenizer
    ids = model.tokenizer.encode(text[: 32 * PROMPT * count])
    return [ids[n * PROMPT : (n + 1) * PROMPT] for n in range(count)]


def engines(model: gptj.Model, draft: gptj.Model, slots: int) -> dict[str, Engine]:
    """Every way to go about it, warm."""
    plain = EngineConfig(slots, positions=PROMPT + NEW, prefix_bytes=0)
    guessing = dataclasses.replace(plain, speculate=GUESSES)
    forced = dataclasses.replace(guessing, break_even=1.0)
    small = Draft(draft.params, draft.config)
    ways: dict[str, tuple[EngineConfig, Draft | None]] = {
        PLAIN: (plain, None),
        "lookup": (guessing, None),
        "lookup, forced": (forced, None),
        "draft": (guessing, small),
        "draft, forced": (forced, small),
    }
    found = {
        name: Engine(model.params, model.config, model.tokenizer, *way)
        for name, way in ways.items()
    }
    for engine in found.values():
        engine.warm_up()
    return found


def measure(ways: dict[str, Engine], asked: list[Request], rounds: int) -> dict[str, float]:
    """Tokens a second of each way, which take turns; all draw the same tokens."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    first: list[list[int]] = []
    for _ in range(rounds + 1):
        for name, engine in ways.items():
            begin = time.perf_counter()
            drawn = [one.tokens for (one,) in engine.run(asked)]
            rates[name].append(sum(map(len, drawn)) / (time.perf_counter() - begin))
            first = first or drawn
            alike = statistics.fmean(a == b for a, b in zip(drawn, first, strict=True))
            assert alike > 0.9, f"{name} draws other tokens"  # but for a tie, to the last bit
    return {name: statistics.median(each[1:]) for name, each in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", nargs="?", help="a trained model of any kind")
    parser.add_argument("text", nargs="?", type=Path, help="a text file that it was not trained on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "speculate.json")
    args = parser.parse_args()
    if args.model and not args.text:
        parser.error("give a TEXT to take prompts from")
    path, text = (args.model, args.text.read_text()) if args.model else trained_on_novels()
    model, draft = gptj.load(path), gptj.load(path, quantize="int4")
    found: dict[str, dict[str, float | None]] = {}
    for slots in (1, 8):
        ways = engines(model, draft, slots)
        for heat in (0.0, 0.8):
            asked = [
                Request(ids, SamplingParams(temperature=heat, max_tokens=NEW, seed=n))
                for n, ids in enumerate(prompts(model, text, 8))
            ]
            rates = measure(ways, asked, args.rounds)
            ratios = {name: round(rate / rates[PLAIN], 3) for name, rate in rates.items()}
            name = f"{slots} slots, temperature {heat:g}"
            costs = {f"{way}, break-even": ways[way].device.break_even for way in CHOOSING}
            found[name] = {f"{PLAIN}, tokens a second": round(rates[PLAIN], 1), **ratios, **costs}
            print(name, json.dumps(found[name]), flush=True)
    result = {
        "what": "speed with guesses over the speed without, of a model on text it does not know",
        "model": Path(path).name,
        "parameters": gptj.count_parameters(model.config),
        "guesses": GUESSES,
        "ratio": found,
    }
    write(args.out, result)


if __name__ == "__main__":
    main()
