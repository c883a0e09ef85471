"""OpenAI's requests, with vLLM's names for what OpenAI has no name for."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from gptj.engine.request import MOST_ALTERNATIVES, SEEDS, SamplingParams
from gptj.serve.fields import (
    Bias,
    Ids,
    Probability,
    Prompts,
    RepetitionPenalty,
    SomeIds,
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
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
    "allowed_tokens": "allowed_token_ids",
    "banned_tokens": "banned_token_ids",
    "stop_tokens": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "min_tokens": "min_tokens",
    "json_schema": "guided_json",
    "regex": "guided_regex",
    "grammar": "guided_grammar",
    "stop": "stop",
    "seed": "seed",
    "n": "n",
    "best_of": "best_of",
    "max_tokens": "max_tokens",
    "prompt": "prompt",
}
"""From the engine's names of parameters to those here."""

SAMPLING = list(NAMES)[: list(NAMES).index("stop")]
"""Those that are handed on as they are."""

Count = Annotated[int, Field(ge=1)]
Alternatives = Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]


class StreamOptions(Strict):
    """What a stream tells beside the text."""

    include_usage: bool | None = False
    """Send a last event that counts the tokens."""


class JsonSchema(Strict):
    """A schema with a name."""

    name: str
    """What it is called; the model does not see it."""
    description: str | None = None
    """What it is for; the model does not see it."""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """The JSON schema that the answer keeps to."""
    strict: Literal[True] | None = None
    """The answer always keeps to the schema."""


class ResponseFormat(Strict):
    """What form an answer has."""

    type: Literal["text", "json_object", "json_schema"]
    """Any text, any JSON object, or JSON that keeps to `json_schema`."""
    json_schema: JsonSchema | None = None
    """With the type `json_schema`."""


class Sampling(Strict):
    """How the next token is drawn, and where an answer ends; what both kinds of request share."""

    model: str | None = None
    """The name of the model or of an adapter, as /v1/models says it. Default: the model."""
    n: Count | None = 1
    """Answers to each prompt."""
    temperature: Temperature | None = 1.0
    """Divides the logits: below 1 sharpens, above 1 flattens, 0 always takes the likeliest."""
    top_p: Probability | None = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = 0
    """Draw from this many likeliest tokens; 0 or -1 is off."""
    min_p: Unit | None = 0.0
    """Leave out tokens less probable than this times the likeliest; 0 is off."""
    typical_p: Probability | None = 1.0
    """Draw from the tokens whose surprise is nearest the expected one and that together have this
    probability; 1 is off."""
    repetition_penalty: RepetitionPenalty | None = 1.0
    """Above 1 discourages tokens of the prompt and of the answer so far."""
    presence_penalty: Penalty | None = 0.0
    """Taken from the logit of every token that the answer already has."""
    frequency_penalty: Penalty | None = 0.0
    """Taken from a token's logit as many times as the answer already has it."""
    logit_bias: Bias | None = None
    """Added to the logits of these token ids."""
    seed: Seed | None = None
    """The same seed gives the same answer. Default: one by chance, told in the answer."""
    stop: Stops | None = None
    """The answer ends before the first of these strings."""
    stop_token_ids: Ids | None = None
    """The answer ends before the first of these tokens."""
    allowed_token_ids: SomeIds | None = None
    """Draw none but these tokens, and those that end the answer."""
    banned_token_ids: Ids | None = None
    """Never draw these tokens."""
    ignore_eos: bool | None = False
    """The end-of-text token does not end the answer."""
    min_tokens: Annotated[int, Field(ge=0)] | None = 0
    """Nothing ends the answer before it has so many tokens."""
    guided_json: dict[str, Any] | str | None = None
    """Write JSON that keeps to this schema."""
    guided_regex: str | None = None
    """Write what this regular expression matches as a whole."""
    guided_grammar: str | None = None
    """Write what this Lark grammar derives from `start`."""
    response_format: ResponseFormat | None = None
    """The form of the answer."""
    stream: bool | None = False
    """Send the answer in pieces, as server-sent events, as it is written."""
    stream_options: StreamOptions | None = None
    """With `stream`."""
    user: Annotated[str, Field(max_length=200)] | None = None
    """Who asks, for the server's log."""

    def sampling(self, **more: Any) -> SamplingParams:
        """The engine's record of it; `more` has what the kinds of request do each its own way.

        Raises:
          UserError: the values are out of range or do not go together.
          Refused: 400, `response_format` is not one, or says something else than `guided_json`.
        """
        given = {ours: getattr(self, NAMES[ours]) for ours in SAMPLING}
        given["json_schema"] = self._schema()
        given["top_k"] = max(0, self.top_k or 0)
        for name in ("allowed_tokens", "banned_tokens", "stop_tokens"):
            given[name] = None if given[name] is None else tuple(given[name])
        known = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(**known, n=self.n or 1, **more)

    def _schema(self) -> str | None:
        form, schema = self.response_format, self.guided_json
        wanted: Any = schema
        if form and form.type == "json_object":
            wanted = {"type": "object"}
        if form and form.json_schema:
            wanted = form.json_schema.schema_
        if form and (form.type == "json_schema") != (form.json_schema is not None):
            raise _wrong("response_format", "json_schema and the type `json_schema` go together")
        if form and form.type != "text" and schema is not None:
            raise _wrong("guided_json", "response_format says the form already: leave out one")
        try:
            return wanted if wanted is None or isinstance(wanted, str) else json.dumps(wanted)
        except RecursionError as error:
            raise _wrong("guided_json", "is nested too deeply") from error

    @property
    def with_usage(self) -> bool:
        """Whether a stream is to end with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_stream(self) -> None:
        """Refuse what goes with a stream where there is none.

        Raises:
          Refused: 400.
        """
        if self.stream_options and not self.stream:
            raise _wrong("stream_options", "goes with stream=true")


def _wrong(param: str, said: str) -> Refused:
    return Refused(400, f"{param}: {said}", param=param)


class CompletionRequest(Sampling):
    """A prompt to go on from."""

    prompt: Prompts | None = None
    """Text, or token ids; or a list of either. Default: the start of a document."""
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = 16
    """Longest answer, in tokens; 0 goes with `echo`."""
    best_of: Count | None = None
    """Draw this many and give the `n` of the highest mean log-probability a token. Default: n."""
    logprobs: Alternatives | None = None
    """Also give each token's log-probability, and those of so many likeliest tokens."""
    echo: bool | None = False
    """Begin the answer with the prompt, and its log-probabilities if any are wanted."""
    suffix: Annotated[None, *off("the model writes on from a prompt, it fills no gaps", None)] = (
        None
    )
    """Not supported."""


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    """Text is all that the model reads."""
    text: str
    """The text."""


class Message(Strict):
    """What was said in a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who said it."""
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    """What was said."""

    @property
    def text(self) -> str:
        """All of it in one piece."""
        parts = self.content if isinstance(self.content, list) else ()
        return self.content if isinstance(self.content, str) else "".join(p.text for p in parts)


class ChatRequest(Sampling):
    """A chat to go on with."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    """What was said so far."""
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Longest answer, in tokens. Default: to the end of the context."""
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """The newer name of `max_tokens`."""
    logprobs: bool | None = False
    """Also give each token's log-probability."""
    top_logprobs: Alternatives | None = None
    """With `logprobs`: and those of so many likeliest tokens."""
    tools: Annotated[None, *off("the model calls no tools, switch them off", None)] = None
    """Not supported."""
