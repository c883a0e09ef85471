"""The files in a tar archive as they come by: none is held, and a missing end is noticed."""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
from collections.abc import Generator, Iterator, Sequence
from typing import IO, Any, Self

from gptj.data.unpack import CHUNK_BYTES, Stream
from gptj.errors import UserError
from gptj.files import matches

_HERE = re.compile(r"\A(\.{1,2}/)+")

Member = tuple[str, IO[bytes] | None]
"""A file's name and contents, to be read before the next one; `None` of links and empty files."""


@contextlib.contextmanager
def members(path: str, chunks: Iterator[bytes], but: Sequence[str]) -> Iterator[Iterator[Member]]:
    """The files of an archive, but for those under a name that matches a pattern of `but`.

    Raises:
      UserError: the archive breaks off, or is none.
    """
    passed: list[str] = []
    try:
        with contextlib.closing(_members(chunks, but, passed)) as found:
            yield found
    except tarfile.TarError as error:
        after = f" after {passed[-1]}" if passed else ""
        raise UserError(
            f"{path} is no whole tar archive{after} ({error}): fetch or pack it again"
        ) from error


def _members(
    chunks: Iterator[bytes], but: Sequence[str], passed: list[str]
) -> Generator[Member, None, None]:
    stream = io.BufferedReader(Stream(chunks))
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps what went by
            if not member.isdir() and not matches(_HERE.sub("", member.name), but):
                is_there = member.isfile() and member.size
                yield member.name, archive.extractfile(member) if is_there else None
            passed[:] = [member.name]
        _check_nothing_follows(archive.fileobj)


_END: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]  # a block of zeros


class _Header(tarfile.TarInfo):
    """What stands before a file. `tarfile` takes a damaged one, or none, for the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if isinstance(error, _END):
                raise
            raise tarfile.ReadError(str(error)) from error


def _check_nothing_follows(rest: Any) -> None:
    while chunk := rest.read(CHUNK_BYTES):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("more follows its end")
