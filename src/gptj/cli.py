"""The `gptj` command: one verb a job, each a record of options that tyro turns into flags."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from gptj.api import load
from gptj.convert.convert import ConvertConfig, convert
from gptj.convert.inspect import describe, diff
from gptj.convert.open import config_named, open_source
from gptj.data.prepare import PrepareConfig, PrepareReport, SplitReport, prepare
from gptj.engine.sampling import SamplingParams
from gptj.errors import UserError
from gptj.plot import PlotConfig, plot
from gptj.sharding import make_mesh
from gptj.train.loop import TrainConfig, train

Options = TypeVar("Options")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How the devices are arranged; their product must not exceed the devices there are."""

    data: int = 1
    """Copies of the model that split the batch."""
    fsdp: int = 1
    """Parts the stored weights are split in; these devices split the batch as well."""
    tensor: int = 1
    """Parts that heads, feed-forward and vocabulary are split in."""

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Set the mesh, unless it is of one device: then none is needed."""
        import jax

        if self == MeshShape():
            yield
        else:
            with jax.set_mesh(make_mesh(self.data, self.fsdp, self.tensor)):
                yield


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Train a GPT-J on a folder of prepared text; run again to go on where a run stopped.

    Ctrl-C or SIGTERM saves and stops; the same command resumes, and the weights it ends with are
    bit for bit those of a run that was never stopped. `gptj train RECIPE.py [FLAGS]` starts from
    what the file's function `recipe()` returns; a flag wins over the recipe, a recipe over the
    defaults.
    """

    train: tyro.conf.OmitArgPrefixes[TrainConfig]
    mesh: MeshShape = MeshShape()


@dataclasses.dataclass(frozen=True)
class GenerateCommand:
    """Write on from a prompt, token by token, to the terminal."""

    model: tyro.conf.Positional[str]
    """A model of any kind: a run, a saved or converted model, a Hugging Face folder or Hub id, or
    the original's shards."""
    prompt: str
    """The text to go on from; `-` reads it from standard input."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingParams] = SamplingParams()
    dtype: Literal["float32", "bfloat16"] | None = None
    """What to store and compute in. Default: what the weights are stored in."""
    tokenizer: str | None = None
    """A tokenizer, as `gptj prepare` takes it, where none lies with the model."""
    mesh: MeshShape = MeshShape()


def run_prepare(args: Sequence[str]) -> None:
    """Run `gptj prepare`."""
    example = "gptj prepare books/ notes.md --tokenizer train:8192 --out data/mine"
    show_prepared(prepare(_parse(PrepareConfig, "prepare", args, example)))


def show_prepared(report: PrepareReport) -> None:
    """Say what `gptj.prepare` wrote."""

    def line(name: str, part: SplitReport) -> None:
        print(
            f"  {name:9} {part.documents:,} documents, {part.bytes:,} bytes, {part.tokens:,} "
            f"tokens ({part.bytes_per_token:.2f} bytes each)  {part.path}"
        )

    skipped = f", {report.skipped_files} others skipped" if report.skipped_files else ""
    print(f"{report.files} files{skipped}; vocabulary of {report.vocab_size:,} tokens")
    line("train", report.train)
    if report.held_out:
        line("held out", report.held_out)


def run_train(args: Sequence[str]) -> None:
    """Run `gptj train`."""
    default = None
    if args and args[0].endswith(".py"):
        default, args = TrainCommand(load_recipe(Path(args[0]))), args[1:]
    example = "gptj train --data data/mine --model demo --steps 2000 --out runs/mine"
    command = _parse(TrainCommand, "train", args, example, default)
    with command.mesh.use():
        train(command.train)


def load_recipe(path: Path) -> TrainConfig:
    """What the function `recipe` of the Python file at `path` returns.

    Raises:
      UserError: there is no such file, or no such function in it, or it fails, or it returns
        something else.
    """
    if not path.is_file():
        raise UserError(f"no recipe {path}: give a Python file with a function recipe()")
    spec = importlib.util.spec_from_file_location("gptj_recipe", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gptj_recipe"] = module  # where dataclasses defined in the file look themselves up
    try:
        spec.loader.exec_module(module)
        recipe = getattr(module, "recipe", None)
        config = recipe() if callable(recipe) else None
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the recipe {path} fails, --debug shows where: {reason}") from error
    if not isinstance(config, TrainConfig):
        raise UserError(f"{path} must define a function recipe() that returns a gptj.TrainConfig")
    return config


def run_generate(args: Sequence[str]) -> None:
    """Run `gptj generate`."""
    example = "gptj generate runs/mine --prompt 'Once upon' --temperature 0.8 --max-tokens 200"
    command = _parse(GenerateCommand, "generate", args, example)
    prompt = _stdin() if command.prompt == "-" else command.prompt
    unseen = [prompt]  # shown with the first piece, so that a refused prompt is not

    def show(_: int, piece: str) -> None:
        print(*unseen, piece, sep="", end="", flush=True)
        unseen.clear()

    with command.mesh.use():
        model = load(command.model, dtype=command.dtype, tokenizer=command.tokenizer)
        model.generate(prompt, on_text=show, **dataclasses.asdict(command.sampling))
    print(*unseen, sep="")


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompt on standard input is not UTF-8 text ({error.reason} at byte "
            f"{error.start}): convert it (iconv -t UTF-8)"
        ) from error


def run_plot(args: Sequence[str]) -> None:
    """Run `gptj plot`."""
    config = _parse(PlotConfig, "plot", args, "gptj plot runs/mine runs/other --out curves.png")
    plot(config)
    print(f"wrote {config.out}")


@dataclasses.dataclass(frozen=True)
class InspectCommand:
    """Say what a model is: its kind, shape, weights by part, step, optimizer, tokenizer, hash."""

    model: tyro.conf.Positional[str]
    """A model of any kind: a folder, an archive, a URL, or a Hub id."""
    config: str | None = None
    """The shape, for an original checkpoint without a config.json: a JSON file or a preset."""
    hash: bool = True
    """Read all weights, to hash them and count those that are not numbers."""


@dataclasses.dataclass(frozen=True)
class DiffCommand:
    """Say whether two models of any kinds hold the same weights, and how far apart they are if not.

    Exits with 0 where the bits are the same, with 1 where they are not.
    """

    a: tyro.conf.Positional[str]
    """A model of any kind."""
    b: tyro.conf.Positional[str]
    """Another."""
    config_a: str | None = None
    """The first one's shape, for an original checkpoint without a config.json."""
    config_b: str | None = None
    """The second one's shape, likewise."""


