"""Text to token ids and back: raw bytes, GPT-2's BPE, one trained here, or any `tokenizer.json`."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, normalizers, pre_tokenizers, trainers

from gptj.bpe import Swift, swift
from gptj.errors import UserError
from gptj.files import unreadable
from gptj.hub import download, is_hub_id

END_OF_TEXT = "<|endoftext|>"
_END_NAMES = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "[EOS]")
_BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))

_PIECE_CHARACTERS = 1 << 16
WORD_END = re.compile(r"(?<=\S)(?=[ \n])")
"""Where GPT-2's pattern, and so no token, ever crosses."""

# In-class annotations cannot say `bytes`: `Tokenizer.bytes` is the byte tokenizer.
_Bytes = bytes
_Spelling = list[bytes]


class Tokenizer:
    """A tokenizer whose ids are 0 to `vocab_size` - 1.

    Its definition is one JSON text in the `tokenizer.json` format, and everything else follows
    from that text: equal definitions have an equal `sha256` whatever library version reads them.
    """

    vocab_size: int
    """Number of ids that mean something; a model may have more embedding rows (padding)."""
    eos_id: int
    """The end-of-text token: ends a document in training, a completion in sampling."""

    def __init__(self, definition: dict[str, Any], name: str = "tokenizer") -> None:
        """The tokenizer of a `tokenizer.json` object; `name` is what errors call it."""
        # Files carry the truncation and padding of whoever saved them: text would vanish silently.
        definition = {**definition, "truncation": None, "padding": None}
        self._json = json.dumps(
            definition, sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
        self._plain = _backing(self._json, name)
        self._plain.encode_special_tokens = True  # meaning: special tokens in text are plain text
        vocab = self._plain.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self.eos_id = _end_id(vocab, name)
        self._spell, self._lead = _speller(definition, self._plain, name)
        self.cuttable = _is_gpt2_split(definition)
        """Whether a text may be cut at `WORD_END`, and its parts encoded by themselves."""

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[dict[str, Any]]]:
        """The definition, for another process."""
        return Tokenizer, (json.loads(self._json),)

    @cached_property
    def _special(self) -> tokenizers.Tokenizer:
        # A second instance, because the switch is state of the library's object: flipping it for
        # one call would leak into another thread's.
        return _backing(self._json, "tokenizer")

    @cached_property
    def _swift(self) -> Swift | None:
        if not self.cuttable:
            return None
        model: Any = self._plain.model
        return swift(json.loads(self._json), _spell_byte_level, model.tokenize, _left)

    @cached_property
    def spelling(self) -> _Spelling:
        """What each id contributes to the text, in UTF-8 bytes; nothing for special tokens."""
        table = [b""] * self.vocab_size
        for token, index in self._plain.get_vocab(with_added_tokens=True).items():
            table[index] = self._spell(token)
        for index, added in self._plain.get_added_tokens_decoder().items():
            if added.special:
                table[index] = b""
        table[self.eos_id] = b""
        return table

    @classmethod
    def bytes(cls) -> Tokenizer:
        """The tokenizer without a vocabulary: ids 0 to 255 are the bytes, 256 ends the text."""
        vocab = {symbol: byte for byte, symbol in enumerate(_BYTE_SYMBOLS)}
        return cls(_byte_level_bpe({**vocab, END_OF_TEXT: 256}, []), "bytes")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """A byte-level BPE learnt from `texts` in GPT-2's manner; the same texts, the same result.

        `vocab_size` counts the 256 bytes and the end-of-text token, which comes last, as in GPT-2.
        Texts too small to fill it give a smaller vocabulary.

        Raises:
          UserError: `vocab_size` has no room for every byte and the end of text.
        """
        if vocab_size < 257:
            raise UserError(
                f"a vocabulary of {vocab_size} is too small: ask for at least 257, "
                "the 256 bytes and the end of text"
            )
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        pieces = itertools.chain.from_iterable(map(_cut_at_words, texts))
        learner.train_from_iterator(pieces, trainer)
        model = json.loads(learner.to_str())["model"]
        merges = [" ".join(pair) for pair in model["merges"]]
        vocab = {**model["vocab"], END_OF_TEXT: len(model["vocab"])}
        return cls(_byte_level_bpe(vocab, merges), f"train:{vocab_size}")

    @classmethod
    def load(cls, spec: str | Path) -> Tokenizer:
        """The tokenizer that `spec` names.

        The word `bytes`; a `tokenizer.json`; a folder with one, or with `vocab.json` and
        `merges.txt`, or with GPT-2's original `encoder.json` and `vocab.bpe`; otherwise a model's
        id on the Hugging Face Hub, downloaded once.

        Raises:
          UserError: nothing of the kind is there, the Hub cannot be reached, or the tokenizer has
            no end-of-text token or an unknown way to spell text.
        """
        if spec == "bytes":
            return cls.bytes()
        path = Path(spec)
        try:
            if not path.exists():
                if isinstance(spec, Path) or spec.endswith(".json") or not is_hub_id(spec):
                    raise UserError(
                        f"no tokenizer {str(spec)!r}: give `bytes`, a tokenizer.json, the folder "
                        "of one, or a Hub id such as EleutherAI/gpt-j-6b"
                    )
                path = download(spec, "tokenizer", ["tokenizer.json", *_BPE_FILES[0]])
            definition = _read_folder(path) if path.is_dir() else _read_json(path)
        except OSError as error:
            raise unreadable(str(error.filename or spec), error) from error
        return cls(definition, str(spec))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of `text`. With `special`, `<|endoftext|>` in it is the token, else plain text.

        Raises:
          UserError: `text` holds half of a surrogate pair, which is not a character.
        """
        return _encode(self._special if special else self._plain, [text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return _encode(self._plain, list(texts))

    def pieces(self, text: str) -> Iterator[str]:
        """`text` cut where no token can cross, so that piecewise ids are exactly its ids.

        The library needs some 130 bytes of memory per byte of a text, and one core: a long
        document is better encoded in pieces. A tokenizer with no sure cuts gives one piece.
        """
        return _cut_at_words(text) if self.cuttable else iter((text,))

    def encode_pieces(self, pieces: Sequence[str]) -> list[NDArray[np.uint32]]:
        """`encode` of each text, as arrays, on all cores: for much text, such as a corpus.

        Raises:
          UserError: a text holds half of a surrogate pair, which is not a character.
        """
        swift = self._swift
        found = swift.encode(pieces) if swift else [None] * len(pieces)
        rest = [piece for piece, ids in zip(pieces, found, strict=True) if ids is None]
        slow = iter(self.encode_batch(rest))
        return [np.array(next(slow), np.uint32) if ids is None else ids for ids in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens and ids outside the vocabulary have none.

        Bytes that are not UTF-8 become U+FFFD.
        """
        return self.spelled(ids).decode("utf-8", "replace")

    def spelled(self, ids: Iterable[int]) -> _Bytes:
        """The bytes that `ids` stand for, whether they are UTF-8 or not."""
        size, spelling = self.vocab_size, self.spelling
        text = b"".join([spelling[index] for index in ids if 0 <= index < size])
        return text.removeprefix(self._lead)

    def stream(self) -> TextStream:
        """A fresh incremental `decode`."""
        return TextStream(self.spelling, self._lead)

    def to_json(self) -> str:
        """The definition, as `tokenizer.json` text with sorted keys."""
        return self._json

    def save(self, path: Path) -> None:
        """Write the definition as a `tokenizer.json`."""
        path.write_bytes(self._json.encode())

    @cached_property
    def sha256(self) -> str:
        """Hash of the definition, and of the file that `save` writes."""
        return hashlib.sha256(self._json.encode()).hexdigest()


