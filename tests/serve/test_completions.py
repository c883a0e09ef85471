"""/v1/completions: whatever is asked over HTTP is what the engine itself answers."""

import itertools

import pytest

from gptj.engine.request import Request, SamplingParams

URL = "/v1/completions"
SAMPLINGS = [
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9},
    {"top_k": 7, "min_p": 0.01, "repetition_penalty": 1.3},
    {"frequency_penalty": 0.5, "presence_penalty": 0.25, "min_tokens": 4},
    {"typical_p": 0.9, "ignore_eos": True, "n": 3},
    {"stop": ["Q", "\x0c"], "n": 2},
]


def ask(served, **body) -> dict:
    answer = served.post(URL, {"prompt": "once", "seed": 5, "max_tokens": 12, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def texts(answer) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def joined(pieces, field) -> list:
    """A list of the log-probabilities' record, from all pieces of a stream."""
    return [value for piece in pieces for value in piece["logprobs"][field]]


def refused(served, status=400, **body) -> dict:
    answer = served.post(URL, {"prompt": "once", **body})
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


class TestTheLaw:
    @pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
    @pytest.mark.parametrize("prompt", ["", "once upon a time there was a very long prompt"])
    def test_an_answer_is_the_engines_own(self, served, sampling, prompt):
        given = {**sampling, "stop": tuple(sampling.get("stop", ()))}
        own = served.own(prompt, seed=5, max_tokens=12, **given)
        found = ask(served, prompt=prompt, **sampling)["choices"]
        assert [(c["text"], c["finish_reason"]) for c in found] == [
            (each.text, each.finish_reason) for each in own
        ]
        assert [choice["index"] for choice in found] == list(range(len(own)))

    def test_other_names_reach_the_engine_too(self, served):
        own = served.own(
            "a",
            seed=5,
            max_tokens=12,
            logit_bias={97: 4.0},
            allowed_tokens=(97, 98, 99),
            banned_tokens=(98,),
            stop_tokens=(99,),
        )
        found = ask(
            served,
            prompt="a",
            logit_bias={"97": 4.0},
            allowed_token_ids=[97, 98, 99],
            banned_token_ids=[98],
            stop_token_ids=[99],
        )
        assert texts(found) == [own[0].text]

    @pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
    def test_a_stream_is_the_same_in_pieces(self, served, sampling):
        whole = ask(served, prompt=["one", "two"], logprobs=1, **sampling)
        body = {"prompt": ["one", "two"], "seed": 5, "max_tokens": 12, "logprobs": 1, **sampling}
        *pieces, done = served.pieces(URL, {**body, "stream": True})
        assert done == "[DONE]"
        for choice in whole["choices"]:
            mine = [p["choices"][0] for p in pieces if p["choices"][0]["index"] == choice["index"]]
            assert "".join(piece["text"] for piece in mine) == choice["text"]
            assert [piece["finish_reason"] for piece in mine[:-1]] == [None] * (len(mine) - 1)
            assert mine[-1]["finish_reason"] == choice["finish_reason"]
            for field, values in choice["logprobs"].items():
                assert joined(mine, field) == values, field

    def test_many_at_once_are_each_the_same_as_alone(self, served):
        from concurrent.futures import ThreadPoolExecutor

        prompts = ["a", "once upon a time", "x" * 40, ""]
        asked = [
            {"prompt": prompt, "logprobs": 2, **sampling}
            for prompt, sampling in itertools.product(prompts, SAMPLINGS)
        ]
        alone = [ask(served, **body)["choices"] for body in asked]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(lambda body: ask(served, **body)["choices"], asked * 2))
        assert together == alone * 2

    def test_best_of_is_the_engines_best(self, served):
        own = served.own("once", seed=5, max_tokens=6, n=2, best_of=6)
        assert texts(ask(served, max_tokens=6, n=2, best_of=6)) == [each.text for each in own]

    def test_without_a_seed_the_answer_says_which_it_was(self, served):
        first = ask(served, seed=None, prompt=["once", "once"], n=2)
        assert first["choices"][0]["seed"] != first["choices"][2]["seed"]
        assert first["seed"] == first["choices"][0]["seed"]
        again = ask(served, seed=first["choices"][2]["seed"], n=2)
        assert texts(again) == texts(first)[2:]
        assert again["system_fingerprint"] == first["system_fingerprint"]


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "singles"),
        [
            ("ab", ["ab"]),
            (["ab", "c"], ["ab", "c"]),
            ([97, 98], ["ab"]),
            ([[97, 98], [99]], ["ab", "c"]),
            (["", "c"], ["", "c"]),
            (None, [""]),
        ],
        ids=str,
    )
    def test_come_in_every_form(self, served, prompt, singles):
        found = ask(served, prompt=prompt, n=2, echo=True)
        alone = [served.own(each, seed=5, max_tokens=12, n=2) for each in singles]
        assert texts(found) == [
            prompt + each.text for prompt, own in zip(singles, alone, strict=True) for each in own
        ]
        assert [choice["index"] for choice in found["choices"]] == list(range(2 * len(singles)))

    def test_are_counted_once_however_many_answers(self, served):
        usage = ask(served, prompt=["abc", ""], n=2, max_tokens=4, ignore_eos=True)["usage"]
        assert usage == {"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20}

    @pytest.mark.parametrize(
        "prompt",
        [[], [1, "a"], ["a", 1], [[1], ["a"]], 5, {"a": 1}, [True], [-1], [1.5], [[[1]]]],
        ids=str,
    )
    def test_of_another_form_are_refused(self, served, prompt):
        assert refused(served, prompt=prompt)["param"] == "prompt"

    @pytest.mark.parametrize(
        "prompt", ["x" * 128, "x" * 100000, [1] * 500, [300], ["a", "x" * 128]]
    )
    def test_that_do_not_fit_are_refused(self, served, prompt):
        assert refused(served, prompt=prompt)["param"] == "prompt"

    def test_one_of_several_is_named_by_its_number(self, served):
        assert "prompt 1 has 128 tokens" in refused(served, prompt=["a", "x" * 128])["message"]


class TestLogprobs:
    def test_are_the_engines(self, served):
        (own,) = served.own("once", seed=5, max_tokens=12, logprobs=3)
        found = ask(served, logprobs=3)["choices"][0]["logprobs"]
        assert found["token_logprobs"] == [each.logprob for each in own.logprobs]
        for each, top in zip(own.logprobs, found["top_logprobs"], strict=True):
            likeliest = [value for _, value in each.top]
            assert list(top.values())[:3] == likeliest
            assert each.logprob in top.values()
            assert len(top) in (3, 4)

    def test_none_but_the_tokens_own_with_0(self, served):
        found = ask(served, logprobs=0)["choices"][0]["logprobs"]
        assert [list(top.values()) for top in found["top_logprobs"]] == [
            [value] for value in found["token_logprobs"]
        ]

    def test_of_a_prompt_as_lm_eval_asks_for_them(self, served):
        """Batches of token ids, echoed and scored, with no or one token drawn."""
        ids = [list(b"once upon"), list(b"a"), list(b"the cat sat on the mat")]
        for most in (0, 1):
            body = {"prompt": ids, "temperature": 0, "max_tokens": most, "logprobs": 1}
            answer = ask(served, **body, seed=1234, echo=True)
            for prompt, choice in zip(ids, answer["choices"], strict=True):
                own = SamplingParams(max_tokens=0, prompt_logprobs=1)
                ((scored,),) = served.alone.run([Request(prompt, own)])
                found = choice["logprobs"]
                assert choice["text"].startswith(bytes(prompt).decode())
                assert len(found["tokens"]) == len(prompt) + most
                assert found["token_logprobs"][0] is None
                assert found["top_logprobs"][0] is None
                of_prompt = found["token_logprobs"][1 : len(prompt)]
                assert of_prompt == [each.logprob for each in scored.prompt_logprobs]
                for value, top in zip(of_prompt, found["top_logprobs"][1:], strict=False):
                    assert value <= max(top.values())
            assert answer["usage"]["completion_tokens"] == 3 * most

    @pytest.mark.parametrize("changes", [{}, {"n": 2}, {"best_of": 3}, {"max_tokens": 0}], ids=str)
    def test_of_an_echo_are_the_same_however_they_are_had(self, served, changes):
        body = {"logprobs": 2, "echo": True, "temperature": 0.5, **changes}
        for choice in ask(served, **body)["choices"]:
            plain = ask(served, **{**body, "best_of": None, "n": 1})["choices"][0]["logprobs"]
            assert choice["logprobs"]["token_logprobs"][:4] == plain["token_logprobs"][:4]
            assert choice["text"].startswith("once")

    def test_of_an_echo_come_first_in_a_stream(self, served):
        body = {"prompt": ["once", "upon"], "seed": 5, "max_tokens": 6, "logprobs": 2, "echo": True}
        for changes in ({}, {"n": 2}, {"max_tokens": 0}):
            whole = ask(served, **body | changes)
            *pieces, _ = served.pieces(URL, body | changes | {"stream": True})
            for choice in whole["choices"]:
                parts = [p["choices"][0] for p in pieces]
                mine = [part for part in parts if part["index"] == choice["index"]]
                assert mine[0]["text"] == choice["text"][:4]
                assert "".join(piece["text"] for piece in mine) == choice["text"]
                for field, values in choice["logprobs"].items():
                    assert joined(mine, field) == values

    def test_say_where_each_token_begins(self, served):
        body = {"guided_regex": "aé🙂b", "echo": True, "logprobs": 0, "prompt": "é!"}
        choice = ask(served, **body, max_tokens=20)["choices"][0]
        assert choice["text"] == "é!aé🙂b"
        assert choice["logprobs"]["tokens"] == [
            *("bytes:\\xc3", "bytes:\\xa9", "!", "a", "bytes:\\xc3", "bytes:\\xa9"),
            *("bytes:\\xf0", "bytes:\\x9f", "bytes:\\x99", "bytes:\\x82", "b"),
        ]
        assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2, 3, 3, 4, 4, 4, 4, 5]


