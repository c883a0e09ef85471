"""GPT-2's kind of tokenizer once more, by tiktoken: the same ids, several times as fast.

The `tokenizers` library says what the ids are. Where the two could differ is looked at: in what is
merged, once for a tokenizer; in what counts as a letter, a number or a space, for each character
that has not been met before, as the libraries' tables are of different editions of Unicode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

from gptj import cores

WORDS = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+"
"""GPT-2's pattern, written so that nothing is tried twice."""
LONGEST = 1 << 17
"""Characters of the longest text that is tried: in a million spaces tiktoken gives up."""

_BYTES = {bytes([byte]): byte for byte in range(256)}
_MODEL = {
    "type": ("BPE",),
    "dropout": (None, 0),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}
"""What a model may say that is to be read here."""

Left = Callable[[str, str], str]
"""Of some characters those that, says the library, are not of a class."""


class Swift:
    """Encodes the texts of which it is sure that the library's ids are these."""

    def __init__(
        self, ids: Mapping[bytes, int], merged: Sequence[bytes], others: Sequence[str], left: Left
    ) -> None:
        """A tokenizer with `ids` of the 256 bytes and of what is `merged`, in that order.

        A text with one of `others`, which are tokens by themselves, is not encoded here.
        """
        spelled = [*_BYTES, *merged]
        self._ids = np.array([ids[each] for each in spelled], np.uint32)
        ranks = {each: rank for rank, each in enumerate(spelled)}
        self._words = _encoding(WORDS, ranks)
        self._classes = {each: _encoding(f"[^{each}]", _BYTES) for each in (r"\p{L}", r"\p{N}")}
        self._classes[r"\s"] = _encoding(r"\S", _BYTES)
        self._others = re.compile("|".join(map(re.escape, others))) if others else None
        self._left = left
        self._same, self._odd = set[str](), set[str]()

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32] | None]:
        """The ids of each text, on all cores, or None where they may be others."""
        sure = [text if self._is_sure(text) else None for text in texts]
        threads = min(cores.usable(), len(sure))
        if threads < 2:
            return [self._ids_of(text) for text in sure]
        found: list[NDArray[np.uint32] | None] = [None] * len(sure)
        with ThreadPoolExecutor(threads) as pool:

            def work(first: int) -> None:
                for number in range(first, len(sure), threads):
                    found[number] = self._ids_of(sure[number])

            list(pool.map(work, range(threads)))
        return found

    def _ids_of(self, text: str | None) -> NDArray[np.uint32] | None:
        if text is None:
            return None
        return self._ids[self._words.encode_to_numpy(text, disallowed_special=())]

    def _is_sure(self, text: str) -> bool:
        if len(text) > LONGEST or (self._others and self._others.search(text)):
            return False
        if text.isascii():
            return True
        characters = set(text) - self._same
        if new := characters - self._odd:
            self._look_at(new)
        return characters.isdisjoint(self._odd)

    def _look_at(self, new: set[str]) -> None:
        """Learn of which characters the libraries hold the same."""
        odd = {each for each in new if "\ud800" <= each <= "\udfff"}  # half a character
        text = "".join(sorted(new - odd))
        for name, encoding in self._classes.items():
            left = bytes(encoding.encode_ordinary(text)).decode()
            odd |= set(left) ^ set(self._left(text, name))
        self._odd |= odd
        self._same |= new - odd


def swift(
    definition: Mapping[str, Any],
    spell: Callable[[str], bytes],
    alone: Callable[[str], Sequence[Any]],
    left: Left,
) -> Swift | None:
    """The tokenizer of a `tokenizer.json` object that splits as GPT-2's, if it merges as tiktoken.

    The library merges the pairs that are listed; tiktoken any pair that is a token together,
    which is the same where each token, encoded alone, gives itself and no token has two pairs: two
    neighbours that are a token were left so by every earlier merge, and so they would be in that
    token alone, of which there is one way.

    Args:
      spell: the bytes of a token.
      alone: the library's tokens of a word, as the vocabulary writes it.
    """
    model = definition["model"]
    if any(model.get(key) not in allowed for key, allowed in _MODEL.items()):
        return None
    merged = ["".join(_pair(each)) for each in model["merges"]]
    ids = {spell(token): index for token, index in model["vocab"].items()}
    if len(set(merged)) < len(merged) or not ids.keys() >= _BYTES.keys():
        return None
    if any(len(alone(token)) != 1 for token in merged):
        return None
    others = [each["content"] for each in definition["added_tokens"] if not each["special"]]
    return Swift(ids, [spell(each) for each in merged], others, left)


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _encoding(pattern: str, ranks: Mapping[bytes, int]) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        pattern, pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens={}
    )
