"""Documentation that is made from the program is what the program says today."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def program(path):
    """A program outside the package, as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current():
    reference = program(ROOT / "docs" / "reference.py")
    is_current = reference.PAGE.read_text() == reference.page()
    assert is_current, "run `make docs`"  # and not both pages, line by line


def test_the_figures_are_those_of_the_results():
    performance = program(ROOT / "docs" / "performance.py")
    assert performance.PAGE.read_text() == performance.page(), "run `make docs`"


def test_the_table_of_what_fits_is_what_is_planned():
    build = program(ROOT / "docs" / "build.py")
    guide = build.FINETUNE.read_text()
    is_current = guide == build.with_fitting(guide)
    assert is_current, "run `make docs`"
    assert build.needs(build.WAYS["QLoRA, nf4"], 1) < 8e9


def test_every_link_of_the_documents_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_finished():
    for page in PAGES:
        assert "@@" not in page.read_text()


def test_every_command_that_is_shown_is_one():
    """Each verb of it is a verb, and each option one of that verb's."""
    options = {}
    for part in re.split(r"^### gptj ", REFERENCE, flags=re.MULTILINE)[1:]:
        found = re.findall(r"--[a-z0-9][a-z0-9.-]*", part.split("\n### ")[0].split("\n## ")[0])
        options[part.split()[0]] = {*found, "--help", "--debug"}
    for page in PAGES:
        text = re.sub(r" ?\\\n\s*", " ", page.read_text())
        blocks = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        for command in [*lines, *re.findall(r"(?<!`)`(gptj [^`\n]+)`(?!`)", text)]:
            for verb, words in re.findall(r"(?:^|[/ ])gptj (?!--)(\S+)([^|#]*)", command):
                if verb in ("VERB", "serve,") or not verb.isascii():
                    continue
                assert verb in options, f"{page.name}: {command}"
                found = set(re.findall(r"(?<!\S)--[a-z0-9][a-z0-9.-]*", words))
                assert found <= options[verb], f"{page.name}: {found - options[verb]} in {command}"


def sentences():
    """What the program's texts are, with … where something is filled in."""
    for path in ROOT.glob("src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                yield "".join(part if isinstance(part, str) else "…" for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_what_is_troubleshot_is_what_the_program_says():
    page = (ROOT / "docs" / "troubleshoot.md").read_text()
    quoted = re.findall(r"^\| `([^|]*)` \| ", page, re.MULTILINE)
    assert len(quoted) > 25
    said = set(sentences())
    strange = [each for each in quoted if each not in said and " " in each]
    assert not strange


@pytest.mark.parametrize("page", ["README.md", "docs/engine.md"])
def test_its_example_runs(page, tiny_run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, block = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    exec(block.replace("runs/demo", str(tiny_run)), {})
    assert capsys.readouterr().out


def test_the_table_of_fewer_bits_is_what_was_measured():
    kinds = json.loads((ROOT / "benchmarks/results/quantisation.json").read_text())["kinds"]
    page = (ROOT / "docs/quantise.md").read_text()
    for kind, found in kinds.items():
        numbers = f"{found['perplexity']:.2f} | {found['kl']:.1e} | {100 * found['agrees']:.1f} %"
        assert f"| {kind} | {numbers} |" in page


def test_the_readmes_ratios_to_peers_are_the_newest_that_were_measured():
    newest = max((ROOT / "benchmarks/results").glob("20*-epyc.json"))
    found = {
        (subject, each["case"], each["ours"].split()[1], each["peer"].split()[0]): each["median"]
        for subject, measured in json.loads(newest.read_text()).items()
        for each in measured["ratios"]
    }
    readme = (ROOT / "README.md").read_text()
    for said, *ratios in (
        ("goes {:.2f} times as fast in float32", ("train", "a step", "float32", "transformers")),
        ("and {:.2f} times in bfloat16", ("train", "a step", "bfloat16", "transformers")),
        (
            "in bfloat16 goes {:.1f} times as fast for one prompt and {:.1f} times for eight",
            *(("decode", case, "bfloat16", "transformers") for case in ("1 slot", "8 slots")),
        ),
        (
            "drawing goes {:.1f} and {:.1f} times as fast as with CTranslate2",
            *(("decode", case, "int8", "ctranslate2") for case in ("1 slot", "8 slots")),
        ),
        ("is read {:.1f} times as fast", ("prefill", "256 tokens", "int8", "ctranslate2")),
    ):
        assert said.format(*(found[ratio] for ratio in ratios)) in readme


def test_the_table_of_plans_is_what_its_commands_found():
    plans = program(ROOT / "benchmarks" / "plan_table.py")
    results = json.loads(plans.RESULTS.read_text())
    assert tuple(results) == plans.ALL
    assert plans.table(results) in plans.GUIDE.read_text()
    assert plans.attention_table(results) in plans.GUIDE.read_text()
    for command, found in results.items():
        on = command.split("--on ")[1].split()[0]
        assert found["job"]["place"].startswith(on)
    own = results["gptj plan gpt-j-6b --on v3-256 --mesh data=32,tensor=8"]
    assert own["fits"]
    assert own["compiled"]


def test_the_readme_has_a_place_for_every_module():
    map_ = (ROOT / "README.md").read_text().partition("## What is where")[2].partition("## ")[0]
    rooms = {path.name for path in (ROOT / "src/gptj").iterdir() if not path.name.startswith("_")}
    named = set(re.findall(r"`([a-z_]+)(?:\.py|/)`", map_))
    assert named == {name.removesuffix(".py") for name in rooms} - {"py.typed"}
