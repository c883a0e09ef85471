"""`gptj eval`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console

from gptj.api import load
from gptj.checkpoint import COURSE
from gptj.cli.flags import MeshShape, parse
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.evaluate import article, perplexity, results
from gptj.evaluate.cache import Cache, fingerprint
from gptj.evaluate.progress import Progress
from gptj.evaluate.published import COLUMNS, TASKS, Heading, published, source
from gptj.evaluate.requests import Reader, Style, mender
from gptj.evaluate.results import Measured
from gptj.evaluate.scorer import Scorer
from gptj.flops import flops_per_token
from gptj.plot import Point, plot_scores
from gptj.quantised import Quantisation
from gptj.train.metrics import read_metrics

OF_KIND = {
    **dict.fromkeys(("tasks", "style", "train_flops"), ("tasks",)),
    **dict.fromkeys(("limit", "local"), ("tasks", "article")),
    **dict.fromkeys(("draws", "seed"), ("article",)),
    **dict.fromkeys(("text", "stride"), ("text",)),
}
"""Which kinds of evaluation a flag is of; those that are not here are of all."""

FLAG = {"style": "as"}
"""What a field is called on the command line, where that is no name in Python."""

DECIDING = ("fingerprint", "settings", "gptj", "jax", "harness")
"""What of a record decides the answers, and so tells one file of results from another."""

LONGEST_NAME = 100
"""Characters of a results' file's name before its hash: tasks can be many."""


@dataclasses.dataclass(frozen=True)
class EvalCommand:
    """Measure a model: on the harness's tasks, on a text, or on the article's kinds of prompt.

    Every answer is written down as it comes: after an interruption, or with more tasks, the same
    command asks only for what is missing.
    """

    model: tyro.conf.Positional[str]
    """A model of any kind: a run, a saved or converted model, a Hugging Face folder or Hub id, or
    the original's shards."""
    tasks: tuple[str, ...] = TASKS
    """Tasks, groups or tags of EleutherAI's harness. Default: those of GPT-J's published table."""
    limit: int | None = None
    """Ask only the first so many questions of each task or kind. Default: all."""
    local: Path | None = None
    """Take the questions from this folder's files instead of the network: lambada/, winogrande/,
    hellaswag/, piqa/, wikitext2/ and gpt3_arithmetic/, as their authors gave them."""
    style: Annotated[Style, tyro.conf.arg(name="as")] = "today"
    """How prompts become tokens: as the harness has it today, or as GPT-J's adapter of 2021 did,
    which began every context with end-of-text and ran ftfy over the text."""
    text: tuple[Path, ...] = ()
    """Instead of tasks, predict these texts: perplexity, and bits per byte."""
    stride: int | None = None
    """With a text, tokens predicted at a time, each given all that the window holds before it.
    Default: as many as the window holds."""
    suite: Literal["article"] | None = None
    """Instead of tasks, the kinds of prompt that GPT-J's article shows, and with `local` GPT-3's
    arithmetic: greedy completions beside draws from the likeliest 90 %."""
    draws: int = 4
    """With a suite, draws of each prompt."""
    seed: int = 0
    """With a suite, what its mathematics problems are made from."""
    train_flops: float | None = None
    """What the model's training cost, for the picture. Default: computed for a run's folder."""
    out: Path | None = None
    """Folder for the answers so far and the results, whose file is named by what was asked.
    Default: evals/ and the model's name."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What to store and compute in. Default: what the weights are stored in."""
    quantize: Quantisation | None = None
    """Keep the matrices in so many bits, rounded as they are read."""
    tokenizer: str | None = None
    """A tokenizer, as `gptj prepare` takes it, where none lies with the model."""
    mesh: MeshShape = MeshShape()

    def __post_init__(self) -> None:
        if self.text and self.suite:
            raise UserError("a text and a suite are two evaluations: leave out one")
        for name, kinds in OF_KIND.items():
            flag = FLAG.get(name, name).replace("_", "-")
            default = EvalCommand.__dataclass_fields__[name].default
            if getattr(self, name) != default and self.kind not in kinds:
                of = "a suite" if self.suite else self.kind
                raise UserError(f"--{flag} means nothing to an evaluation of {of}: leave it out")
        for name in ("limit", "draws", "stride"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if self.train_flops is not None and not 0 < self.train_flops < math.inf:
            raise UserError(f"train_flops={self.train_flops} must be a number above 0, or left out")
        if not self.tasks:
            raise UserError(f"no task to ask: name one, such as {', '.join(TASKS)}")

    @property
    def name(self) -> str:
        """What the model is called in tables and folders."""
        return os.path.basename(os.path.abspath(self.model)) or "model"

    @property
    def kind(self) -> str:
        """What is evaluated: tasks, a text, or the name of a suite."""
        return self.suite or ("text" if self.text else "tasks")

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.out or Path("evals") / self.name

    @property
    def settings(self) -> dict[str, Any]:
        """What the flags say of how the model is asked, by their names; paths whole."""
        names = [name for name, kinds in OF_KIND.items() if self.kind in kinds]
        names = [*names, "dtype", "quantize", "tokenizer"]
        return {
            FLAG.get(name, name): _plain(getattr(self, name))
            for name in names
            if name != "train_flops"  # of the picture alone
        }

    def results(self, record: dict[str, Any]) -> Path:
        """The file of a record; the picture is beside it.

        What was asked is in its name, and a hash of all that decides the answers: no other
        evaluation's results are written over, and the same command's are.
        """
        deciding = json.dumps([record.get(name) for name in DECIDING], sort_keys=True)
        digest = hashlib.blake2b(deciding.encode(), digest_size=4).hexdigest()
        words = [
            self.kind,
            "+".join(self.tasks if self.tasks != TASKS else [path.stem for path in self.text]),
            self.style if self.style != "today" else "",
            f"first{self.limit}" if self.limit else "",
            f"stride{self.stride}" if self.stride else "",
            self.quantize or self.dtype or "",
        ]
        name = re.sub(r"[^\w+.-]", "_", "-".join(filter(None, words)))
        return self.folder / f"{name[:LONGEST_NAME]}-{digest}.json"


def _plain(value: Any) -> Any:
    """A flag's value as JSON has it."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value.resolve()) if isinstance(value, Path) else value


Evaluation = Callable[[Scorer, Console], dict[str, Any]]
"""What is left to do once there is a model: evaluate it, say what was found, and return that."""


def run_eval(args: Sequence[str]) -> None:
    """Run `gptj eval`."""
    command = parse(EvalCommand, "eval", args, "gptj eval runs/mine --local data/ --limit 100")
    console = Console()
    prepare = _text if command.text else _suite if command.suite else _tasks
    evaluate = prepare(command)  # refused before a model is loaded
    with command.mesh.use(), _opened(command, console) as (scorer, record):
        record |= evaluate(scorer, console)
        path = command.results(record)
        results.write(path, record)
        _say(console, f"wrote {path}")
        if command.kind == "tasks":
            _picture(command, scorer, record, path.with_suffix(".png"), console)


@contextlib.contextmanager
def _opened(command: EvalCommand, console: Console) -> Iterator[tuple[Scorer, dict[str, Any]]]:
    """What scores the model, and what the results say of it."""
    model = load(
        command.model,
        dtype=command.dtype,
        quantize=command.quantize,
        tokenizer=command.tokenizer,
    )
    mark = fingerprint(model.params, model.config)
    record = {
        "model": command.model,
        "fingerprint": mark,
        "dtype": command.quantize or str(model.dtype),
        "gptj": version("gptj-jax"),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "settings": command.settings,
    }
    # Another version may answer otherwise. The harness's is of the questions, which are looked up.
    answers = f"answers-{mark}-gptj-{record['gptj']}-jax-{record['jax']}.jsonl"
    with contextlib.closing(Cache(command.folder / answers)) as cache:
        try:
            progress = Progress(console)
            yield Scorer(model.params, model.config, model.tokenizer, cache, progress), record
        except KeyboardInterrupt:
            _say(console, f"{len(cache):,} answers are kept in {cache.path}, to go on from")
            raise


def _tasks(command: EvalCommand) -> Evaluation:
    adapter, tasks = harness()
    mender(command.style)  # refused if it cannot be had
    found = tasks.load(command.tasks, command.local)

    def evaluate(scorer: Scorer, console: Console) -> dict[str, Any]:
        model = adapter.HarnessModel(scorer=scorer, style=command.style)
        measured = tasks.run(model, found, limit=command.limit)
        results.show(measured, command.name, console)
        if command.limit:
            _say(console, f"of each task the first {command.limit} questions")
        _say(console, f"prompts as {command.style}; published rows: {source()}")
        _say_shortened(console, model.reader)
        return {
            "harness": tasks.VERSION,
            "shortened": model.reader.shortened,
            "results": [dataclasses.asdict(each) for each in measured],
        }

    return evaluate


def harness() -> tuple[Any, Any]:
    """The modules that need the harness.

    Raises:
      UserError: it is not installed.
    """
    try:
        from gptj.evaluate import harness as adapter
        from gptj.evaluate import tasks
    except ImportError as error:
        raise UserError(
            f"the tasks need {(error.name or '').partition('.')[0]}: pip install 'gptj-jax[eval]'"
        ) from error
    return adapter, tasks


def _picture(
    command: EvalCommand,
    scorer: Scorer,
    record: dict[str, Any],
    picture: Path,
    console: Console,
) -> None:
    """The shares of the published table against training FLOPs, this model marked."""
    found = [Measured(**each) for each in record["results"]]
    owns = {column: own for column in COLUMNS if (own := results.of_column(found, column))}
    owns = {column: own for column, own in owns.items() if own.metric in results.PERCENT}
    if not owns:
        return
    try:
        flops = command.train_flops or _spent(Path(command.model), scorer.config)
        plot_scores(
            {
                column.title: _panel(column, own, command.name, flops)
                for column, own in owns.items()
            },
            picture,
        )
    except UserError as error:  # the figures are what counts
        _say(console, f"no picture: {error}")
    else:
        unknown = ", a line across: --train-flops says what training took in all"
        _say(console, f"wrote {picture}{'' if flops else unknown}")


def _panel(
    column: Heading, own: Measured, name: str, flops: float | None
) -> tuple[list[Point], Point]:
    points = [
        Point(model.name, model.training_flops, model.values[column.key])
        for model in published()
        if column.key in model.values
    ]
    error = None if own.error is None else 100 * own.error
    return points, Point(name, flops, 100 * own.value, error)


def _spent(run: Path, config: ModelConfig) -> float | None:
    """What training took, where the model is the folder of a run that began with random weights.

    Raises:
      UserError: the run's record is damaged.
    """
    rows = read_metrics(run)
    if not rows or not (run / COURSE).is_file():
        return None
    try:
        course = json.loads((run / COURSE).read_text())
        began, length = course.get("from"), int(course["seq"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run / COURSE} is damaged: say --train-flops") from error
    # What the run itself spent is the smaller part of it.
    return None if began else float(rows[-1]["tokens"] * flops_per_token(config, length))


def _text(command: EvalCommand) -> Evaluation:
    documents = perplexity.read(command.text)

    def evaluate(scorer: Scorer, console: Console) -> dict[str, Any]:
        texts = [document.text for document in documents]
        found = perplexity.score_texts(scorer, texts, command.stride)
        _say(console, str(found))
        return {
            "stride": command.stride or scorer.config.context,
            **dataclasses.asdict(found),
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
        }

    return evaluate


def _suite(command: EvalCommand) -> Evaluation:
    items = article.items(command.seed, command.limit)
    if command.local:
        items += harness()[1].arithmetic(command.local, command.limit)

    def evaluate(scorer: Scorer, console: Console) -> dict[str, Any]:
        reader = Reader(scorer.tokenizer, scorer.config.context)
        found, answered = article.ask(scorer, reader, items, command.draws)
        article.show(found, command.draws, console)
        _say_shortened(console, reader)
        return {
            "top_p": article.TOP_P,
            "shortened": reader.shortened,
            "results": [dataclasses.asdict(each) for each in found],
            "answers": [
                {**each.item._asdict(), "greedy": each.greedy, "nucleus": each.nucleus}
                for each in answered
            ],
        }

    return evaluate


def _say_shortened(console: Console, reader: Reader) -> None:
    if reader.shortened:
        _say(
            console,
            f"contexts that lost their beginning to the model's window of {reader.window} tokens: "
            f"{reader.shortened:,}",
        )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