class TestText:
    def test_comes_in_whole_characters(self, served):
        body = {"prompt": "", "guided_regex": "é🙂ñ🏳️‍🌈漢字ok", "max_tokens": 99, "stream": True}
        *pieces, _ = served.pieces(URL, body)
        found = [piece["choices"][0]["text"] for piece in pieces]
        assert "".join(found) == "é🙂ñ🏳️‍🌈漢字ok"
        assert len(found) > 8
        assert not any("\ufffd" in piece for piece in found)

    def test_never_has_a_stop_string_that_several_tokens_spell(self, served):
        body = {"prompt": "", "guided_regex": "one STEP STOP two", "stop": "STOP", "max_tokens": 40}
        whole = ask(served, **body, logprobs=0)["choices"][0]
        assert (whole["text"], whole["finish_reason"]) == ("one STEP ", "stop")
        assert whole["logprobs"]["tokens"] == list("one STEP ")
        *pieces, _ = served.pieces(URL, {**body, "stream": True, "logprobs": 0})
        found = [piece["choices"][0] for piece in pieces]
        assert "".join(piece["text"] for piece in found) == "one STEP "
        assert joined(found, "tokens") == list("one STEP ")

    def test_that_only_began_a_stop_string_is_shown(self, served):
        body = {"prompt": "", "guided_regex": "one STO", "stop": ["STOP"], "max_tokens": 40}
        assert texts(ask(served, **body)) == ["one STO"]

    def test_keeps_to_what_it_is_to_be(self, served):
        schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
        schema["additionalProperties"] = False
        form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
        by_form = ask(served, response_format=form, max_tokens=60)
        assert texts(by_form) == texts(ask(served, guided_json=schema, max_tokens=60))
        (own,) = served.own("once", seed=5, max_tokens=60, json_schema=schema)
        assert texts(by_form) == [own.text]
        grammar = 'start: "yes" | "no"'
        assert texts(ask(served, guided_grammar=grammar))[0] in ("yes", "no")
        text = ask(served, response_format={"type": "json_object"}, max_tokens=3)
        assert texts(text)[0].lstrip()[:1] in ("{", "")


