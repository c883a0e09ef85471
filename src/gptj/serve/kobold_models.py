"""KoboldAI's requests and answers, with KoboldCpp's controls.

Its clients send many controls with every request, mostly switched off. Those that the engine has
not are let pass where they ask for nothing, and refused by name where they ask for something.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gptj.engine.request import SEEDS, SamplingParams
from gptj.serve.fields import (
    Bias,
    Probability,
    RepetitionPenalty,
    Said,
    Stops,
    Strict,
    Temperature,
    Unit,
    off,
)
from gptj.serve.refusal import Refused

NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical",
    "repetition_penalty": "rep_pen",
    "presence_penalty": "presence_penalty",
    "logit_bias": "logit_bias",
    "ignore_eos": "bypass_eos",
    "stop": "stop_sequence",
    "seed": "sampler_seed",
    "n": "n",
    "max_tokens": "max_length",
    "prompt": "prompt",
}
"""From the engine's names of parameters to those here."""

ORDER = (6, 5, 0, 2, 4)
"""Kobold's numbers of the samplers, in the engine's order: repetition penalty, temperature, top-k,
top-p, typical. Top-k commutes with the temperature."""

LENGTH = 80
"""Tokens of an answer where the request does not say."""

NO = "leave it out, or switch it off"


class GenerateRequest(Strict):
    """A story to go on with."""

    prompt: str
    """The text to go on from. Of a long one the end is read."""
    memory: str | None = None
    """Text that always comes before the prompt, of which then less is read."""
    max_length: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Longest answer, in tokens. Default: 80, or half the context if that is less."""
    max_context_length: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of memory, prompt and answer together. Default: the model's context."""
    n: Annotated[int, Field(ge=1)] | None = 1
    """How many answers."""
    temperature: Temperature | None = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_p: Probability | None = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = 0
    """Draw from this many likeliest tokens; 0 is off."""
    min_p: Unit | None = 0.0
    """Leave out tokens less probable than this times the likeliest."""
    typical: Probability | None = 1.0
    """Typical sampling; 1 is off."""
    rep_pen: RepetitionPenalty | None = 1.0
    """Above 1 discourages tokens of the prompt and of the answer so far."""
    rep_pen_range: Annotated[int, Field(ge=0)] | None = None
    """Of how many tokens: all of them, so 0 or the context's length, while `rep_pen` is on."""
    rep_pen_slope: Annotated[float, Field(ge=0)] | None = None
    """Only 0 while `rep_pen` and `rep_pen_range` are on."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    """Taken from the logit of every token that the answer already has."""
    logit_bias: Bias | None = None
    """Added to the logits of these token ids."""
    sampler_order: list[int] | None = None
    """The engine's order is 6, 5, 0, 2, 4 (temperature first); another is refused where it would
    make a difference."""
    sampler_seed: Annotated[int, Field(ge=-1, lt=SEEDS)] | None = None
    """The same seed gives the same answer; -1 is one by chance, as without."""
    sampler_full_determinism: bool | None = None
    """The same seed always gives the same answer, so either will do."""
    stop_sequence: Stops | None = None
    """The answer ends before the first of these strings."""
    bypass_eos: bool | None = False
    """The end-of-text token does not end the answer."""
    genkey: Annotated[str, Field(max_length=200)] | None = None
    """A name for /api/extra/abort to end it by."""
    quiet: bool | None = None
    """Prompts and answers are never logged, so either will do."""
    trim_stop: Annotated[bool | None, *off("a stop string is never shown", None, True)] = None
    """Always on."""
    tfs: Annotated[float | None, *off(NO, None, 1)] = None
    """Not supported."""
    top_a: Annotated[float | None, *off(NO, None, 0)] = None
    """Not supported."""
    dynatemp_range: Annotated[float | None, *off(NO, None, 0)] = None
    """Not supported."""
    dynatemp_exponent: Annotated[float | None, *off(NO, None, 1)] = None
    """Not supported."""
    smoothing_factor: Annotated[float | None, *off(NO, None, 0)] = None
    """Not supported."""
    mirostat: Annotated[float | None, *off(NO, None, 0)] = None
    """Not supported."""
    mirostat_tau: float | None = None
    """Of no meaning without `mirostat`."""
    mirostat_eta: float | None = None
    """Of no meaning without `mirostat`."""
    dry_multiplier: Annotated[float | None, *off(NO, None, 0)] = None
    """Not supported."""
    dry_base: float | None = None
    """Of no meaning without `dry_multiplier`."""
    dry_allowed_length: float | None = None
    """Of no meaning without `dry_multiplier`."""
    xtc_probability: Annotated[float | None, *off(NO, None, 0)] = None
    """Not supported."""
    xtc_threshold: float | None = None
    """Of no meaning without `xtc_probability`."""
    grammar: Annotated[
        str | None, *off("no GBNF here; /v1/completions has guided_grammar", None, "")
    ] = None
    """Not supported."""
    grammar_retain_state: Annotated[bool | None, *off(NO, None, False)] = None
    """Not supported."""
    banned_tokens: Annotated[list[str] | None, *off(NO, None, [])] = None
    """Not supported."""
    images: Annotated[list[str] | None, *off("the model reads text", None, [])] = None
    """Not supported."""
    render_special: Annotated[bool | None, *off(NO, None, False)] = None
    """Not supported."""
    logprobs: Annotated[bool | None, *off("/v1/completions has them", None, False)] = None
    """Not supported."""
    use_default_badwordsids: Annotated[bool | None, *off(NO, None, False)] = None
    """Not supported."""
    singleline: Annotated[bool | None, *off(r"add \n to stop_sequence", None, False)] = None
    """Not supported."""
    use_story: Annotated[bool | None, *off("send it as prompt", None, False)] = None
    """Not supported."""
    use_memory: Annotated[bool | None, *off("send it as memory", None, False)] = None
    """Not supported."""
    use_authors_note: Annotated[bool | None, *off("send it in prompt", None, False)] = None
    """Not supported."""
    use_world_info: Annotated[bool | None, *off("send it in prompt", None, False)] = None
    """Not supported."""

    def sampling(self, max_tokens: int, seed: int, positions: int) -> SamplingParams:
        """The engine's record of it.

        Raises:
          UserError: the values do not go together.
          Refused: 400, it asks for what there is not.
        """
        self._check_penalty(positions)
        self._check_order()
        given = {ours: getattr(self, NAMES[ours]) for ours in list(NAMES)[:9]}
        known = {name: value for name, value in given.items() if value is not None}
        stop = tuple(self.stop_sequence or ())
        return SamplingParams(**known, max_tokens=max_tokens, seed=seed, stop=stop, n=self.n or 1)

    def _check_penalty(self, positions: int) -> None:
        if self.rep_pen in (None, 1) or not self.rep_pen_range:
            return
        if self.rep_pen_range < positions:
            said = f"rep_pen_range={self.rep_pen_range}: rep_pen looks at all tokens, give 0"
            raise Refused(400, said, param="rep_pen_range")
        if self.rep_pen_slope:
            said = f"rep_pen_slope={self.rep_pen_slope} is not supported: give 0"
            raise Refused(400, said, param="rep_pen_slope")

    def _check_order(self) -> None:
        """Refuse an order of samplers that would give another answer than the engine's."""
        if self.sampler_order is None or self.temperature == 0:
            return
        on = {
            6: self.rep_pen not in (None, 1),
            5: self.temperature not in (None, 1),
            0: bool(self.top_k),
            2: self.top_p not in (None, 1),
            4: self.typical not in (None, 1),
        }
        first = [] if 6 in self.sampler_order else [6]  # as older clients mean it
        asked = [each for each in (*first, *self.sampler_order) if on.get(each)]
        kept = [each for each in ORDER if on[each]]
        if {0, 5} <= set(asked) and abs(asked.index(0) - asked.index(5)) == 1:
            asked.remove(5)  # the two commute
            kept.remove(5)
        if asked != kept:
            raise Refused(
                400,
                f"sampler_order={self.sampler_order} would differ from {list(ORDER)}, which is how "
                "it is done here: leave it out",
                param="sampler_order",
            )


class GenerateResult(Said):
    """One answer."""

    text: str
    """What was written."""
    finish_reason: Literal["stop", "length", "abort"]
    """`stop`: the model or a stop string ended it; `length`: no room; `abort`: it was aborted."""
    prompt_tokens: int
    """Tokens read."""
    completion_tokens: int
    """Tokens drawn."""
    seed: int
    """As `sampler_seed` it gives this answer again."""


class GenerateResponse(Said):
    """Answers."""

    results: list[GenerateResult]
    """As many as `n`."""


class TokenEvent(Said):
    """A piece of an answer."""

    token: str
    """The text that follows."""
    finish_reason: Literal["stop", "length", "abort"] | None
    """With the last piece."""


class AbortRequest(Strict):
    """What to abort."""

    genkey: Annotated[str, Field(max_length=200)] | None = None
    """The `genkey` of the request. Default: those without one from the same address."""


class AbortResponse(Said):
    """Whether something was aborted."""

    success: Literal["true", "false"]
    """Whether such a request was under way."""
    done: Literal["true", "false"]
    """The same."""


class Result(Said):
    """A word."""

    result: str
    """It."""
