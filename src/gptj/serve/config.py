"""What a server is told: where it listens, whom it answers, and how much it takes on."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from gptj.errors import UserError

KEYS_VARIABLE = "GPTJ_API_KEYS"


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Where a server listens, whom it answers, and how much it takes on."""

    host: str = "127.0.0.1"
    """Address to listen at. One that others can reach needs keys, or `insecure`."""
    port: int = 8000
    """Port to listen at; 0 takes a free one and says which."""
    insecure: bool = False
    """Listen where others can reach it although there are no keys."""
    name: str | None = None
    """What clients call the model. Default: the last part of its path."""
    adapter_loading: bool = False
    """Let clients load and unload adapters (/v1/load_lora_adapter): the server then reads any
    folder of this machine that they name as one."""
    keys: Path | None = None
    """A file of API keys, one a line: `NAME KEY`, and if wanted `concurrency=4` and
    `tokens_per_minute=60000` for this key alone. The environment variable GPTJ_API_KEYS holds such
    lines as well. With keys, every route but /health and /ready asks for one."""
    key_concurrency: int | None = None
    """Requests that a key may have under way at once; without keys, that all clients together may.
    Default: any number."""
    key_tokens_per_minute: int | None = None
    """Tokens, read and drawn, that a key may use in a minute; without keys, all clients together.
    Default: any number."""
    cors: tuple[str, ...] = ()
    """Origins whose web pages may ask, such as https://example.org. Default: none but its own."""
    max_body_bytes: int = 8 << 20
    """Longest request body."""
    max_prompt_tokens: int | None = None
    """Longest prompt. Default: what the context has room for."""
    max_completions: int = 128
    """Most completions that one request may ask for: its prompts times `n` or `best_of`."""
    queue_tokens: int | None = None
    """Tokens, to be read and drawn, that may wait for a slot; whoever would make them more is told
    to come back later (429). Default: four times what the slots have room for."""
    client_seconds: float = 30.0
    """A client that takes longer to send a request, or to take a piece of the answer, is let go."""
    drain_seconds: float = 30.0
    """After SIGTERM, how long requests under way may take; then they are cut off."""
    chat_template: Path | None = None
    """A Jinja template that makes a prompt of `messages`. Default: a plain transcript."""
    chat_stop: tuple[str, ...] | None = None
    """Strings that end a chat's answer. Default: the names of the plain transcript's speakers; none
    with another template."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"port={self.port} must be between 0 and 65535")
        for name in ("key_concurrency", "key_tokens_per_minute", "max_body_bytes"):
            _at_least_one(name, getattr(self, name))
        for name in ("max_prompt_tokens", "max_completions", "queue_tokens"):
            _at_least_one(name, getattr(self, name))
        if not self.client_seconds > 0:
            raise UserError(f"client_seconds={self.client_seconds} must be above 0")
        if not self.drain_seconds >= 0:
            raise UserError(f"drain_seconds={self.drain_seconds} must be at least 0")
        if not all(self.chat_stop or ()):
            raise UserError("chat_stop must be strings, none of them empty")
        for origin in self.cors:
            if not re.fullmatch("[a-z][a-z0-9+.-]*://[^/*]+", origin):
                raise UserError(
                    f"cors={origin} must be the origin of web pages that may ask, such as "
                    "https://example.org, without a path or *"
                )


@dataclasses.dataclass(frozen=True)
class RayConfig:
    """Replicas on a Ray cluster, and what each of them takes of it."""

    replicas: int = 1
    """How many there are."""
    cpus: float = 1.0
    """Cores that each takes."""
    gpus: float = 0.0
    """GPUs that each takes."""
    address: str | None = None
    """Of the cluster. Default: the one that this machine is of, or else a new one on it."""

    def __post_init__(self) -> None:
        _at_least_one("replicas", self.replicas)
        for name in ("cpus", "gpus"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0")

    @classmethod
    def parse(cls, text: str) -> RayConfig:
        """The configuration that `replicas=2,gpus=1` says.

        Raises:
          UserError: it has another name, or something that is not its value.
        """
        kinds = {"replicas": int, "cpus": float, "gpus": float, "address": str}
        found: dict[str, Any] = {}
        for word in text.split(","):
            name, _, value = word.partition("=")
            try:
                found[name] = kinds[name](value)
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"ray={text!r} has {word!r} where replicas=N, cpus=N, gpus=N or "
                    "address=HOST:PORT is expected, with commas between them"
                ) from error
        return cls(**found)


def _at_least_one(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UserError(f"{name}={value} must be at least 1")
