/** The small card about one token: how likely it was, and what else could have come.
 *
 * A pointer that rests on a token opens it in passing; a tap, or Alt+Down at the caret, opens it
 * to stay. Inside it the arrow keys go through the alternatives and along the text, Enter takes
 * one, Escape gives the caret back. */

import { byId, element } from "./dom.js";
import { describe, percent, visible } from "./text.js";

const OPEN_MS = 80;
const CLOSE_MS = 260;
const GAP = 6;

export class Card {
  #timer = 0;
  #pinned = false;

  /** `onBranch(editor, index, piece, logprob)` is told which alternative was taken. */
  constructor(onBranch) {
    this.root = byId("card");
    this.onBranch = onBranch;
    this.editor = null;
    this.index = -1;
    this.root.addEventListener("pointerenter", () => clearTimeout(this.#timer));
    this.root.addEventListener("pointerleave", () => this.#closeSoon());
    this.root.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("pointerdown", (event) => {
      if (this.isOpen && !this.root.contains(event.target)) this.close();
    });
    // It hangs on a place in the window, which moves away beneath it.
    document.addEventListener("scroll", () => this.#follow(), true);
    window.addEventListener("resize", () => this.#follow());
  }

  get isOpen() {
    return !this.root.hidden;
  }

  /** Let pointers find the tokens of `editor`. */
  watch(editor) {
    const { frame } = editor;
    frame.addEventListener("pointermove", (event) => {
      // A finger has no hover, and a pressed button is selecting.
      if (event.pointerType !== "touch" && event.buttons === 0) this.#hover(editor, event);
    });
    frame.addEventListener("pointerleave", () => this.#closeSoon());
    let pressedBy = "";
    frame.addEventListener("pointerdown", (event) => {
      pressedBy = event.pointerType;
    });
    frame.addEventListener("click", ({ clientX, clientY }) => {
      const index = editor.tokenAt(clientX, clientY);
      if (pressedBy === "touch" && index >= 0) {
        this.open(editor, index, { pinned: true, y: clientY });
      }
    });
  }

  #hover(editor, { clientX, clientY }) {
    if (this.#pinned) return;
    const index = editor.tokenAt(clientX, clientY);
    if (index === this.index && editor === this.editor) return clearTimeout(this.#timer);
    if (index < 0) return this.isOpen ? this.#closeSoon() : clearTimeout(this.#timer);
    this.#later(OPEN_MS, () => {
      if (index < editor.body.tokens.length) this.open(editor, index, { y: clientY });
    });
  }

  #closeSoon() {
    if (!this.#pinned) this.#later(CLOSE_MS, () => this.close());
  }

  #later(milliseconds, then) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, milliseconds);
  }

  open(editor, index, { pinned = false, focus = false, y } = {}) {
    clearTimeout(this.#timer);
    this.editor?.mark(-1);
    [this.editor, this.index, this.#pinned] = [editor, index, pinned || focus];
    if (focus) editor.reveal(index);
    editor.mark(index);
    this.#fill(editor.body, editor.body.tokens[index]);
    this.root.hidden = false;
    this.#move(editor.place(index, y));
    if (focus) (this.root.querySelector("button:not(:disabled)") ?? this.root).focus();
  }

  #follow() {
    if (this.#pinned) this.#move(this.editor.place(this.index));
    else this.close();
  }

  close({ returnFocus = false } = {}) {
    clearTimeout(this.#timer);
    if (!this.isOpen) return;
    this.editor.mark(-1);
    this.root.hidden = true;
    if (returnFocus) this.editor.area.focus();
    [this.editor, this.index, this.#pinned] = [null, -1, false];
  }

  #fill(body, token) {
    const text = body.text.slice(token.start, token.end);
    const known = token.logprob !== null;
    byId("card-token").textContent = visible(text);
    byId("card-chance").textContent = known ? percent(Math.exp(token.logprob)) : "not told";
    byId("card-more").textContent = aside(token);
    const rows = token.top.map(([piece, logprob]) => this.#row(piece, logprob, text));
    byId("card-alternatives").replaceChildren(...rows);
    const rest = 1 - token.top.reduce((sum, [, logprob]) => sum + Math.exp(logprob), 0);
    byId("card-rest").textContent = rows.length
      ? `All others ${percent(Math.max(0, rest))}. Choose one to go on from it.`
      : "Its alternatives were not kept.";
  }

  #row(piece, logprob, drawn) {
    const { text, shown, name } = describe(piece);
    const chance = percent(Math.exp(logprob));
    const bar = element("span", { class: "bar", "aria-hidden": "true" });
    // Not an attribute: the server's policy forbids inline styles in markup, not in the DOM.
    bar.style.setProperty("--share", Math.exp(logprob));
    const button = element(
      "button",
      { type: "button", "aria-label": `${name}, ${chance}` },
      bar,
      element("span", { class: "piece" }, shown),
      element("span", { class: "chance" }, chance),
    );
    if (piece === drawn) {
      button.setAttribute("aria-current", "true");
      button.setAttribute("aria-label", `${name}, ${chance}, drawn`);
    }
    // What is there already, and half a character, are nothing to go on from.
    button.disabled = piece === drawn || text === null;
    button.addEventListener("click", () => this.#take(piece, logprob));
    return element("li", {}, button);
  }

  #take(piece, logprob) {
    const { editor, index } = this;
    // Not after a tap: it would call up a phone's keyboard.
    this.close({ returnFocus: matchMedia("(pointer: fine)").matches });
    this.onBranch(editor, index, piece, logprob);
  }

  #move(place) {
    const { offsetWidth: width, offsetHeight: height } = this.root;
    const { clientWidth, clientHeight } = document.documentElement;
    const left = Math.max(GAP, Math.min(place.left, clientWidth - width - GAP));
    const below = place.bottom + GAP;
    const top = below + height <= clientHeight ? below : place.top - height - GAP;
    this.root.style.left = `${left}px`;
    this.root.style.top = `${Math.max(GAP, top)}px`;
  }

  #key(event) {
    const { key } = event;
    const along = { ArrowLeft: -1, ArrowRight: 1 }[key];
    const through = { ArrowUp: -1, ArrowDown: 1 }[key];
    if (key === "Escape") this.close({ returnFocus: true });
    else if (key === "Tab") this.close({ returnFocus: true });
    else if (along) this.#step(along);
    else if (through) this.#choose(through);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #step(along) {
    const index = this.index + along;
    if (this.editor.body.tokens[index]) this.open(this.editor, index, { focus: true });
  }

  #choose(through) {
    const buttons = [...this.root.querySelectorAll("button:not(:disabled)")];
    if (!buttons.length) return;
    const at = buttons.indexOf(document.activeElement);
    buttons[(at + through + buttons.length) % buttons.length].focus();
  }
}

function aside({ logprob, parts, stale }) {
  const notes = [];
  if (parts > 1) notes.push(`${parts} tokens share this; below, what the first could have been.`);
  else if (logprob !== null) notes.push(`log-probability ${logprob.toFixed(2).replace("-", "−")}`);
  if (stale) notes.push("The text before it has changed since.");
  return notes.join(" ");
}
