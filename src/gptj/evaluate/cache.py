"""Answers a model gave before, so that an evaluation that was interrupted goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from jaxtyping import Array
from numpy.typing import ArrayLike

from gptj.config import ModelConfig
from gptj.engine.packing import Asked
from gptj.engine.scoring import Score
from gptj.errors import UserError
from gptj.model import Params


def fingerprint(params: Params[Array], config: ModelConfig) -> str:
    """What tells one model from another: a hash of its shape and of every bit of its weights.

    The same on every mesh; another in another dtype, whose answers are others too.
    """
    digest = hashlib.blake2b(digest_size=12)
    digest.update(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class Cache:
    """A file of one model's answers, a line each, written as they come.

    A line cut short by a crash is passed over, and its request answered again.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or begin it.

        Raises:
          UserError: it cannot be written.
        """
        self.path = path
        self._known: dict[str, Any] = {}
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            self._file: TextIO = path.open("a", buffering=1, encoding="utf-8")
            if lines and not lines[-1].endswith(b"\n"):
                self._file.write("\n")
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):
                key, *answer = json.loads(line)
                self._known[str(key)] = answer

    def __len__(self) -> int:
        return len(self._known)

    def score(self, key: str) -> Score | None:
        """What was found before of what has this key, if it was asked before."""
        match self._known.get(key):
            case [float(logprob), bool(greedy)]:
                return Score(logprob, greedy)
        return None

    def keep_score(self, key: str, score: Score) -> None:
        """Write a score down."""
        self._keep(key, *score)

    def texts(self, prompt: Sequence[int], sampling: str) -> list[str] | None:
        """What was written on from these tokens before, in the way `sampling` describes."""
        match self._known.get(_digest(prompt, sampling)):
            case [list(texts)]:
                return texts
        return None

    def keep_texts(self, prompt: Sequence[int], sampling: str, texts: list[str]) -> None:
        """Write completions down."""
        self._keep(_digest(prompt, sampling), texts)

    def _keep(self, key: str, *answer: Any) -> None:
        self._known[key] = list(answer)
        with self._translated():
            self._file.write(json.dumps([key, *answer]) + "\n")

    def close(self) -> None:
        """Close the file; every answer is in it already."""
        with contextlib.suppress(OSError):  # a full disk, of which `_keep` told
            self._file.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror}): choose another --out, or free "
                "space; the same command goes on from what is in it"
            ) from error


def key_of(asked: Asked) -> str:
    """What tells one request for a score from another."""
    return _digest(asked.tokens, str(asked.scored))


def _digest(tokens: ArrayLike, rest: str) -> str:
    digest = hashlib.blake2b(f"{rest}\n".encode(), digest_size=12)
    digest.update(np.asarray(tokens, "<i4").tobytes())
    return digest.hexdigest()
