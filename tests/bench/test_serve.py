"""`gptj bench serve`: the mix it asks, and figures that fit together."""

import json

import numpy as np
import pytest

from gptj.bench.config import ServeBench
from gptj.bench.serve import mix

SMALL = ("--shortest", 3, "--longest", 20, "--new-tokens", 20, "--requests", 5)
ENGINE = ("--slots", 2, "--chunk", 16, "--burst", 4)


def test_the_mix_is_the_same_for_the_same_seed_and_within_its_lengths():
    config = ServeBench(requests=50, shortest=3, longest=9)
    asked = mix(config, 100)
    assert asked == mix(config, 100)
    assert {len(request.prompt) for request in asked} == set(range(3, 10))
    assert asked != mix(ServeBench(requests=50, shortest=3, longest=9, seed=1), 100)


@pytest.mark.parametrize("rate", [0, 50])
def test_the_figures_fit_together(gptj, tiny_run, tmp_path, rate):
    out = tmp_path / "figures.json"
    code, said, _ = gptj(
        *("bench", "serve", "--model", tiny_run, *SMALL, *ENGINE, "--rate", rate, "--json", out)
    )
    assert code == 0
    assert all(word in said for word in ("time to first token", "tokens/s", "% of the roofline"))
    found = json.loads(out.read_text())["serve"]["measured"]
    assert found["tokens"] == 5 * 20
    assert len(found["first"]) == 5
    assert len(found["between"]) <= 5 * 19
    assert all(0 < value <= found["seconds"] for value in found["first"])
    assert np.sum(found["between"]) <= 5 * found["seconds"]
    assert found["step_bytes"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bench", "serve", "--requests", 0), "requests=0 must be at least 1"),
        (("bench", "serve", "--longest", 3), "longest=3 must be at least shortest=64"),
        (("bench", "serve", "--rate", -1), "rate=-1.0 must be 0"),
        (("bench", "serve", "--slots", 0), "slots=0 must be at least 1"),
    ],
)
def test_mistakes(refused, words, said):
    refused(*words, said=(said,))
