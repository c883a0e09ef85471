"""Guided completions: what is drawn keeps to its schema, expression or grammar, to the end."""

import json
import re
import sys

import jax
import pytest

from gptj import model
from gptj.config import ModelConfig
from gptj.engine import guide
from gptj.engine.config import EngineConfig
from gptj.engine.engine import Engine
from gptj.engine.request import Request, SamplingParams
from gptj.errors import UserError
from gptj.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="llguidance (the extra `serve`) is not installed")

CONFIG = ModelConfig(2, 32, 4, 8, 128, 257, 384, 128)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
GRAMMAR = """
start: sum
sum: number ("+" number)*
number: /[1-9]{1,3}/
"""


@pytest.fixture(scope="module")
def params():
    return model.init(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def engine(params) -> Engine:
    return Engine(params, CONFIG, Tokenizer.bytes(), EngineConfig(slots=4, chunk=16, burst=3))


def written(engine, seeds=range(8), **sampling):
    """The completions of one request at several seeds."""
    asked = [Request("it is ", SamplingParams(max_tokens=100, seed=n, **sampling)) for n in seeds]
    return [choices[0] for choices in engine.run(asked)]


@pytest.mark.parametrize("regex", ["[ab]{3,9}", "yes|no|perhaps", r"\d\d-\d\d", "é🙂?", "(ab)*c"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_regular_expression_is_matched_whole(engine, regex, temperature):
    for each in written(engine, regex=regex, temperature=temperature):
        assert re.fullmatch(regex if each.finish_reason == "stop" else "(ab)*", each.text)


def test_what_can_only_end_ends_without_another_token(engine):
    (first, *_) = written(engine, regex="abc")
    assert (first.text, first.finish_reason, first.tokens) == ("abc", "stop", list(b"abc"))


def test_json_keeps_to_its_schema(engine):
    found = written(engine, json_schema=PERSON)
    assert [each.finish_reason for each in found] == ["stop"] * len(found)
    for each in found:
        person = json.loads(each.text)
        assert list(person) == ["name", "age", "tags"]
        assert len(person["name"]) <= 5
        assert 0 <= person["age"] <= 99
        assert len(person["tags"]) <= 2
        assert set(person["tags"]) <= {"a", "b"}


def test_a_schema_is_text_or_a_dict(engine):
    assert written(engine, json_schema=PERSON) == written(engine, json_schema=json.dumps(PERSON))


def test_a_grammar_is_derived(engine):
    for each in written(engine, grammar=GRAMMAR, logit_bias={ord("+"): 3.0}):
        text = each.text if each.finish_reason == "stop" else each.text.rstrip("+")
        assert re.fullmatch(r"[1-9]{1,3}(\+[1-9]{1,3})*", text)


def test_other_controls_act_on_what_is_left(engine):
    (one, *_) = written(engine, regex="[a-z]{8}", logit_bias={ord("q"): 100.0})
    assert one.text == "q" * 8
    several = engine.run([Request("", SamplingParams(regex="[ab]{5}", n=4, logprobs=1))])[0]
    assert len({each.text for each in several}) > 1
    for each in several:
        assert re.fullmatch("[ab]{5}", each.text)
        assert len(each.logprobs) == 5


def test_it_ends_where_there_is_no_more_room(engine):
    asked = Request("", SamplingParams(regex="a{50}", max_tokens=7))
    ((only,),) = engine.run([asked])
    assert (only.text, only.finish_reason) == ("a" * 7, "length")


def test_neighbours_are_not_disturbed(engine):
    free = [Request("free", SamplingParams(max_tokens=30, seed=n, logprobs=1)) for n in range(3)]
    alone = [engine.run([each])[0] for each in free]
    guided = Request("", SamplingParams(regex="[ab]{20}"))
    assert engine.run([guided, *free])[1:] == alone


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"regex": "("}, "regex='(' cannot be followed: "),
        ({"json_schema": "{"}, "json_schema='{' cannot be followed: "),
        ({"json_schema": {"type": 5}}, "json_schema='{\"type\": 5}' cannot be followed: "),
        ({"grammar": "start: nothing"}, "grammar='start: nothing' cannot be followed: "),
    ],
    ids=str,
)
def test_what_is_not_one_is_refused_before_anything_is_queued(engine, sampling, said):
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        engine.run([Request("fine"), Request("", SamplingParams(**sampling))])
    assert "\n" not in str(refused.value)
    assert not engine.busy


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"regex": "a", "grammar": "b"}, "regex and grammar cannot both be kept to"),
        ({"regex": "a", "banned_tokens": (97,)}, "banned_tokens may leave regex no token"),
        ({"regex": "a", "min_tokens": 3}, "min_tokens may leave regex no token"),
        ({"json_schema": "{}", "ignore_eos": True}, "ignore_eos may leave json_schema no token"),
        ({"regex": 5}, "regex=5 must be text"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(sampling, said):
    with pytest.raises(UserError, match=said):
        SamplingParams(**sampling)


def test_without_a_tokenizer_there_is_nothing_to_keep_to(params):
    bare = Engine(params, CONFIG, None, EngineConfig(slots=1))
    with pytest.raises(UserError, match="needs a tokenizer"):
        bare.submit(Request([1], SamplingParams(regex="a")))


def test_the_last_that_were_asked_for_stay_compiled(engine, monkeypatch):
    monkeypatch.setattr(guide, "KEPT", 2)
    compiled, guides = [], engine._guides
    compile = guides._compile
    monkeypatch.setattr(guides, "_compiled", type(guides._compiled)())
    monkeypatch.setattr(
        guides, "_compile", lambda *what: compiled.append(what[1]) or compile(*what)
    )
    for regex in "abacba":  # b goes when c comes, and a when b comes back
        assert guides.start(SamplingParams(regex=regex)).allowed().any()
    assert "".join(compiled) == "abcba"


def test_without_the_library_it_says_what_to_install(params, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    guide._library.cache_clear()
    engine = Engine(params, CONFIG, Tokenizer.bytes(), EngineConfig(slots=1))
    with pytest.raises(UserError, match=r"pip install 'gptj-jax\[serve\]'"):
        engine.submit(Request("", SamplingParams(regex="a")))
    guide._library.cache_clear()


def test_on_the_command_line(gptj, tmp_path):
    from gptj.api import Model

    config = ModelConfig(1, 32, 4, 8, 64, 257, 384, 64)
    made = Model(config, model.init(jax.random.key(1), config), Tokenizer.bytes())
    made.save(tmp_path / "m")
    words = ("generate", tmp_path / "m", "--prompt", "is it? ")
    schema = '{"enum": ["up", "down"]}'
    assert gptj(*words, "--json-schema", schema).out in ('is it? "up"\n', 'is it? "down"\n')
