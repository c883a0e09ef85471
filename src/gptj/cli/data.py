"""`gptj prepare` and `gptj mix`."""

from __future__ import annotations

from collections.abc import Sequence

from gptj.cli.flags import parse
from gptj.data.mixture import MixConfig, mix
from gptj.data.prepare import PrepareConfig, PrepareReport, StoreReport, prepare


def run_prepare(args: Sequence[str]) -> None:
    """Run `gptj prepare`."""
    example = "gptj prepare books/ notes.md --tokenizer train:8192 --out data/mine"
    show_prepared(prepare(parse(PrepareConfig, "prepare", args, example)))


def show_prepared(report: PrepareReport) -> None:
    """Say what `gptj.prepare` wrote."""

    def line(name: str, part: StoreReport) -> None:
        print(
            f"  {name:9} {part.documents:,} documents, {part.bytes:,} bytes, {part.tokens:,} "
            f"tokens ({part.bytes_per_token:.2f} bytes each)  {part.path}"
        )

    skipped = f", {report.skipped_files} others skipped" if report.skipped_files else ""
    print(f"{report.files} files{skipped}; vocabulary of {report.vocab_size:,} tokens")
    if report.replaced:
        print(f"{report.replaced:,} pieces that were not UTF-8 replaced by U+FFFD")
    for each in report.dropped:
        print(f"left out {each.documents:,} documents, {each.bytes:,} bytes: {each.reason}")
        print(*(f"    {example}" for example in each.examples), sep="\n")
    for group in report.groups:
        if group.name:
            print(group.name)
        line("train", group.train)
        if group.held_out:
            line("held out", group.held_out)


def run_mix(args: Sequence[str]) -> None:
    """Run `gptj mix`."""
    example = "gptj mix data/books=0.7 data/code=0.3 --out data/mixed"
    config = parse(MixConfig, "mix", args, example)
    report = mix(config)
    width = max((len(part.name) for part in report), default=0)
    print(f"{config.out}: {sum(part.tokens for part in report):,} tokens to train on")
    for part in report:
        print(
            f"  {part.name:{width}} {part.tokens:>16,} tokens  {100 * part.share:6.2f} % of the "
            f"rows, read {part.epochs:.2f} times in as many"
        )
