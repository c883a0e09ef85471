"""Others' sides: the same work by PyTorch's GPT-J and by CTranslate2, and a plain reading."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from gptj import cores
from gptj.bench.config import Bench, DecodeBench, LoadBench, PrefillBench, ServeBench, TrainBench
from gptj.bench.inputs import batches, prompts
from gptj.bench.records import Runs, Unavailable
from gptj.bench.work import name_of
from gptj.config import ModelConfig
from gptj.errors import UserError
from gptj.kernels.build import features

TYPES = {"transformers": ("float32", "bfloat16"), "ctranslate2": ("float32", "bfloat16", "int8")}
"""What their matrices can be stored in."""

SUBJECTS = {
    "transformers": (TrainBench, DecodeBench, PrefillBench, ServeBench, LoadBench),
    "ctranslate2": (DecodeBench, PrefillBench, ServeBench),
    "original": (TrainBench,),
}
"""What each can be asked to do."""

Draw = Callable[[Sequence[list[int]], int], None]
"""Draws so many tokens after each prompt."""


def runs(system: str, bench: Bench, config: ModelConfig | None, stored: str) -> Runs:
    """What does the work of each case, ready to be timed.

    Raises:
      UserError: the system is not installed.
      Unavailable: it has no such type on this processor.
    """
    if isinstance(bench, LoadBench):
        return {"from disk": lambda: _load(bench.model, stored)}
    assert config
    if isinstance(bench, TrainBench):
        return {"a step": _torch_step(bench, config, stored)}
    draw = {"transformers": _torch, "ctranslate2": _ctranslate2}[system](config, stored)
    if isinstance(bench, ServeBench):
        from gptj.bench.serve import mix

        mixed: Any = [request.prompt for request in mix(bench, config.vocab_size)]
        size = bench.engine.slots  # answered together, padded on the left
        parts = [mixed[at : at + size] for at in range(0, len(mixed), size)]
        return {"the mix": lambda: sum([_seconds(draw, each, bench.new_tokens) for each in parts])}
    if isinstance(bench, PrefillBench):
        asked = prompts(config, 1, bench.tokens)
        return {f"{bench.tokens} tokens": lambda: _seconds(draw, asked, 1)}
    assert isinstance(bench, DecodeBench)
    return {name_of(n): _drawing(draw, bench, prompts(config, n, bench.read)) for n in bench.slots}


def _seconds(draw: Draw, asked: Sequence[list[int]], new: int) -> float:
    begin = time.perf_counter()
    draw(asked, new)
    return time.perf_counter() - begin


def _drawing(draw: Draw, bench: DecodeBench, asked: Sequence[list[int]]) -> Callable[[], float]:
    return lambda: _seconds(draw, asked, bench.new + 1) - _seconds(draw, asked, 1)


def _imported(library: str, package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(library)
    except ImportError:
        raise UserError(f"--peer needs {package}: pip install {package}") from None


def _torch_model(config: ModelConfig) -> Any:
    """Transformers' GPT-J of the same shape, with random weights."""
    torch = _imported("torch", "torch")
    transformers = _imported("transformers", "transformers")
    torch.set_num_threads(cores.usable())
    shape = transformers.GPTJConfig(
        vocab_size=config.padded_vocab_size, n_positions=config.context, n_embd=config.d_model,
        n_layer=config.layers, n_head=config.heads, n_inner=config.d_ff,
        rotary_dim=config.rotary_dims, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=config.padded_vocab_size - 1,
    )  # fmt: skip
    return transformers.GPTJForCausalLM(shape)


def _torch_step(bench: TrainBench, config: ModelConfig, stored: str) -> Callable[[], float]:
    """The same step by transformers and PyTorch's fused AdamW."""
    torch = _imported("torch", "torch")
    model, rows = _torch_model(config).train(), batches(bench, config)
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step() -> float:
        tokens, begin = torch.from_numpy(rows()).long(), time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=stored == "bfloat16"):
            logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), tokens[:, 1:].flatten()
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        return time.perf_counter() - begin

    return step


def _torch(config: ModelConfig, stored: str) -> Draw:
    """`generate` of transformers, greedily."""
    torch = _imported("torch", "torch")
    model = _torch_model(config).eval().to(getattr(torch, stored))

    def draw(asked: Sequence[list[int]], new: int) -> None:
        longest = max(map(len, asked))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in asked])
        seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in asked])
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=seen, do_sample=False, pad_token_id=0,
                min_new_tokens=new, max_new_tokens=new,
            )  # fmt: skip

    return draw


def _ctranslate2(config: ModelConfig, stored: str) -> Draw:
    """CTranslate2, its prompts of even length read at once, greedily."""
    os.environ.setdefault("CT2_VERBOSE", "-3")
    if "avx512f" in features():  # which it leaves out on AMD's processors
        os.environ.setdefault("CT2_FORCE_CPU_ISA", "AVX512")
    ctranslate2 = _imported("ctranslate2", "ctranslate2")
    if stored not in ctranslate2.get_supported_compute_types("cpu"):
        raise Unavailable(f"ctranslate2 has no {stored} on this processor")
    TransformersConverter: Any = ctranslate2.converters.TransformersConverter
    model = _torch_model(config)
    words = [str(n) for n in range(config.padded_vocab_size)]

    class Converter(TransformersConverter):  # type: ignore[misc]
        """Of a model that is there, and whose tokens are numbers."""

        def load_model(self, *_: Any, **__: Any) -> Any:
            return model

        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return _Numbers(words)

    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        Converter(folder).convert(f"{folder}/converted", quantization=stored)
        generator = ctranslate2.Generator(
            f"{folder}/converted", device="cpu", compute_type=stored, inter_threads=1,
            intra_threads=cores.usable(),
        )  # fmt: skip

    def draw(asked: Sequence[list[int]], new: int) -> None:
        texts = [[words[n] for n in prompt] for prompt in asked]
        generator.generate_batch(
            texts, max_batch_size=len(texts), min_length=new, max_length=new, sampling_topk=1,
            include_prompt_in_result=False, end_token=words[-1],
        )  # fmt: skip

    return draw


class _Numbers:
    """As much of a tokenizer as the converter asks for."""

    def __init__(self, words: list[str]) -> None:
        self.bos_token = self.eos_token = self.unk_token = words[-1]
        self._ids = {word: n for n, word in enumerate(words)}

    def get_vocab(self) -> dict[str, int]:
        """Each token's number."""
        return self._ids


def _load(model: str, stored: str) -> float:
    """`from_pretrained` of transformers, the files not in memory before."""
    from gptj.bench.own import forget
    from gptj.bench.work import weight_files

    torch = _imported("torch", "torch")
    transformers = _imported("transformers", "transformers")
    forget(weight_files(model))
    begin = time.perf_counter()
    transformers.GPTJForCausalLM.from_pretrained(model, dtype=getattr(torch, stored))
    return time.perf_counter() - begin
