"""A tiny random GPT-J that transformers and we both load, and data files of the tasks' shapes."""

import json
import random
from pathlib import Path

import pytest

WORDS = ("the", "a", "cat", "dog", "sat", "on", "mat", "ran", "far", "Anna", "it's", "né", "42")
DATA = Path(__file__).parents[3] / "shared" / "data"


def sentence(draw: random.Random, low: int = 3, high: int = 12) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))


def write_lines(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Each task's questions in files, a dozen of each. Not to be written to."""
    draw, out = random.Random(1), tmp_path_factory.mktemp("data")

    def some(make) -> list:
        return [make() for _ in range(12)]

    write_lines(out / "lambada/test.jsonl", some(lambda: {"text": sentence(draw, 10, 30)}))
    write_lines(
        out / "winogrande/dev.jsonl",
        some(
            lambda: {
                "sentence": f"{sentence(draw)} _ {sentence(draw)}.",
                "option1": draw.choice(WORDS),
                "option2": draw.choice(WORDS),
                "answer": draw.choice("12"),
            }
        ),
    )
    write_lines(
        out / "hellaswag/val.jsonl",
        some(
            lambda: {
                "activity_label": "Running [title]",
                "ctx_a": sentence(draw),
                "ctx_b": sentence(draw, 1, 3),
                "endings": [f"{sentence(draw)} [step] on." for _ in range(4)],
                "label": draw.randrange(4),
            }
        ),
    )
    goals = some(lambda: {name: sentence(draw) for name in ("goal", "sol1", "sol2")})
    write_lines(out / "piqa/valid.jsonl", goals)
    (out / "piqa/valid-labels.lst").write_text("".join(f"{draw.choice('01')}\n" for _ in goals))
    write_lines(
        out / "gpt3_arithmetic/two_digit_addition.jsonl",
        some(lambda: {"context": "\n\nQ: What is 4 plus 2?\n\nA:", "completion": " 6"}),
    )
    write_lines(
        out / "wikitext2/test_pages.jsonl",
        some(lambda: {"page": f" = {sentence(draw)} = \n \n {sentence(draw, 5, 90)} . \n "}),
    )
    return out


@pytest.fixture
def real_data() -> Path:
    """The data sets themselves, where they lie beside the project."""
    if not DATA.is_dir():
        pytest.skip("the data sets are not here")
    return DATA


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """A folder of transformers' with a random model of such a window, and its tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from gptj.tokenizer import Tokenizer

    draw = random.Random(2)
    tokenizer = Tokenizer.train([sentence(draw) for _ in range(300)], 320)

    def make(window: int, padding: int = 0) -> Path:
        torch.manual_seed(window)
        config = transformers.GPTJConfig(
            vocab_size=tokenizer.vocab_size + padding, n_positions=window, n_embd=32, n_layer=2,
            n_head=4, rotary_dim=4, initializer_range=0.3, bos_token_id=tokenizer.eos_id,
            eos_token_id=tokenizer.eos_id,
        )  # fmt: skip
        folder = tmp_path_factory.mktemp(f"window{window}")
        transformers.GPTJForCausalLM(config).save_pretrained(folder)
        tokenizer.save(folder / "tokenizer.json")
        end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), model_max_length=window, **end
        )
        fast.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def folder(make_model) -> Path:
    """A model whose window holds every question of `data`."""
    return make_model(256)


@pytest.fixture(scope="session")
def short_folder(make_model) -> Path:
    """A model whose window is shorter than most of them."""
    return make_model(24)


@pytest.fixture(scope="session")
def theirs():
    """The harness's own adapter for a folder, in float32."""
    pytest.importorskip("accelerate")
    from lm_eval.models.huggingface import HFLM

    def adapter(folder: Path) -> HFLM:
        return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)

    return adapter


@pytest.fixture(scope="session")
def ours():
    """Our adapter for a folder."""
    from gptj.evaluate.harness import HarnessModel

    return lambda folder, **options: HarnessModel(str(folder), **options)
