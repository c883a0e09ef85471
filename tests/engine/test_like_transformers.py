"""Greedy completions and beam search are those of transformers' `generate`, token for token."""

import numpy as np
import pytest

import gptj
from gptj.engine.beam import BeamParams, beam_search
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCAB, EOS, NEW = 90, 89, 12
EARLY = {"hopeless": False, "never": "never", "full": True}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One random model, theirs and ours, that likes to end its texts."""
    torch.manual_seed(0)
    config = transformers.GPTJConfig(
        vocab_size=VOCAB, n_positions=48, n_embd=32, n_layer=2, n_head=4, rotary_dim=4,
        bos_token_id=EOS, eos_token_id=EOS, initializer_range=0.3,
    )  # fmt: skip
    theirs = transformers.GPTJForCausalLM(config).eval()
    with torch.no_grad():
        theirs.lm_head.bias[EOS] = 2.5
    folder = tmp_path_factory.mktemp("random")
    theirs.save_pretrained(folder)
    return theirs, gptj.load(folder)


def prompts(count: int) -> list[list[int]]:
    draw = np.random.default_rng(1)
    return [draw.integers(0, VOCAB - 1, draw.integers(1, 30)).tolist() for _ in range(count)]


def generate(theirs, prompt: list[int], **options) -> list[list[int]]:
    """What transformers writes, without the prompt, the end and the padding after it."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": EOS, **options}
    with torch.no_grad():
        made = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options).tolist()
    new = [row[len(prompt) :] for row in made]
    return [row[: row.index(EOS)] if EOS in row else row for row in new]


def test_greedy(both):
    theirs, ours = both
    engine = Engine(ours.params, ours.config, None, EngineConfig(8, chunk=16))
    greedy = SamplingParams(temperature=0, max_tokens=NEW, stop_tokens=(EOS,))
    asked = prompts(50)
    made = [choices[0] for choices in engine.run([Request(p, greedy) for p in asked])]
    expected = [generate(theirs, prompt)[0] for prompt in asked]
    assert [each.tokens for each in made] == expected
    assert {each.finish_reason for each in made} == {"stop", "length"}


@pytest.mark.parametrize(("early", "penalty"), [("hopeless", 1.0), ("never", 2.0), ("full", 0.0)])
def test_beam_search(both, early, penalty):
    theirs, ours = both
    beam = BeamParams(4, NEW, penalty, early, n=3)
    for prompt in prompts(20):
        made = beam_search(ours.params, ours.config, prompt, beam, EOS, chunk=16)
        expected = generate(
            theirs, prompt, num_beams=4, num_return_sequences=3,
            length_penalty=penalty, early_stopping=EARLY[early],
        )  # fmt: skip
        assert [each.tokens for each in made] == expected


def test_one_beam_is_greedy(both):
    theirs, ours = both
    for prompt in prompts(5):
        (made,) = beam_search(ours.params, ours.config, prompt, BeamParams(1, NEW), EOS, chunk=16)
        assert made.tokens == generate(theirs, prompt)[0]
        assert made.ended == (len(made.tokens) < NEW)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beams", 0), ("max_tokens", 0), ("n", 0), ("n", 5),
        ("length_penalty", float("nan")), ("early_stopping", "soon"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(UserError, match=f"^{field}={value!r} must be "):
        BeamParams(**{field: value})


def test_a_prompt_that_leaves_no_room(both):
    _, ours = both
    with pytest.raises(UserError, match=r"has 48 tokens .* context is 48: give 1 to 47"):
        beam_search(ours.params, ours.config, [1] * 48, BeamParams(), EOS)
