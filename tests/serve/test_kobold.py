"""KoboldAI's protocol, asked as its clients ask."""

import threading
import time

import pytest

URL, STREAM = "/api/v1/generate", "/api/extra/generate/stream"

# What KoboldAI's own web client sends, its controls switched off.
LITE = {
    "n": 1,
    "max_context_length": 2048,
    "max_length": 20,
    "rep_pen": 1.1,
    "temperature": 0.75,
    "top_p": 0.92,
    "top_k": 40,
    "top_a": 0,
    "typical": 1,
    "tfs": 1,
    "rep_pen_range": 2048,
    "rep_pen_slope": 0,
    "sampler_order": [6, 5, 0, 1, 3, 4, 2],
    "memory": "",
    "trim_stop": True,
    "genkey": "KCPP1234",
    "min_p": 0,
    "dynatemp_range": 0,
    "dynatemp_exponent": 1,
    "smoothing_factor": 0,
    "banned_tokens": [],
    "render_special": False,
    "presence_penalty": 0,
    "logit_bias": {},
    "quiet": True,
    "stop_sequence": ["\nYou:"],
    "use_default_badwordsids": False,
    "bypass_eos": False,
    "sampler_seed": 11,
}


def generate(served, **body) -> dict:
    answer = served.post(URL, {"prompt": "It was", "sampler_seed": 4, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


class TestGenerate:
    def test_is_the_engines_own(self, served):
        own = served.own(
            "It was", temperature=0.75, top_p=0.92, top_k=40, repetition_penalty=1.1, seed=11,
            max_tokens=20, stop=("\nYou:",),
        )  # fmt: skip
        (found,) = generate(served, **LITE)
        assert found == {
            "text": own[0].text,
            "finish_reason": own[0].finish_reason,
            "prompt_tokens": 6,
            "completion_tokens": len(own[0].tokens),
            "seed": 11,
        }

    def test_gives_as_many_as_are_asked_for(self, served):
        own = served.own("It was", max_tokens=5, n=3, seed=4)
        assert [each["text"] for each in generate(served, n=3, max_length=5)] == [
            each.text for each in own
        ]

    def test_of_a_long_prompt_reads_the_end_after_the_memory(self, served):
        long, memory = "".join(chr(97 + n % 26) for n in range(3000)), "Remember: "
        (found,) = generate(
            served, prompt=long, memory=memory, max_length=10, max_context_length=60
        )
        (own,) = served.own(memory + long[-40:], max_tokens=10, seed=4)
        assert (found["text"], found["prompt_tokens"]) == (own.text, 50)

    def test_without_a_seed_says_which_it_was(self, served):
        first = generate(served, sampler_seed=-1, max_length=8)[0]
        assert generate(served, sampler_seed=first["seed"], max_length=8)[0] == first

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({"tfs": 0.9}, "tfs"),
            ({"top_a": 0.1}, "top_a"),
            ({"mirostat": 2}, "mirostat"),
            ({"dynatemp_range": 1}, "dynatemp_range"),
            ({"grammar": "root ::= x"}, "GBNF"),
            ({"banned_tokens": ["x"]}, "banned_tokens"),
            ({"trim_stop": False}, "trim_stop"),
            ({"images": ["x"]}, "images"),
            ({"use_world_info": True}, "use_world_info"),
            ({"unheard_of": 1}, "unheard_of is not a parameter"),
            ({"rep_pen": 1.2, "rep_pen_range": 5}, "rep_pen_range=5"),
            ({"rep_pen": 1.2, "rep_pen_range": 500, "rep_pen_slope": 1}, "rep_pen_slope=1"),
            ({"rep_pen": 0}, "rep_pen"),
            ({"temperature": 0.5, "top_p": 0.5, "sampler_order": [6, 0, 1, 3, 4, 2, 5]},
             "sampler_order"),
            ({"max_length": 200}, "max_length=200 leaves no room"),
            ({"sampler_seed": 1 << 40}, "sampler_seed"),
            ({"prompt": "\udc00"}, "surrogate"),
            ({"logit_bias": {"999": 1}}, "logit_bias has token 999"),
            ({"n": 1000}, "n: 1000 completions"),
        ],
        ids=str,
    )  # fmt: skip
    def test_refuses_by_name_in_its_own_shape(self, served, body, said):
        for path in (URL, STREAM):
            answer = served.post(path, {"prompt": "It was", **body})
            assert answer.status_code == 400
            assert list(answer.json()["detail"]) == ["msg", "type"]
            assert said in answer.json()["detail"]["msg"] or path == STREAM

    @pytest.mark.parametrize(
        "body",
        [
            {"temperature": 0.5, "sampler_order": [6, 0, 1, 3, 4, 2, 5]},
            {"temperature": 0.5, "top_k": 5, "sampler_order": [6, 0, 1, 3, 4, 2, 5]},
            {"temperature": 0, "top_p": 0.5, "sampler_order": [6, 0, 1, 3, 4, 2, 5]},
            {"top_p": 0.5, "top_k": 5, "sampler_order": [6, 0, 1, 3, 4, 2, 5]},
            {"rep_pen_range": 100, "rep_pen_slope": 0.7},
        ],
        ids=str,
    )
    def test_lets_pass_what_makes_no_difference(self, served, body):
        generate(served, max_length=3, **body)


