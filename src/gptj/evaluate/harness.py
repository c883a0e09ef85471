"""The adapter to EleutherAI's harness: `lm_eval`'s requests, answered by our scorer and engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from rich.console import Console

from gptj.api import load
from gptj.engine.packing import Asked
from gptj.engine.request import SamplingParams
from gptj.errors import UserError
from gptj.evaluate.progress import Progress
from gptj.evaluate.requests import Reader, Style
from gptj.evaluate.scorer import Scorer

Read = TypeVar("Read")

NEW_TOKENS = 256
"""Longest completion where a task does not say, as in the harness's own adapter."""

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the longest completion; the first that is given counts."""

OF_DRAWS = frozenset(
    ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
)
OF_BEAMS = frozenset(("early_stopping", "length_penalty"))
NEUTRAL = {
    **{"num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "diversity_penalty": 0},
    **{"repetition_penalty": 1, "no_repeat_ngram_size": 0},
}
"""What tasks may say of a greedy completion without a change to it: transformers too passes over
what is of draws or of several beams, and these at these values."""

DEFAULTS = {"batch_size": 1, "device": "cuda:0"}
"""What the harness passes where nothing was asked for. Our batches and devices are our own."""


@register_model("gptj")
class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A model of ours as the harness sees it: texts in, log-probabilities and texts out.

    It does what the harness's Hugging Face adapter does, with these differences: padding rows of
    the vocabulary are never among the alternatives, and what cannot be honoured is refused.
    """

    def __init__(
        self,
        pretrained: str = "",
        *,
        scorer: Scorer | None = None,
        dtype: str | None = None,
        quantize: Any = None,
        tokenizer: str | None = None,
        style: Style = "today",
        **others: Any,
    ) -> None:
        """The model at a path or Hub id, as `gptj.load` takes it; or the one a scorer holds.

        Args:
          style: how prompts become tokens; see `gptj.evaluate.requests.Style`.
          others: what the harness passes to every model, its defaults only.

        Raises:
          UserError: there is no such model, or an argument is not one of these.
        """
        super().__init__()
        for name, value in others.items():
            if DEFAULTS.get(name) != value:
                raise UserError(
                    f"the harness's {name}={value} means nothing to gptj: leave it out (model_args "
                    "are pretrained, dtype, quantize, tokenizer and style)"
                )
        if scorer is None:
            model = load(pretrained, dtype=dtype, quantize=quantize, tokenizer=tokenizer)
            progress = Progress(Console(stderr=True))
            scorer = Scorer(model.params, model.config, model.tokenizer, progress=progress)
        self.scorer = scorer
        self.reader = Reader(scorer.tokenizer, scorer.config.context, style)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        return self.scorer.tokenizer.eos_id

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at once."""
        return self.scorer.config.context

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        """The ids of a text."""
        return self.reader.tokens(string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """For each context and continuation its log-probability, and whether it is greedy."""
        pairs = [_read(request, self.reader.pair, *request.args) for request in requests]
        found = [(each.logprob, each.greedy) for each in self.scorer.score(pairs)]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        asked = [Asked.of(before, after) for _, before, after in requests]
        return [(each.logprob, each.greedy) for each in self.scorer.score(asked)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-probability of each whole text, every token scored once."""
        texts = [_read(request, self.reader.rolling, *request.args) for request in requests]
        scores = iter(self.scorer.score([each for windows in texts for each in windows]))
        totals = [sum(next(scores).logprob for _ in windows) for windows in texts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy completion of each context, up to the first of its stop strings."""
        sampling = [_read(request, greedy, request.args[1]) for request in requests]
        prompts = [
            _read(request, self.reader.prompt, request.args[0], how.max_tokens)
            for request, how in zip(requests, sampling, strict=True)
        ]
        texts = [written[0] for written in self.scorer.write(prompts, sampling)]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts


def _read(request: Instance, read: Callable[..., Read], *words: Any) -> Read:
    """What `read` makes of a request; where it cannot, the error names the task."""
    try:
        return read(*words)
    except UserError as error:
        raise UserError(f"{request.task_name}: {error}" if request.task_name else error) from error


def greedy(asked: Mapping[str, Any]) -> SamplingParams:
    """How we answer a task's `generation_kwargs`.

    Raises:
      UserError: they ask for draws, or for what the engine does not do; names it.
    """
    left = {name: value for name, value in asked.items() if value is not None}
    until = left.pop("until", [])
    lengths = [left.pop(name, None) for name in LENGTHS]
    heat = left.get("temperature", 0)
    if samples := left.pop("do_sample", heat > 0):
        raise UserError(
            f"the task asks for draws (do_sample={samples}, temperature={heat}): only greedy "
            "completions are evaluated, leave out the task"
        )
    for name in [*left]:
        if name in OF_DRAWS | OF_BEAMS or NEUTRAL.get(name) == left[name]:
            del left[name]
    if left:
        raise UserError(
            f"the task asks for {', '.join(f'{name}={left[name]!r}' for name in left)}, which "
            "means nothing to gptj: leave out the task"
        )
    longest = next((length for length in lengths if length is not None), NEW_TOKENS)
    return SamplingParams(temperature=0, max_tokens=int(longest), stop=_stops(until))


def _stops(until: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in ([until] if isinstance(until, str) else until) if each)
