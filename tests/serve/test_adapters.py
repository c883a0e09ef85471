"""Adapters over HTTP: asked for by `model`, loaded and unloaded while the server answers."""

import threading

import pytest

from gptj.engine.config import EngineConfig
from gptj.engine.request import Request, SamplingParams
from gptj.serve.adapters import LoadRequest, Unloaded, UnloadRequest
from gptj.serve.config import ServeConfig
from gptj.serve.facts import Voice
from gptj.serve.run import set_up
from gptj.serve.tokens import Model

NAME = "tiny"
ROOM = EngineConfig(slots=4, chunk=16, burst=3, max_adapters=2, max_adapter_rank=8)
LOADING = ServeConfig(adapter_loading=True)


def load(served, name: str, place):
    body = {"lora_name": name, "lora_path": str(place)}
    return served.post("/v1/load_lora_adapter", body)


def unload(served, name: str):
    return served.post("/v1/unload_lora_adapter", {"lora_name": name})


@pytest.fixture(scope="module")
def room(serve, saved_adapters):
    """A server with `one` and `two`, and an engine like its own with them."""
    with serve(LOADING, options=ROOM) as served:
        for name in ("one", "two"):
            assert load(served, name, saved_adapters / name).status_code == 200
            served.alone.load_adapter(name, saved_adapters / name)
        yield served


def own(served, prompt: str, adapter: str | None, **sampling):
    asked = Request(prompt, SamplingParams(**sampling), adapter=adapter)
    return served.alone.run([asked])[0]


def names(served) -> list[str]:
    with served.http() as client:
        return [each["id"] for each in client.get("/v1/models").json()["data"]]


class TestAnswers:
    @pytest.mark.parametrize("name", [None, "one", "two"])
    def test_are_those_of_the_model_that_is_named(self, room, name):
        model = name or NAME
        asked = {"model": model, "prompt": "once", "max_tokens": 12, "seed": 3, "logprobs": 1}
        found = room.post("/v1/completions", asked).json()
        (expected,) = own(room, "once", name, max_tokens=12, seed=3, logprobs=1)
        choice = found["choices"][0]
        assert (found["model"], choice["text"]) == (model, expected.text)
        scores = [each.logprob for each in expected.logprobs]
        assert choice["logprobs"]["token_logprobs"] == scores
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "seed": 3}
        chat = room.post("/v1/chat/completions", {**body, "max_tokens": 12}).json()
        stops = ("\n\nUser:", "\n\nSystem:", "\n\nAssistant:")
        (expected,) = own(
            room, "User:\nhi\n\nAssistant:\n", name, max_tokens=12, seed=3, stop=stops
        )
        assert chat["choices"][0]["message"]["content"] == expected.text
        assert chat["model"] == model
        pieces = room.pieces("/v1/completions", {**asked, "stream": True})
        assert {piece["model"] for piece in pieces[:-1]} == {model}
        assert "".join(p["choices"][0]["text"] for p in pieces[:-1]) == choice["text"]

    def test_score_prompts_with_it(self, room):
        body = {"prompt": "once upon", "max_tokens": 0, "echo": True, "logprobs": 0}
        only = SamplingParams(max_tokens=0, prompt_logprobs=0)
        for name in (None, "one", "two"):
            asked = {**body, "model": name or NAME}
            found = room.post("/v1/completions", asked).json()["choices"][0]["logprobs"]
            ((expected,),) = room.alone.run([Request("once upon", only, adapter=name)])
            scores = [each.logprob for each in expected.prompt_logprobs]
            assert found["token_logprobs"][1:] == scores

    def test_say_which_they_are_of(self, room):
        prints = {
            room.post("/v1/completions", {"model": name, "prompt": "a", "max_tokens": 1}).json()[
                "system_fingerprint"
            ]
            for name in (NAME, "one", "two")
        }
        assert len(prints) == 3
        assert room.service.fingerprint in prints

    def test_to_clients_of_openai(self, room, saved_adapters):
        openai = pytest.importorskip("openai")
        with openai.OpenAI(base_url=f"{room.url}/v1", api_key="none", max_retries=0) as client:
            assert [each.id for each in client.models.list()] == [NAME, "one", "two"]
            card = client.models.retrieve("one")
            assert (card.parent, card.root) == (NAME, str(saved_adapters / "one"))
            with pytest.raises(openai.NotFoundError, match="has 'tiny', 'one', 'two'"):
                client.completions.create(model="three", prompt="a")
        asked = {"model": "one", "prompt": "abc"}
        assert room.post("/tokenize", asked).json()["count"] == 3


