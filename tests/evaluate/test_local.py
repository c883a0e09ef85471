"""Questions from files: every form they come in, and what is said of files that are wrong."""

import json
import shutil

import pytest

from gptj.errors import UserError
from gptj.evaluate.local import ARITHMETIC, DATA, rows

WINOGRANDE = '{"sentence": "_ sat", "option1": "a", "option2": "b", "answer": ""}\n'
HELLASWAG = '{"query": "a", "choices": ["b", "c"], "label": 2}\n'


@pytest.fixture
def own(data, tmp_path):
    """The files, to damage at will."""
    return shutil.copytree(data, tmp_path / "data")


@pytest.mark.parametrize("task", [*DATA, "arithmetic_2da"])
def test_every_task_finds_its_questions(task, data):
    assert len(rows(task, data)) == 12


def test_piqas_answers_may_lie_with_the_questions(own):
    expected = rows("piqa", own)
    (own / "piqa/valid-labels.lst").unlink()
    (own / "piqa/valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in expected))
    assert rows("piqa", own) == expected


def test_arrow_files_are_read(own):
    datasets = pytest.importorskip("datasets")
    expected = rows("winogrande", own)
    shutil.rmtree(own / "winogrande")
    datasets.Dataset.from_list(expected).save_to_disk(own / "saved")
    (own / "winogrande").mkdir()
    (arrow,) = (own / "saved").glob("*.arrow")
    arrow.rename(own / "winogrande/dev.arrow")
    assert rows("winogrande", own) == expected
    (own / "winogrande/dev.arrow").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"dev\.arrow cannot be read"):
        rows("winogrande", own)


@pytest.mark.parametrize(
    ("task", "file", "text", "said"),
    [
        ("lambada_openai", "lambada/test.jsonl", None, r"no questions .* there is no .*lambada"),
        ("lambada_openai", "lambada/test.jsonl", "", r"test\.jsonl is empty"),
        ("lambada_openai", "lambada/test.jsonl", '{"text": "a b"}\n{"te', r"jsonl:2 is not a line"),
        ("lambada_openai", "lambada/test.jsonl", "[1]\n", r"jsonl:1 is not a JSON object"),
        ("lambada_openai", "lambada/test.jsonl", '{"txt": "a"}\n', "question 1 .* has no text"),
        ("lambada_openai", "lambada/test.jsonl", '{"text": 7}\n', "question 1 .* has text=7"),
        ("winogrande", "winogrande/dev.jsonl", WINOGRANDE, "question 1 .* has answer='', which is"),
        ("hellaswag", "hellaswag/val.jsonl", HELLASWAG, "question 1 .* has label=2, which is no"),
        ("hellaswag", "hellaswag/val.jsonl", '{"query": "a"}\n', "question 1 of hellaswag has no"),
        ("piqa", "piqa/valid-labels.lst", None, r"valid-labels\.lst, the answers to .*valid"),
        ("piqa", "piqa/valid-labels.lst", "0\n1\n", "2 answers to the 12 questions"),
        ("piqa", "piqa/valid-labels.lst", "7\n" * 12, "each to be 0 or 1"),
        ("lambada_openai", "lambada/other.jsonl", "{}", "2 files that could be lambada_openai's"),
        ("mmlu", "lambada/test.jsonl", "", "--local knows no files for the task 'mmlu'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(own, task, file, text, said):
    if text is None:
        (own / file).unlink()
    else:
        (own / file).write_text(text)
    with pytest.raises(UserError, match=said) as failure:
        rows(task, own)
    assert "\n" not in str(failure.value)


def test_a_file_that_cannot_be_read_is_named(own):
    (own / "lambada/test.jsonl").unlink()
    (own / "lambada/test.jsonl").mkdir()
    with pytest.raises(UserError, match=r"lambada/test\.jsonl cannot be read \(Is a directory\)"):
        rows("lambada_openai", own)


def test_the_data_sets_themselves(real_data):
    pytest.importorskip("datasets")
    sizes = {"lambada_openai": 5153, "winogrande": 1267, "hellaswag": 1000, "piqa": 1838}
    assert {task: len(rows(task, real_data)) for task in sizes} == sizes
    assert len(rows("wikitext", real_data)) == 62
    assert {len(rows(f"arithmetic_{name}", real_data)) for name in ARITHMETIC} == {2000}
