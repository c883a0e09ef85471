"""Who asks: API keys, compared in constant time, and what each may use."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gptj.errors import UserError
from gptj.serve.config import KEYS_VARIABLE, ServeConfig
from gptj.serve.refusal import Refused

OPEN = frozenset({"/health", "/ready"})
"""What anyone may ask: whether the server is alive, and ready."""

BUDGETS = ("concurrency", "tokens_per_minute")


@dataclasses.dataclass
class Bill:
    """What one request takes of its key's tokens."""

    used: int = 0
    """How many it was in the end: what was reserved beyond them is given back."""


class Key:
    """Someone who asks, and what is left to them. For the event loop alone."""

    def __init__(
        self,
        name: str,
        concurrency: int | None = None,
        tokens_per_minute: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.running = name, 0
        self._most, self._a_minute, self._clock = concurrency, tokens_per_minute, clock
        self._left, self._at = float(tokens_per_minute or 0), clock()

    @contextlib.contextmanager
    def spending(self, tokens: int) -> Iterator[Bill]:
        """Reserve what a request may use at most, while it is under way.

        Raises:
          Refused: 429, too many requests are under way, or too many tokens were used of late; 400,
            it may use more than its key may in a minute.
        """
        if self._most is not None and self.running >= self._most:
            raise self._over(f"{self._most} requests are under way", 1)
        self._reserve(tokens)
        self.running += 1
        bill = Bill()
        try:
            yield bill
        finally:
            self.running -= 1
            self._left += max(0, tokens - bill.used)

    def _reserve(self, tokens: int) -> None:
        if self._a_minute is None:
            return
        now = self._clock()
        refilled = self._left + (now - self._at) * self._a_minute / 60
        self._left, self._at = min(self._a_minute, refilled), now
        if tokens > self._a_minute:
            raise Refused(
                400,
                f"this may use {tokens} tokens and the key {self._a_minute} a minute: lower "
                "max_tokens or n, or send fewer prompts",
                code="over_token_budget",
            )
        if tokens > self._left:
            wait = math.ceil((tokens - self._left) * 60 / self._a_minute)
            raise self._over(f"{self._a_minute} tokens a minute are used up", wait)
        self._left -= tokens

    def _over(self, why: str, wait: int) -> Refused:
        said = f"the budget of {self.name}: {why}: try again in {wait} seconds"
        headers = {"retry-after": str(wait)}
        return Refused(429, said, code="key_budget_exceeded", headers=headers)


class Keys:
    """The keys that are known; with none, everyone is the same one and needs none."""

    def __init__(self, lines: Iterable[str], config: ServeConfig) -> None:
        """The keys of some lines: see `ServeConfig.keys`.

        Raises:
          UserError: a line is not one; names its number and never the key.
        """
        self._digests: list[tuple[bytes, Key]] = []
        self._everyone = Key("anyone", config.key_concurrency, config.key_tokens_per_minute)
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if words:
                self._add(number, words, config)

    def __len__(self) -> int:
        return len(self._digests)

    def _add(self, number: int, words: list[str], config: ServeConfig) -> None:
        said = f"line {number} of the API keys"
        if len(words) < 2 or "=" in words[0]:
            raise UserError(f"{said} must be NAME KEY, and if wanted concurrency=4")
        name, secret, *budgets = words
        if name in {key.name for _, key in self._digests}:
            raise UserError(f"{said} has the name {name!r} a second time")
        limits: dict[str, int | None] = {
            "concurrency": config.key_concurrency,
            "tokens_per_minute": config.key_tokens_per_minute,
        }
        for budget in budgets:
            what, _, value = budget.partition("=")
            if what not in BUDGETS or not (value.isascii() and value.isdigit() and int(value)):
                raise UserError(
                    f"{said} has {what!r} where concurrency=N or tokens_per_minute=N, 1 or more, "
                    "is expected"
                )
            limits[what] = int(value)
        key = Key(name, limits["concurrency"], limits["tokens_per_minute"])
        self._digests.append((_digest(secret.encode("utf-8", "surrogateescape")), key))

    def find(self, authorization: str | None) -> Key | None:
        """Whose key a header `Authorization: Bearer KEY` holds; none where it is nobody's.

        Every key is compared, each in constant time, so the time says nothing about them.
        """
        if not self._digests:
            return self._everyone
        scheme, _, secret = (authorization or "").partition(" ")
        given, found = _digest(secret.strip().encode("latin-1")), None  # as headers are decoded
        for digest, key in self._digests:
            if hmac.compare_digest(digest, given):
                found = key
        return found if scheme.lower() == "bearer" else None


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def read_keys(config: ServeConfig, environment: Mapping[str, str]) -> Keys:
    """The keys of the file and of the environment.

    Raises:
      UserError: the file cannot be read, a line is not a key, or there are none where some were
        promised.
    """
    lines = environment.get(KEYS_VARIABLE, "").splitlines()
    if config.keys:
        try:
            lines += config.keys.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"keys={config.keys} cannot be read: {error}") from error
    keys = Keys(lines, config)
    if not keys and (config.keys or KEYS_VARIABLE in environment):
        raise UserError(f"keys={config.keys or KEYS_VARIABLE} holds no key: add a line NAME KEY")
    return keys


class Guard:
    """Lets nobody pass without a key, but to what anyone may ask."""

    def __init__(self, app: ASGIApp, keys: Keys, also_open: frozenset[str] = frozenset()) -> None:
        self._app, self._keys, self._open = app, keys, OPEN | also_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass on with the key as `scope["state"]["key"]`."""
        if scope["type"] != "http" or scope["path"] in self._open:
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("authorization")
        key = self._keys.find(given)
        if key is None:
            return await _unknown(given).response(scope["path"])(scope, receive, send)
        scope.setdefault("state", {})["key"] = key
        await self._app(scope, receive, send)


def _unknown(authorization: str | None) -> Refused:
    wrong = "this API key is not known here" if authorization else "an API key is needed"
    return Refused(
        401,
        f"{wrong}: send the header `Authorization: Bearer KEY`",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )
