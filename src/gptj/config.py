"""What a GPT-J is: its shape in one frozen record, and the sizes people name. No JAX here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from gptj.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT-J. Two models with equal configs have interchangeable weights.

    `vocab_size` counts the tokens that mean something; the embedding and the output projection
    have `padded_vocab_size` rows, a multiple convenient for hardware (GPT-J: 50,257 and 50,400).
    A padding row is never sampled and never counts in the loss's normaliser.
    """

    layers: int = 28
    d_model: int = 4096
    heads: int = 16
    rotary_dims: int = 64
    """Rotated dimensions at the start of each head, in interleaved pairs."""
    d_ff: int = 16384
    vocab_size: int = 50257
    padded_vocab_size: int = 50400
    context: int = 2048
    """Longest sequence the model is meant for, in tokens."""
    layer_norm_eps: float = 1e-5
    rotary_base: float = 10000.0
    embedding_bias: bool = False
    """Whether every embedding has one vector added, as the original trainer's do."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, whole = getattr(self, field.name), field.type == "int"
            if field.type == "bool":
                if type(value) is not bool:
                    raise UserError(f"{field.name}={value!r} must be true or false")
                continue
            if type(value) is not int and (whole or type(value) is not float):
                kind = "a whole number" if whole else "a number"
                raise UserError(f"{field.name}={value!r} must be {kind}")
            if value <= 0 and field.name != "rotary_dims":
                at_least = "at least 1" if whole else "above 0"
                raise UserError(f"{field.name}={value} must be {at_least}")
        if self.d_model % self.heads:
            raise UserError(
                f"d_model={self.d_model} is not divisible by heads={self.heads}: "
                "choose heads that divide d_model"
            )
        if self.rotary_dims % 2 or not 0 <= self.rotary_dims <= self.d_head:
            raise UserError(
                f"rotary_dims={self.rotary_dims} must be even and at most the head's "
                f"{self.d_head} dimensions (d_model / heads)"
            )
        if self.padded_vocab_size < self.vocab_size:
            raise UserError(
                f"padded_vocab_size={self.padded_vocab_size} is below "
                f"vocab_size={self.vocab_size}: the padded table must hold every token"
            )

    @property
    def d_head(self) -> int:
        """Dimensions of one attention head."""
        return self.d_model // self.heads

    def with_vocab(self, vocab_size: int, multiple: int = 128) -> ModelConfig:
        """The same model for another tokenizer: rows padded up to a multiple of `multiple`."""
        padded = -(-vocab_size // multiple) * multiple
        return dataclasses.replace(self, vocab_size=vocab_size, padded_vocab_size=padded)

    def save(self, path: Path) -> None:
        """Write the config as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The config from its JSON object; an unknown or missing field raises `UserError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        if wrong := known.symmetric_difference(values):
            raise UserError(
                f"model config has unknown or missing fields {sorted(wrong)}; "
                f"expected exactly {sorted(known)}"
            )
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        """Read a config written by `save`."""
        try:
            values = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} is not JSON ({error}): it must hold a model's config"
            ) from None
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold a JSON object of model config fields")
        try:
            return cls.from_dict(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _preset(layers: int, d_model: int, heads: int, rotary_dims: int) -> ModelConfig:
    return ModelConfig(layers, d_model, heads, rotary_dims, d_ff=4 * d_model)


PRESETS: dict[str, ModelConfig] = {
    "demo": dataclasses.replace(_preset(4, 256, 4, 32), context=256).with_vocab(4096),
    "125m": _preset(12, 768, 12, 32),
    "350m": _preset(24, 1024, 16, 32),
    "1.3b": _preset(24, 2048, 16, 64),
    "2.7b": _preset(32, 2560, 20, 64),
    "gpt-j-6b": ModelConfig(),
    "10b": _preset(32, 5120, 20, 64),
    "13b": _preset(40, 5120, 20, 64),
    "20b": _preset(44, 6144, 24, 64),
    "40b": _preset(48, 8192, 32, 64),
}
"""Sizes by name. Those without a published GPT-J use GPT-3's width and depth with GPT-J's heads."""


def preset(name: str) -> ModelConfig:
    """The preset called `name`.

    Raises:
      UserError: there is no such preset; the message lists them.
    """
    if name not in PRESETS:
        raise UserError(f"no model preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def named(model: str) -> ModelConfig:
    """The model of a preset or of a JSON file.

    Raises:
      UserError: there is neither.
    """
    if model in PRESETS:
        return PRESETS[model]
    path = Path(model)
    if not path.is_file():
        raise UserError(
            f"model {model!r} is neither a preset ({', '.join(PRESETS)}) nor a JSON file"
        )
    return ModelConfig.load(path)


def resolve(model: ModelConfig | str, vocab_size: int) -> ModelConfig:
    """The model someone asks for by preset, JSON file or record, for a tokenizer of `vocab_size`.

    A preset's vocabulary is made to fit; a file's or record's is kept, and must be large enough.

    Raises:
      UserError: there is no such preset or file, or its vocabulary is smaller than the tokenizer's.
    """
    if isinstance(model, str) and model in PRESETS:
        return PRESETS[model].with_vocab(vocab_size)
    if isinstance(model, str):
        model = named(model)
    if model.vocab_size < vocab_size:
        raise UserError(
            f"the model's vocab_size={model.vocab_size} is smaller than the tokenizer's "
            f"{vocab_size}: prepare the data with the model's own tokenizer, or for a new model "
            "raise vocab_size and padded_vocab_size"
        )
    return model
