"""`gptj serve`: what its flags become before the first request."""

import contextlib
import sys
from types import SimpleNamespace

import pytest

from gptj.cli import serve
from gptj.cli.serve import ServeCommand
from gptj.engine.config import EngineConfig
from gptj.errors import UserError
from gptj.serve.config import ServeConfig


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/mine", "mine"),
        ("runs/mine/", "mine"),
        ("EleutherAI/gpt-j-6b", "gpt-j-6b"),
        ("/models/step_383500_slim.tar.zst", "step_383500_slim"),
        ("/models/step_383500_slim.tar.gz", "step_383500_slim"),
        ("gs://bucket/model.tar", "model"),
        ("v1.5", "v1.5"),
        ("/", "gptj"),
    ],
)
def test_a_model_is_called_by_the_last_part_of_its_place(model, name):
    assert serve._name(model) == name


class TestAdapters:
    def found(self, *adapters, model="base", **changes):
        return serve._adapters(ServeCommand("m", adapters=adapters, **changes), model)

    def test_by_name_in_order(self):
        assert [*self.found("b=x/y", "a=z").items()] == [("b", "x/y"), ("a", "z")]
        assert self.found("a=p=q") == {"a": "p=q"}  # a path may have one
        assert self.found() == {}

    @pytest.mark.parametrize("word", ["a", "a=", "=x", "=", ""])
    def test_without_a_name_or_a_path(self, word):
        with pytest.raises(UserError, match=f"^adapters='{word}' must be NAME=PATH$"):
            self.found(word)

    @pytest.mark.parametrize("words", [("a=x", "a=y"), ("base=x",)])
    def test_of_one_name(self, words):
        said = f"^adapters='{words[-1]}' has the name of another one: use a name of its own$"
        with pytest.raises(UserError, match=said):
            self.found(*words)

    def test_may_be_loaded_where_there_is_room(self):
        loading = {"serve": ServeConfig(adapter_loading=True)}
        assert self.found("a=x", **loading) == {"a": "x"}
        assert self.found(engine=EngineConfig(max_adapters=1), **loading) == {}
        with pytest.raises(UserError, match="needs room for adapters: give --max-adapters"):
            self.found(**loading)
        with pytest.raises(UserError, match="replicas load no adapters while they run: leave out"):
            self.found("a=x", ray="replicas=2", **loading)
        assert self.found("a=x", ray="replicas=2") == {"a": "x"}


class TestTheEngine:
    @pytest.fixture
    def made(self, monkeypatch):
        made = SimpleNamespace(loaded=[], engines=[], adapters=[])

        def load(place, **how):
            made.loaded.append((place, how))
            return SimpleNamespace(params=f"{place}'s", config="shape", tokenizer="words")

        def engine(*what, **more):
            made.engines.append((*what, more))
            add = lambda *adapter: made.adapters.append(adapter)  # noqa: E731
            return SimpleNamespace(load_adapter=add)

        monkeypatch.setattr(serve, "load", load)
        monkeypatch.setattr(serve, "Engine", engine)
        return made

    def test_is_the_models_as_it_was_asked_for(self, made):
        options = EngineConfig(slots=3, speculate=2)
        command = ServeCommand(
            "m", engine=options, draft="small", dtype="bfloat16", quantize="int8", tokenizer="t"
        )
        serve._engine(command, {})
        how = {"dtype": "bfloat16", "quantize": "int8", "tokenizer": "t"}
        assert made.loaded == [("m", how), ("small", {"dtype": "bfloat16"})]
        ((params, shape, words, same, draft, more),) = made.engines
        assert (params, shape, words, same) == ("m's", "shape", "words", options)
        assert (draft.params, draft.config, more) == ("small's", "shape", {"base": "m"})

    @pytest.mark.parametrize(("asked", "room"), [(0, 2), (5, 5)])
    def test_has_room_for_the_adapters_it_begins_with(self, made, asked, room):
        command = ServeCommand("m", engine=EngineConfig(max_adapters=asked))
        serve._engine(command, {"a": "x", "b": "y"})
        ((*_, options, draft, _),) = made.engines
        assert (options.max_adapters, draft) == (room, None)
        assert made.adapters == [("a", "x"), ("b", "y")]


class TestTheCommand:
    @pytest.fixture
    def served(self, monkeypatch):
        running = pytest.importorskip("gptj.serve.run", exc_type=ImportError)
        seen = SimpleNamespace(closed=False, configs=[], served=[])
        listener = SimpleNamespace(close=lambda: setattr(seen, "closed", True))

        def set_up(config):
            seen.configs.append(config)
            return SimpleNamespace(listener=listener)

        def run(make, name, setup):
            seen.served.append((make, name))
            return 7

        monkeypatch.setattr(running, "set_up", set_up)
        monkeypatch.setattr(running, "serve", run)
        return seen

    @pytest.mark.parametrize(("words", "name"), [((), "m"), (("--name", "mine"), "mine")])
    def test_serves_one_engine_and_ends_as_that_did(self, gptj, served, monkeypatch, words, name):
        monkeypatch.setattr(serve, "_engine", lambda *_: "an engine")
        assert gptj("serve", "runs/m", "--port", 81, *words).code == 7
        assert served.configs == [ServeConfig(port=81, name=words[1] if words else None)]
        assert served.served[0][1] == name
        assert served.closed

    def test_a_model_that_cannot_be_loaded_leaves_no_port_taken(self, refused, served):
        refused("serve", "nowhere", said=("no model at nowhere",))
        assert served.closed
        assert served.served == []

    def test_replicas_load_the_model_where_they_are(self, gptj, served, monkeypatch):
        made = []
        monkeypatch.setattr(serve, "_engine", lambda command, adapters: made.append(adapters))
        replicas = SimpleNamespace(Replicas=lambda *what: what)
        monkeypatch.setitem(sys.modules, "gptj.serve.replicas", replicas)  # it would load Ray
        assert gptj("serve", "m", "--ray", "replicas=3", "--adapters", "a=x").code == 7
        assert made == []
        build, config, metrics = served.served[0][0]("figures")
        assert (config.replicas, metrics) == (3, "figures")
        with contextlib.ExitStack() as stack:
            stack.enter_context(build())
        assert made == [{"a": "x"}]
