"""Records that show what to answer: a prompt, which is only read, and what is learnt after it.

The tokens of an example that are only read are kept as their complement, a negative number. What
comes before an answer is made into tokens by itself, as it is when the model is used.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptj.errors import UserError
from gptj.tokenizer import Tokenizer
from gptj.transcript import (
    END,
    SPEAKERS,
    Messages,
    Render,
    encode,
    plain,
    read_template,
)

Examples = Literal["completions", "chats", "preferences"]
PROMPT, COMPLETION, CHOSEN, REJECTED = "{prompt}", "{completion}", "{chosen}", "{rejected}"
_ASSISTANT = "assistant"


@dataclass(frozen=True)
class ExampleConfig:
    """How records become examples of what to answer, if they are to."""

    examples: Examples | None = None
    """What the records are, of JSON lines or tables: `completions`, a prompt and what is to follow
    it; `chats`, a list of `messages` with `role` and `content`, of which the assistant's are
    learnt; `preferences`, a prompt, what is `chosen` to follow it and what is `rejected`, texts or
    lists of messages of which the last ones differ. Default: texts, of which every token is
    learnt."""
    prompt: str = PROMPT
    """Template of the prompt: `{question}` stands for the text of a field, `{meta.title}` for that
    of one in a record within."""
    completion: str = COMPLETION
    """Template of what follows; end-of-text comes after it."""
    chosen: str = CHOSEN
    """Template of what is preferred."""
    rejected: str = REJECTED
    """Template of what is not."""
    messages: str = "messages"
    """Field that holds a chat."""
    chat_template: Path | None = None
    """A Jinja template that makes a text of `messages`. Default: the plain transcript that `gptj
    serve` uses."""

    def __post_init__(self) -> None:
        used: dict[Examples | None, set[str]] = {
            None: set(),
            "completions": {"prompt", "completion"},
            "chats": {"messages", "chat_template"},
            "preferences": {"prompt", "chosen", "rejected", "chat_template"},
        }
        default = {field.name: field.default for field in type(self).__dataclass_fields__.values()}
        for name in default.keys() - used[self.examples] - {"examples"}:
            if getattr(self, name) != default[name]:
                kinds = " or ".join(str(kind) for kind, names in used.items() if name in names)
                option = name.replace("_", "-")
                raise UserError(f"--{option} is for --examples {kinds}: give that, or leave it out")


class ExampleReader:
    """Makes tokens of records, each those of an example."""

    def __init__(self, config: ExampleConfig, tokenizer: Tokenizer) -> None:
        """Read as `config` says, which names some kind of examples.

        Raises:
          UserError: a template is not one.
        """
        self._config, self._tokenizer = config, tokenizer
        self._kind = config.examples
        self._templates: dict[str, _Template] = {}
        self._render: Render = plain
        if config.chat_template is not None:
            self._render = read_template(config.chat_template)
        if self._kind == "chats":
            self.fields = [config.messages]
            return
        last = ("completion",) if self._kind == "completions" else ("chosen", "rejected")
        for name in ("prompt", *last):
            self._templates[name] = _Template(f"--{name}", getattr(config, name))
        found = dict.fromkeys(f for each in self._templates.values() for f in each.fields)
        self.fields = list(found)
        """What is looked up in a record."""

    def ids(self, where: str, record: Mapping[str, Any]) -> NDArray[np.int64]:
        """The tokens of the record that stands at `where`, without the end-of-text after it.

        Of preferences both texts, the preferred first, an end-of-text between them.

        Raises:
          UserError: a field is missing or no text, or there is nothing to read or to learn.
        """
        messages = self._messages(where, record) if self._kind == "chats" else None
        pair = self._pair(where, record) if self._kind == "preferences" else None
        try:
            if messages is not None:
                return self._chat(messages)
            if pair is not None:
                return self._two(*pair)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return self._texts(where, record)

    def _texts(self, where: str, record: Mapping[str, Any]) -> NDArray[np.int64]:
        """A prompt and what follows it, of preferences twice."""
        if self._config.chat_template is not None:
            raise UserError(
                f"{where} holds no messages, and --chat-template is of those: leave it out"
            )
        prompt, *texts = (
            (name, template.filled(where, record)) for name, template in self._templates.items()
        )
        for name, text in (prompt, *texts):
            if not text:
                raise UserError(f"{where} has an empty {name}: {_REMEDIES[name]}")
        if texts[1:] and texts[0][1] == texts[1][1]:
            raise UserError(f"{where} has one text as chosen and rejected: leave it out")
        return self._after(prompt[1], *(text for _, text in texts))

    def _after(self, prompt: str, *texts: str) -> NDArray[np.int64]:
        """Texts that are learnt, each after the prompt, an end-of-text between them."""
        read, end = ~self._learnt(prompt), np.array([self._tokenizer.eos_id])
        pieces = [piece for text in texts for piece in (end, read, self._learnt(text))]
        return np.concatenate(pieces[1:])

    def _pair(self, where: str, record: Mapping[str, Any]) -> tuple[Messages, Messages] | None:
        """Two chats that part at their last message, where a record has messages for its answers.

        What comes before may stand in both, in the prompt, or be the prompt's text that a user
        says.
        """
        fields = {name: template.alone or "" for name, template in self._templates.items()}
        held = {name: looked_up(record, field) for name, field in fields.items()}
        if not any(isinstance(held[name], list) for name in ("chosen", "rejected")):
            return None
        first, second = (
            _chat_in(where, record, fields[n], f"--{n}") for n in ("chosen", "rejected")
        )
        before: Messages = []
        if isinstance(held["prompt"], list):
            before = _chat_in(where, record, fields["prompt"], "--prompt")
        elif len(first) == len(second) == 1:
            text = self._templates["prompt"].filled(where, record)
            before = [{"role": "user", "content": text}]

        def whole(answer: Messages) -> Messages:
            return answer if _same(answer[: len(before)], before) else [*before, *answer]

        first, second = whole(first), whole(second)
        if not _same(first[:-1], second[:-1]):
            raise UserError(
                f"{where} has two chats that part before their last messages: leave it out"
            )
        if not all(each and each[-1]["role"] == _ASSISTANT for each in (first, second)):
            raise UserError(f"{where} has a chat that ends with no message of the assistant's")
        return first, second

    def _two(self, first: Messages, second: Messages) -> NDArray[np.int64]:
        """Two answers to one chat."""
        (before, chosen), (_, rejected) = (
            self._parts(each, len(each) - 1) for each in (first, second)
        )
        chosen, rejected = (_answer(each[len(before) :]) for each in (chosen, rejected))
        if chosen == rejected:
            raise UserError("one text is both chosen and rejected: leave it out")
        return self._after(before, chosen, rejected)

    def _parts(self, messages: Messages, number: int) -> tuple[str, str]:
        """The text before the answer that is message `number`, and the text with it."""
        before = self._render(messages[:number], True)
        after = self._render(messages[: number + 1], False)
        if not after.startswith(before):
            raise UserError(_REWRITTEN)
        if not before or not _answer(after[len(before) :]).strip():
            raise UserError(
                f"message {number + 1} is an empty answer, or one that nothing comes before: "
                "leave the chat out, or use another template"
            )
        return before, after

    def _chat(self, messages: Messages) -> NDArray[np.int64]:
        """All that comes before the last answer as it is given to the model then, and that answer.

        Of the answers before it what ends them is learnt too: the end-of-text that the template
        puts there, in the plain transcript the name of who speaks next.
        """
        *earlier, last = [i for i, each in enumerate(messages) if each["role"] == _ASSISTANT]
        spans: list[tuple[int, int]] = []
        told = ""
        for number in (*earlier, last):
            before, after = self._parts(messages, number)
            if not before.startswith(told):
                raise UserError(_REWRITTEN)
            end = len(after)
            if number != last and self._render is plain:
                end += len(f"{SPEAKERS[messages[number + 1]['role']]}:")
            spans.append((len(before), end))
            told = after
        begin, _ = spans.pop()
        answer = self._learnt(_answer(told[begin:]))
        before = told[:begin]
        ends = ((first, before.find(END, first, past + 1) + 1 or past) for first, past in spans)
        return np.concatenate([self._marked(before, list(ends)), answer])

    def _marked(self, text: str, spans: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        """The tokens of a text, of which those that begin in one of `spans` are learnt."""
        ids = self._learnt(text)
        if not spans:
            return ~ids
        spelling, end = self._tokenizer.spelling, self._tokenizer.eos_id
        sizes = np.array([len(_utf8(END) if n == end else spelling[n]) for n in ids.tolist()])
        if sizes.sum() != len(_utf8(text)):
            raise UserError(
                "this tokenizer writes texts otherwise than they were, so that the answers before "
                "the last cannot be found: give chats of one answer"
            )
        begins = np.cumsum(sizes) - sizes
        is_learnt = np.zeros(len(ids), bool)
        for span in spans:
            first, past = (len(_utf8(text[:place])) for place in span)
            is_learnt |= (begins >= first) & (begins < past)
        return np.where(is_learnt, ids, ~ids)

    def _messages(self, where: str, record: Mapping[str, Any]) -> Messages:
        found = _chat_in(where, record, self._config.messages, "--messages")
        if not any(each["role"] == _ASSISTANT for each in found):
            raise UserError(f"{where} has no message of the assistant's: leave it out")
        return found

    def _learnt(self, text: str) -> NDArray[np.int64]:
        return np.array(encode(text, self._tokenizer), np.int64)


class _Template:
    """A text with the names of fields in braces."""

    def __init__(self, option: str, text: str) -> None:
        self._option = option
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(
                f"{option} {text!r} is no template ({error}): write fields as {{name}}, and a "
                "brace itself as {{ or }}"
            ) from error
        if any(form or conversion for _, _, form, conversion in parts):
            raise UserError(f"{option} {text!r} says how fields look: write their names alone")
        self._parts = [(before, name) for before, name, _, _ in parts]
        self.fields: Sequence[str] = [name for _, name in self._parts if name is not None]
        if "" in self.fields or not self.fields:
            raise UserError(f"{option} {text!r} names no field: write its name in braces")
        self.alone = self.fields[0] if text == f"{{{self.fields[0]}}}" else None
        """The field's name, where there is nothing else."""

    def filled(self, where: str, record: Mapping[str, Any]) -> str:
        """The text for a record."""
        return "".join(
            before + ("" if name is None else self._field(where, record, name))
            for before, name in self._parts
        )

    def _field(self, where: str, record: Mapping[str, Any], name: str) -> str:
        found = looked_up(record, name)
        if isinstance(found, bool) or not isinstance(found, str | int | float):
            raise lacking(where, record, name, f"name the field in {self._option}")
        return str(found)


