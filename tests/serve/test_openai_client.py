"""The `openai` package as the client."""

import pytest

openai = pytest.importorskip("openai", reason="openai (the extra `test`) is not installed")

MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Who wrote "}, {"type": "text", "text": "Faust?"}],
    },
]
TRANSCRIPT = "System:\nYou are brief.\n\nUser:\nWho wrote Faust?\n\nAssistant:\n"
STOPS = ("\n\nUser:", "\n\nSystem:", "\n\nAssistant:")


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def chat(client, **options):
    asked = {"model": "tiny", "messages": MESSAGES, "seed": 3, "max_tokens": 12, **options}
    return client.chat.completions.create(**asked)


class TestCompletions:
    def test_with_every_parameter(self, client, served):
        found = client.completions.create(
            model="tiny", prompt=["a", "b"], best_of=3, echo=True, frequency_penalty=0.2,
            logit_bias={"97": 1}, logprobs=2, max_tokens=8, n=2, presence_penalty=0.1, seed=9,
            stop=["Q"], temperature=0.7, top_p=0.95, user="somebody",
            extra_body={"top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1},
        )  # fmt: skip
        own = [
            served.own(
                prompt,
                best_of=3,
                frequency_penalty=0.2,
                logit_bias={97: 1.0},
                max_tokens=8,
                n=2,
                presence_penalty=0.1,
                seed=9,
                stop=("Q",),
                temperature=0.7,
                top_p=0.95,
                top_k=50,
                min_p=0.01,
                repetition_penalty=1.1,
            )
            for prompt in ("a", "b")
        ]
        assert [choice.text for choice in found.choices] == [
            prompt + each.text for prompt, row in zip("ab", own, strict=True) for each in row
        ]
        assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
        assert found.system_fingerprint.startswith("gptj-")

    def test_streamed(self, client, served):
        stream = client.completions.create(
            model="tiny", prompt="once", seed=9, stream=True, max_tokens=12,
            stream_options={"include_usage": True},
        )  # fmt: skip
        *pieces, last = stream
        (own,) = served.own("once", seed=9, max_tokens=12)
        assert "".join(piece.choices[0].text for piece in pieces) == own.text
        assert pieces[-1].choices[0].finish_reason == own.finish_reason
        assert last.usage.completion_tokens == len(own.tokens)

    def test_refused_in_a_way_it_understands(self, client):
        with pytest.raises(openai.BadRequestError, match="fills no gaps") as refused:
            client.completions.create(model="tiny", prompt="a", suffix="b")
        assert refused.value.param == "suffix"
        with pytest.raises(openai.NotFoundError, match="is not here"):
            client.completions.create(model="gpt-4", prompt="a")

    def test_the_models(self, client):
        assert [each.id for each in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "gptj"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other/model")


class TestChats:
    @pytest.mark.parametrize("stop", [None, "a", ["a", "b"]], ids=str)
    def test_are_the_engines_own_after_the_transcript(self, client, served, stop):
        found = chat(client, n=2, stop=stop, temperature=0.8)
        given = (*([stop] if isinstance(stop, str) else stop or ()), *STOPS)
        own = served.own(TRANSCRIPT, seed=3, max_tokens=12, n=2, stop=given, temperature=0.8)
        assert [choice.message.content for choice in found.choices] == [each.text for each in own]
        assert [choice.finish_reason for choice in found.choices] == [e.finish_reason for e in own]
        assert found.usage.prompt_tokens == len(TRANSCRIPT)
        assert found.choices[0].message.role == "assistant"

    def test_streamed_are_the_same_and_begin_with_the_role(self, client):
        whole = chat(client, n=2, logprobs=True, top_logprobs=2)
        options = {"stream_options": {"include_usage": True}, "stream": True}
        *pieces, last = chat(client, n=2, logprobs=True, top_logprobs=2, **options)
        assert last.usage == whole.usage
        for choice in whole.choices:
            parts = [piece.choices[0] for piece in pieces]
            first, *rest = (part for part in parts if part.index == choice.index)
            assert (first.delta.role, first.delta.content) == ("assistant", "")
            assert "".join(part.delta.content or "" for part in rest) == choice.message.content
            assert rest[-1].finish_reason == choice.finish_reason
            shown = [each for part in rest if part.logprobs for each in part.logprobs.content]
            assert [each.logprob for each in shown] == [
                each.logprob for each in choice.logprobs.content
            ]

    def test_logprobs_are_the_engines(self, client, served):
        content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        (own,) = served.own(TRANSCRIPT, seed=3, max_tokens=12, stop=STOPS, logprobs=2)
        assert [each.logprob for each in content] == [each.logprob for each in own.logprobs]
        assert [each.bytes for each in content] == [[token] for token in own.tokens]
        assert all(len(each.top_logprobs) == 2 for each in content)
        assert chat(client).choices[0].logprobs is None

    def test_run_to_the_end_of_the_context_unless_told(self, client):
        found = chat(client, max_tokens=None, extra_body={"ignore_eos": True})
        assert found.usage.total_tokens == 128
        assert chat(client, max_tokens=None, max_completion_tokens=3).usage.completion_tokens <= 3

    def test_end_where_the_model_speaks_for_somebody(self, client):
        options = {"guided_regex": "Goethe\\.\n\nUser:\nWho", "ignore_eos": False}
        found = chat(client, max_tokens=None, extra_body=options)
        assert found.choices[0].message.content == "Goethe."
        assert found.choices[0].finish_reason == "stop"

    def test_keep_to_a_form(self, client):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}}
        found = chat(client, response_format=form)
        assert found.choices[0].message.content in ('"a"', '"b"')

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
            ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "name"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
            ({"messages": [{"role": "user", "content": "x" * 200}]}, "messages"),
            ({"tools": []}, "tools"),
            ({"top_logprobs": 2}, "logprobs=true"),
            ({"max_completion_tokens": 5}, "leave out one"),
            ({"max_tokens": 0}, "max_tokens"),
        ],
        ids=str,
    )  # fmt: skip
    def test_refused(self, client, options, said):
        with pytest.raises(openai.BadRequestError, match=said):
            chat(client, **options)