class TextStream:
    """Decodes ids as they arrive, never showing half a character.

    All that `push` and `finish` return, joined, is `decode` of all the ids.
    """

    def __init__(self, spelling: list[bytes], lead: bytes) -> None:
        self._spelling = spelling
        self._lead = lead
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that id `token` completes, perhaps none."""
        piece = self._spelling[token] if 0 <= token < len(self._spelling) else b""
        if piece:
            piece, self._lead = piece.removeprefix(self._lead), b""
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """What an unfinished character at the end decodes to, if there is one."""
        return self._utf8.decode(b"", final=True)


def _encode(backing: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    try:
        return [e.ids for e in backing.encode_batch_fast(texts, add_special_tokens=False)]
    except TypeError as error:
        raise UserError(
            "the text holds half of a surrogate pair (U+D800 to U+DFFF), which is not a "
            "character: remove it"
        ) from error


def _left(text: str, kind: str) -> str:
    """The characters of a text that are not of a class of regular expressions."""
    return str(normalizers.Replace(tokenizers.Regex(kind), "").normalize_str(text))


def _cut_at_words(text: str) -> Iterator[str]:
    # GPT-2's pattern never joins a non-space to the space after it, nor looks behind itself.
    start = 0
    while end := WORD_END.search(text, start + _PIECE_CHARACTERS):
        yield text[start : end.start()]
        start = end.start()
    yield text[start:]


def _is_gpt2_split(definition: dict[str, Any]) -> bool:
    """Whether text is split into words by GPT-2's pattern and by nothing else."""
    split = definition.get("pre_tokenizer") or {}
    return (
        split.get("type") == "ByteLevel"
        and split.get("use_regex", True)
        and not split.get("add_prefix_space")
        and definition.get("normalizer") is None
        and all(map(_within_a_word, definition.get("added_tokens", ())))
    )


