"""Looking at tokens, and branching from what else could have come."""

import json
import re


def alternatives(answer, begin):
    """What the server said could have come, by the place in the text."""
    found = {}
    for event in re.findall(r"^data: (\{.*)$", answer.text(), re.MULTILINE):
        for choice in json.loads(event)["choices"]:
            logprobs = choice["logprobs"]
            for at, top in zip(logprobs["text_offset"], logprobs["top_logprobs"], strict=True):
                found.setdefault(begin + at, top)
    return found


def place_of(token):
    """Where a token's text begins, in characters."""
    return token.evaluate("""each => {
      let at = 0;
      while ((each = each.previousSibling)) at += [...each.textContent].length;
      return at;
    }""")


def test_hover_shows_what_else_could_have_come_and_a_click_branches(visit):
    tab = visit()
    with tab.page.expect_response("**/v1/completions") as answer:
        text = tab.draw("Once ", max_tokens=60, seed=5)
    token = tab.visible_token()
    start = place_of(token)
    tab.hover(token)
    top = sorted(alternatives(answer.value, 5)[start].items(), key=lambda item: -item[1])
    rows = tab.card.locator("li").all()
    assert len(rows) == len(top)
    for row, (piece, logprob) in zip(rows, top, strict=True):
        if piece.isalnum():
            assert row.locator(".piece").inner_text() == piece
        shown = float(row.locator(".chance").inner_text().removesuffix(" %"))
        assert abs(shown - 100 * 2.718281828459045**logprob) < 0.06
    assert text[start] in tab.page.locator("#card-token").inner_text()
    choice = tab.card.locator("button:enabled").filter(has_not_text="end of text").first
    choice.click()
    tab.expect(tab.card).to_be_hidden()
    branched = tab.drew()
    assert branched[:start] == text[:start]
    assert branched[start] != text[start]
    tab.area.press("Control+z")
    tab.expect(tab.area).to_have_value(text)


def test_the_pointer_may_travel_to_the_card(visit):
    tab = visit()
    tab.draw("Once ", max_tokens=60, seed=5)
    token = tab.visible_token()
    tab.hover(token)
    said = tab.page.locator("#card-token").inner_text()
    box = tab.card.bounding_box()
    tab.page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2, steps=12)
    tab.page.wait_for_timeout(500)
    tab.expect(tab.card).to_be_visible()
    assert tab.page.locator("#card-token").inner_text() == said
    tab.page.mouse.move(2, 2)
    tab.expect(tab.card).to_be_hidden()


def test_by_keyboard_alone(visit):
    tab = visit()
    text = tab.draw("Once ", max_tokens=30, seed=9)
    press = tab.page.keyboard.press
    tab.area.press("Control+Home")
    press("Alt+ArrowDown")
    tab.expect(tab.card).to_be_hidden()
    for _ in "Once ":
        press("ArrowRight")
    press("Alt+ArrowDown")
    tab.expect(tab.card).to_be_visible()
    first = tab.page.locator("#card-chance").inner_text()
    press("ArrowRight")
    press("ArrowLeft")
    assert tab.page.locator("#card-chance").inner_text() == first
    press("ArrowDown")
    press("Escape")
    tab.expect(tab.card).to_be_hidden()
    tab.expect(tab.area).to_be_focused()
    press("Alt+ArrowDown")
    chosen = tab.page.locator("#card button:focus .piece").inner_text()
    press("Enter")
    tab.expect(tab.area).not_to_have_value(text)
    branched = tab.drew()
    assert branched.startswith("Once ")
    assert len(chosen) > 1 or branched[5] == chosen
    tab.page.set_viewport_size({"width": 390, "height": 500})
    press("Control+/")
    tab.expect(tab.page.locator("#help")).to_be_visible()
    assert tab.page.locator("#help").evaluate("each => each.scrollTop") == 0
    press("Escape")
    tab.expect(tab.page.locator("#help")).to_be_hidden()


def test_by_touch_and_in_a_sample(visit):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    tab = visit("#n=2&max_tokens=40&seed=4&text=Once", **phone)
    tab.button("Generate").tap()
    tab.drew()
    sample = tab.panes.nth(1)
    token = sample.locator(".token").filter(has_text=re.compile(r"^[!-~]$")).nth(1)
    before = sample.locator("textarea").input_value()
    start = place_of(token)
    token.scroll_into_view_if_needed()
    box = token.bounding_box()
    tab.page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.expect(tab.card).to_be_visible()
    tab.card.locator("button:enabled").filter(has_not_text="end of text").first.tap()
    tab.expect(sample.locator("textarea")).not_to_have_value(before)
    tab.drew()
    assert sample.locator("textarea").input_value()[:start] == before[:start]
    assert tab.text == "Once"


def test_an_edit_says_that_what_follows_is_stale(visit):
    tab = visit()
    tab.draw("Once ", max_tokens=40, seed=5)
    tab.area.press("Control+Home")
    tab.area.press_sequentially("X")
    tab.hover(tab.visible_token())
    tab.expect(tab.card).to_contain_text("The text before it has changed since.")


def test_tints_can_be_switched_off(visit):
    tab = visit()
    tab.draw("Once ", max_tokens=20, seed=5)
    tab.button("Probabilities").click()
    token = tab.tokens.first
    assert token.evaluate("each => getComputedStyle(each).backgroundColor") == "rgba(0, 0, 0, 0)"
    again = visit(context=tab.page.context)
    tab.expect(again.button("Probabilities")).to_have_attribute("aria-pressed", "false")
