"""Documentation that is made from the program is what the program says today."""

import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def program(path):
    """A program outside the package, as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current():
    build = program(ROOT / "docs" / "build.py")
    is_current = build.REFERENCE.read_text() == build.reference()
    assert is_current, "run `make docs`"  # and not both pages, line by line


def test_the_table_of_what_fits_is_what_is_planned():
    build = program(ROOT / "docs" / "build.py")
    guide = build.FINETUNE.read_text()
    is_current = guide == build.with_fitting(guide)
    assert is_current, "run `make docs`"
    assert build.needs(build.WAYS["QLoRA, nf4"], 1) < 8e9


def test_every_link_of_the_documents_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_is_finished():
    assert "@@" not in (ROOT / "README.md").read_text()


def test_the_example_of_generating_runs(tiny_run, capsys):
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "engine.md").read_text(), re.DOTALL
    )
    exec(block.replace("runs/demo", str(tiny_run)), {})
    assert capsys.readouterr().out


def test_the_table_of_fewer_bits_is_what_was_measured():
    kinds = json.loads((ROOT / "benchmarks/results/quantisation.json").read_text())["kinds"]
    page = (ROOT / "docs/engine.md").read_text()
    for kind, found in kinds.items():
        numbers = f"{found['perplexity']:.2f} | {found['kl']:.1e} | {100 * found['agrees']:.1f} %"
        assert f"| {kind} | {numbers} |" in page


def test_the_table_of_plans_is_what_its_commands_found():
    plans = program(ROOT / "benchmarks" / "plan_table.py")
    results = json.loads(plans.RESULTS.read_text())
    assert list(results) == [*plans.COMMANDS, plans.SAVING]
    assert plans.table(results) in plans.GUIDE.read_text()
    for command, found in results.items():
        on = command.split("--on ")[1].split()[0]
        assert found["job"]["place"].startswith(on)
    own = results["gptj plan gpt-j-6b --on v3-256 --mesh data=32,tensor=8"]
    assert own["fits"]
    assert own["compiled"]


def test_the_guide_to_planning_is_finished():
    assert "@@" not in (ROOT / "docs" / "planning.md").read_text()
