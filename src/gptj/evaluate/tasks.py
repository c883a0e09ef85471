"""The harness's tasks run on one of our models, with data from their own source or from files."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
import lm_eval.tasks
import numpy as np
from jaxtyping import Array
from lm_eval.api.metrics import mean, perplexity
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.evaluate import local
from gptj.evaluate.article import Item
from gptj.evaluate.harness import HarnessModel, greedy
from gptj.evaluate.results import Measured
from gptj.evaluate.scorer import Scorer
from gptj.model import Params
from gptj.tokenizer import Tokenizer
from gptj.train.evaluators import Measure
from gptj.train.sinks import Row

Tasks = dict[str, Any]
"""Tasks, and groups of them, as the harness holds them."""

VERSION: str = lm_eval.__version__
"""The harness's."""

SEED, SHOTS_SEED = 0, 1234
"""The harness's for Python's draws, and for NumPy's and the examples of few-shot tasks."""


def load(names: Sequence[str], data: Path | None = None) -> Tasks:
    """The tasks of these names, groups or tags of tasks, with their questions.

    Args:
      data: a folder of data files, as `gptj.evaluate.local` describes; downloaded without.

    Raises:
      UserError: there is no such task, it asks for what we do not do, or its data are not to be
        had.
    """
    with _harnessed():
        if data is not None:
            return {"tasks": {name: _local(name, data) for name in names}}
        found = _downloaded(names)
    for name, task in found["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(
                f"the task {name} runs code that a model wrote, or shows it pictures or sounds, "
                "which gptj does not: leave it out"
            )
        if task.get_config("output_type") == "generate_until":
            try:
                greedy(task.get_config("generation_kwargs") or {})
            except UserError as error:  # said now, and not after the other tasks
                raise UserError(f"{name}: {error}") from error
    return found


def _downloaded(names: Sequence[str]) -> Tasks:
    manager = TaskManager()
    for name in names:
        if name not in manager.all_tasks:
            like = difflib.get_close_matches(name, manager.all_tasks)
            hint = f" (there are {', '.join(like)})" if like else ""
            raise UserError(f"the harness has no task {name!r}{hint}: `lm_eval ls tasks` lists all")
    try:
        return dict(manager.load(list(names)))
    except Exception as error:  # the libraries that download have no error in common
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the data of {', '.join(names)} are not to be had ({reason}): check the network, or "
            "name a folder of files with --local"
        ) from error


def run(model: LM, asked: Tasks, *, limit: int | None = None) -> list[Measured]:
    """Every metric of these tasks with its standard error.

    Args:
      limit: ask only so many questions of each task, the first ones.

    Raises:
      UserError: a question does not fit the model, or a perplexity is beyond all numbers.
    """
    with _harnessed():
        for task in asked["tasks"].values():
            task.set_fewshot_seed(seed=SHOTS_SEED)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        try:
            # Without iterations the harness bootstraps nothing; our errors are in closed form.
            result = evaluate(lm=model, task_dict=asked, limit=limit, bootstrap_iters=0)
        except OverflowError:
            raise UserError(
                "a perplexity is too large for a number: the model has diverged, or is not the "
                "one its tokenizer belongs to"
            ) from None
    return [
        each
        for name, metrics in result["results"].items()
        for each in _measured(name, metrics, result, asked["tasks"].get(name))
    ]


def under_way(asked: Tasks, limit: int | None = None) -> Measure:
    """What `run` finds, of a model that is being trained: its own weights, and no copy of them."""

    def measure(params: Params[Array], config: ModelConfig, tokenizer: Tokenizer) -> Row:
        found = run(HarnessModel(scorer=Scorer(params, config, tokenizer)), asked, limit=limit)
        return {f"{each.task}_{each.metric}": each.value for each in found}

    return measure


def arithmetic(data: Path, limit: int | None = None) -> list[Item]:
    """The questions of GPT-3's arithmetic sets, as the harness asks them."""
    tasks = load([f"arithmetic_{name}" for name in local.ARITHMETIC], data)["tasks"]
    with _harnessed():
        return [
            Item(name, task.doc_to_text(doc), task.doc_to_target(doc))
            for name, task in tasks.items()
            for _, doc in task.doc_iterator(limit=limit)
        ]


def _local(name: str, data: Path) -> Any:
    """A task with the harness's own prompts and metrics, and its questions from files."""
    found = local.rows(name, data)
    changes: dict[str, Any] = {}
    if "query" in found[0]:  # HellaSwag as the harness itself would make it
        found = [{**row, "label": row.get("label", row.get("gold"))} for row in found]
        changes["process_docs"] = None
    try:
        rows = datasets.Dataset.from_list(found)
    except Exception as error:  # pyarrow's failures share no base class
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the questions of {name} in {data} are not of one kind ({reason}): get the file anew"
        ) from error
    splits = {"training_split": None, "validation_split": None, "test_split": "local"}
    changes |= {**splits, "dataset_kwargs": None, "custom_dataset": lambda **_: {"local": rows}}
    folder = Path(lm_eval.tasks.__file__).parent / name.partition("_")[0]
    manager = TaskManager(include_defaults=False, include_path=folder)
    # A group of one: the harness's way to say a task anew with changes.
    group = {"group": "local", "task": [{"task": name, **changes}]}
    return manager.load([group])["tasks"][name]


def _measured(
    name: str, metrics: Mapping[str, Any], result: Mapping[str, Any], task: Any
) -> Iterator[Measured]:
    for key, value in metrics.items():
        metric, _, kind = key.partition(",")
        if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        samples = [
            each[metric]
            for each in result["samples"].get(name, ())
            if each["filter"] == kind and metric in each
        ]
        yield Measured(
            task=name,
            metric=metric if kind == "none" else f"{metric} ({kind})",
            value=float(value),
            error=_error(task.aggregation().get(metric), float(value), samples) if task else None,
            questions=len(samples) or int(metrics.get("sample_len", 0)),
            version=str(result["versions"].get(name, "")),
        )


def _error(aggregation: Any, value: float, samples: Sequence[Any]) -> float | None:
    """The standard error of a mean, and of a perplexity that of its logarithm times itself."""
    if len(samples) < 2 or aggregation not in (mean, perplexity):
        return None
    spread = statistics.stdev(map(float, samples)) / math.sqrt(len(samples))
    return value * spread if aggregation is perplexity else spread


@contextlib.contextmanager
def _harnessed() -> Iterator[None]:
    """Around the harness: its seeds, for tasks that shuffle answers, and no bars or notes of it."""
    logger, bar = logging.getLogger("lm_eval"), lm_eval.api.task.tqdm
    level, had_bars = logger.level, datasets.is_progress_bar_enabled()
    drawn = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(SHOTS_SEED)
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        if had_bars:
            datasets.enable_progress_bars()
