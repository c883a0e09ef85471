"""What an operator relies on: probes, figures, the log, keys, budgets, the queue, who may ask."""

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptj.engine.config import EngineConfig
from gptj.serve.config import ServeConfig

URL = "/v1/completions"
ONE_SLOT = EngineConfig(slots=1, chunk=16, burst=1)
LONG = {"prompt": "", "max_tokens": 120, "ignore_eos": True, "seed": 1}
SHORT = {"prompt": "a", "max_tokens": 2, "seed": 1}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def lines(served):
    """The request log's lines as they are written."""
    found = []

    class Keep(logging.Handler):
        def emit(self, record):
            from gptj.serve.logs import JsonLines

            found.append(json.loads(JsonLines().format(record)))

    log, handler = logging.getLogger("gptj.serve"), Keep()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield found
    log.removeHandler(handler)


class TestProbes:
    def test_alive_and_ready(self, served):
        with served.http() as client:
            assert client.get("/health").json() == {"status": "alive"}
            assert client.get("/ready").json() == {"status": "ready"}

    def test_elsewhere_are_told_where_to_look(self, served):
        with served.http() as client:
            for path, status in (("/nothing", 404), (URL, 405)):
                answer = client.get(path)
                assert answer.status_code == status
                assert "/openapi.json" in answer.json()["error"]["message"]

    def test_alive_before_it_is_ready(self, serve, monkeypatch):
        from gptj.engine.engine import Engine

        go, warm_up = threading.Event(), Engine.warm_up

        def slowly(engine):
            go.wait(30)
            warm_up(engine)

        monkeypatch.setattr(Engine, "warm_up", slowly)
        with serve(wait=("warming up",)) as served:
            with served.http() as client:
                assert client.get("/health").status_code == 200
                assert client.get("/ready").status_code == 503
                refused = client.post(URL, json=SHORT)
            assert refused.status_code == 503
            assert "warming up" in refused.json()["error"]["message"]
            assert int(refused.headers["retry-after"]) > 0
            go.set()
            served.until(lambda: served.service.state == "ready", 60)
            assert served.post(URL, SHORT).status_code == 200

    def test_an_engine_that_fails_is_told_to_all(self, serve, monkeypatch):
        with serve() as served:
            monkeypatch.setattr(served.service.worker.engine, "step", lambda: 1 / 0)
            answer = served.post(URL, SHORT)
            assert answer.status_code == 500
            assert "the engine has stopped" in answer.json()["error"]["message"]
            with served.http() as client:
                assert client.get("/health").status_code == 500
                assert client.get("/ready").status_code == 503
            assert served.post(URL, SHORT).status_code == 503


class TestFigures:
    def test_count_what_was_done(self, served):
        names = ("prompt_tokens_total", "completion_tokens_total")
        names += ("time_to_first_token_seconds_count", "inter_token_seconds_count")
        before = {name: served.figure(f"gptj_{name}") for name in names}
        body = {"prompt": ["abc", "de"], "max_tokens": 4, "ignore_eos": True, "n": 2}
        assert served.post(URL, body).status_code == 200
        after = {name: served.figure(f"gptj_{name}") - before[name] for name in names}
        assert after["prompt_tokens_total"] == 5
        assert after["completion_tokens_total"] == 16
        assert after["time_to_first_token_seconds_count"] == 2
        assert after["inter_token_seconds_count"] <= 12

    def test_know_the_cache(self, served):
        body = {"prompt": "x" * 100, "max_tokens": 1}
        served.post(URL, body)
        hits = served.figure("gptj_prefix_cache_hits_total")
        served.post(URL, body)
        assert served.figure("gptj_prefix_cache_hits_total") == hits + 6
        assert 0 < served.figure("gptj_prefix_cache_hit_rate") < 1

    def test_nothing_is_compiled_after_the_warm_up(self, served):
        before = served.figure("gptj_recompilations_total")  # of this process, so not always 0 here
        for body in (SHORT, LONG, {"prompt": ["a", "b" * 50], "n": 3, "logprobs": 5, "echo": True}):
            served.post(URL, {**body, "temperature": 0.5, "top_p": 0.9, "min_p": 0.1})
        assert served.figure("gptj_recompilations_total") == before

    def test_have_few_names_whatever_is_asked(self, served):
        with served.http() as client:
            for n in range(20):
                client.get(f"/nothing/{n}")
            text = client.get("/metrics").text
        assert 'gptj_http_requests_total{route="none",status="404"}' in text
        assert "nothing" not in text


