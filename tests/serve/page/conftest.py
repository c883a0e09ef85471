"""The page in a real browser, on a real server of a tiny model."""

import dataclasses
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from gptj.tokenizer import Tokenizer

WANTED = ("fastapi", "uvicorn", "prometheus_client", "httpx", "llguidance")
collect_ignore_glob = [] if all(map(find_spec, WANTED)) else ["test_*.py"]

ROOT = Path(__file__).parents[3]
CHECKS = Path(__file__).with_name("checks.js").read_text()
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 20_000


@pytest.fixture(scope="package")
def served(params, serve):
    """A server of a model that never ends a text by chance: the length is what was asked for."""
    bias = params.output_bias.at[Tokenizer.bytes().eos_id].set(-30.0)
    with serve(weights=dataclasses.replace(params, output_bias=bias)) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    """One for each file: while Playwright runs, no other loop of asyncio may in this thread."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
    playwright.expect.set_options(timeout=WAIT_MS)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """The page in one tab, and what one does with it."""

    def __init__(self, page):
        from playwright.sync_api import expect

        self.page, self.expect = page, expect
        self.area, self.tokens = page.locator("#text textarea"), page.locator("#text .token")
        self.status, self.error = page.locator("#status"), page.locator("#error")
        self.card, self.panes = page.locator("#card"), page.locator(".sample:visible")

    @property
    def text(self):
        """What is written, a model's part with a person's."""
        return self.area.input_value()

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def set(self, **settings):
        """Type values into settings."""
        for name, value in settings.items():
            field = self.page.locator(f"#{name}")
            field.evaluate("each => each.closest('details')?.setAttribute('open', '')")
            field.fill(str(value))

    def drew(self):
        """Wait for the end."""
        self.expect(self.status).to_contain_text("Drew")
        return self.text

    def draw(self, text=None, **settings):
        """Write `text`, draw from it, and wait for the end."""
        if text is not None:
            self.area.fill(text)
        self.set(**settings)
        self.area.press("Control+Enter")
        return self.drew()

    def answers(self, **answer):
        """From now on completions are answered with this instead of by the server."""
        self.page.unroute("**/v1/completions")
        self.page.route("**/v1/completions", lambda route: route.fulfill(**answer))

    def hover(self, token):
        """Rest the pointer on a token."""
        self.page.mouse.move(2, 2)
        token.scroll_into_view_if_needed()
        x, y = token.evaluate("""each => {
          const [line] = each.getClientRects();
          return [line.x + line.width / 2, line.y + line.height / 2];
        }""")
        self.page.mouse.move(x, y)
        self.expect(self.card).to_be_visible()

    def visible_token(self, at=3):
        """A token that is wide enough to point at."""
        return self.tokens.filter(has_text=re.compile(r"^[!-~]$")).nth(at)

    def check(self, name, *values):
        """What a function of checks.js finds."""
        script = f"(values) => {{ const checks = {CHECKS} return checks.{name}(...values) }}"
        return self.page.evaluate(script, list(values))

    def shot(self, name):
        """Keep a picture for people to look at."""
        self.page.screenshot(path=ROOT / "build/screenshots" / f"{name}.png")


@pytest.fixture
def visit(browser, served):
    """Open the page, in a browser without a past unless one is given.

    Whatever the console says fails the test, but for the statuses that are to be `refused`.
    """
    opened, said = [], []

    def start(fragment="", url=None, context=None, refused=(), **options):
        if context is None:
            usual = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"}
            context = browser.new_context(**{**usual, **options})
            opened.append(context)
        expected = [f"responded with a status of {status} " for status in refused]

        def hear(line):
            if not any(each in line.text for each in expected):
                said.append(line.text)

        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", hear)
        page.goto(f"{url or served.url}/{fragment}")
        return Tab(page)

    yield start
    for context in opened:
        context.close()
    assert not said
