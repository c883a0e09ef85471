"""Requests and answers to show in the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

_HEAD: dict[str, Any] = {
    "created": 1764000000,
    "model": "gpt-j-6b",
    "system_fingerprint": "gptj-0f1e2d3c4b5a6978",
    "seed": 7,
}
_USAGE = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}

COMPLETION_REQUEST = {
    "prompt": "It was the best",
    "max_tokens": 3,
    "temperature": 0.8,
    "seed": 7,
    "logprobs": 1,
    "stop": ["\n"],
}
_LOGPROBS = {
    "tokens": [" of", " times", ","],
    "token_logprobs": [-0.05, -0.11, -0.32],
    "top_logprobs": [{" of": -0.05}, {" times": -0.11}, {",": -0.32}],
    "text_offset": [0, 3, 9],
}
_CHOICE = {
    "index": 0,
    "text": " of times,",
    "logprobs": _LOGPROBS,
    "finish_reason": "length",
    "seed": 7,
}
COMPLETION = {
    "id": "cmpl-5f0c",
    "object": "text_completion",
    **_HEAD,
    "choices": [_CHOICE],
    "usage": _USAGE,
}
_PIECE = {"id": "cmpl-5f0c", "object": "text_completion", **_HEAD, "choices": [_CHOICE]}
COMPLETION_STREAM = f"data: {json.dumps(_PIECE)}\n\ndata: [DONE]\n\n"

_CHAT_TOKEN = {
    "token": "Goethe.",
    "logprob": -0.7,
    "bytes": [71, 111, 101, 116, 104, 101, 46],
    "top_logprobs": [],
}
CHAT_REQUEST = {
    "messages": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "Who wrote Faust?"},
    ],
    "max_tokens": 20,
    "temperature": 0,
    "logprobs": True,
}
CHAT = {
    "id": "chatcmpl-5f0d",
    "object": "chat.completion",
    **_HEAD,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Goethe."},
            "logprobs": {"content": [_CHAT_TOKEN]},
            "finish_reason": "stop",
            "seed": 7,
        }
    ],
    "usage": {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26},
}
_CHAT_PIECE = {
    "id": "chatcmpl-5f0d",
    "object": "chat.completion.chunk",
    **_HEAD,
    "choices": [
        {
            "index": 0,
            "delta": {"content": "Goethe."},
            "logprobs": None,
            "finish_reason": None,
            "seed": 7,
        }
    ],
}
CHAT_STREAM = f"data: {json.dumps(_CHAT_PIECE)}\n\ndata: [DONE]\n\n"

MODEL = {
    "id": "gpt-j-6b",
    "object": "model",
    "created": 1764000000,
    "owned_by": "gptj",
    "max_model_len": 2048,
}
MODELS = {"object": "list", "data": [MODEL]}

LOAD_REQUEST = {"lora_name": "tuned", "lora_path": "/srv/runs/tuned"}
ADAPTER = {**MODEL, "id": "tuned", "root": "/srv/runs/tuned", "parent": "gpt-j-6b"}
UNLOAD_REQUEST = {"lora_name": "tuned"}
UNLOADED = {"id": "tuned", "object": "model", "deleted": True}

TOKENIZE_REQUEST = {"prompt": "It was the best"}
TOKENIZED = {"count": 4, "max_model_len": 2048, "tokens": [1026, 373, 262, 1266]}
DETOKENIZE_REQUEST = {"tokens": [39, 72, 0]}
DETOKENIZED = {"prompt": "Hi!"}

COMPLETE_REQUEST = {"context": "It was the best", "top_p": 0.9, "temp": 0.75}
COMPLETE = {"completion": " of times, it was the worst of times"}
PREDICT_REQUEST = {**COMPLETE_REQUEST, "top_k": 50, "length": 64}
PREDICT = {"qid": 4503599627370496}
PREDICTION = {**COMPLETE, "context": "It was the best", "time": 0.42}

GENERATE_REQUEST = {
    "prompt": "It was a dark and stormy night",
    "max_length": 40,
    "temperature": 0.8,
    "rep_pen": 1.1,
    "stop_sequence": ["\n"],
    "sampler_seed": 7,
}
GENERATE = {
    "results": [
        {
            "text": "; the rain fell in torrents",
            "finish_reason": "stop",
            "prompt_tokens": 7,
            "completion_tokens": 8,
            "seed": 7,
        }
    ]
}
_TOKEN = {"token": "; the", "finish_reason": None}
GENERATE_STREAM = f"event: message\ndata: {json.dumps(_TOKEN)}\n\n"
ABORT = {"success": "true", "done": "true"}

METRICS = "# HELP gptj_requests_waiting Requests that wait for a slot\ngptj_requests_waiting 0.0\n"