def run_convert(args: Sequence[str]) -> None:
    """Run `gptj convert`."""
    example = "gptj convert step_383500_slim/ gpt-j-6b/ --to huggingface --dtype bfloat16"
    done = convert(_parse(ConvertConfig, "convert", args, example))
    for note in done.notes:
        print(f"note: {note}")
    print(f"wrote {done.out}")


def run_inspect(args: Sequence[str]) -> None:
    """Run `gptj inspect`."""
    command = _parse(InspectCommand, "inspect", args, "gptj inspect EleutherAI/gpt-j-6b --no-hash")
    source = open_source(command.model, config=config_named(command.config))
    for line in describe(source, command.hash):
        print(line, flush=True)


def run_diff(args: Sequence[str]) -> int:
    """Run `gptj diff`."""
    command = _parse(DiffCommand, "diff", args, "gptj diff step_383500_slim/ gpt-j-6b/")
    a = open_source(command.a, config=config_named(command.config_a))
    b = open_source(command.b, config=config_named(command.config_b))
    found = diff(a, b)
    if isinstance(found, str):
        print(found)
        return 1
    print(found.sentence())
    return 0 if found.same_bits else 1


@dataclasses.dataclass(frozen=True)
class Verb:
    """One thing the command does."""

    run: Callable[[Sequence[str]], int | None]
    summary: str


VERBS = {
    "prepare": Verb(run_prepare, "turn text files into tokens to train on"),
    "train": Verb(run_train, "train a model, or go on with a run"),
    "generate": Verb(run_generate, "write on from a prompt"),
    "plot": Verb(run_plot, "draw the curves of runs"),
    "convert": Verb(run_convert, "write a model as another kind"),
    "inspect": Verb(run_inspect, "say what a model on disk is"),
    "diff": Verb(run_diff, "compare the weights of two models"),
}

USAGE = f"""\
usage: gptj VERB [OPTIONS]    train, sample and measure GPT-J models

verbs:
{chr(10).join(f"  {name:10} {verb.summary}" for name, verb in VERBS.items())}

  gptj VERB --help   what a verb does, its options with units and defaults, an example
  gptj --version     the version
  --debug            with any verb: show where an error came from

example:
  gptj prepare my-texts/ --out data/mine
  gptj train --data data/mine --out runs/mine --steps 1000
  gptj generate runs/mine --prompt "It was"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if args else 2
    if args[0] == "--version":
        from gptj import __version__

        print(f"gptj {__version__}")
        return 0
    if args[0] not in VERBS:
        print(f"gptj: no verb {args[0]!r}: choose one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return guarded(f"gptj {args[0]}", lambda: VERBS[args[0]].run(args[1:]), debug)


def guarded(name: str, run: Callable[[], int | None], debug: bool = False) -> int:
    """Run it; a mistake of the user's becomes one sentence. Returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what a terminal cannot show
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:  # who read along has left, as `head` does when it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 128 + signal.SIGPIPE
    except (UserError, OSError) as error:
        if debug:
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return code or 0


def _join_docstring_lines() -> None:
    """Have tyro wrap a field's docstring as one paragraph; it keeps an indented one's line ends.

    There is no public way to say so. Where tyro has changed inside, help is ragged and no more.
    """
    parse = getattr(tyro._docstrings, "parse_docstring_from_object", None)
    if parse is None or getattr(parse, "joins_lines", False):
        return

    def joined(described: object) -> dict[str, str]:
        return {name: " ".join(text.split()) for name, text in parse(described).items()}

    joined.joins_lines = True  # type: ignore[attr-defined]
    tyro._docstrings.parse_docstring_from_object = joined  # type: ignore[assignment]


def _parse(
    kind: type[Options], verb: str, args: Sequence[str], example: str, default: Any = None
) -> Options:
    """Flags to a record of `kind`. A `UserError` in a record's own checks passes through."""
    _join_docstring_lines()
    paragraphs = (kind.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=f"gptj {verb}",
                description=f"{text}\n\nExample: {example}",
                args=args,
                default=tyro.MISSING_NONPROP if default is None else default,
                use_underscores=False,
            )
    except SystemExit as stop:
        # tyro frames the errors of records and exits; ours says all there is to say.
        cause: BaseException | None = stop
        while cause := cause.__context__ if cause else None:
            if isinstance(cause, UserError):
                raise cause from None
        sys.stderr.write(said.getvalue())
        raise


if __name__ == "__main__":
    sys.exit(main())