def _within_a_word(added: dict[str, Any]) -> bool:
    """Whether an added token takes no space from plain text; a special one is not looked for."""
    takes_space = added["lstrip"] or added["rstrip"] or re.search(r"\s", added["content"])
    return added["special"] or not takes_space


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself, or the next character from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = itertools.count(0x100)
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


_BYTE_SYMBOLS = _byte_symbols()
_SYMBOL_BYTES = {symbol: byte for byte, symbol in enumerate(_BYTE_SYMBOLS)}


def _spell_byte_level(token: str) -> bytes:
    try:
        return bytes(_SYMBOL_BYTES[symbol] for symbol in token)
    except KeyError:  # an added token, such as a run of spaces, is written as it is
        return token.encode()


def _spell_sentencepiece(token: str) -> bytes:
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(byte[1])
    return token.replace("▁", " ").encode()


def _speller(
    definition: dict[str, Any], backing: tokenizers.Tokenizer, name: str
) -> tuple[Callable[[str], bytes], bytes]:
    """How a token spells bytes, and what `decode` drops at the start because `encode` put it there.

    Our own table, not the library's decoder, so that a stream and a whole text cannot differ.
    """
    decoder = json.dumps(definition.get("decoder"), ensure_ascii=False)
    if '"ByteLevel"' in decoder:
        return _spell_byte_level, b""
    if "▁" in decoder:
        tokens = backing.encode("a", add_special_tokens=False).tokens
        return _spell_sentencepiece, b" " if tokens and tokens[0].startswith("▁") else b""
    raise UserError(
        f"the tokenizer {name} is neither byte-level nor SentencePiece (its decoder is {decoder}): "
        "use one of those kinds"
    )


def _end_id(vocab: dict[str, int], name: str) -> int:
    for token in _END_NAMES:
        if token in vocab:
            return vocab[token]
    raise UserError(
        f"the tokenizer {name} has no end-of-text token: add one of {', '.join(_END_NAMES)} to it"
    )


def _byte_level_bpe(vocab: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """The `tokenizer.json` object of a GPT-2 tokenizer; a merge is two tokens and a space."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    end = {"id": vocab.get(END_OF_TEXT), "content": END_OF_TEXT, "special": True}
    options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [{**end, **options}] if END_OF_TEXT in vocab else [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _backing(definition: str, name: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"{name} does not define a tokenizer ({error}): give a tokenizer.json that the "
            "tokenizers library can read"
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read ({error}): give a tokenizer.json or its folder"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not JSON ({error}): give a tokenizer.json or its folder"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object: give a tokenizer.json or its folder")
    return value


def _read_folder(folder: Path) -> dict[str, Any]:
    if (folder / "tokenizer.json").exists():
        return _read_json(folder / "tokenizer.json")
    for vocab, merges in _BPE_FILES:
        if (folder / vocab).exists() and (folder / merges).exists():
            lines = _read_text(folder / merges).split("\n")
            if lines[0].startswith("#version"):
                del lines[0]
            return _byte_level_bpe(_read_json(folder / vocab), [line for line in lines if line])
    pairs = " or ".join(" + ".join(pair) for pair in _BPE_FILES)
    raise UserError(f"no tokenizer in the folder {folder}: it needs tokenizer.json, or {pairs}")
