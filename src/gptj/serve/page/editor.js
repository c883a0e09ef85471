/** One editable text with what the model drew in it tinted.
 *
 * A plain textarea takes the typing, so that input methods, spelling, pasting and screen readers
 * work as they do anywhere. Behind it lies a mirror: the same text, invisible, in spans whose
 * backgrounds show each token's probability. Both fill one grid cell and the frame scrolls them
 * together, so they never part. */

import { element } from "./dom.js";
import { EMPTY, changedRange, edit, segments, tint } from "./text.js";

const NEAR_END = 48;

export class Editor {
  #marked = -1;

  /** `on` has `edit(body)`, called when a person changed the text, `beforeEdit()`, and `undo()`
   * and `redo()` for where the browser offers them: a menu, a shaken phone. */
  constructor(frame, label, on, placeholder = "") {
    this.frame = frame;
    this.body = EMPTY;
    this.mirror = element("div", { class: "mirror", "aria-hidden": "true" });
    this.area = element("textarea", {
      rows: 1, "aria-label": label, placeholder, spellcheck: "false", autocomplete: "off",
      autocapitalize: "off", autocorrect: "off",
    });
    frame.append(this.mirror, this.area);
    this.area.addEventListener("beforeinput", (event) => {
      const again = { historyUndo: on.undo, historyRedo: on.redo }[event.inputType];
      if (!again) return on.beforeEdit();
      event.preventDefault();
      again();
    });
    this.area.addEventListener("input", () => {
      this.body = edit(this.body, this.area.value, this.area.selectionEnd);
      this.#paint();
      on.edit(this.body);
    });
    this.#paint();
  }

  /** Show `body`; with `follow` its end stays in view if it was. */
  show(body, follow = false) {
    if (body === this.body) return;
    const before = this.body.text;
    this.body = body;
    const wasAtEnd = isAtEnd(this.frame);
    if (follow && body.text.startsWith(before)) {
      // Without a touch to the caret or the selection.
      const added = body.text.slice(before.length);
      this.area.setRangeText(added, before.length, before.length, "preserve");
    } else if (body.text !== before) {
      this.area.value = body.text;
      const end = body.text.length - before.length + changedRange(before, body.text, 0)[1];
      this.area.setSelectionRange(end, end);
    }
    this.#paint();
    if (follow && wasAtEnd) this.showEnd();
  }

  showEnd() {
    this.frame.scrollTop = this.frame.scrollHeight;
  }

  /** Spans are changed where they stand, so that streaming touches only the last few. */
  #paint() {
    const pieces = segments(this.body);
    const spans = this.mirror.childNodes;
    pieces.forEach(({ text, index }, i) => {
      const span = spans[i] ?? this.mirror.appendChild(element("span"));
      if (span.textContent !== text) span.textContent = text;
      span.token = index;
      const name = index < 0 ? "" : this.#classOf(index, text);
      if (span.className !== name) span.className = name;
    });
    while (spans.length > pieces.length) this.mirror.lastChild.remove();
    // A textarea has room for a caret after a last line break; so must the mirror.
    this.mirror.append(element("span", {}, "\u200b"));
    this.mirror.lastChild.token = -1;
  }

  /** The index of the token at a point of the window, or -1. */
  tokenAt(x, y) {
    for (const each of document.elementsFromPoint(x, y)) {
      if (each.parentNode === this.mirror) return each.token;
    }
    return -1;
  }

  /** The index of the token that the caret is in, or just behind, or -1. */
  tokenAtCaret() {
    const caret = this.area.selectionEnd;
    const inside = this.body.tokens.findIndex(({ start, end }) => start <= caret && caret < end);
    return inside >= 0 ? inside : this.body.tokens.findIndex(({ end }) => end === caret);
  }

  /** Where the token stands in the window; of a broken one the line at `y`, else its first. */
  place(index, y) {
    const lines = [...this.#span(index).getClientRects()];
    return lines.find(({ top, bottom }) => top <= y && y <= bottom) ?? lines[0];
  }

  /** Mark the token that is being looked at; -1 for none. */
  mark(index) {
    if (index === this.#marked) return;
    this.#span(this.#marked)?.classList.remove("current");
    this.#marked = index;
    this.#span(index)?.classList.add("current");
  }

  reveal(index) {
    this.#span(index).scrollIntoView({ block: "nearest" });
  }

  #span(index) {
    if (index < 0) return undefined;
    return [...this.mirror.childNodes].find((span) => span.token === index);
  }

  #classOf(index, text) {
    const { logprob } = this.body.tokens[index];
    const names = ["token"];
    if (logprob !== null) names.push(`p${tint(logprob)}`);
    if (text.includes("\n")) names.push("breaks");
    if (index === this.#marked) names.push("current");
    return names.join(" ");
  }
}

function isAtEnd(scroller) {
  return scroller.scrollHeight - scroller.clientHeight - scroller.scrollTop < NEAR_END;
}
