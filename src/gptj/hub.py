"""The Hugging Face Hub: what it holds under an id, downloaded once and kept by its own cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gptj.errors import UserError

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def is_hub_id(spec: str) -> bool:
    """Whether `spec` has the form of an id, such as `EleutherAI/gpt-j-6b` or `gpt2`."""
    return _HUB_ID.fullmatch(spec) is not None


def folder() -> Path:
    """Where downloads are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def download(hub_id: str, what: str, patterns: Sequence[str]) -> Path:
    """The local folder with the files of `hub_id` that match `patterns`.

    Args:
      what: what the person asked for, for the sentence if it fails: `tokenizer`, `model`.

    Raises:
      UserError: the Hub has nothing under that id, or cannot be reached.
    """
    from huggingface_hub import snapshot_download  # a third of a second, for this branch alone

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except Exception as error:  # the Hub client's failures share no base class
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the {what} {hub_id!r} is neither a path here nor to be had from the Hugging Face "
            f"Hub ({reason}): check the name and the network, or give a path"
        ) from error
