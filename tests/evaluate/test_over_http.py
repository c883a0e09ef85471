"""The harness's client of an OpenAI server, asking ours, finds what our adapter finds."""

import contextlib
import random
import subprocess
import sys
import time

import httpx
import pytest

pytest.importorskip("tenacity")
pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def url(folder):
    command = [sys.executable, "-m", "gptj.cli", "serve", folder, "--port", "0", "--slots", "4"]
    server = subprocess.Popen(
        [*map(str, command), "--chunk", "32"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        found = server.stdout.readline().strip()
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{found}/ready").status_code == 200:
                    break
            time.sleep(0.1)
        yield found
    finally:
        server.terminate()
        server.communicate(timeout=60)


@pytest.fixture(scope="module")
def client(folder, url):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{url}/v1/completions",
        model=httpx.get(f"{url}/v1/models").json()["data"][0]["id"],
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        max_length=256,
        batch_size=4,
        num_concurrent=1,
    )


def instances(kind, pairs):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, number) for number, pair in enumerate(pairs)]


def test_log_likelihoods(client, ours, folder):
    draw, words = random.Random(0), ("the", "a", "cat", "sat", "far", "Anna", "it's", "né", "42")
    pairs = [
        (" ".join(draw.choices(words, k=9)), " " + " ".join(draw.choices(words, k=n % 5 + 1)))
        for n in range(60)
    ]
    asked = instances("loglikelihood", pairs)
    found, expected = client.loglikelihood(asked), ours(folder).loglikelihood(asked)
    for (logprob, greedy), (own, likeliest) in zip(found, expected, strict=True):
        assert logprob == pytest.approx(own, rel=1e-6, abs=1e-6)
        assert greedy == likeliest


def test_completions(client, ours, folder):
    pairs = [(f"the cat {n}", {"until": ["\n"], "max_gen_toks": 12}) for n in range(6)]
    asked = instances("generate_until", pairs)
    assert client.generate_until(asked) == ours(folder).generate_until(asked)