class TestTheLog:
    def test_has_a_line_for_each_request(self, served, lines):
        answer = served.post(URL, {**SHORT, "user": "ann"}, headers={"x-request-id": "my-id.1"})
        served.until(lambda: lines)
        (line,) = lines
        assert answer.headers["x-request-id"] == "my-id.1"
        assert answer.json()["id"] == "cmpl-my-id.1"
        assert line["id"] == "my-id.1"
        assert (line["event"], line["method"], line["path"]) == ("request", "POST", URL)
        assert (line["status"], line["tokens"], line["user"], line["seed"]) == (200, 3, "ann", 1)
        assert 0 <= line["waited"] <= line["seconds"]

    def test_has_another_for_a_prediction_once_it_is_drawn(self, served, lines):
        body = {"context": "abc", "length": 5, "temp": 0.0}
        headers = {"x-request-id": "later"}
        served.post("/model/predict", body, headers=headers)  # and nobody fetches it
        served.until(lambda: len(lines) == 2)
        asked, drawn = sorted(lines, key=lambda line: line["event"], reverse=True)
        assert (asked["event"], drawn["event"]) == ("request", "prediction")
        assert {line["id"] for line in lines} == {"later"}
        assert "tokens" not in asked
        assert 3 < drawn["tokens"] <= 8
        assert (drawn["key"], drawn["seed"]) == ("anyone", asked["seed"])
        assert 0 <= drawn["waited"] <= drawn["seconds"]

    def test_does_not_tell_what_was_said(self, served, lines):
        served.post(URL, {**SHORT, "prompt": "a secret"})
        served.until(lambda: lines)
        assert "secret" not in json.dumps(lines)

    @pytest.mark.parametrize("given", ["", "a b", "x" * 65, "é", 'a"b'])
    def test_takes_no_id_that_would_spoil_it(self, served, given):
        answer = served.post(URL, SHORT, headers={"x-request-id": given.encode()})
        assert answer.headers["x-request-id"] != given
        assert len(answer.headers["x-request-id"]) == 32


class TestKeys:
    KEYS = "ann key-a\nbob key-b concurrency=1 tokens_per_minute=200  # a comment\n"

    def test_are_needed_but_for_the_probes(self, serve):
        with serve(keys=self.KEYS) as served, served.http() as client:
            for path in ("/health", "/ready"):
                assert client.get(path).status_code == 200
            paths = client.get("/openapi.json", headers=bearer("key-a")).json()["paths"]
            assert len(paths) > 12
            for path, operations in paths.items():
                for method in operations:
                    if path not in ("/health", "/ready"):
                        answer = client.request(method, path)
                        assert answer.status_code == 401, path
                        assert answer.headers["www-authenticate"] == "Bearer"
            for path in ("/openapi.json", "/nothing", "/v1/"):
                assert client.get(path).status_code == 401
            for wrong in ("key-a ", "key", "Key-a", "", "é", "key-akey-b"):
                header = {"authorization": f"Bearer {wrong}x".encode()}
                answer = client.get("/v1/models", headers=header)
                assert answer.status_code == 401
                assert "is not known here" in answer.json()["error"]["message"]
            assert client.get("/v1/models", headers={"authorization": "key-a"}).status_code == 401
            for scheme in ("Bearer", "bearer"):
                header = {"authorization": f"{scheme} key-a"}
                assert client.get("/v1/models", headers=header).status_code == 200

    def test_have_budgets(self, serve):
        with serve(keys=self.KEYS, options=ONE_SLOT) as served, ThreadPoolExecutor(2) as pool:
            first = pool.submit(served.post, URL, LONG, headers=bearer("key-b"))
            served.until(lambda: served.service.worker.busy)
            refused = served.post(URL, SHORT, headers=bearer("key-b"))
            assert refused.status_code == 429
            assert "bob: 1 requests are under way" in refused.json()["error"]["message"]
            assert int(refused.headers["retry-after"]) >= 1
            assert served.post(URL, SHORT, headers=bearer("key-a")).status_code == 200
            assert first.result().status_code == 200
            over = served.post(URL, LONG, headers=bearer("key-b"))
            assert over.status_code == 429
            said = "200 tokens a minute are used up: try again in "
            assert said + over.headers["retry-after"] in over.json()["error"]["message"]
            assert 1 <= int(over.headers["retry-after"]) <= 60
            never = served.post(URL, {**LONG, "n": 2}, headers=bearer("key-b"))
            assert never.status_code == 400
            assert "may use 241 tokens" in never.json()["error"]["message"]


