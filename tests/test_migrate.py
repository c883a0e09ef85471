"""The pages for those who come from other code name everything, and nothing that is not there."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pytest

import gptj
from gptj.convert import huggingface, mesh_transformer
from gptj.data.clean import CleanConfig as CLEAN
from gptj.engine.beam import BeamParams

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "migrate"
OPTIONS = set(re.findall(r"--[a-z0-9][a-z0-9.-]*", (ROOT / "docs" / "reference.md").read_text()))
SHAPE = {field.name for field in dataclasses.fields(gptj.ModelConfig)}


def tables(page: str) -> list[dict[str, str]]:
    """A page's tables of two columns: from each name in code on the left to what stands right."""
    found = []
    for table in re.findall(r"(?:^\|.*\|\n)+", (PAGES / page).read_text(), re.MULTILINE):
        rows = [re.split(r" \| ", line.strip("| \n")) for line in table.splitlines()]
        pairs = [(row[0], row[-1]) for row in rows[2:] if len(row) == 2]
        found.append({name: right for left, right in pairs for name in re.findall("`(.+?)`", left)})
    return found


def table(page: str, key: str) -> dict[str, str]:
    """The table that has `key` on its left."""
    return next(each for each in tables(page) if key in each)


def fields(right: str) -> list[str]:
    """The names in code on the right."""
    return re.findall(r"`([^`]+)`", right)


@pytest.mark.parametrize("page", [page.name for page in PAGES.glob("*.md")])
def test_every_option_on_the_right_is_one(page):
    rights = [right for each in tables(page) for right in each.values()]
    named = {o for right in rights for o in re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", right)}
    assert len(named) > 10
    assert named <= OPTIONS | {"--f16"}  # the original's, which ours stands beside


class TestMeshTransformer:
    KEYS = table("mesh-transformer-jax.md", "layers")

    def test_the_shape_is_what_the_reader_takes_it_for(self):
        for theirs, ours in mesh_transformer.FIELDS.items():
            assert fields(self.KEYS[theirs])[0] == ours
        for key, value in mesh_transformer.MUST_BE.items():
            assert f"must be `{value}`" in self.KEYS[key]

    def test_every_key_that_its_configs_hold_is_there(self):
        held = {"cores_per_replica"}  # written by us as well
        for path in (ROOT.parent / "shared" / "golden").glob("*/config.json"):
            config = json.loads(path.read_text())
            held |= {*config["model"], *config["optimizer"]}
        assert held <= set(self.KEYS)

    def test_its_options_for_data_are_those_of_today(self):
        mended = table("mesh-transformer-jax.md", "--normalize-with-ftfy")
        clean = {f"--{field.name}".replace("_", "-") for field in dataclasses.fields(CLEAN)}
        ours = {name for right in mended.values() for name in fields(right)}
        assert {
            "--ftfy",
            "--detokenize",
            "--min-unique-tokens",
            "--split-end-of-text",
        } <= clean & ours


@pytest.fixture(scope="module")
def theirs():
    """The text of a module of transformers, which takes seconds to import."""
    found = importlib.util.find_spec("transformers")
    if found is None:
        pytest.skip("needs transformers")
    return lambda name: (Path(found.origin).parent / name).read_text()


class TestHuggingFace:
    CONFIG = table("huggingface.md", "n_layer")

    def test_the_shape_is_what_the_reader_takes_it_for(self):
        for theirs, ours in huggingface.FIELDS.items():
            assert fields(self.CONFIG[theirs])[0] == ours
        assert {"n_inner", "vocab_size", *huggingface.MUST_BE} <= set(self.CONFIG)
        passed_over = {key for key, right in self.CONFIG.items() if "nothing here" in right}
        assert passed_over <= huggingface.HARMLESS

    def test_every_field_of_its_config_is_there(self, theirs):
        own = re.findall(r"^    (\w+): ", theirs("models/gptj/configuration_gptj.py"), re.M)
        assert {"n_embd", "rotary_dim"} < set(own) <= set(self.CONFIG)

    def test_what_is_called_generation_is_so_on_both_sides(self, theirs):
        source = theirs("generation/configuration_utils.py")
        options = set(re.findall(r"kwargs\.pop\(\"(\w+)\"", source))
        outside = {"torch.manual_seed", "jax.random.key", "assistant_model", "streamer"}
        known = {field.name for field in dataclasses.fields(gptj.SamplingParams)}
        for name, right in table("huggingface.md", "max_new_tokens").items():
            assert name.split("=")[0] in options | outside
            assert fields(right)[0].split("=")[0] in known
        for name in table("huggingface.md", "num_beams"):
            assert name.split("=")[0] in options | outside | {"True", '"never"'}
        absent = re.search(r"^Not here: (.*?)\. ", (PAGES / "huggingface.md").read_text(), re.M)[1]
        assert set(fields(absent)) <= options
        assert {"beams", "length_penalty", "early_stopping"} <= set(BeamParams.__annotations__)

    def test_what_is_called_training_is_so_there(self, theirs):
        own = set(re.findall(r"^    (\w+): ", theirs("training_args.py"), re.M))
        assert set(table("huggingface.md", "max_steps")) <= own


def test_shapes_of_the_others_are_named_as_ours():
    for key in ("base_emb_dim", "model.hidden_dim"):
        named = set(fields(table("trainers.md", key)[key])) - {"ModelConfig"}
        assert named <= SHAPE
        assert len(named) == 4
