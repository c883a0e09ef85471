"""The page's files: what they may hold, how they are served, and what their functions compute."""

import re
from pathlib import Path

import gptj.serve

PAGE = Path(gptj.serve.__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
RISKY = r"\.(innerHTML|outerHTML|srcdoc)|insertAdjacentHTML|document\.write|\beval\(|new Function"


def test_nothing_can_become_markup_or_come_from_elsewhere():
    for file in PAGE.iterdir():
        text = file.read_text()
        assert text.count("\n") <= 400, file
        assert not re.search(RISKY, text), file
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg')", text), file
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", html)


def test_served_to_anyone_with_the_strict_policy(serve):
    with serve(keys="me secret") as found, found.http() as client:
        for file in PAGE.iterdir():
            answer = client.get("/" if file.name == "index.html" else f"/page/{file.name}")
            assert answer.status_code == 200, file
            assert answer.headers["content-type"].startswith(TYPES[file.suffix])
            rules = dict(
                rule.strip().split(" ", 1)
                for rule in answer.headers["content-security-policy"].split(";")
            )
            own = {"script-src": "'self'", "style-src": "'self'", "connect-src": "'self'"}
            none = dict.fromkeys(
                ("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'"
            )
            assert rules == {**own, **none, "img-src": "'self' data:"}
        assert client.get("/v1/models").status_code == 401


def call(tab, module, body, *values):
    """What some JavaScript gives back: `it` is a module of the page, `values` are the values."""
    script = f"async ([path, values]) => {{ const it = await import(path); {body} }}"
    return tab.page.evaluate(script, [f"/page/{module}.js", list(values)])


def test_tokens_find_their_text(visit):
    """Characters of several tokens, bytes that are none, text that comes late or is cut off."""
    tab = visit()
    place = """
      const [chunks, ended] = values;
      const placer = new it.Placer(0, 1);
      let text = "";
      let placed = [];
      chunks.forEach(([pieces, more], i) => {
        placer.add(pieces.map((piece) => ({ piece, logprob: -1, top: [] })));
        text += more;
        placed = placer.place(text, ended && i === chunks.length - 1);
      });
      return placed.map((it) => [text.slice(it.start, it.end), it.parts, it.logprob]);
    """

    def placed(*chunks, ended=True):
        return call(tab, "text", place, list(chunks), ended)

    byte = r"bytes:\x{:02x}".format
    goose = [byte(each) for each in "🪿".encode()]
    assert placed([["a", " b"], "a b"]) == [["a", 1, -1], [" b", 1, -1]]
    assert placed([[*goose, "!"], "🪿!"]) == [["🪿", 4, -4], ["!", 1, -1]]
    assert placed([goose[:2], ""], [[*goose[2:], "x"], "🪿x"]) == [["🪿", 4, -4], ["x", 1, -1]]
    assert placed([[byte(0xFF), "a"], "\ufffda"]) == [["\ufffd", 1, -1], ["a", 1, -1]]
    assert placed([[byte(0xF0), "a"], "\ufffda"]) == [["\ufffda", 2, -2]]
    assert placed([["a", byte(0xE2)], "a"], [[], "\ufffd"]) == [["a", 1, -1], ["\ufffd", 1, -1]]
    halves = ["a", byte(0xF0), byte(0xF1)]
    assert placed([halves, "a"], [[], "\ufffd\ufffd"]) == [["a", 1, -1], ["\ufffd\ufffd", 2, -2]]
    assert placed([["a", "en", "d"], "a"]) == [["a", 1, -1]]
    assert placed([["a", "en"], "a"], [["x"], "enx"], ended=False) == [
        ["a", 1, -1], ["en", 1, -1], ["x", 1, -1],
    ]  # fmt: skip
    assert placed([["a", "\r\n", "b"], "a\nb"]) == [["a", 1, -1], ["\n", 1, -1], ["b", 1, -1]]


def test_editing_leaves_the_other_tokens_what_they_are(visit):
    tab = visit()
    edit = """
      const [before, after, caret] = values;
      let at = 0;
      const tokens = before.map((text) => ({ start: at, end: (at += text.length) }));
      const body = it.edit({ text: before.join(""), tokens }, after, caret);
      return body.tokens.map((each) => after.slice(each.start, each.end) + (each.stale ? "*" : ""));
    """

    def edited(before, after, caret):
        return call(tab, "text", edit, before, after, caret)

    assert edited(["ab", "cd"], "abXcd", 3) == ["ab", "cd*"]
    assert edited(["ab", "cd"], "aXbcd", 2) == ["cd*"]
    assert edited(["aa", "aa"], "aaaaa", 3) == ["aa", "aa*"]
    assert edited(["aa", "aa"], "aaaaa", 1) == ["aa*", "aa*"]
    assert edited(["ab", "cd", "ef"], "abef", 2) == ["ab", "ef*"]
    assert edited(["ab", "🪿", "c"], "ab🦆c", 4) == ["ab", "c*"]
    assert edited(["ab", "cd"], "abcd!", 5) == ["ab", "cd"]
    assert edited(["ab", "cd"], "", 0) == []


def test_pieces_have_names_that_can_be_read_and_said(visit):
    tab = visit()

    def described(piece):
        return call(tab, "text", "return Object.values(it.describe(values[0]))", piece)

    assert described(" geese") == [" geese", "␣geese", "geese"]
    assert described("\n\n") == ["\n\n", "↵↵", "2 × new line"]
    assert described("<b>") == ["<b>", "<b>", "<b>"]
    assert described("<|endoftext|>") == ["", "end of text", "end of text"]
    assert described(r"bytes:\xf0\x9f")[:2] == [None, "0x f0 9f"]
    assert described("\r")[0] is None


def test_probabilities_are_rounded_honestly(visit):
    tab = visit()

    def percent(value):
        return call(tab, "text", "return it.percent(values[0])", value)

    shown = {0.5: "50.0 %", 0.00996: "1.0 %", 0.004: "0.40 %", 1e-9: "< 0.01 %", 1: "100 %"}
    assert {value: percent(value) for value in shown} == shown
    assert percent(0.9996) == "> 99.9 %"
