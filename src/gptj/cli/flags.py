"""Flags to records, for every verb alike."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from gptj.errors import UserError

Options = TypeVar("Options")

NOTHING = (" (default: )", " (default: None)", " (default: ['None'])")
"""What tyro says of a field where nothing is given."""

NO_CHOICE = re.compile(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)\.")
"""What it says, in a frame, of a word that a flag does not know."""

FRAME = re.compile(r"│|\x1b\[[0-9;]*m")
"""The frame's sides, and what colours it and the words."""


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

        from gptj.sharding import make_mesh

        if self == MeshShape() and jax.process_count() == 1:
            yield
        else:
            with jax.set_mesh(make_mesh(self.data, self.fsdp, self.tensor)):
                yield


def _mend_help() -> None:
    """Have tyro wrap a field's docstring as one paragraph, and be silent where nothing is default.

    It keeps the line ends of an indented docstring, and says `(default: None)` behind one that says
    what the default is. There is no public way to say otherwise for all fields. Where tyro has
    changed inside, help is ragged and no more.
    """
    parse = getattr(tyro._docstrings, "parse_docstring_from_object", None)
    describe = getattr(tyro._arguments, "generate_argument_helptext", None)
    if parse is None or describe is None or getattr(parse, "mended", False):
        return

    def joined(described: object) -> dict[str, str]:
        return {name: " ".join(text.split()) for name, text in parse(described).items()}

    def brief(*argument: Any, **options: Any) -> Any:
        described = describe(*argument, **options)
        if described.as_str_no_ansi().endswith(NOTHING):
            return getattr(described, "_segments", (described,))[0]
        return described

    joined.mended = True  # type: ignore[attr-defined]
    tyro._docstrings.parse_docstring_from_object = joined  # type: ignore[assignment]
    tyro._arguments.generate_argument_helptext = brief


def parse(
    kind: type[Options], verb: str, args: Sequence[str], example: str, default: Any = None
) -> Options:
    """Flags to a record of `kind`. A `UserError` in a record's own checks passes through."""
    _mend_help()
    names = getattr(tyro.conf, "PositionalMetavarFromFieldName", None)  # not in an older tyro
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
                config=() if names is None else (names,),
            )
    except SystemExit as stop:
        # tyro frames the errors of records and exits; ours says all there is to say.
        cause: BaseException | None = stop
        while cause := cause.__context__ if cause else None:
            if isinstance(cause, UserError):
                raise cause from None
        words = " ".join(FRAME.sub("", said.getvalue()).split())
        if wrong := NO_CHOICE.search(words):
            word, flag, choices = wrong.groups()
            known = ", ".join(sorted(re.findall("'(.*?)'", choices)))
            raise UserError(f"{flag}={word} must be one of {known}") from None
        sys.stderr.write(said.getvalue())
        raise
