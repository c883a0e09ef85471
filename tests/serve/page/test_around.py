"""The link, the theme, the key, and what goes wrong."""

import json
import re
from urllib.parse import quote

import pytest

NASTY = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


def test_the_link_tells_everything(visit):
    tab = visit()
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    text = tab.draw("Geese 🪿\n", max_tokens=30, temperature=1.5, stop="\\n\\n")
    tab.button("Monospace").click()
    tab.button("Copy link").click()
    tab.expect(tab.status).to_contain_text("copied")
    link = tab.page.evaluate("navigator.clipboard.readText()")
    tints = tab.tokens.evaluate_all("all => all.map(each => each.className + each.textContent)")
    other = visit(link[link.index("#") :])
    tab.expect(other.area).to_have_value(text)
    again = other.tokens.evaluate_all("all => all.map(each => each.className + each.textContent)")
    assert again == tints
    tab.expect(other.page.locator("#temperature")).to_have_value("1.5")
    tab.expect(other.page.locator("#stop")).to_have_value("\\n\\n")
    tab.expect(other.button("Monospace")).to_have_attribute("aria-pressed", "true")
    other.hover(other.visible_token(0))
    assert other.card.locator("li").count() >= 5
    other.page.mouse.move(2, 2)
    other.button("Retry").click()
    tab.expect(other.area).not_to_have_value(text)
    assert other.drew().startswith("Geese 🪿\n")


def test_the_address_follows_and_a_reload_finds_it(visit):
    tab = visit()
    tab.page.locator("#samples-wanted").get_by_label("2").check()
    tab.draw("Once", max_tokens=8)
    samples = [pane.locator("textarea").input_value() for pane in tab.panes.all()]
    tab.expect(tab.page).to_have_url(re.compile("#text=Once&max_tokens=8&n=2&drawn="))
    tab.page.reload()
    tab.expect(tab.panes).to_have_count(2)
    assert [pane.locator("textarea").input_value() for pane in tab.panes.all()] == samples
    tab.page.evaluate("location.hash = '#text=other'")
    tab.expect(tab.area).to_have_value("other")
    tab.expect(tab.panes).to_have_count(0)


@pytest.mark.parametrize(
    "fragment",
    [
        "#text=Once&drawn=garbage",
        "#text=Once&drawn=q1ZKLVKyUkpU0lFKBNJJSrUA&temperature=warm&n=99&seed=-1&top_p=7",
        "#%%%&text=Once&=&drawn=",
    ],
)
def test_links_that_are_broken_still_have_their_text(visit, fragment):
    tab = visit(fragment)
    tab.expect(tab.area).to_have_value("Once")
    assert tab.draw(max_tokens=4).startswith("Once")


def test_nothing_is_taken_for_html(visit):
    """A text, a link and a model that try."""
    tab = visit("#text=" + quote(NASTY))
    tab.expect(tab.area).to_have_value(NASTY)
    piece = {
        "tokens": [NASTY],
        "token_logprobs": [-1.0],
        "top_logprobs": [{NASTY: -1.0, "<b>": -2}],
    }
    choice = {"index": 0, "text": NASTY, "logprobs": piece, "finish_reason": "stop"}
    body = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n"
    tab.answers(body=body)
    assert tab.draw() == NASTY * 2
    tab.hover(tab.tokens.last)
    assert "<b>" in tab.card.inner_text()
    assert tab.page.locator("img, main script, #card script, b").count() == 0
    assert tab.page.title() == "gptj playground"


def test_theme_follows_the_system_until_it_is_chosen(visit):
    def paper(tab):
        return tab.page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = visit(color_scheme="light")
    dark = visit(color_scheme="dark")
    assert paper(light) != paper(dark)
    dark.button("Switch to light theme").click()
    assert paper(dark) == paper(light)
    again = visit(context=dark.page.context)
    assert paper(again) == paper(light)
    again.button("Switch to dark theme").click()
    assert paper(again) != paper(light)


def test_without_storage_it_works_all_the_same(visit, browser):
    context = browser.new_context()
    context.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage'])"
        "Object.defineProperty(window, name, { get() { throw new DOMException('no') } })"
    )
    tab = visit(context=context)
    tab.button("Switch to dark theme").click()
    tab.button("Probabilities").click()
    assert tab.draw("Once", max_tokens=4).startswith("Once")
    context.close()


def test_a_key_is_asked_for_and_never_in_the_link(visit, serve):
    with serve(keys="me secret") as found:
        tab = visit(url=found.url, refused=(401,))
        dialog = tab.page.locator("#key-dialog")
        tab.expect(dialog).to_be_visible()
        tab.page.get_by_label("API key").fill("wrong")
        tab.page.keyboard.press("Enter")
        tab.expect(dialog).to_contain_text("is not known there")
        tab.page.get_by_label("API key").fill("secret")
        tab.button("Use it").click()
        tab.expect(tab.page.locator("#model")).to_have_text("tiny")
        assert tab.draw("Once", max_tokens=4).startswith("Once")
        tab.page.reload()
        tab.expect(tab.page.locator("#model")).to_have_text("tiny")
        assert "secret" not in tab.page.url


def test_refusals_are_told_and_nothing_is_lost(visit):
    tab = visit(refused=(400, 429, 503))
    tab.area.fill("word " * 60)
    tab.area.press("Control+Enter")
    tab.expect(tab.error).to_contain_text("128")
    tab.expect(tab.area).to_have_value("word " * 60)
    for status, headers, message, said in [
        (429, {"retry-after": "7"}, "full", "Full. Try again in 7 s."),
        (503, {}, "full", "Full. Try again in a moment."),
        (
            429,
            {"retry-after": "9"},
            "full: try again in 9 seconds",
            "Full: try again in 9 seconds.",
        ),
    ]:
        body = json.dumps({"error": {"message": message}})
        tab.answers(status=status, headers=headers, body=body)
        tab.area.press("Control+Enter")
        tab.expect(tab.error).to_have_text(said)
    tab.page.unroute("**/v1/completions")
    assert tab.draw("Once", max_tokens=4).startswith("Once")
    tab.expect(tab.error).to_have_text("")


def test_a_stream_that_breaks_keeps_what_came(visit):
    tab = visit()
    logprobs = {"tokens": [" and"], "token_logprobs": [-1.0], "top_logprobs": [{" and": -1.0}]}
    choice = {"index": 0, "text": " and", "logprobs": logprobs, "finish_reason": None}
    begin = f"data: {json.dumps({'choices': [choice]})}\n\n"
    broken = begin + 'data: {"error": {"message": "the server stops"}}\n\n'
    for body, said in ((begin, "connection was lost"), (broken, "The server stops.")):
        tab.answers(body=body)
        tab.area.fill("Once")
        tab.area.press("Control+Enter")
        tab.expect(tab.error).to_contain_text(said)
        tab.expect(tab.area).to_have_value("Once and")
