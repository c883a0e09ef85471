"""For everyone: labels, contrast, focus, targets, small windows; and pictures of it all.

The pictures, under build/screenshots/, show text that the test makes up, as a good model might
write it: that of the test's tiny model is noise.
"""

import json
import math
import random
import re
from urllib.parse import quote

import pytest

SMALLEST_CONTRAST = 4.5
SMALLEST_TARGET = 44
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}

STORIES = (
    " They had packed umbrellas, a kettle and three small suitcases tied with string, and they"
    " stood on the quay in a row, waiting for somebody to tell them where the hotel was.\n\n"
    '"It is closed for the winter," said the harbour master.\n\n'
    '"So are we," said the oldest goose, and set down her bag.',
    " Nobody in the town knew what was in the trunks, and nobody liked to ask. The baker said it"
    " was feathers. The priest said it was letters from the north. Only the children went down to"
    " the water to look, and what they saw there they kept to themselves until the spring.",
    " The mayor met them at the pier with a brass band, because the letter had said to expect"
    " visitors of importance. The geese listened politely to two marches and half of an anthem."
    " Then they went inland, in single file, to inspect the fields.",
)
WORDS = " the| a| and| some| it| they| water| hotel| winter| letters| to| of|,|.| old| grey"


def made_up(index, text):
    """An event with log-probabilities, as the server sends them."""
    draw, words = random.Random(text), WORDS.split("|")
    tokens = re.findall(r" ?\w+|[^\w]", text)
    chances = [min(0.98, draw.betavariate(1.1, 0.9) + 0.01) for _ in tokens]
    tops = []
    for token, chance in zip(tokens, chances, strict=True):
        others = draw.sample([word for word in words if word != token], 4)
        rest, top = 1 - chance, {token: chance}
        for other in others:
            top[other] = rest * draw.uniform(0.2, 0.6)
            rest -= top[other]
        tops.append({token: math.log(each) for token, each in top.items()})
    logprobs = {
        "tokens": tokens,
        "token_logprobs": list(map(math.log, chances)),
        "top_logprobs": tops,
        "text_offset": [0] * len(tokens),
    }
    choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": "length"}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


@pytest.fixture
def composed(visit):
    """The page with a story in it: one, or several side by side."""

    def start(samples=1, **options):
        tab = visit(**options)
        body = "".join(made_up(i, STORIES[i]) for i in range(samples)) + "data: [DONE]\n\n"
        tab.answers(body=body)
        if samples > 1:
            tab.page.evaluate(f"location.hash = '#n={samples}'")
            tab.expect(tab.page.locator(f"input[name=n][value='{samples}']")).to_be_checked()
        tab.button("Geese").click()
        tab.button("Generate").click()
        tab.drew()
        return tab

    return start


# --- the state of the page in which each is looked at ------------------------------------------


def with_card(tab):
    tab.hover(tab.tokens.filter(has_text="umbrellas"))


def with_help(tab):
    tab.button("Help and keyboard shortcuts").click()


def with_more(tab):
    tab.page.locator("summary").click()


def with_error(tab):
    tab.answers(status=400, body=json.dumps({"error": {"message": "no"}}))
    tab.button("Generate").click()
    tab.expect(tab.error).to_have_text("No.")


def with_settings(tab):
    tab.button("Settings").click()
    tab.page.locator("summary").click()


STATES = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "samples": {"samples": 3},
    "samples-dark": {"samples": 3, "color_scheme": "dark"},
    "card": {"then": with_card},
    "card-dark": {"color_scheme": "dark", "then": with_card},
    "help": {"then": with_help},
    "more-dark": {"color_scheme": "dark", "then": with_more},
    "error": {"then": with_error, "refused": (400,)},
    "phone": PHONE,
    "phone-dark": {**PHONE, "color_scheme": "dark"},
    "phone-samples": {**PHONE, "samples": 2},
    "phone-settings": {**PHONE, "then": with_settings},
}


@pytest.fixture
def state(composed, request):
    options = dict(STATES[request.param])
    then = options.pop("then", None)
    tab = composed(**options)
    if then:
        then(tab)
    tab.shot(request.param)
    return tab


every_state = pytest.mark.parametrize("state", STATES, indirect=True)


@every_state
def test_names_contrast_and_what_axe_finds(state):
    faint, checked = state.check("faint", SMALLEST_CONTRAST)
    assert not faint
    assert checked > 40
    assert not state.check("nameless")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(state.page).response["violations"]
    assert not [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]


def test_landmarks_and_what_is_announced(composed):
    tab = composed()
    for role in ("banner", "main", "complementary"):
        tab.expect(tab.page.get_by_role(role)).to_have_count(1)
    tab.expect(tab.page.get_by_role("heading", level=1)).to_have_count(1)
    # The status is said aloud, and is not where tokens or their count go by.
    live = tab.page.locator("[aria-live], [role=status], [role=alert]")
    assert live.evaluate_all("all => all.map(each => each.id)") == ["status", "error"]


def test_focus_goes_everywhere_and_is_seen(composed):
    tab = composed(samples=2)
    tab.area.focus()
    seen = {}
    for _ in range(60):
        name, marked = tab.check("focused")
        seen[name] = marked
        tab.page.keyboard.press("Tab")
    assert [name for name, marked in seen.items() if not marked] == []
    reached = {"mono", "tints", "go", "retry", "undo", "mode", "n", "max_tokens", "temperature",
               "share", "help-open", "theme", "Arithmetic", "Keep", "More controls"}  # fmt: skip
    assert reached <= seen.keys()


def test_motion_is_left_out_where_it_is_not_wanted(visit):
    tab = visit()
    moving = "all => all.some(each => getComputedStyle(each).transitionDuration !== '0s')"
    assert not tab.page.locator("*").evaluate_all(moving)
    lively = visit(reduced_motion="no-preference")
    assert lively.page.locator("*").evaluate_all(moving)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("window", [PHONE, {}], ids=["phone", "desktop"])
def test_what_is_drawn_is_seen_without_scrolling(visit, window, samples):
    text = quote(STORIES[0] * 6)
    tab = visit(f"#text={text}&n={samples}", **window)
    body = "".join(made_up(i, STORIES[i % 3]) for i in range(samples)) + "data: [DONE]\n\n"
    tab.answers(body=body)
    tab.button("Generate").click()
    tab.drew()
    drawn = tab.tokens if samples == 1 else tab.panes.first.locator(".token")
    for token in (drawn.first, drawn.nth(20)):
        tab.expect(token).to_be_in_viewport()
    if samples == 2 and window:
        tab.shot("phone-long")


@pytest.mark.parametrize("state", ["phone", "phone-samples", "phone-settings"], indirect=True)
def test_fingers_find_their_targets(state):
    assert not state.check("cramped", SMALLEST_TARGET)


@pytest.mark.parametrize(("width", "height"), [(320, 568), (390, 844), (820, 1180), (1280, 720)])
def test_nothing_sticks_out_of_a_small_window(composed, width, height):
    tab = composed(viewport={"width": width, "height": height})
    root = "document.scrollingElement"
    assert tab.page.evaluate(
        f"{root}.scrollWidth <= innerWidth && {root}.scrollHeight <= innerHeight"
    )
    for name in ("Generate", "Retry", "Help and keyboard shortcuts"):
        tab.expect(tab.button(name)).to_be_in_viewport(ratio=1)
    assert tab.area.evaluate("each => each.closest('.frame').clientHeight") > height / 4
