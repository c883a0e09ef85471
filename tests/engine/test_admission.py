"""What is refused before anything begins, and what is just not: the last of each range."""

import re

import numpy as np
import pytest

from gptj.config import ModelConfig
from gptj.engine.admission import check_draft, prompt_tokens
from gptj.engine.request import Request, SamplingParams
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

BYTES = Tokenizer.bytes()
CONFIG = ModelConfig(1, 8, 2, 4, 8, 257, 384, 64)


def admitted(prompt, tokenizer=BYTES, positions=64, score_from=1, **sampling) -> list[int]:
    request = Request(prompt, SamplingParams(**sampling), score_from)
    return prompt_tokens(request, "prompt 3", CONFIG, tokenizer, positions)


def refused(said: str, *given, **options) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        admitted(*given, **options)


class TestThePrompt:
    def test_is_its_tokens_and_the_end_of_text_where_there_are_none(self):
        assert admitted("ab") == [97, 98]
        assert admitted((0, np.int64(256))) == [0, 256]
        assert admitted("") == admitted([]) == [256]

    def test_text_needs_a_tokenizer_and_ids_do_not(self):
        assert admitted([5], None) == [5]
        refused("prompt 3 is text and there is no tokenizer: give token ids", "a", None)
        refused("prompt 3 is empty: give at least one token id", [], None)
        refused("stop=('a',) needs a tokenizer: give stop_tokens", [5], None, stop=("a",))
        assert admitted([5], None, stop_tokens=(7,)) == [5]

    @pytest.mark.parametrize("token", [1.0, "a", None])
    def test_of_anything_else(self, token):
        refused("prompt 3 must be text or whole numbers, the ids of tokens", [5, token])

    @pytest.mark.parametrize(
        ("options", "most"),
        [
            ({}, 63),  # and one to draw
            ({"overflow": "slide"}, 64),
            ({"max_tokens": 0, "prompt_logprobs": 0}, 65),  # the last is not read
            ({"positions": 9}, 8),
        ],
    )
    def test_leaves_room_for_what_is_asked(self, options, most):
        assert len(admitted([1] * most, **options)) == most
        where = options.get("positions", 64)
        refused(
            f"prompt 3 has {most + 1} tokens and the model's context is {where}: "
            f"shorten the prompt to at most {most}",
            [1] * (most + 1), **options,
        )  # fmt: skip

    def test_to_slide_needs_the_whole_context(self):
        said = "overflow=slide needs an engine with the model's whole context"
        refused(said, "a", positions=63, overflow="slide")

    @pytest.mark.parametrize("score_from", [0, 4])
    def test_is_scored_from_one_of_its_tokens(self, score_from):
        assert admitted("abc", score_from=3) == [*b"abc"]
        said = f"score_from={score_from} must be between 1 and the 3 tokens of prompt 3"
        refused(said, "abc", score_from=score_from)


class TestTokens:
    @pytest.mark.parametrize(
        "name", ["stop_tokens", "allowed_tokens", "banned_tokens", "logit_bias"]
    )
    def test_of_every_control_are_the_models(self, name):
        def of(*ids):
            return {name: dict.fromkeys(ids, 1.0) if name == "logit_bias" else ids}

        assert admitted("a", **of(0, 256)) == [97]
        refused(
            f"{name} has token 257 and the model knows 0 to 256: "
            "use the tokenizer the model was trained with",
            "a", **of(3, 257, 0),
        )  # fmt: skip

    @pytest.mark.parametrize(("ids", "wrong"), [([5, 257], 257), ([-1, 5], -1), ([-2, 300], 300)])
    def test_of_a_prompt_too(self, ids, wrong):
        with pytest.raises(UserError, match=f"prompt 3 has token {wrong} and the model knows 0"):
            admitted(ids)


class TestSomethingIsLeftToDraw:
    LEFT = (
        {"allowed_tokens": (5,)},
        {"allowed_tokens": (5,), "banned_tokens": (5,)},  # but the end
        {"allowed_tokens": (256,)},
        {"allowed_tokens": (5, 6), "banned_tokens": (5,), "ignore_eos": True},
        {"allowed_tokens": (5, 256), "min_tokens": 1},
        {"banned_tokens": tuple(range(256))},
        {"banned_tokens": tuple(range(1, 257))},
        {"banned_tokens": tuple(range(1, 256)), "min_tokens": 1},
        {"min_tokens": 1, "stop_tokens": tuple(range(257))},  # not looked into without a list
    )
    NONE = (
        {"allowed_tokens": (5,), "banned_tokens": (5,), "ignore_eos": True},
        {"allowed_tokens": (5,), "banned_tokens": (5,), "min_tokens": 1},
        {"allowed_tokens": (256,), "min_tokens": 1},
        {"allowed_tokens": (7,), "stop_tokens": (7,), "min_tokens": 1},
        {"banned_tokens": tuple(range(256)), "min_tokens": 1},
        {"banned_tokens": tuple(range(257))},
    )

    @pytest.mark.parametrize("sampling", LEFT, ids=lambda each: str(each)[:60])
    def test_one_token_is_enough(self, sampling):
        assert admitted("a", **sampling) == [97]

    @pytest.mark.parametrize("sampling", NONE, ids=lambda each: str(each)[:60])
    def test_none_is_not(self, sampling):
        refused(
            "allowed_tokens, banned_tokens and min_tokens together leave no token to draw: allow "
            "one that is neither banned nor an end",
            "a", **sampling,
        )  # fmt: skip


class TestADraft:
    def draft(self, vocab=257, context=64):
        return ModelConfig(1, 8, 2, 4, 8, vocab, 384, context)

    def test_that_knows_as_much_may_guess(self):
        check_draft(self.draft(), CONFIG, 64, 1)
        check_draft(self.draft(context=65), CONFIG, 64, 4)
        check_draft(self.draft(context=32), CONFIG, 32, 4)

    @pytest.mark.parametrize(
        ("options", "guesses", "said"),
        [
            ({}, 0, "guesses nothing without speculate: set it to 4, say"),
            ({"vocab": 256}, 4, "knows 256 tokens and the model 257: use one that was trained"),
            ({"context": 63}, 4, "context of 63 is shorter than the engine's 64 positions: lower"),
        ],
    )
    def test_that_knows_less_is_refused(self, options, guesses, said):
        with pytest.raises(UserError, match=said):
            check_draft(self.draft(**options), CONFIG, 64, guesses)
