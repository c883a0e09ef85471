"""Writing, drawing, stopping, going back."""

import json
import re
import time

import pytest

GEESE = "The geese 🪿 said: "


@pytest.fixture
def slow(served, monkeypatch):
    """A server whose tokens take their time."""
    engine = served.service.worker.engine
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.1), step())[1])


def test_what_is_streamed_is_what_the_engine_writes(visit, served):
    tab = visit()
    text = tab.draw(GEESE, max_tokens=60, seed=7)
    [own] = served.own(GEESE, max_tokens=60, seed=7, top_p=0.9, logprobs=5)
    # A textarea holds no carriage returns.
    assert text == GEESE + own.text.replace("\r", "")
    shown = tab.tokens.evaluate_all("all => all.map(each => each.textContent).join('')")
    assert GEESE + shown == text
    tab.expect(tab.status).to_have_text("Drew 60 tokens, the full length.")
    tab.expect(tab.page.locator("#facts")).to_have_text(
        re.compile(r"^[\d.]+ tokens/s · first after [\d.]+ m?s · seed 7$")
    )
    tab.expect(tab.page.locator("#count")).to_have_text(re.compile(r"^\d+ / 128 tokens$"))


def test_tints_lie_under_the_text_they_belong_to(visit):
    """The textarea's own idea of where each character is, against the mirror's."""
    tab = visit()
    tab.draw("fi AVAVA To\tx\n\n" + "word " * 9 + "x" * 30 + "\n\n", max_tokens=24, seed=3)
    for _ in ("prose", "monospace"):
        wrong, right = tab.check("displaced")
        assert not wrong
        assert right > 80
        tab.button("Monospace").click()


def test_a_line_breaks_where_it_does_in_one_piece(visit):
    """Of many tokens, whose widths a browser rounds one by one."""
    tab = visit()
    tab.draw("Once ", max_tokens=100, seed=3)
    assert tab.tokens.count() > 60
    assert abs(tab.check("stretched")) < 0.15


@pytest.mark.parametrize("how", ["key", "button", "typing"])
def test_stop(visit, served, slow, how):
    tab = visit()
    tab.area.fill("Once")
    tab.set(max_tokens=100)
    tab.area.press("Control+Enter")
    tab.expect(tab.tokens.nth(3)).to_be_attached()
    if how == "key":
        tab.page.keyboard.press("Escape")
    elif how == "button":
        tab.button("Stop").click()
    else:
        tab.area.press_sequentially("!")
    tab.expect(tab.status).to_contain_text("Stopped after")
    text = tab.text
    assert text.startswith("Once")
    assert how != "typing" or "!" in text
    tab.page.wait_for_timeout(300)
    assert tab.text == text
    served.until(lambda: served.service.worker.running == 0)
    tab.expect(tab.button("Generate")).to_be_visible()


def test_retry_undo_and_redo_keep_what_was_drawn(visit):
    tab = visit()
    tab.expect(tab.button("Retry")).to_be_disabled()
    first = tab.draw("Once ", max_tokens=20)
    count = tab.tokens.count()
    tab.button("Retry").click()
    tab.expect(tab.area).not_to_have_value(first)
    second = tab.drew()
    tab.area.press("Control+z")
    tab.expect(tab.area).to_have_value(first)
    assert tab.tokens.count() == count
    tab.area.press("Control+Shift+z")
    tab.expect(tab.area).to_have_value(second)
    tab.button("Undo").click()
    # A change of the beginning leaves the retry what it is about.
    tab.area.press("Control+Home")
    tab.area.press_sequentially("At ")
    tab.expect(tab.area).to_have_value("At " + first)
    assert tab.tokens.count() == count
    tab.area.press("Control+Shift+Enter")
    tab.expect(tab.area).not_to_have_value("At " + first)
    assert tab.drew().startswith("At Once ")
    tab.area.press("Control+End")
    tab.area.press_sequentially("mine")
    tab.expect(tab.button("Retry")).to_be_disabled()


def test_typing_is_undone_in_stretches(visit):
    tab = visit()
    tab.area.press_sequentially("one ")
    tab.page.wait_for_timeout(1000)
    tab.area.press_sequentially("two")
    tab.area.press("Control+z")
    tab.expect(tab.area).to_have_value("one ")
    tab.area.press("Control+z")
    tab.expect(tab.area).to_have_value("")
    tab.area.press("Control+y")
    tab.area.press("Control+y")
    tab.expect(tab.area).to_have_value("one two")


