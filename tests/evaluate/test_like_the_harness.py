"""Every metric is the one that the harness's own Hugging Face adapter finds, on the same data."""

import pytest

pytest.importorskip("lm_eval")
from gptj.evaluate import tasks

DEFAULT = ("lambada_openai", "winogrande", "hellaswag", "piqa")


def both(model, other, names, data, limit=None):
    found = [tasks.run(each, tasks.load(names, data), limit=limit) for each in (model, other)]
    return [{(each.task, each.metric): each for each in side} for side in found]


@pytest.mark.parametrize("kind", ["folder", "short_folder"])
def test_every_metric_of_the_default_tasks(kind, ours, theirs, data, request):
    place = request.getfixturevalue(kind)
    found, expected = both(ours(place), theirs(place), DEFAULT, data)
    assert set(found) == {
        *(("lambada_openai", "perplexity"), ("lambada_openai", "acc"), ("winogrande", "acc")),
        *((task, metric) for task in ("hellaswag", "piqa") for metric in ("acc", "acc_norm")),
    }
    assert set(found) == set(expected)
    for key, each in found.items():
        tolerance = 1e-5 if key[1] == "perplexity" else 0
        assert each.value == pytest.approx(expected[key].value, rel=tolerance, abs=0), key
        assert each.error == pytest.approx(expected[key].error, rel=1e-4), key
        assert each.questions == 12