def _chat_in(where: str, record: Mapping[str, Any], field: str, option: str) -> Messages:
    """The messages in a field."""
    found = looked_up(record, field)
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise UserError(
            f"{where} has no list of messages in a field {field!r} (it holds "
            f"{named(fields_of(record))}): name the field with {option}"
        )
    for number, each in enumerate(found, start=1):
        role, content = each.get("role"), each.get("content")
        if not isinstance(role, str) or role not in SPEAKERS:
            known = ", ".join(SPEAKERS)
            raise UserError(f"{where} has a message {number} of role {role!r}: use one of {known}")
        if not isinstance(content, str):
            raise UserError(f"{where} has a message {number} whose content is no text")
        if role == _ASSISTANT and not content:
            raise UserError(f"{where} has an empty message {number} of the assistant's")
    return found


def _answer(text: str) -> str:
    """What is answered in a text, without its end."""
    return text.partition(END)[0].rstrip("\n")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _same(first: Messages, second: Messages) -> bool:
    """Whether the same is said."""
    said = [[(each["role"], each["content"]) for each in chat] for chat in (first, second)]
    return said[0] == said[1]


_REWRITTEN = (
    "the chat template writes earlier messages otherwise once there are later ones, so that what "
    "is the answer cannot be told: use another"
)
_REMEDIES = {
    "prompt": "there is nothing to answer, so give it to another preparation as a text",
    **dict.fromkeys(("completion", "chosen", "rejected"), "leave the record out, or fill it in"),
}


def looked_up(record: Mapping[str, Any], field: str) -> Any:
    """What a field holds, or one of a record within, as `meta.name`; None if it is not there."""
    if field in record:
        return record[field]
    found: Any = record
    for name in field.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def fields_of(record: Mapping[str, Any]) -> Iterator[str]:
    """The names of a record's fields, with a dot where one lies in a record within."""
    for name, value in record.items():
        if isinstance(value, dict) and value:
            yield from (f"{name}.{within}" for within in fields_of(value))
        else:
            yield name


def named(names: Iterable[str]) -> str:
    """Names to read."""
    return ", ".join(map(repr, names)) or "nothing"


def lacking(where: str, record: Mapping[str, Any], field: str, remedy: str) -> UserError:
    """A sentence about a record that has no text in a field."""
    found = looked_up(record, field)
    what = "a record" if isinstance(found, dict) else json.dumps(found, default=str)[:40]
    is_there = found is not None or field in record
    return UserError(
        f"{where} has no text in a field {field!r}{f' but {what}' if is_there else ''} (it holds "
        f"{named(fields_of(record))}): {remedy}, or mend or remove the record"
    )