class TestLoading:
    def test_compiles_nothing_and_lets_others_go_on(self, serve, saved_adapters):
        body = {"prompt": "once", "max_tokens": 100, "ignore_eos": True, "seed": 1}
        with serve(LOADING, options=ROOM) as served:
            assert load(served, "one", saved_adapters / "one").status_code == 200
            expected = served.post("/v1/completions", {**body, "model": "one"}).json()
            found: list = []
            asking = threading.Thread(
                target=lambda: found.append(
                    served.post("/v1/completions", {**body, "model": "one", "n": 4}).json()
                )
            )
            asking.start()
            served.until(lambda: served.service.worker.running)
            assert load(served, "two", saved_adapters / "two").status_code == 200
            gone = unload(served, "one")
            assert (gone.status_code, gone.json()["deleted"]) == (200, True)
            assert names(served) == [NAME, "two"]
            late = served.post("/v1/completions", {**body, "model": "one"})
            assert (late.status_code, late.json()["error"]["code"]) == (404, "model_not_found")
            asking.join()
            assert found[0]["choices"][0]["text"] == expected["choices"][0]["text"]
            assert [each["finish_reason"] for each in found[0]["choices"]] == ["length"] * 4
            assert load(served, "again", saved_adapters / "one").status_code == 200
            again = served.post("/v1/completions", {**body, "model": "again"}).json()
            assert again["choices"] == expected["choices"]
            assert again["system_fingerprint"] == expected["system_fingerprint"]
            assert served.figure("gptj_recompilations_total") == 0

    @pytest.mark.parametrize(
        ("name", "place", "status", "said"),
        [
            ("one", "two", 409, "an adapter 'one' already"),
            (NAME, "two", 409, "is the model's own name"),
            ("three", "two", 409, "max_adapters=2, is taken"),
            ("three", "wide", 400, "have rank 9, and there is room for 8"),
            ("three", ".", 400, "no model|holds no adapters"),
            ("three", "nothing", 400, "is no folder of the server's machine"),
            ("", "two", 400, "lora_name"),
            ("\ud800", "two", 400, "as a unicode string"),
        ],
    )
    def test_refuses_what_cannot_be(self, room, saved_adapters, name, place, status, said):
        found = load(room, name, saved_adapters / place)
        assert found.status_code == status, found.text
        assert any(word in found.json()["error"]["message"] for word in said.split("|"))
        assert names(room) == [NAME, "one", "two"]

    def test_unloads_only_what_is_there(self, room):
        for name in ("three", NAME):
            found = unload(room, name)
            assert (found.status_code, found.json()["error"]["code"]) == (404, "model_not_found")

    def test_one_that_is_gone_by_the_time_it_is_asked(self, room):
        room.service.adapters["ghost"] = Voice("ghost", "gptj-0", "ghost")
        try:
            found = room.post("/v1/completions", {"model": "ghost", "prompt": "a"})
        finally:
            del room.service.adapters["ghost"]
        assert (found.status_code, found.json()["error"]["code"]) == (404, "model_not_found")

    def test_is_off_unless_the_operator_says_so(self, served, saved_adapters):
        assert load(served, "one", saved_adapters / "one").status_code == 404

    def test_asks_for_the_key(self, serve, saved_adapters):
        with serve(LOADING, options=ROOM, keys="ann k") as served:
            assert load(served, "one", saved_adapters / "one").status_code == 401

    def test_is_in_the_document(self, room):
        with room.http() as client:
            paths = client.get("/openapi.json").json()["paths"]
        kinds = {"load": (LoadRequest, Model), "unload": (UnloadRequest, Unloaded)}
        for name, (taken, given) in kinds.items():
            operation = paths[f"/v1/{name}_lora_adapter"]["post"]
            content = operation["requestBody"]["content"]["application/json"]
            taken.model_validate(content["examples"]["example"]["value"])
            found = operation["responses"]["200"]["content"]["application/json"]
            given.model_validate(found["example"])
            assert "409" in operation["responses"]


class TestTheCommand:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("--adapters", "one"), "adapters='one' must be NAME=PATH"),
            (("--adapters", "a=x", "a=y"), "adapters='a=y' has the name of another one"),
            (("--adapters", "no-model=x"), "has the name of another one"),
            (("--adapter-loading",), "adapter_loading needs room for adapters"),
            (("--adapter-loading", "--ray", "replicas=2"), "replicas load no adapters"),
            (("--max-adapters", -1), "max_adapters=-1"),
            (("--max-adapter-rank", 0), "max_adapter_rank=0"),
        ],
    )
    def test_tells_mistakes_before_a_model_is_loaded(self, refused, tmp_path, words, said):
        refused("serve", tmp_path / "no-model", "--port", 0, *words, said=(said,))

    def test_lets_no_strangers_have_saved_adapters_read(self):
        from gptj.errors import UserError

        with pytest.raises(UserError, match="would let anyone have folders read: give --keys"):
            set_up(ServeConfig(host="0.0.0.0", port=0, insecure=True, adapter_loading=True))
