"""`gptj eval`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console

from gptj.api import load
from gptj.cli.flags import MeshShape, parse
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.evaluate import article, perplexity, results
from gptj.evaluate.cache import Cache, fingerprint
from gptj.evaluate.progress import Progress
from gptj.evaluate.published import COLUMNS, TASKS, published, source
from gptj.evaluate.requests import Reader, Style, mender
from gptj.evaluate.results import Measured
from gptj.evaluate.scorer import Scorer
from gptj.flops import flops_per_token
from gptj.plot import Point, plot_scores
from gptj.quantised import Quantisation
from gptj.train.metrics import read_metrics
from gptj.train.run import COURSE


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
    """Folder for the results and the answers so far. Default: evals/ and the model's name."""
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
        kind = "suite" if self.suite else self.kind
        of = {
            **dict.fromkeys(("tasks", "train_flops", "style"), ("tasks",)),
            **dict.fromkeys(("limit", "local"), ("tasks", "suite")),
            **dict.fromkeys(("draws", "seed"), ("suite",)),
            "stride": ("text",),
        }
        for name, kinds in of.items():
            flag = "as" if name == "style" else name.replace("_", "-")
            default = EvalCommand.__dataclass_fields__[name].default
            if getattr(self, name) != default and kind not in kinds:
                raise UserError(f"--{flag} means nothing to an evaluation of {kind}: leave it out")
        for name in ("limit", "draws"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if not self.tasks:
            raise UserError(f"no task to ask: name one, such as {', '.join(TASKS)}")

    @property
    def name(self) -> str:
        """What the model is called in tables and folders."""
        return Path(self.model.rstrip("/")).name or "model"

    @property
    def kind(self) -> str:
        """What is evaluated: tasks, a text, or the name of a suite."""
        return self.suite or ("text" if self.text else "tasks")

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self.out or Path("evals") / self.name

    @property
    def results(self) -> Path:
        """The file of the results; the picture is beside it."""
        style = "" if self.style == "today" else f"-{self.style}"
        return self.folder / f"{self.kind}{style}.json"


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
    results.write(command.results, record)
    _say(console, f"wrote {command.results}")


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
        "gptj": version("gptj"),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    with contextlib.closing(Cache(command.folder / f"answers-{mark}.jsonl")) as cache:
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
        _picture(command, scorer.config, measured, console)
        return {
            "as": command.style,
            "harness": tasks.VERSION,
            "limit": command.limit,
            "local": command.local and str(command.local),
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
            f"the tasks need {(error.name or '').partition('.')[0]}: pip install 'gptj[eval]'"
        ) from error
    return adapter, tasks


def _picture(
    command: EvalCommand, config: ModelConfig, measured: Sequence[Measured], console: Console
) -> None:
    """The shares of the published table against training FLOPs, this model marked."""
    flops = command.train_flops or _spent(Path(command.model), config)
    panels = {}
    for column in COLUMNS:
        own = results.of_column(measured, column)
        if own and own.metric in results.PERCENT:
            error = None if own.error is None else 100 * own.error
            panels[column.title] = (
                [
                    Point(model.name, model.training_flops, model.values[column.key])
                    for model in published()
                    if column.key in model.values
                ],
                Point(command.name, flops, 100 * own.value, error),
            )
    if not panels:
        return
    picture = command.results.with_suffix(".png")
    try:
        plot_scores(panels, picture)
    except UserError as error:  # the figures are what counts
        _say(console, f"no picture: {error}")
    else:
        _say(console, f"wrote {picture}")


def _spent(run: Path, config: ModelConfig) -> float | None:
    """What training took, where the model is the folder of a run."""
    rows = read_metrics(run)
    if not rows or not (run / COURSE).is_file():
        return None
    length = json.loads((run / COURSE).read_text())["seq"]
    return float(rows[-1]["tokens"] * flops_per_token(config, length))


def _text(command: EvalCommand) -> Evaluation:
    documents = perplexity.read(command.text)

    def evaluate(scorer: Scorer, console: Console) -> dict[str, Any]:
        texts = [document.text for document in documents]
        found = perplexity.score_texts(scorer, texts, command.stride)
        _say(console, str(found))
        return {
            "text": [str(path) for path in command.text],
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
            "suite": command.suite,
            "seed": command.seed,
            "draws": command.draws,
            "top_p": article.TOP_P,
            "limit": command.limit,
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
            f"{reader.shortened:,} requests lost the beginning of their context: the model's "
            f"window is {reader.window} tokens",
        )


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
