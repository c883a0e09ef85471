"""The OpenAPI document: complete, its examples valid, and what the server does is what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from gptj.serve import kobold_models, openai_answers, openai_requests, original, tokens


@pytest.fixture(scope="module")
def document(served) -> dict:
    with served.http() as client:
        return client.get("/openapi.json").json()


def operations(document):
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_has_every_route(document):
    assert set(document["paths"]) == {
        "/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/{model}", "/tokenize",
        "/detokenize", "/complete", "/model/predict", "/model/get_prediction", "/api/v1/generate",
        "/api/extra/generate/stream", "/api/extra/abort", "/api/v1/model", "/health", "/ready",
        "/metrics",
    }  # fmt: skip


def test_every_operation_says_what_it_does_with_examples(document):
    for path, method, operation in operations(document):
        assert operation["description"], path
        assert "422" not in operation["responses"]
        content = operation["responses"]["200"]["content"]
        assert all("example" in each for each in content.values()), path
        assert all({"schema", "itemSchema"} & set(each) for each in content.values()), path
        if method == "post":
            assert operation["requestBody"]["content"]["application/json"]["examples"], path


def test_every_field_says_what_it_is(document):
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name
        for field, about in schema["properties"].items():
            assert about.get("description") or "$ref" in about, f"{name}.{field}"


def test_nothing_but_what_is_there_is_taken(document):
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request"):
            assert schema["additionalProperties"] is False


MODELS = {
    model.__name__: model
    for module in (openai_requests, openai_answers, original, kobold_models, tokens)
    for model in vars(module).values()
    if isinstance(model, type)
}


def test_every_example_is_valid(document):
    for path, _, operation in operations(document):
        shown = operation["responses"]["200"]["content"].get("application/json")
        if shown:
            name = shown["schema"]["$ref"].rpartition("/")[2]
            TypeAdapter(MODELS[name]).validate_python(shown["example"])
        if "requestBody" in operation:
            asked = operation["requestBody"]["content"]["application/json"]
            refs = [part for part in json.dumps(asked["schema"]).split('"') if part.startswith("#")]
            for example in asked["examples"].values():
                TypeAdapter(MODELS[refs[0].rpartition("/")[2]]).validate_python(example["value"])
        assert path


def test_every_example_is_answered_as_shown(served, document):
    for path, method, operation in operations(document):
        for example in _bodies(operation):
            answer = served.post(path, {**example})
            expected = 404 if path == "/model/get_prediction" else 200
            assert answer.status_code == expected, (path, method, answer.text)


def _bodies(operation) -> list:
    body = operation.get("requestBody", {"content": {"application/json": {"examples": {}}}})
    return [each["value"] for each in body["content"]["application/json"]["examples"].values()]


def test_says_that_a_key_is_needed_where_one_is(serve, document):
    assert "securitySchemes" not in document["components"]
    with serve(keys="a k") as served, served.http() as client:
        found = client.get("/openapi.json", headers={"authorization": "Bearer k"}).json()
    for path, _, operation in operations(found):
        needs = path not in ("/health", "/ready")
        assert ("security" in operation) == needs
        assert ("401" in operation["responses"]) == needs


@pytest.mark.slow
def test_schemathesis_finds_no_5xx_and_nothing_that_is_not_in_it(served, tmp_path):
    """Thousands of requests made from the document, good and bad, each answer held against it."""
    pytest.importorskip("schemathesis")
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_headers_conformance,response_schema_conformance,negative_data_rejection,"
        "unsupported_method"
    )
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", "--checks", checks]
    command += ["--max-examples", "100", "--generation-database", "none", "--no-color"]
    command += ["--continue-on-failure", f"{served.url}/openapi.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
