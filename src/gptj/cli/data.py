"""`gptj prepare` and `gptj mix`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptj.cli.flags import parse
from gptj.cluster import AUTO
from gptj.data.describe import counted, describe, describe_store, random_documents
from gptj.data.describe import lengths as counts
from gptj.data.mixture import MixConfig, Mixture, groups_of, held_out_beside, mix
from gptj.data.prepare import PrepareConfig, PrepareReport, StoreReport, prepare
from gptj.data.split import ENOUGH
from gptj.data.store import TokenStore, is_store
from gptj.errors import UserError
from gptj.train.rows import visible


def run_prepare(args: Sequence[str]) -> None:
    """Run `gptj prepare`."""
    example = "gptj prepare books/ notes.md --tokenizer train:8192 --out data/mine"
    show_prepared(prepare(parse(PrepareConfig, "prepare", _with_address(args), example)))


def _with_address(args: Sequence[str]) -> list[str]:
    """A `--ray` without an address means the cluster of this machine."""
    found = list(args)
    for place, word in enumerate(args):
        if word == "--ray" and (place + 1 == len(args) or args[place + 1].startswith("-")):
            found.insert(place + 1, AUTO)
    return found


def show_prepared(report: PrepareReport) -> None:
    """Say what `gptj.prepare` wrote."""

    def line(name: str, part: StoreReport) -> None:
        print(
            f"  {name:9} {counted(part.documents, 'document')}, {part.bytes:,} bytes, "
            f"{part.tokens:,} tokens ({part.bytes_per_token:.2f} bytes each)  {part.path}"
        )

    files = counted(report.files, "more file" if report.is_more else "file")
    skipped = f", {counted(report.skipped_files, 'other')} skipped" if report.skipped_files else ""
    few = report.vocab_size < report.asked_size
    lack = f" and not {report.asked_size:,}, as the text has no more to learn" if few else ""
    print(f"{files}{skipped}; vocabulary of {report.vocab_size:,} tokens{lack}")
    if report.replaced:
        print(f"{counted(report.replaced, 'piece')} not of UTF-8 replaced by U+FFFD")
    for each in report.dropped:
        left = counted(each.documents, "document")
        print(f"left out {left}, {each.bytes:,} bytes: {each.reason}")
        print(*(f"    {visible(example)}" for example in each.examples), sep="\n")
    if report.is_more:
        print("with what was there before:")
    for group in report.groups:
        if group.name:
            print(group.name)
        line("train", group.train)
        if group.held_out:
            line("held out", group.held_out)
        if group.held_out_unit == "tail":
            new = "new " if report.is_more else ""
            print(f"            the end of each {new}document, as they are fewer than {ENOUGH}")


def inspect_data(place: str, hashes: bool, documents: int, seed: int, lengths: Path | None) -> None:
    """Say what prepared data are; with `hashes`, after reading all of them."""
    if documents < 0:
        raise UserError(f"documents={documents} must be 0 (none) or above")
    if seed < 0:
        raise UserError(f"seed={seed} must be 0 or above")
    if lengths:
        from gptj.plot import check_picture, plot_lengths

        check_picture(lengths, "lengths")
    alone, groups = is_store(place), groups_of(place)
    if groups:
        said = counted(len(groups), "group")
        print(f"{place}: data in {said}, each of which is trained on by itself")
    drawn = {}
    for group in groups or [""]:  # one at a time: many have more files than may be open
        data = Mixture.of(TokenStore.open(place)) if alone else Mixture.open(f"{place}/{group}")
        kind = "a token store" if alone else "a mixture" if data.is_mixed else "data"
        print(f"\n{group}" if group else f"{place}: {kind}")
        for line in describe_store(data.parts[0].store) if alone else describe(data):
            print(line, flush=True)
        for part in data.parts:
            for source, number, text in random_documents(part.store, documents, seed):
                print(f"\n--- {source}, document {number + 1}\n{visible(text)}")
            if lengths:
                drawn[part.name or group or "data"] = counts(part.store)
            if hashes:
                part.store.verify()
                if not alone and (held := held_out_beside(part.store)):
                    held.verify()
    if lengths:
        plot_lengths(drawn, lengths)
        print(f"\nwrote {lengths}")
    if hashes:
        print("\nall hashes are right")


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
