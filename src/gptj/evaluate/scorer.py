"""Scores and completions of one model: looked up where they were found before, else computed."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Array

from gptj.attention import KEYS
from gptj.config import ModelConfig
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.packing import Asked
from gptj.engine.request import Delta, Request, SamplingParams
from gptj.engine.scoring import Score, score
from gptj.errors import UserError
from gptj.evaluate.cache import Cache, key_of
from gptj.evaluate.progress import Progress
from gptj.model import Params
from gptj.tokenizer import Tokenizer

SLOTS = 8
"""Completions that are drawn at once."""


class Scorer:
    """One model under evaluation, on the mesh that is set. No weights are copied."""

    def __init__(
        self,
        params: Params[Array],
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        cache: Cache | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`cache`: where answers are looked up and written down; none are kept without.

        Raises:
          UserError: there is no tokenizer, so that the model cannot read.
        """
        if tokenizer is None:
            raise UserError(
                "the model came without a tokenizer: name one with --tokenizer, a tokenizer.json "
                "or a Hub id such as EleutherAI/gpt-j-6b"
            )
        self.params, self.config, self.tokenizer = params, config, tokenizer
        self._cache, self._progress = cache, progress or Progress(None)

    def score(self, asked: Sequence[Asked]) -> list[Score]:
        """The score of each; those asked twice, or before, are computed once."""
        keys = [key_of(each) for each in asked]
        unique = dict(zip(keys, asked, strict=True))
        cache = self._cache
        found = {key: None if cache is None else cache.score(key) for key in unique}
        new = [key for key, before in found.items() if before is None]

        def known(number: int, each: Score) -> None:
            found[new[number]] = each
            if cache is not None:
                cache.keep_score(new[number], each)
            bar.advance()

        with self._progress.of("scored", len(unique), len(unique) - len(new)) as bar:
            score(self.params, self.config, [unique[key] for key in new], known)
        return [each for key in keys if (each := found[key]) is not None]

    def write(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams]
    ) -> list[list[str]]:
        """What follows each prompt, drawn as its `sampling` says: `n` texts each."""
        # With another tokenizer the same tokens are another text.
        described = [f"{each} {self.tokenizer.sha256}" for each in sampling]
        found: list[list[str] | None] = [
            self._cache.texts(prompt, how) if self._cache is not None else None
            for prompt, how in zip(prompts, described, strict=True)
        ]
        new = [number for number, texts in enumerate(found) if texts is None]
        drawn: dict[int, dict[int, str]] = {number: {} for number in new}

        def known(delta: Delta) -> None:
            if not delta.completion:
                return
            number = new[delta.request]
            drawn[number][delta.choice] = delta.completion.text
            if len(drawn[number]) == sampling[number].n:
                texts = [text for _, text in sorted(drawn[number].items())]
                found[number] = texts
                if self._cache is not None:
                    self._cache.keep_texts(prompts[number], described[number], texts)
                bar.advance()

        with self._progress.of("written", len(prompts), len(prompts) - len(new)) as bar:
            requests = [Request(list(prompts[n]), sampling[n]) for n in new]
            if requests:
                self._engine(requests).run(requests, known)
        return [texts for texts in found if texts is not None]

    def _engine(self, requests: Sequence[Request]) -> Engine:
        longest = max(len(each.prompt) + each.sampling.max_tokens for each in requests)
        positions = min(-(-longest // KEYS) * KEYS, self.config.context)
        options = EngineConfig(SLOTS, positions=positions)
        return Engine(self.params, self.config, self.tokenizer, options)
