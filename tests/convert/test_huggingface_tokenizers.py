"""The tokenizers that lie beside Hugging Face's GPT-J: rows of the embedding that they lack."""

import json
from pathlib import Path

import numpy as np
import pytest

import gptj
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.tokenizer import Tokenizer

torch = pytest.importorskip("torch", reason="torch is not installed (`make test` installs it)")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("rows", [300, 257])
def test_rows_past_the_tokenizer_are_padding(rows, tmp_path):
    torch.manual_seed(0)
    config = transformers.GPTJConfig(
        **{"vocab_size": rows, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2},
        **{"rotary_dim": 4, "bos_token_id": 256, "eos_token_id": 256},
    )
    theirs = transformers.GPTJForCausalLM(config)
    with torch.no_grad():
        theirs.lm_head.bias[257:] = 100.0  # padding rows that greedy sampling would love
    theirs.save_pretrained(tmp_path / "theirs")
    gptj.Tokenizer.bytes().save(tmp_path / "theirs" / "tokenizer.json")
    ours = gptj.load(tmp_path / "theirs")
    assert (ours.config.vocab_size, ours.config.padded_vocab_size) == (257, rows)
    assert ours.generate("ab", max_tokens=4, temperature=0)[0] is not None
    assert ours.logits(np.array([[1, 2]])).shape[-1] == 257
    (tmp_path / "theirs" / "tokenizer.json").write_text("{")
    with pytest.raises(gptj.UserError, match=str(tmp_path / "theirs")):
        gptj.load(tmp_path / "theirs")


GPT2 = Path(__file__).parents[2] / "../shared/data/gpt2_bpe"


@pytest.mark.skipif(not GPT2.is_dir(), reason="needs ../shared/data/gpt2_bpe")
def test_gpt_js_own_tokenizer_has_143_tokens_that_mean_nothing(tmp_path):
    """Hugging Face's files of GPT-J: GPT-2's tokenizer with a name for each padding row."""
    size, extra = 50257, 143
    config = transformers.GPTJConfig(
        vocab_size=size + extra, n_positions=16, n_embd=8, n_layer=1, n_head=1, rotary_dim=4
    )
    model = transformers.GPTJForCausalLM(config)
    with torch.no_grad():
        model.lm_head.bias[size:] = 50.0  # by far the likeliest
    model.save_pretrained(tmp_path)
    definition = json.loads(Tokenizer.load(GPT2).to_json())
    like = definition["added_tokens"][0]
    definition["added_tokens"] += [
        {**like, "id": size + n, "content": f"<|extratoken_{n + 1}|>"} for n in range(extra)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    ours = gptj.load(tmp_path)
    assert (ours.config.vocab_size, ours.config.padded_vocab_size) == (size, size + extra)
    for temperature in (0.0, 1.0):
        # The ids, not the text: a decoder leaves such tokens out of it, so none would be seen.
        sampling = SamplingParams(max_tokens=8, temperature=temperature)
        engine = Engine(ours.params, ours.config, ours.tokenizer, EngineConfig(1))
        [[made]] = engine.run([Request("Hello world", sampling)])
        assert made.tokens
        assert max(made.tokens) < size
    text = "2<|endoftext|><|extratoken_7|>"  # text is text, unless asked
    assert ours.tokenizer.decode(ours.tokenizer.encode(text)) == text
    assert ours.tokenizer.eos_id not in ours.tokenizer.encode(text)
    assert isinstance(ours.tokenizer.decode(list(range(size, size + extra))), str)
