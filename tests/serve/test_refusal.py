"""Refusals: one sentence, in the shape of each protocol, with the parameter at fault."""

import json

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gptj.errors import UserError
from gptj.serve.refusal import (
    SHOWN,
    Json,
    Refused,
    broken_off,
    from_http,
    from_validation,
    in_words,
    translated,
    unforeseen,
)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/generate", {"detail": {"msg": "no", "type": "rate_limit_error"}}),
        ("/complete", {"error": "no"}),
        ("/model/predict", {"error": "no"}),
        *(
            (
                path,
                {
                    "error": {
                        **{"message": "no", "type": "rate_limit_error"},
                        **{"param": "n", "code": "full"},
                    }
                },
            )
            for path in ("/v1/completions", "/completes", "/models", "/apis")
        ),
    ],
)
def test_each_protocol_has_its_shape(path, body):
    refused = Refused(429, "no", param="n", code="full", headers={"retry-after": "7"})
    answer = refused.response(path)
    assert (answer.status_code, json.loads(answer.body)) == (429, body)
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (401, "authentication_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "service_unavailable"),
    ],
)
def test_by_status_it_is_what_openai_calls_it(status, kind):
    assert Refused(status, "no").type == kind


@pytest.mark.parametrize("size", [1, SHOWN - 1, SHOWN, SHOWN + 1, 10**6])
def test_a_long_message_is_cut(size):
    message = Refused(400, "x" * size).message
    assert message == ("x" * size if size <= SHOWN else "x" * (SHOWN - 3) + "...")


NAMES = {"n": "count", "top_p": "top_p", "stop": "stop_sequence", "stop_tokens": "stop_ids"}


class TestWords:
    @pytest.mark.parametrize(
        ("engine", "said", "param"),
        [
            ("n=0 must be at least 1", "count=0 must be at least 1", "count"),
            ("stop_tokens=x is not stop", "stop_ids=x is not stop_sequence", "stop_ids"),
            ("top_p=2 is wrong", "top_p=2 is wrong", "top_p"),
            ("in nothing", "in nothing", None),
            ("stop=x: stop it", "stop_sequence=x: stop it", "stop_sequence"),
            ("it is wrong: n", "it is wrong: n", None),
        ],
    )
    def test_are_the_protocols_up_to_the_colon(self, engine, said, param):
        found = translated(engine, NAMES)
        assert (found.status, found.message, found.param) == (400, said, param)
        with pytest.raises(Refused) as refused, in_words(NAMES):
            raise UserError(engine)
        assert refused.value.message == said

    def test_what_is_no_mistake_of_the_clients_passes(self):
        with pytest.raises(ZeroDivisionError), in_words(NAMES):
            raise ZeroDivisionError
        with in_words(NAMES):
            pass


def invalid(kind="value_error", loc=("body",), msg="Input is wrong", **ctx) -> Refused:
    error = {"type": kind, "loc": loc, "msg": msg, "ctx": ctx}
    return from_validation(RequestValidationError([error, {"type": "other"}]))


class TestBodies:
    def test_that_are_no_json(self):
        found = invalid("json_invalid", ("body", 17), error="Expecting value")
        assert found.message == "the body is not JSON: Expecting value at character 17"

    def test_that_are_no_object(self):
        said = "the body must be a JSON object (with content-type application/json)"
        assert invalid().message == said

    def test_with_a_parameter_that_is_none(self):
        found = invalid("unknown_parameter", ("body",), "x is none: leave it out", name="x")
        assert (found.message, found.param) == ("x is none: leave it out", "x")
        assert found.code == "unknown_parameter"

    @pytest.mark.parametrize(
        ("where", "path"),
        [(("a",), "a"), (("a", 3), "a[3]"), (("a", 3, "b"), "a[3].b"), (("a", "b", 0), "a.b[0]")],
    )
    def test_with_a_value_that_is_wrong(self, where, path):
        found = invalid(loc=("body", *where))
        assert (found.message, found.param) == (f"{path}: input is wrong", "a")
        found = invalid("missing", ("body", *where))
        assert (found.message, found.code) == (f"{path} is missing", "missing_parameter")
        assert found.param == "a"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "there is nothing at this path: /openapi.json lists those there are"),
        (405, "this path takes another method: /openapi.json says which"),
        (400, "as it was"),
    ],
)
def test_what_the_framework_refuses(status, said):
    found = from_http(HTTPException(status, "as it was", headers={"allow": "GET"}))
    assert (found.status, found.message, found.headers) == (status, said, {"allow": "GET"})


def test_the_servers_own_ends():
    assert (broken_off().status, broken_off().headers) == (503, {"retry-after": "5"})
    assert unforeseen({"state": {"id": "abc"}}).message.endswith("see request abc in the log")
    assert unforeseen({}).status == 500


def test_half_a_character_is_no_trouble():
    assert json.loads(Json({"a": "é\ud800"}).body) == {"a": "é\ud800"}
    assert Json({"a": 1}).body == b'{"a":1}'
