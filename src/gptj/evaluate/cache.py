"""Answers a model gave before, so that an evaluation that was interrupted goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
from jaxtyping import Array

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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            self._file: TextIO = path.open("a", buffering=1, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): choose another --out"
            ) from error
        if lines and not lines[-1].endswith(b"\n"):
            self._file.write("\n")
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):
                key, *answer = json.loads(line)
                self._known[str(key)] = answer

    def __len__(self) -> int:
        return len(self._known)

    def score(self, asked: Asked) -> Score | None:
        """What was found before, if it was asked before."""
        match self._known.get(_key(asked)):
            case [float(logprob), bool(greedy)]:
                return Score(logprob, greedy)
        return None

    def keep_score(self, asked: Asked, score: Score) -> None:
        """Write a score down."""
        self._keep(_key(asked), *score)

    def texts(self, prompt: Sequence[int], sampling: str) -> list[str] | None:
        """What was written on from these tokens before, in the way `sampling` describes."""
        match self._known.get(_key((prompt, sampling))):
            case [list(texts)]:
                return texts
        return None

    def keep_texts(self, prompt: Sequence[int], sampling: str, texts: list[str]) -> None:
        """Write completions down."""
        self._keep(_key((prompt, sampling)), texts)

    def _keep(self, key: str, *answer: Any) -> None:
        self._known[key] = list(answer)
        self._file.write(json.dumps([key, *answer]) + "\n")

    def close(self) -> None:
        """Close the file; every answer is in it already."""
        self._file.close()


def _key(asked: Sequence[Any]) -> str:
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()