class TestStreams:
    def test_tell_the_usage_if_asked(self, served):
        body = {"prompt": "abc", "max_tokens": 5, "seed": 5, "ignore_eos": True, "stream": True}
        *pieces, last, _ = served.pieces(URL, {**body, "stream_options": {"include_usage": True}})
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        assert all(piece["usage"] is None for piece in pieces)
        assert all("usage" not in piece for piece in served.pieces(URL, body)[:-1])

    def test_have_one_id_and_tell_the_seed(self, served):
        *pieces, _ = served.pieces(URL, {"prompt": "abc", "stream": True, "n": 2})
        assert len({(piece["id"], piece["seed"], piece["created"]) for piece in pieces}) == 1

    def test_are_refused_before_they_begin(self, served):
        body = {"prompt": "x" * 500, "stream": True}
        assert served.post(URL, body).status_code == 400
        assert (
            served.post(URL, {"prompt": "", "guided_regex": "(", "stream": True}).status_code == 400
        )


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"suffix": "x"}, "suffix", "fills no gaps"),
        ({"suffix": 5}, "suffix", "not supported"),
        ({"nonsense": 1}, "nonsense", "nonsense is not a parameter here: leave it out"),
        ({"max_token": 1}, "max_token", "did you mean max_tokens?"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
        ({"stream": True, "stream_options": {"x": 1}}, "x", "not a parameter"),
        ({"stream": True, "best_of": 3}, "best_of", "leave out stream"),
        ({"n": 3, "best_of": 2}, "best_of", "must be at least n=3"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 200}, "n", "200 completions are asked for"),
        ({"prompt": ["a"] * 100, "n": 2}, "n", "send fewer prompts"),
        ({"max_tokens": 0}, "max_tokens", "add echo"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"max_tokens": 5.5}, "max_tokens", "valid integer"),
        ({"max_tokens": 3, "min_tokens": 5}, "min_tokens", "min_tokens=5 must be"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"min_p": 2}, "min_p", "less than or equal to 1"),
        ({"typical_p": 0}, "typical_p", "greater than 0"),
        ({"temperature": 4e307}, "temperature", "less than or equal to 100"),
        ({"repetition_penalty": 3e-101}, "repetition_penalty", "greater than or equal to 0.01"),
        ({"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "greater than or equal to -2"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "between -100 and 100"),
        ({"logit_bias": {"999": 1}}, "logit_bias", "has token 999"),
        ({"logit_bias": [1]}, "logit_bias", "must be an object"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"stop": 5}, "stop", "must be text"),
        ({"stop": ["a"] * 65}, "stop", "at most 64"),
        ({"stop": "a" * 5000}, "stop", "4096 characters"),
        ({"stop_token_ids": [999]}, "stop_token_ids", "has token 999"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "at least one"),
        ({"allowed_token_ids": [5], "banned_token_ids": [5], "ignore_eos": True},
         "allowed_token_ids", "no token to draw"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 1 << 32}, "seed", "less than"),
        ({"guided_regex": "("}, "guided_regex", "guided_regex='(' cannot be followed"),
        ({"guided_regex": "a", "guided_grammar": "b"}, "guided_regex", "cannot both be kept to"),
        ({"guided_json": "{"}, "guided_json", "cannot be followed"),
        ({"guided_json": {}, "response_format": {"type": "json_object"}}, "guided_json",
         "leave out one"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "go together"),
        ({"response_format": {"type": "xml"}}, "response_format", "type"),
        ({"user": 5}, "user", "valid string"),
        ({"user": "x" * 201}, "user", "at most 200"),
        ({"echo": 1}, "echo", "valid boolean"),
        ({"functions": []}, "functions", "not a parameter"),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_a_parameter_that_cannot_be_is_named(served, body, param, said):
    error = refused(served, **body)
    assert error["param"] == param
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_another_model_is_not_here(served):
    error = refused(served, 404, model="gpt-4")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert ask(served, model="tiny")["model"] == "tiny"


def test_null_is_as_good_as_nothing(served):
    from gptj.serve.openai_requests import CompletionRequest

    nothing = {name: None for name in CompletionRequest.model_fields if name != "prompt"}
    answer = served.post(URL, {**nothing, "prompt": "once", "seed": 5})
    assert answer.status_code == 200
    assert texts(answer.json()) == texts(ask(served, max_tokens=16))
