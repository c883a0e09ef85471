"""The tokenizer that lies beside foreign weights, and the files other programs want of ours."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from gptj.errors import UserError
from gptj.files import Folder
from gptj.tokenizer import END_OF_TEXT, Tokenizer

FILES = ("tokenizer.json", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe")
EXTRA = re.compile(r"<\|extratoken_\d+\|>")
"""Hugging Face's names for the rows of GPT-J's embedding that no text reaches."""


def load_tokenizer(folder: Folder) -> Tokenizer | None:
    """The tokenizer whose files lie in `folder`; `None` without any."""
    there = [name for name in FILES if name in folder]
    if not there:
        return None
    with tempfile.TemporaryDirectory() as copy:  # the folder may be behind a URL
        for name in there:
            (Path(copy) / name).write_bytes(folder.file(name).read().tobytes())
        try:
            return Tokenizer.load(Path(copy))
        except UserError as error:
            raise UserError(str(error).replace(copy, folder.place)) from error


def token_count(tokenizer: Tokenizer | None) -> int | None:
    """How many tokens a tokenizer has that mean something; `None` without one."""
    if tokenizer is None:
        return None
    definition = json.loads(tokenizer.to_json())
    extra = [t for t in definition.get("added_tokens", ()) if EXTRA.fullmatch(t["content"])]
    return tokenizer.vocab_size - len(extra)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write a tokenizer as transformers reads it."""
    tokenizer.save(folder / "tokenizer.json")
    definition: dict[str, Any] = json.loads(tokenizer.to_json())
    end = (
        next(
            token["content"]
            for token in definition["added_tokens"]
            if token["id"] == tokenizer.eos_id
        )
        if definition.get("added_tokens")
        else END_OF_TEXT
    )
    special = {"bos_token": end, "eos_token": end, "unk_token": end}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
