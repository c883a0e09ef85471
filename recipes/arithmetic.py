"""A small GPT-J learns to add and subtract from nothing, and then by LoRA to multiply.

    python recipes/arithmetic.py                    about an hour on two CPU cores
    python recipes/arithmetic.py words              the first skill on problems in plain words
    python recipes/arithmetic.py article SETS ...   GPT-3's form, 25M parameters, for a GPU

Expect of the first, after eleven minutes, 99 % or more exact answers on 2,000 sums and differences
each that are no part of the training data; with the adapters the same of products, and still of
the others; of words about half the sums and differences. The third trains for `gptj eval --tasks
arithmetic_2da ...`; SETS are the files of those tasks, the problems in which are left out. Leaves
runs/arithmetic/: the models, curves and summary.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gptj
from gptj.cli import guarded
from gptj.plot import PlotConfig, plot

TESTED = 2000
"""Problems of each kind that answers are counted on."""
NAMES = {"+": "plus", "-": "minus", "*": "times"}


class Problem(NamedTuple):
    """Two numbers and what is done to them."""

    a: int
    sign: str
    b: int

    @property
    def result(self) -> int:
        """What comes out."""
        return {"+": self.a + self.b, "-": self.a - self.b, "*": self.a * self.b}[self.sign]

    @property
    def is_held_out(self) -> bool:
        """Whether the two numbers are never trained on: a tenth of all pairs, by their hash."""
        return hashlib.sha256(f"{self.a} {self.b}".encode()).digest()[0] < 26


Form = Callable[[Problem], tuple[str, str]]
"""A problem to what is asked and what is to be answered."""


def digits(problem: Problem) -> tuple[str, str]:
    """`012-345=` and `-333`: of as many digits always, the answer's last digit first.

    A carry goes from the last digit to the first, so this way each next one follows from what
    stands there already. A difference begins with its sign.
    """
    a, sign, b = problem
    size = 4 if sign == "+" else 3
    shown = f"{abs(problem.result):0{size + (sign == '*')}}"[::-1]
    before = ("-" if problem.result < 0 else "+") if sign == "-" else ""
    return f"{a:03}{sign}{b:03}=", before + shown


def words(problem: Problem) -> tuple[str, str]:
    """`Question: What is 12 minus 345?` and ` -333`, as the article and GPT-3's sets ask."""
    asked = f"Question: What is {problem.a} {NAMES[problem.sign]} {problem.b}?\nAnswer:"
    return asked, f" {problem.result}"


def drawn(signs: str, seed: int, held_out: bool, sizes: Sequence[int] = (3,)) -> Iterator[Problem]:
    """Endless problems, of numbers of up to so many digits; products are by one digit."""
    draw = random.Random(f"{signs} {seed}")
    while True:
        sign, most = draw.choice(signs), 10 ** draw.choice(sizes)
        problem = Problem(draw.randrange(most), sign, draw.randrange(10 if sign == "*" else most))
        if problem.is_held_out == held_out:
            yield problem


def recipe(
    data: Path = Path("data/arithmetic"), out: Path = Path("runs/arithmetic")
) -> gptj.TrainConfig:
    """A GPT-J of 4 layers and half a million parameters, shown 576,000 problems."""
    return gptj.TrainConfig(
        data=data,
        out=out,
        model=gptj.ModelConfig(4, 96, 4, 24, 384, 257, 264, 64),
        steps=2250,
        batch=256,
        seq=12,
        eval_every=250,
        save_every=750,
        log_every=250,
        compute=gptj.StepConfig(spike_sigma=0.0),  # a loss near 0 jumps by many deviations
        optimizer=gptj.OptimizerConfig(lr=2e-3, end_lr=2e-5, warmup_steps=100),
    )