def test_input_methods_and_pasting(visit, served):
    tab = visit()
    keyboard = tab.page.context.new_cdp_session(tab.page)
    tab.area.focus()
    for text in ("か", "かん", "漢"):
        compose = {"text": text, "selectionStart": len(text), "selectionEnd": len(text)}
        keyboard.send("Input.imeSetComposition", compose)
    keyboard.send("Input.insertText", {"text": "漢字"})
    tab.expect(tab.area).to_have_value("漢字")
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.page.evaluate("""() => navigator.clipboard.write([new ClipboardItem({
      'text/html': new Blob(['<b>bold</b>'], { type: 'text/html' }),
      'text/plain': new Blob(['🪿\\r\\nbold'], { type: 'text/plain' }),
    })])""")
    tab.area.press("Control+v")
    tab.expect(tab.area).to_have_value("漢字🪿\nbold")
    text = tab.draw(max_tokens=8, seed=1)
    [own] = served.own("漢字🪿\nbold", max_tokens=8, seed=1, top_p=0.9)
    assert text == "漢字🪿\nbold" + own.text.replace("\r", "")


def test_greedy_and_every_control_reach_the_server(visit):
    tab = visit()
    tab.page.get_by_label("Greedy").check()
    text = tab.draw("Once ", max_tokens=12)
    assert tab.draw("Once ") == text
    tab.page.get_by_label("p = 0.9").check()
    wanted = {
        "temperature": 0.7, "top_p": 0.8, "top_k": 9, "min_p": 0.02, "typical_p": 0.95,
        "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": -0.25,
        "seed": 11, "max_tokens": 5,
    }  # fmt: skip
    with tab.page.expect_request("**/v1/completions") as asked:
        tab.draw("Once ", **wanted, stop="zz\\n\nyy")
    body = json.loads(asked.value.post_data)
    assert wanted.items() <= body.items()
    assert body["stop"] == ["zz\n", "yy"]
    tab.expect(tab.page.get_by_label("Custom")).to_be_checked()
    for name in wanted:
        hint = tab.page.locator(f"#{name}").get_attribute("aria-describedby")
        assert len(tab.page.locator(f"#{hint}").inner_text()) > 20
    tab.button("Reset").click()
    tab.expect(tab.page.get_by_label("p = 0.9")).to_be_checked()


def test_a_seed_that_is_none_is_refused(visit):
    tab = visit()
    tab.area.fill("Once")
    tab.set(seed="12 geese")
    tab.area.press("Control+Enter")
    tab.expect(tab.error).to_contain_text("4294967295")
    tab.expect(tab.area).to_have_value("Once")


def test_examples_begin_a_text(visit):
    tab = visit()
    for name, said in {"Arithmetic": "Question", "Theorem": "Proof", "Badgers": "badgers",
                       "Code": "def ", "Geese": "geese"}.items():  # fmt: skip
        tab.button(name).click()
        assert said in tab.text
        tab.expect(tab.area).to_be_focused()
        assert tab.button("Monospace").get_attribute("aria-pressed") == str(name == "Code").lower()


def test_samples_side_by_side(visit):
    tab = visit()
    tab.page.locator("#samples-wanted").get_by_label("3").check()
    tab.draw("Once ", max_tokens=16)
    assert tab.text == "Once "
    tab.expect(tab.panes).to_have_count(3)
    left = [pane.bounding_box()["x"] for pane in tab.panes.all()]
    assert left == sorted(set(left))
    areas = [pane.locator("textarea") for pane in tab.panes.all()]
    texts = [area.input_value() for area in areas]
    assert len(set(texts)) == 3
    areas[1].press("Control+Enter")  # goes on from that sample
    tab.expect(tab.status).to_contain_text("Drew 16 tokens")
    longer = areas[1].input_value()
    assert longer.startswith(texts[1])
    assert areas[0].input_value() == texts[0]
    tab.button("Keep sample 2").click()
    tab.expect(tab.area).to_have_value("Once " + longer)
    tab.expect(tab.panes).to_have_count(0)
    tab.area.press("Control+z")
    tab.expect(tab.panes).to_have_count(3)
    tab.button("Retry").click()
    tab.expect(tab.status).to_contain_text("Drew 48 tokens")


def test_samples_leave_the_end_that_they_go_on_from_in_view(visit):
    tab = visit()
    tab.page.locator("#samples-wanted").get_by_label("2").check()
    tab.draw("line\n" * 18 + "Once ", max_tokens=4)
    below = tab.page.locator("#text").evaluate(
        "each => each.scrollHeight - each.clientHeight - each.scrollTop"
    )
    assert tab.page.locator("#text").evaluate("each => each.scrollTop") > 0
    assert abs(below) < 2
