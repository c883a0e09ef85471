"""The site: every page has its place, every link an end, and nothing is fetched from elsewhere."""

import importlib.util
import re
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FETCHED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href"}
"""What a browser gets by itself, and the attribute that says from where."""


def pages(nav) -> list[str]:
    """The files of a tree of pages."""
    if isinstance(nav, str):
        return [nav]
    return [
        page for each in (nav.values() if isinstance(nav, dict) else nav) for page in pages(each)
    ]


def program(path):
    """A program outside the package, as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = program(DOCS / "website.py")


class Read(HTMLParser):
    """What a page fetches, where it leads, and which places in it have names."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.fetched, self.links, self.names = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}
        if found.get(FETCHED.get(tag)):
            self.fetched.append(found[FETCHED[tag]])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("needs zensical, which the lock of the tests has")
    return SITE.build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def read(site) -> dict[Path, Read]:
    return {page: Read(page) for page in site.rglob("*.html")}


def test_every_page_has_its_place_and_every_place_its_page():
    nav = pages(tomllib.loads(SITE.CONFIG.read_text())["project"]["nav"])
    there = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert sorted(nav) == sorted([*there, *SITE.ELSEWHERE.values()])


def test_links_lead_where_things_are_on_the_site(tmp_path):
    page = SITE.turned(DOCS / "engine.md", tmp_path)
    assert "](files/benchmarks/results/speculate.json)" in page
    assert (tmp_path / "files/benchmarks/results/speculate.json").exists()
    assert "](decisions.md)" in SITE.turned(ROOT / "CONTRIBUTING.md", tmp_path)
    assert "../benchmarks/results)" not in SITE.turned(DOCS / "lab.md", tmp_path)  # a folder


def test_a_link_to_no_place_ends_the_build(tmp_path, monkeypatch):
    pytest.importorskip("zensical")
    monkeypatch.setattr(SITE, "turned", lambda page, into: "[nowhere](data.md#no-such-place)")
    with pytest.raises(SystemExit, match="does not exist"):
        SITE.build(tmp_path)


def test_every_link_has_an_end(site, read):
    for page, found in read.items():
        for target in [*found.links, *found.fetched]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            place = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            place = place / "index.html" if place.is_dir() else place
            assert place.is_file(), f"{page.name}: {target}"
            if parts.fragment and place in read:
                assert unquote(parts.fragment) in read[place].names, f"{page.name}: {target}"


def test_nothing_is_fetched_from_elsewhere(site, read):
    assert len(read) > 20
    for page, found in read.items():
        foreign = [each for each in found.fetched if urlsplit(each).netloc]
        assert not foreign, page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text()), sheet


@pytest.fixture
def tab():
    """A page of a browser, of the width of a phone."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 390, "height": 844})
        browser.close()


def test_a_page_opened_as_a_file_finds_what_is_searched(site, tab):
    asked, wrong = [], []
    tab.set_viewport_size({"width": 1280, "height": 720})
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else 0)
    tab.goto((site / "index.html").as_uri())
    tab.keyboard.press("/")
    tab.keyboard.type("quantise")
    tab.locator("a[href*='quantise.html']:visible").first.wait_for(timeout=10_000)
    assert tab.locator("input:focus").input_value() == "quantise"
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert not wrong


@pytest.mark.parametrize("page", ["finetune", "troubleshoot", "migrate/trainers"])
def test_on_a_phone_words_of_code_stay_whole_and_the_page_is_no_wider(site, tab, page):
    tab.goto((site / f"{page}.html").as_uri())
    words = tab.locator(".word").evaluate_all(
        "words => words.map((word) => [word.textContent, word.getClientRects().length])"
    )
    assert len(words) > 20
    assert [word for word, lines in words if lines > 1] == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
