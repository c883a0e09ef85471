"""Build the site of the documentation, which needs no network to be read: build/docs/site.

make docs
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILD = ROOT / "build"
CONFIG = DOCS / "zensical.toml"

ELSEWHERE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the site that do not lie in docs/, and their names there."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()#\s]+)(#[^()\s]*)?\)")


def stage(into: Path) -> None:
    """Lay out the pages, and what they link to, as the site has them."""
    shutil.rmtree(into, ignore_errors=True)
    pages = [*DOCS.rglob("*.md"), *(ROOT / name for name in ELSEWHERE)]
    for page in (DOCS / "site.css", DOCS / "site.js"):
        copied(page, into)
    for page in pages:
        place = into / on_site(page)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(turned(page, into))


def on_site(path: Path) -> Path:
    """Where a file of the repository is on the site."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS)
    name = path.relative_to(ROOT)
    return Path(ELSEWHERE.get(str(name), Path("files") / name))


def turned(page: Path, into: Path) -> str:
    """A page whose links lead to where things are on the site; files that it names are copied.

    A link to a folder becomes its text: a site has no folders to look into.
    """
    start = on_site(page).parent

    def link(found: re.Match[str]) -> str:
        mark, text, target, anchor = found.groups("")
        path = (page.parent / target).resolve()
        if "://" in target or not path.is_relative_to(ROOT):
            return found[0]
        if path.is_dir():
            return text
        if path.suffix != ".md" and path.exists():
            copied(path, into)
        return f"{mark}[{text}]({os.path.relpath(on_site(path), start)}{anchor})"

    return LINK.sub(link, page.read_text())


def copied(path: Path, into: Path) -> None:
    """A file as it is, where the site has it."""
    place = into / on_site(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


def build(where: Path = BUILD / "docs") -> Path:
    """Write the site, and refuse a link that leads nowhere; returns its folder."""
    stage(where / "docs")
    shutil.copyfile(CONFIG, where / CONFIG.name)
    shutil.rmtree(where / "site", ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", CONFIG.name]
    found = subprocess.run(command, cwd=where, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"{found.stdout}{found.stderr}")
    site = where / "site"
    # Pages that are opened as files may fetch nothing, so there the search reads its index as this.
    (site / "search.js").write_text(f"var __index = {(site / 'search.json').read_text()};")
    return site


if __name__ == "__main__":
    print(f"wrote {(build() / 'index.html').relative_to(Path.cwd())}")
