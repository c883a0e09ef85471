"""The original's `/complete` and the queue pair, and text to tokens and back."""

import pytest


@pytest.fixture
def seeded(monkeypatch):
    """What has no seed in the protocol gets this one."""
    monkeypatch.setattr("gptj.serve.service.secrets.randbelow", lambda most: 0)


class TestComplete:
    def test_is_the_engines_own_and_slides_past_the_context(self, served, seeded):
        body = {"context": "eleutherai", "top_p": 0.9, "temp": 0.75}
        answer = served.post("/complete", body)
        (own,) = served.own(
            "eleutherai", top_p=0.9, temperature=0.75, seed=0, max_tokens=512, overflow="slide"
        )
        assert answer.json() == {"completion": own.text}
        assert len(own.tokens) > 128

    def test_reads_the_end_of_a_long_context(self, served, seeded):
        long = "".join(chr(97 + n % 26) for n in range(5000))
        answers = [
            served.post("/complete", {"context": text, "temp": 0.0}) for text in (long, long[-128:])
        ]
        assert answers[0].json() == answers[1].json()

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({"top_p": 0.9}, "context is missing"),
            ({"context": "a", "top_p": 0}, "top_p"),
            ({"context": "a", "temp": -1}, "temp"),
            ({"context": "a", "temperature": 1}, "temperature is not a parameter"),
            ({"context": "\ud800"}, "surrogate"),
            ([], "object"),
        ],
        ids=str,
    )
    def test_refuses_in_its_own_shape(self, served, body, said):
        answer = served.post("/complete", body)
        assert answer.status_code == 400
        assert list(answer.json()) == ["error"]
        assert said in answer.json()["error"]


class TestQueuePair:
    def test_gives_a_number_and_then_the_answer(self, served, seeded):
        body = {"context": "once", "temp": 0.8, "top_p": 0.9, "top_k": 5, "length": 9}
        qid = served.post("/model/predict", body).json()
        answer = served.post("/model/get_prediction", qid).json()
        (own,) = served.own(
            "once", temperature=0.8, top_p=0.9, top_k=5, max_tokens=9, seed=0, overflow="slide"
        )
        assert answer.pop("time") > 0
        assert answer == {"context": "once", "completion": own.text}

    def test_gives_it_once(self, served):
        qid = served.post("/model/predict", {"context": "once", "length": 3}).json()
        assert served.post("/model/get_prediction", qid).status_code == 200
        answer = served.post("/model/get_prediction", qid)
        assert answer.status_code == 404
        assert "was fetched" in answer.json()["error"]

    def test_several_are_not_mixed_up(self, served):
        lengths = [1, 5, 3]
        bodies = [
            {"context": c, "length": n, "temp": 0.0} for c, n in zip("abc", lengths, strict=True)
        ]
        qids = [served.post("/model/predict", body).json() for body in bodies]
        for body, qid in reversed(list(zip(bodies, qids, strict=True))):
            found = served.post("/model/get_prediction", qid).json()
            own = served.own(body["context"], temperature=0, top_p=0.9, top_k=50, overflow="slide",
                             max_tokens=body["length"])  # fmt: skip
            assert (found["context"], found["completion"]) == (body["context"], own[0].text)

    def test_is_only_for_the_key_that_asked(self, serve):
        with serve(keys="a key-a\nb key-b") as served:
            a, b = ({"authorization": f"Bearer key-{name}"} for name in "ab")
            body = {"context": "once", "length": 3}
            qid = served.post("/model/predict", body, headers=a).json()
            assert served.post("/model/get_prediction", qid, headers=b).status_code == 404
            assert served.post("/model/get_prediction", qid, headers=a).status_code == 200

    def test_what_nobody_fetches_is_let_go(self, served, monkeypatch):
        from gptj.serve import original

        qid = served.post("/model/predict", {"context": "once", "length": 1}).json()
        served.until(lambda: served.figure("gptj_requests_running") == 0)
        monkeypatch.setattr(original, "KEPT_SECONDS", -1.0)
        assert served.post("/model/get_prediction", qid).status_code == 404

    def test_refuses(self, served):
        assert "qid" in served.post("/model/get_prediction", {"qid": "x"}).json()["error"]
        assert (
            "length" in served.post("/model/predict", {"context": "", "length": 0}).json()["error"]
        )


class TestTokens:
    def test_there_and_back(self, served):
        found = served.post("/tokenize", {"prompt": "hé🙂"}).json()
        assert found == {"count": 7, "max_model_len": 128, "tokens": list("hé🙂".encode())}
        assert served.post("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "hé🙂"}

    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            ("/tokenize", {"prompt": 5}, "prompt"),
            ("/tokenize", {"prompt": "\ud800"}, "prompt"),
            ("/tokenize", {"prompt": "a", "add_special_tokens": False}, "add_special_tokens"),
            ("/detokenize", {"tokens": [300]}, "tokens"),
            ("/detokenize", {"tokens": "ab"}, "tokens"),
        ],
    )
    def test_refuse(self, served, path, body, param):
        answer = served.post(path, body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