class TestStream:
    def test_is_the_same_in_pieces(self, served):
        events = served.pieces(STREAM, {"prompt": "It was", **LITE})
        (whole,) = generate(served, **LITE)
        assert "".join(each["token"] for each in events) == whole["text"]
        assert [each["finish_reason"] for each in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1]["finish_reason"] == whole["finish_reason"]

    def test_events_are_messages(self, served):
        answer = served.post(STREAM, {"prompt": "It was", "max_length": 3})
        assert answer.text.startswith("event: message\ndata: {")

    def test_has_one_answer(self, served):
        answer = served.post(STREAM, {"prompt": "It was", "n": 2})
        assert answer.status_code == 400


class TestAbort:
    def test_ends_what_has_the_same_genkey_with_what_was_written(self, serve):
        from gptj.engine.config import EngineConfig

        with serve(options=EngineConfig(slots=1, chunk=16, burst=1)) as served:
            engine, found = served.service.worker.engine, []
            step = engine.step
            engine.step = lambda: (time.sleep(0.02), step())[1]  # or they end before they are seen
            slow = {"prompt": "", "max_length": 120, "bypass_eos": True, "sampler_seed": 4}
            asking = [
                threading.Thread(
                    target=lambda: found.append(generate(served, **slow, genkey="mine"))
                )
                for _ in range(3)
            ]
            for each in asking:
                each.start()
            served.until(lambda: served.figure("gptj_requests_waiting") == 2)
            other = served.post("/api/extra/abort", {"genkey": "other"}).json()
            assert other == {"success": "false", "done": "false"}
            assert served.post("/api/extra/abort", {"genkey": "mine"}).json()["success"] == "true"
            for each in asking:
                each.join()
            assert [each[0]["finish_reason"] for each in found].count("abort") >= 2
            (own,) = served.own("", max_tokens=120, ignore_eos=True, seed=4)
            assert all(own.text.startswith(each[0]["text"].rstrip("\ufffd")) for each in found)
            assert served.post("/api/extra/abort", {"genkey": "mine"}).json()["success"] == "false"
            assert served.figure("gptj_requests_running") == 0

    def test_needs_no_body(self, served):
        with served.http() as client:
            answer = client.post("/api/extra/abort")
        assert answer.json() == {"success": "false", "done": "false"}


def test_the_model(served):
    with served.http() as client:
        assert client.get("/api/v1/model").json() == {"result": "tiny"}
