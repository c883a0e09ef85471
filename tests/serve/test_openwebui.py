"""Open WebUI's requests, as its backend sends them to any server of OpenAI's kind.

Its page's own fields (chat_id, session_id, features, background_tasks, ...) stay in its backend;
what a person sets under "Advanced Params", and a model's "custom parameters", it adds to the body.
"""

import json

import pytest

CHATS = "/v1/chat/completions"
HEADERS = {
    "authorization": "Bearer none",
    "content-type": "application/json",
    "x-openwebui-user-name": "Ann",
    "x-openwebui-chat-id": "b4cf21e7",
}
TITLE = "### Task:\nGenerate a concise, 3-5 word title with an emoji.\n"
USER = {"role": "user", "content": "Hello!"}


def streamed(served, **more) -> tuple[str, dict]:
    """A chat as its page asks for one: the text that is shown, and the usage."""
    body = {
        "stream": True,
        "model": "tiny",
        "messages": [USER],
        "stream_options": {"include_usage": True},
        **more,
    }
    with served.http() as http:
        answer = http.post(CHATS, content=json.dumps(body), headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert "text/event-stream" in answer.headers["content-type"]
    text, usage = "", {}
    for line in filter(None, answer.text.split("\n")):
        data = line.removeprefix("data:").strip()
        if data != "[DONE]":
            piece = json.loads(data)
            usage = piece.get("usage") or usage
            for choice in piece.get("choices", [])[:1]:
                text += choice["delta"].get("content") or ""
    return text, usage


def transcript(*messages) -> str:
    said = "".join(f"{role}:\n{text}\n\n" for role, text in messages)
    return f"{said}Assistant:\n"


def own(served, prompt, stop=(), **sampling) -> str:
    stops = (*stop, "\n\nUser:", "\n\nSystem:", "\n\nAssistant:")
    return served.own(prompt, stop=stops, **sampling)[0].text


def test_the_models_it_lists(served):
    with served.http() as http:
        found = http.get("/v1/models", headers=HEADERS).json()
    assert [(each["id"], each["object"]) for each in found["data"]] == [("tiny", "model")]


def test_a_chat(served):
    text, usage = streamed(served, seed=3, max_tokens=20)
    prompt = transcript(("User", "Hello!"))
    assert text == own(served, prompt, seed=3, max_tokens=20)
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_chat_that_went_on_for_a_while(served):
    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]
    text, _ = streamed(served, messages=messages, seed=3, max_tokens=20)
    told = (("System", "Be brief."), ("User", "Hello!"), ("Assistant", ""), ("User", "And?"))
    assert text == own(served, transcript(*told), seed=3, max_tokens=20)


def test_every_advanced_parameter_that_is_one_of_a_model(served):
    params = {
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.25,
        "seed": 42,
        "max_tokens": 20,
    }
    text, _ = streamed(served, **params, stop=["e"], logit_bias={"97": 5})
    expected = own(
        served, transcript(("User", "Hello!")), stop=("e",), logit_bias={97: 5.0}, **params
    )
    assert text == expected


@pytest.mark.parametrize("more", [{"max_completion_tokens": 1000}, {}], ids=["a title", "tags"])
def test_a_task_of_its_own(served, more):
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": TITLE}],
        "stream": False,
        **more,
    }
    answer = served.post(CHATS, body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["choices"][0]["message"]["role"] == "assistant"
    assert isinstance(found["choices"][0]["message"]["content"], str)
    assert found["usage"]["total_tokens"] <= 128  # what is asked beyond the context is no mistake


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tools": [{"type": "function", "function": {"name": "search"}}]},
         "tools: not supported: the model calls no tools"),
        ({"num_ctx": 4096}, "num_ctx is not a parameter here"),
        ({"mirostat": 2}, "mirostat is not a parameter here"),
    ],
    ids=["tools", "num_ctx", "mirostat"],
)  # fmt: skip
def test_what_it_can_ask_for_and_there_is_not_is_named(served, more, said):
    """It shows `error.message` in the chat."""
    answer = served.post(CHATS, {"model": "tiny", "messages": [USER], "stream": True, **more})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
