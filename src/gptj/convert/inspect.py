"""What a model on disk is, and whether two of them are the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from gptj.convert import names
from gptj.convert.source import Source
from gptj.convert.tensor import Tensor, contiguous, count_nans
from gptj.model import Weight


@dataclass(frozen=True)
class Difference:
    """How far two models' weights are from each other, in float32."""

    same_bits: bool
    """Whether every tensor is stored in the same type with the same bits."""
    largest: float
    """The largest absolute difference of two weights; NaN where one of two is not a number."""
    where: str
    """The tensor it is in."""
    relative: float
    """The norm of the difference over the norm of the first model's weights."""
    tensors: int
    """Tensors with any difference."""
    folded: bool
    """Whether only one has a bias of the embedding that is not of zeros, compared as if added into
    the embedding."""

    def sentence(self) -> str:
        """The same in words."""
        if self.same_bits:
            return "the same weights, bit for bit"
        folded = ", once the bias of one's embedding is added into it" if self.folded else ""
        if not self.tensors:
            other = ", stored in different types, or with zeros of another sign"
            return f"the same numbers{folded or other}"
        return (
            f"{self.tensors} tensors differ{folded}: by {self.largest:.3g} at most, in "
            f"{self.where}; by {self.relative:.3g} of the weights' norm in all"
        )


def diff(a: Source, b: Source) -> Difference | str:
    """Compare two models tensor by tensor; a sentence where they are not of one shape."""
    tables = [names.tensors(source.config) for source in (a, b)]
    bias = "embedding_bias"
    other = {
        n for n in {*tables[0], *tables[1]} - {bias} if _shape(tables[0], n) != _shape(tables[1], n)
    }
    if other:
        first = sorted(other)[0]
        of_a, of_b = (_shape(table, first) or "missing" for table in tables)
        return (
            f"they are of different shapes: {first} is {of_a} in {a.place} and {of_b} in {b.place}"
        )
    # One of zeros, as the original's kind gives to a model without, is none.
    lone = (a if bias in tables[0] else b).weights if len(tables[0]) != len(tables[1]) else {}
    folded = bias in lone and bool(lone[bias].read().any())
    same, largest, where, squares, total, count = not folded, 0.0, "", 0.0, 0.0, 0
    for name in (n for n in tables[0] if n in tables[1]):
        x, y = (_read(source, name, folded) for source in (a, b))
        same = same and x.dtype == y.dtype and x.tobytes() == y.tobytes()
        wide, others = x.astype(np.float32), y.astype(np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # infinities
            gap = np.abs(wide - others)
        gap[(wide == others) | (np.isnan(wide) & np.isnan(others))] = 0
        most = float(gap.max(initial=0))
        count += bool(most) or bool(np.isnan(most))
        if most > largest or np.isnan(most):
            largest, where = most, name
        squares += float(np.square(gap, dtype=np.float64).sum())
        total += float(np.square(wide, dtype=np.float64).sum())
    relative = (squares / total) ** 0.5 if total else float("inf") if squares else 0.0
    return Difference(same, largest, where, relative, count, folded)


def _shape(table: dict[str, Weight], name: str) -> tuple[int, ...] | None:
    return table[name].shape if name in table else None


def _read(source: Source, name: str, folded: bool) -> np.ndarray:
    """A tensor; where only one model has an embedding bias, the embedding with it added."""
    array = contiguous(source.weights[name].read())
    if name == "embedding" and folded and source.config.embedding_bias:
        bias = source.weights["embedding_bias"].read().astype(np.float32)
        return (array.astype(np.float32) + bias).astype(array.dtype)
    return array


def describe(source: Source, hashes: bool) -> Iterator[str]:
    """Lines that say what `source` is; with `hashes`, after reading all of it."""
    yield f"{source.place}: {source.kind}"
    for what, rows in (("shape", _shape_rows(source)), ("weights", _weight_rows(source))):
        yield from ("", what, *_aligned(rows))
    yield ""
    yield from _aligned(_other_rows(source))
    if hashes:
        digest, nans = fingerprint(source)
        yield from _aligned({"NaN": f"{nans:,}" if nans else "none", "sha256": digest})
        yield from _aligned({"": "(of the weights, the same whatever the kind)"})


def _aligned(rows: dict[str, str]) -> list[str]:
    return [f"  {name:<18} {text}" for name, text in rows.items()]


def _shape_rows(source: Source) -> dict[str, str]:
    return {
        field: str(value).lower() if isinstance(value, bool | float) else f"{value:,}"
        for field, value in asdict(source.config).items()
    }


def _weight_rows(source: Source) -> dict[str, str]:
    tensors = source.weights
    parts = {
        "embedding": [t for n, t in tensors.items() if n.startswith("embedding")],
        f"{source.config.layers} layers": [
            t for n, t in tensors.items() if n.startswith("blocks.")
        ],
        "output": [t for n, t in tensors.items() if not n.startswith(("embedding", "blocks."))],
        "all": list(tensors.values()),
    }
    return {part: _sum(held) for part, held in parts.items()}


def _other_rows(source: Source) -> dict[str, str]:
    moments, tokenizer = list((source.optimizer or {}).values()), source.tokenizer()
    known = tokenizer and f"{tokenizer.vocab_size:,} tokens, sha256 {tokenizer.sha256}"
    # What a run would go on with stays in its checkpoints, and is not read with the weights.
    is_unread = source.kind.startswith("run") or source.kind.endswith("adapters")
    return {
        "step": "unknown" if source.step is None else f"{source.step:,}",
        **({} if is_unread else {"optimizer": _sum(moments) if moments else "none"}),
        "tokenizer": known or "none",
    }


def fingerprint(source: Source) -> tuple[str, int]:
    """A hash of the weights' names, types and bits, whatever the kind; and how many are NaN.

    An output tied to the embedding counts as the tensor of its own that other kinds store.
    """
    digest, nans = hashlib.sha256(), 0
    for name in sorted(source.weights):
        array = source.weights[name].read()
        nans += count_nans(array)
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(contiguous(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest(), nans


def _sum(tensors: list[Tensor]) -> str:
    numbers = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors)
    dtypes = sorted({tensor.dtype.name for tensor in tensors})
    size = sum(tensor.bytes for tensor in tensors)
    return f"{numbers:>15,} numbers  {', '.join(dtypes)}  {size:,} bytes"
