"""The verbs about a model: `gptj generate`, `convert`, `merge`, `inspect` and `diff`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from gptj.api import load
from gptj.cli.flags import MeshShape, parse
from gptj.convert.convert import ConvertConfig, Dtype, convert
from gptj.convert.inspect import describe, diff
from gptj.convert.open import adapter_at, config_named, open_source
from gptj.data.find import find_sources
from gptj.data.mixture import groups_of, is_data
from gptj.data.store import is_store
from gptj.engine.beam import BeamParams, EarlyStopping
from gptj.engine.config import KVCache
from gptj.engine.request import SamplingParams
from gptj.errors import UserError
from gptj.quantised import Quantisation


@dataclasses.dataclass(frozen=True)
class GenerateCommand:
    """Write on from a prompt, token by token, to the terminal."""

    model: tyro.conf.Positional[str]
    """A model of any kind: a run, a saved or converted model, a Hugging Face folder or Hub id, or
    the original's shards."""
    prompt: str
    """The text to go on from; `-` reads it from standard input."""
    beams: int = 1
    """More than 1 searches for the likeliest whole text among so many beginnings (beam search),
    and draws nothing at random."""
    length_penalty: float = 1.0
    """With beams: a text's score is its log-probability over its length to this power."""
    early_stopping: EarlyStopping = "hopeless"
    """With beams: stop when the best beginning could not win were it to end now (`hopeless`), when
    it could not at any length (`never` too early), or once there are as many ends (`full`)."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingParams] = SamplingParams()
    dtype: Literal["float32", "bfloat16"] | None = None
    """What to store and compute in. Default: what the weights are stored in."""
    quantize: Quantisation | None = None
    """Keep the matrices in so many bits, rounded as they are read: less memory, and
    faster but for nf4."""
    kv_cache: KVCache = "model"
    """Keep keys and values in the model's dtype, or in int8."""
    speculate: int = 0
    """Guess so many tokens ahead at each step: the same text, sooner where the guesses are good."""
    draft: str | None = None
    """A smaller model, of the same tokenizer, that guesses; else they are looked up in the text."""
    tokenizer: str | None = None
    """A tokenizer, as `gptj prepare` takes it, where none lies with the model."""
    mesh: MeshShape = MeshShape()


def run_generate(args: Sequence[str]) -> None:
    """Run `gptj generate`."""
    example = "gptj generate runs/mine --prompt 'Once upon' --temperature 0.8 --max-tokens 200"
    command = parse(GenerateCommand, "generate", args, example)
    beam = _beam(command)
    prompt = _stdin() if command.prompt == "-" else command.prompt
    unseen = [prompt]  # shown with the first piece, so that a refused prompt is not
    several = command.sampling.n > 1

    def show(_: int, piece: str) -> None:
        if not several:
            print(*unseen, piece, sep="", end="", flush=True)
            unseen.clear()

    with command.mesh.use():
        model = load(
            command.model,
            dtype=command.dtype,
            quantize=command.quantize,
            tokenizer=command.tokenizer,
        )
        if beam:
            texts = model.search(prompt, **beam)
        else:
            draft = load(command.draft, dtype=command.dtype) if command.draft else None
            texts = model.generate(
                prompt, on_text=show, speculate=command.speculate, draft=draft,
                kv_cache=command.kv_cache, **vars(command.sampling),
            )  # fmt: skip
    if several:
        for number, text in enumerate(texts):
            print(f"--- {number + 1} ---", prompt + text, sep="\n")
    else:
        print(*unseen, *(texts if beam else ()), sep="")


def _beam(command: GenerateCommand) -> dict[str, Any]:
    """The options of a search, none where there is to be none; what is not looked at is refused."""
    of_drawing = ("kv_cache", "speculate", "draft")
    of_search = {name: getattr(command, name) for name in ("length_penalty", "early_stopping")}
    if command.beams < 1:
        raise UserError(f"beams={command.beams} must be at least 1")
    if command.beams == 1:
        for name, value in of_search.items():
            if value != GenerateCommand.__dataclass_fields__[name].default:
                raise UserError(f"{name}={value} is for a search: add --beams 4, or leave it out")
        return {}
    for name in of_drawing:
        if getattr(command, name) != GenerateCommand.__dataclass_fields__[name].default:
            raise UserError(f"--beams draws nothing at random: leave out {name}")
    drawn = command.sampling
    others = SamplingParams(max_tokens=drawn.max_tokens, n=drawn.n)
    for field in dataclasses.fields(SamplingParams):
        if getattr(drawn, field.name) != getattr(others, field.name):
            raise UserError(f"--beams draws nothing at random: leave out {field.name}")
    search = {"beams": command.beams, "max_tokens": drawn.max_tokens, "n": drawn.n, **of_search}
    BeamParams(**search)  # refused before a model is loaded
    return search


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompt on standard input is not UTF-8 text ({error.reason} at byte "
            f"{error.start}): convert it (iconv -t UTF-8)"
        ) from error


