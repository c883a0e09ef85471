"""What the harness's own Hugging Face adapter finds, in float32 and on the same data, we find."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from gptj.engine.scoring import Score
from gptj.errors import UserError
from gptj.evaluate import tasks

DEFAULT = ("lambada_openai", "winogrande", "hellaswag", "piqa")
WHOLE = ("wikitext", "arithmetic_2da")


def measured(model, names, data, limit=None) -> dict:
    found = tasks.run(model, tasks.load(names, data), limit=limit)
    return {(each.task, each.metric): each for each in found}


def agree(found, expected) -> None:
    assert set(found) == set(expected)
    for key, each in found.items():
        exact = key[1].startswith("acc")
        value = expected[key].value
        assert each.value == (value if exact else pytest.approx(value, rel=1e-5)), key
        if each.error is None:
            assert expected[key].error is None
        else:
            assert each.error == pytest.approx(expected[key].error, rel=1e-4), key


def instances(kind: str, arguments) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


@pytest.fixture(scope="module", params=["folder", "short_folder"])
def pair(request, ours, theirs):
    """Our adapter and theirs: of a window that holds every question, and of a shorter one."""
    place = request.getfixturevalue(request.param)
    return ours(place), theirs(place)


def test_every_metric_of_the_tasks(pair, data):
    found, expected = (measured(each, (*DEFAULT, *WHOLE), data) for each in pair)
    agree(found, expected)
    assert {metric for task, metric in found if task == "piqa"} == {"acc", "acc_norm"}
    assert {metric for task, metric in found if task == "lambada_openai"} == {"perplexity", "acc"}
    assert all(each.questions == 12 for each in found.values())


def test_what_a_task_draws_at_random_is_drawn_alike(data, monkeypatch):
    before, drawn = random.getstate(), []
    monkeypatch.setattr(
        tasks.local,
        "rows",
        lambda *_, rows=tasks.local.rows: drawn.append(random.random()) or rows(*_),
    )
    for _ in range(2):
        tasks.load(["piqa"], data)
    random.setstate(before)
    assert drawn == [random.Random(0).random()] * 2  # as the harness's own command seeds it


def test_a_downloaded_task_of_a_kind_we_do_is_taken(monkeypatch):
    kinds = ({"output_type": "multiple_choice"}, {"output_type": "generate_until"})
    found = {"tasks": {n: SimpleNamespace(get_config=kind.get) for n, kind in enumerate(kinds)}}
    monkeypatch.setattr(tasks, "_downloaded", lambda names: found)
    assert tasks.load(["any"]) is found


def test_questions_of_several_kinds(tmp_path):
    row = {"goal": "a", "sol1": "b", "sol2": "c"}
    lines = [row | {"label": 1}, row | {"label": "1"}]  # each of which is right
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa/valid.jsonl").write_text("\n".join(map(json.dumps, lines)))
    said = rf"questions of piqa in {tmp_path} are not of one kind \(.+\): get the file anew"
    with pytest.raises(UserError, match=said):
        tasks.load(["piqa"], tmp_path)


def test_a_perplexity_beyond_all_numbers(ours, folder, data, monkeypatch):
    model = ours(folder)
    monkeypatch.setattr(model.scorer, "score", lambda asked: [Score(-1e4, False)] * len(asked))
    with pytest.raises(UserError, match="perplexity is too large for a number"):
        measured(model, ["lambada_openai"], data)


def test_pairs_that_adapters_get_wrong(pair):
    ours, theirs = pair
    starts = ("the cat", "a dog", "42", "Anna sat on the mat", "it's", "né")
    one = [(start, {"until": [], "max_gen_toks": 1}) for start in starts]
    greedy = [theirs.generate_until(instances("generate_until", [each]))[0] for each in one]
    asked = [
        ("the cat ", "sat"),  # a space at the boundary
        ("the cat \n\t ", "sat"),
        ("the cat", " sat"),
        ("the cat s", "at on a mat"),  # a boundary within a word
        ("", "the cat"),  # an empty context
        ("", "<|endoftext|>the cat"),
        ("the<|endoftext|>cat", " sat"),
        ("né né", " né"),
        *(("a dog ran far", f" {word}") for word in ("the", "the cat", "mat")),  # one context
        ("a dog ran far", " the"),  # asked twice
        *(each for each in zip(starts, greedy, strict=True) if each[1]),
        (" ".join(["the cat sat"] * 40), " on a mat"),  # longer than either window
        ("mat", " the cat sat on it's mat"),
    ]
    requests = instances("loglikelihood", asked)
    found, expected = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    assert [each[1] for each in found] == [each[1] for each in expected]
    assert {each[1] for each in found} == {False, True}
    np.testing.assert_allclose(*([e[0] for e in side] for side in (found, expected)), rtol=1e-5)


def test_whole_texts_of_any_length(pair):
    ours, theirs = pair
    window = ours.max_length
    texts = [" ".join(["cat"] * n) for n in (1, window - 1, window, window + 1, 2 * window + 5)]
    requests = instances("loglikelihood_rolling", [(text,) for text in ("", *texts)])
    found, expected = (each.loglikelihood_rolling(requests) for each in (ours, theirs))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_completions_token_for_token(pair):
    ours, theirs = pair
    draw, words = random.Random(3), ("the", "cat", "sat", "né", "42", "on")
    kwargs = [
        {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False},
        {"until": " c", "max_gen_toks": 12},
        {"until": ["a", "t", " "], "max_new_tokens": 9, "temperature": 0.0},
        {"until": [], "max_gen_toks": 4, "do_sample": False, "temperature": 0.7},
        {
            **{"until": ["a"], "max_gen_toks": 7, "do_sample": False, "top_p": 0.5, "top_k": 3},
            **{"num_beams": 1, "length_penalty": 2.0, "repetition_penalty": 1.0},
        },
    ]
    asked = [
        (" ".join(draw.choices(words, k=draw.randint(1, 30))), dict(how))
        for how in kwargs
        for _ in range(5)
    ]
    # One at a time: their padding on the left would move the positions.
    expected = [theirs.generate_until(instances("generate_until", [each]))[0] for each in asked]
    assert ours.generate_until(instances("generate_until", asked)) == expected
    assert len(set(expected)) > 5


def test_padding_rows_are_no_alternative(make_model, ours):
    import torch
    from transformers import GPTJForCausalLM

    place = make_model(32, padding=64)
    model = ours(place)
    pair = model.reader.pair("the cat", " sat on")
    ids = torch.tensor([[*pair.context, *pair.continuation]])
    with torch.no_grad():
        logits = GPTJForCausalLM.from_pretrained(place)(ids).logits[0]
    real = torch.log_softmax(logits[:, : model.scorer.config.vocab_size], -1)
    at = range(len(pair.context) - 1, len(ids[0]) - 1)
    expected = sum(float(real[n, ids[0, n + 1]]) for n in at)
    (found,) = model.loglikelihood(instances("loglikelihood", [("the cat", " sat on")]))
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert found[0] > sum(float(torch.log_softmax(logits, -1)[n, ids[0, n + 1]]) for n in at)


def test_real_questions(make_model, ours, theirs, real_data):
    folder = make_model(512)
    found, expected = (
        measured(each(folder), (*DEFAULT, "arithmetic_5ds"), real_data, 4)
        for each in (ours, theirs)
    )
    agree(found, expected)


def test_the_harness_finds_the_adapter_by_name(folder):
    kind = get_model("gptj")
    model = kind.create_from_arg_string(f"pretrained={folder},dtype=float32", {"batch_size": 1})
    assert model.loglikelihood(instances("loglikelihood", [("the", " cat")]))[0][0] < 0
    for wrong in ("parallelize=True", "batch_size=4"):
        with pytest.raises(UserError, match=wrong.split("=")[0]):
            kind.create_from_arg_string(f"pretrained={folder},{wrong}")


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"do_sample": True}, "do_sample=True"),
        ({"temperature": 0.5}, "temperature=0.5"),
        ({"do_sample": True, "top_p": 0.9}, "do_sample=True, temperature=0"),
        ({"do_sample": None, "temperature": 0.5}, "temperature=0.5"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"do_sample": False, "top_p": 0.9, "repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size=3"),
        ({"max_gen_toks": 300}, "300 tokens are to be written and the model's window is 256"),
    ],
)
def test_what_generation_does_not_do_is_refused_by_name(folder, ours, kwargs, said):
    request = instances("generate_until", [("the", {"until": ["\n"], **kwargs})])
    with pytest.raises(UserError, match=said):
        ours(folder).generate_until(request)