class TestTheQueue:
    def test_is_bounded_and_says_when_to_come_back(self, serve):
        config = ServeConfig(queue_tokens=250)
        with serve(config, options=ONE_SLOT) as served, ThreadPoolExecutor(30) as pool:
            asked = [pool.submit(served.post, URL, {**LONG, "seed": n}) for n in range(30)]
            answers = [each.result() for each in asked]
            assert {answer.status_code for answer in answers} == {200, 429}
            for n, answer in enumerate(answers):
                if answer.status_code == 429:
                    assert answer.json()["error"]["code"] == "queue_full"
                    assert int(answer.headers["retry-after"]) >= 1
                else:
                    (own,) = served.own("", max_tokens=120, ignore_eos=True, seed=n)
                    assert answer.json()["choices"][0]["text"] == own.text
            assert served.service.queue.tokens == served.service.queue.requests == 0
            assert served.figure("gptj_tokens_waiting") == 0

    def test_an_empty_one_takes_anyone(self, serve):
        with serve(ServeConfig(queue_tokens=1)) as served:
            assert served.post(URL, LONG).status_code == 200


class TestWhoLeaves:
    @pytest.mark.parametrize("stream", [False, True])
    def test_is_taken_out_within_a_step(self, serve, stream):
        with serve(options=ONE_SLOT) as served:
            step, steps = served.service.worker.engine.step, []

            def slowly():
                time.sleep(0.02)
                steps.append(served.service.worker.running)
                return step()

            served.service.worker.engine.step = slowly
            body = json.dumps({**LONG, "stream": stream}).encode()
            head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            head += f"content-length: {len(body)}\r\n\r\n"
            with served.connected(head.encode() + body):
                served.until(lambda: served.service.worker.running)
            begun = len(steps)
            served.until(lambda: not served.service.worker.engine.busy)
            assert len(steps) - begun <= 4  # on its way through the loop, and the pipeline
            assert served.service.queue.tokens == 0
            assert served.post(URL, SHORT).status_code == 200

    def test_while_it_waits_makes_room(self, serve):
        with serve(ServeConfig(queue_tokens=130), options=ONE_SLOT) as served:
            body = json.dumps(LONG).encode()
            head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            request = head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body
            step = served.service.worker.engine.step
            served.service.worker.engine.step = lambda: (time.sleep(0.02), step())[1]
            with served.connected(request):
                served.until(lambda: served.service.worker.running)
                with served.connected(request):
                    served.until(lambda: served.service.queue.requests == 1)
                    assert served.post(URL, LONG).status_code == 429
                served.until(lambda: served.service.queue.requests == 0, 1)


class TestOrigins:
    def test_that_are_named_may_ask(self, serve):
        config = ServeConfig(cors=("https://good.example",))
        with serve(config, keys="a k") as served, served.http() as client:
            asks = {"access-control-request-method": "POST"}
            asks["access-control-request-headers"] = "authorization,content-type"
            good = client.options(URL, headers={"origin": "https://good.example", **asks})
            bad = client.options(URL, headers={"origin": "https://bad.example", **asks})
            answer = client.post(
                URL, json=SHORT, headers={"origin": "https://good.example", **bearer("k")}
            )
        assert good.headers["access-control-allow-origin"] == "https://good.example"
        assert "access-control-allow-origin" not in bad.headers
        assert answer.headers["access-control-allow-origin"] == "https://good.example"
        assert "retry-after" in answer.headers["access-control-expose-headers"].lower()

    def test_are_none_unless_named(self, served):
        answer = served.post(URL, SHORT, headers={"origin": "https://bad.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_a_limit_on_prompts(serve):
    with serve(ServeConfig(max_prompt_tokens=10)) as served:
        assert served.post(URL, {"prompt": "x" * 10, "max_tokens": 1}).status_code == 200
        refused = served.post(URL, {"prompt": "x" * 11, "max_tokens": 1})
        assert refused.status_code == 400
        assert "takes at most 10" in refused.json()["error"]["message"]