@dataclasses.dataclass(frozen=True)
class InspectCommand:
    """Say what a model is: its kind, shape, weights by part, step, optimizer, tokenizer, hash.

    Of prepared data: documents and tokens by source, and how long the documents are.
    """

    model: tyro.conf.Positional[str]
    """A model of any kind: a folder, an archive, a URL, or a Hub id. Or a folder of prepared data,
    also if they were divided, or a mixture of them."""
    config: str | None = None
    """The shape, for an original checkpoint without a config.json: a JSON file or a preset."""
    hash: bool = True
    """Read all weights, to hash them and count those that are not numbers; of data, all tokens, to
    compare their hashes."""
    documents: int = 0
    """Of data: print so many documents, drawn at random."""
    seed: int = 0
    """Which documents."""
    lengths: Path | None = None
    """Of data: also draw how long the documents are, as a picture (.png, .svg or .pdf)."""


@dataclasses.dataclass(frozen=True)
class DiffCommand:
    """Say whether two models of any kinds hold the same weights, and how far apart they are if not.

    Exits with 0 where the bits are the same, with 1 where they are not.
    """

    a: tyro.conf.Positional[str]
    """A model of any kind."""
    b: tyro.conf.Positional[str]
    """The one to compare it with."""
    config_a: str | None = None
    """The first one's shape, for an original checkpoint without a config.json."""
    config_b: str | None = None
    """The second one's shape, likewise."""


def run_convert(args: Sequence[str]) -> None:
    """Run `gptj convert`."""
    example = "gptj convert step_383500_slim/ gpt-j-6b/ --to huggingface --dtype bfloat16"
    done = convert(parse(ConvertConfig, "convert", args, example))
    for note in done.notes:
        print(f"note: {note}")
    print(f"wrote {done.out}")


@dataclasses.dataclass(frozen=True)
class MergeCommand:
    """Write a model and its adapters as one model that needs none.

    Adapters trained beside a base in few bits are added to that base as it was rounded.
    """

    adapters: tyro.conf.Positional[str]
    """A run of `gptj train --lora-rank`, or a folder of PEFT's."""
    out: tyro.conf.Positional[Path]
    """The folder to write; it must not exist, or be empty."""
    base: str | None = None
    """The model that they belong to, if it is not where they say."""
    to: Literal["gptj", "huggingface", "mesh-transformer"] = "gptj"
    """The kind to write: this project's, transformers', or Mesh Transformer JAX's."""
    dtype: Dtype | None = None
    """The type to store the weights in. Default: as those of the base are."""


def run_merge(args: Sequence[str]) -> None:
    """Run `gptj merge`."""
    example = "gptj merge runs/mine merged/ --to huggingface"
    command = parse(MergeCommand, "merge", args, example)
    if adapter_at(command.adapters) is None:
        raise UserError(
            f"{command.adapters} holds no adapters to merge: gptj convert writes models"
        )
    done = convert(
        ConvertConfig(command.adapters, command.out, command.to, command.dtype, base=command.base)
    )
    for note in done.notes:
        print(f"note: {note}")
    print(f"wrote {done.out}")


def run_inspect(args: Sequence[str]) -> None:
    """Run `gptj inspect`."""
    command = parse(InspectCommand, "inspect", args, "gptj inspect EleutherAI/gpt-j-6b --no-hash")
    if is_data(command.model) or is_store(command.model) or groups_of(command.model):
        from gptj.cli.data import inspect_data

        if command.config is not None:
            raise UserError(f"{command.model} holds data, which have no config: leave it out")
        return inspect_data(
            command.model, command.hash, command.documents, command.seed, command.lengths
        )
    if command.documents or command.lengths or command.seed:
        raise UserError(
            f"{command.model} holds no prepared data: leave out documents, seed and lengths"
        )
    if _are_texts(command.model):
        raise UserError(
            f"{command.model} holds texts that are not prepared yet: gptj prepare {command.model} "
            "--out DATA, then gptj inspect DATA"
        )
    source = open_source(command.model, config=config_named(command.config))
    for line in describe(source, command.hash):
        print(line, flush=True)


def _are_texts(place: str) -> bool:
    """Whether a folder here holds files that can be prepared, and no others."""
    try:
        return Path(place).is_dir() and not find_sources([place]).skipped
    except UserError:
        return False


def run_diff(args: Sequence[str]) -> int:
    """Run `gptj diff`."""
    command = parse(DiffCommand, "diff", args, "gptj diff step_383500_slim/ gpt-j-6b/")
    a = open_source(command.a, config=config_named(command.config_a))
    b = open_source(command.b, config=config_named(command.config_b))
    found = diff(a, b)
    if isinstance(found, str):
        print(found)
        return 1
    print(found.sentence())
    return 0 if found.same_bits else 1
