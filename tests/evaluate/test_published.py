"""The published table: what it must hold, and how results stand beside it."""

import io

import pytest
from rich.console import Console

from gptj.errors import UserError
from gptj.evaluate.published import COLUMNS, TASKS, published, source
from gptj.evaluate.results import Measured, of_column, show, write


def test_gpt_js_own_row():
    (row,) = [model for model in published() if model.name == "GPT-J-6B"]
    assert row.training_flops == 1.5e22
    assert row.values == {
        **{"lambada_ppl": 3.99, "lambada_acc": 69.7, "winogrande": 65.3},
        **{"hellaswag": 66.1, "piqa": 76.5},
    }


def test_every_row_is_there_once_and_within_reason():
    names = [model.name for model in published()]
    assert len(names) == len(set(names)) == 17
    for model in published():
        assert all(0 <= value <= 100 for value in model.values.values())
        assert (
            model.training_flops is None or model.training_flops == 0 or model.training_flops > 1e21
        )
    assert "mesh-transformer-jax" in source()
    assert TASKS == ("lambada_openai", "winogrande", "hellaswag", "piqa")


def test_results_stand_beside_the_rows_they_are_to_be_compared_with():
    found = [
        Measured("hellaswag", "acc", 0.5, 0.01, 12),
        Measured("hellaswag", "acc_norm", 0.654, 0.0123, 12),
        Measured("lambada_openai", "perplexity", 12.3456, 1.234, 12),
        Measured("wikitext", "bits_per_byte", 0.87654, None, 12),
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    show(found, "mine", console)
    lines = console.export_text().splitlines()
    (gptj,) = [line.split() for line in lines if "GPT-J-6B" in line]
    (mine,) = [line.split() for line in lines if line.split()[:1] == ["mine"]]
    (error,) = [line.split() for line in lines if "standard error" in line]
    assert (gptj[1:], mine[1:], error[-2:]) == (["3.99", "66.1"], ["12.35", "65.4"], ["1.2", "1.2"])
    assert lines[-2:] == ["hellaswag acc: 50.0 ± 1.0 %", "wikitext bits_per_byte: 0.8765"]
    assert [of_column(found, column) is not None for column in COLUMNS].count(True) == 2


def test_results_that_cannot_be_written_say_so(tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "eval.json"
    with pytest.raises(UserError, match=rf"^{out} cannot be written \(.*\): choose another --out$"):
        write(out, {})