def prepare(problems: Iterator[Problem], count: int, form: Form, out: Path, tokenizer: str) -> None:
    """Write so many problems as examples of which the answer is learnt."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = out.with_suffix(".jsonl")
    with lines.open("w") as file:
        for _ in range(count):
            prompt, completion = form(next(problems))
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    examples = gptj.ExampleConfig("completions")
    gptj.prepare(
        gptj.PrepareConfig(
            (str(lines),), out, tokenizer, held_out=0.002, force=True, examples=examples
        )
    )


def exact(model: gptj.Model, signs: str, form: Form, **sampling: Any) -> float:
    """How many of `TESTED` problems that were held out get exactly their answer, from 0 to 1."""
    found: dict[Problem, None] = {}
    for problem in drawn(signs, 0, held_out=True):
        found[problem] = None
        if len(found) == (900 if signs == "*" else TESTED):  # nearly all products there are
            break
    asked, right = zip(*map(form, found), strict=True)
    answers = model.generate(list(asked), max_tokens=12, **sampling)
    return sum(map(str.__eq__, answers, right)) / len(right)


def main_proof(form: Form, name: str) -> dict[str, float]:
    """Learn sums and differences from nothing, and count."""
    begin = time.perf_counter()
    config = recipe(Path(f"data/{name}"), Path(f"runs/{name}"))
    if form is words:
        config = dataclasses.replace(config, seq=47, batch=64)  # four times the tokens a problem
    count = config.steps * config.batch
    print(f"Writing {count:,} problems", flush=True)
    prepare(drawn("+-", 0, held_out=False), count, form, config.data, "bytes")
    gptj.train(config)
    model = gptj.load(config.out)
    found = {
        f"exact {NAMES[sign]} {how}": exact(model, sign, form, **sampling)
        for sign in "+-"
        for how, sampling in SAMPLINGS.items()
    }
    return {**found, "seconds": time.perf_counter() - begin}


SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "p=0.9": {"temperature": 1.0, "top_p": 0.9, "seed": 0},
}


def second_skill(first: Path) -> dict[str, float]:
    """Learn products by adapters beside the model, half of the problems the old ones."""
    begin = time.perf_counter()
    data, out = Path("data/arithmetic-times"), Path("runs/arithmetic-times")
    config = dataclasses.replace(
        recipe(data, out),
        model="demo",
        from_=str(first),
        steps=2250,
        compute=gptj.StepConfig(lora=gptj.LoRAConfig(rank=64, alpha=128.0), spike_sigma=0.0),
        optimizer=gptj.OptimizerConfig(lr=3e-3, end_lr=3e-5, warmup_steps=50),
    )
    count = config.steps * config.batch
    prepare(drawn("**+-", 0, held_out=False), count, digits, data, f"{first}")
    gptj.train(config)
    model = gptj.load(out)
    found = {
        f"exact {NAMES[sign]} {how}": exact(model, sign, digits, **sampling)
        for sign in "+-*"
        for how, sampling in SAMPLINGS.items()
    }
    return {**found, "seconds": time.perf_counter() - begin}


def proof() -> None:
    """Both skills, their figures and curves."""
    found = {"first": main_proof(digits, "arithmetic")}
    tell(found["first"])
    first = Path("runs/arithmetic")
    found["second"] = second_skill(first)
    tell(found["second"])
    runs = (first, Path("runs/arithmetic-times"))
    plot(PlotConfig(runs=runs, out=first / "curves.png"))
    (first / "summary.json").write_text(json.dumps(found, indent=2) + "\n")


def in_words() -> None:
    """The same on problems in words."""
    found = main_proof(words, "arithmetic-words")
    tell(found)
    Path("runs/arithmetic-words/summary.json").write_text(json.dumps(found, indent=2) + "\n")


def article(sets: Sequence[str]) -> None:
    """GPT-3's form, numbers of 2 to 5 digits, without the problems of its sets."""
    tested = {pair for place in sets for pair in pairs_in(Path(place))}
    if not tested:
        raise gptj.UserError("no problems to leave out: name the files of GPT-3's arithmetic sets")
    every = drawn("+-", 0, held_out=False, sizes=(2, 3, 4, 5))
    kept = (each for each in every if not {(each.a, each.b), (each.b, each.a)} & tested)
    config = gptj.TrainConfig(
        data=Path("data/arithmetic-article"),
        out=Path("runs/arithmetic-article"),
        model=gptj.ModelConfig(8, 512, 8, 64, 2048, 257, 264, 128),
        steps=20_000,
        batch=512,
        seq=63,
        eval_every=1000,
        save_every=2000,
        log_every=100,
        compute=gptj.StepConfig(dtype="bfloat16"),
        optimizer=gptj.OptimizerConfig(lr=1e-3, end_lr=1e-5, warmup_steps=500),
    )
    prepare(kept, 3_000_000, words, config.data, "bytes")
    gptj.train(config)


def pairs_in(path: Path) -> Iterator[tuple[int, int]]:
    """The numbers of each problem in one of GPT-3's files."""
    try:
        for line in path.read_text().splitlines():
            a, b, *_ = map(int, re.findall(r"\d+", json.loads(line)["context"]))
            yield a, b
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise gptj.UserError(
            f"{path} is no file of GPT-3's arithmetic sets ({error}): name those"
        ) from error


def tell(found: dict[str, float]) -> None:
    """Print what was found."""
    for name, value in found.items():
        shown = f"{100 * value:.2f} %" if name.startswith("exact") else f"{value:.0f}"
        print(f"  {name:24} {shown}", flush=True)


def main() -> int:
    """The command line: which of them."""
    which, *rest = sys.argv[1:] or ["digits"]
    jobs = {"digits": proof, "words": in_words, "article": lambda: article(rest)}
    if which not in jobs:
        print(f"arithmetic: no {which!r}: choose one of {', '.join(jobs)}", file=sys.stderr)
        return 2
    if rest and which != "article":
        print(f"arithmetic: {which} takes no {rest[0]!r}: leave it out", file=sys.stderr)
        return 2
    return guarded("arithmetic", jobs[which])


if __name__ == "__main__":
    sys.exit(main())
