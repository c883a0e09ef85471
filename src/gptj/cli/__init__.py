"""The `gptj` command: one verb a job, each a record of options that tyro turns into flags."""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence

from gptj.errors import UserError


@dataclasses.dataclass(frozen=True)
class Verb:
    """One thing the command does."""

    room: str
    """The module of this package that does it, loaded when it is asked for."""
    summary: str
    compiles: bool = True
    """Whether programs are compiled that are worth keeping."""

    def run(self, name: str, args: Sequence[str]) -> int | None:
        """Do it, with the words after the verb."""
        if self.compiles:
            from gptj.caches import keep_programs  # loads JAX

            keep_programs()
        module = importlib.import_module(f"gptj.cli.{self.room}")
        code: int | None = getattr(module, f"run_{name.replace('-', '_')}")(args)
        return code


VERBS = {
    "prepare": Verb("data", "turn text files into tokens to train on"),
    "mix": Verb("data", "mix prepared texts by weight"),
    "train": Verb("runs", "train a model, or go on with a run"),
    "lr-find": Verb("runs", "find a learning rate for a run"),
    "generate": Verb("models", "write on from a prompt"),
    "eval": Verb("evaluate", "measure how good a model is"),
    "plot": Verb("runs", "draw the curves of runs"),
    "report": Verb("runs", "write a page about a run"),
    "show-rows": Verb("runs", "print the text that a step trained on"),
    "verify": Verb("runs", "check that checkpoints are what was written"),
    "convert": Verb("models", "write a model as another kind"),
    "merge": Verb("models", "write a model and its adapters as one model"),
    "inspect": Verb("models", "say what a model on disk is"),
    "diff": Verb("models", "compare the weights of two models"),
    "serve": Verb("serve", "answer requests over HTTP"),
    "bench": Verb("bench", "measure how fast the programs are on this machine"),
    "plan": Verb("plan", "say what a run needs on hardware that is not there"),
    "doctor": Verb("doctor", "say what is here, what is missing, and how to get it", False),
}

INTERRUPTED = 128 + signal.SIGINT

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
    name, verb = args[0], VERBS[args[0]]
    code = guarded(f"gptj {name}", lambda: verb.run(name, args[1:]), debug, verb.compiles)
    if code == INTERRUPTED and argv is None:  # the end of Python would wait for the devices
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def guarded(
    name: str, run: Callable[[], int | None], debug: bool = False, compiles: bool = True
) -> int:
    """Run it; a mistake of the user's becomes one sentence. Returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what a terminal cannot show
    if compiles:
        from gptj.hardware import hush_libtpu  # loads JAX

        hush_libtpu()
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
        return INTERRUPTED
    return code or 0
