/** Everything around the texts: buttons, keys of the keyboard, messages, theme, link, dialogs. */

import { byId, element, recall, remember } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { fromFragment, toFragment } from "./share.js";
import { EMPTY } from "./text.js";

const SETTLED_MS = 400;
const ENDS = { stop: "; the text ended.", length: ", the full length." };
const IS_MAC = /Mac|iP(hone|ad|od)/.test(navigator.platform);

export class Shell {
  #page;
  #settling = 0;
  #fragment = "";
  #afterKey = null;
  #view = { running: false };

  constructor(page) {
    this.#page = page;
    this.#wireButtons();
    this.#wireToggles();
    this.#buildExamples();
    document.addEventListener("keydown", (event) => this.#key(event));
    window.addEventListener("hashchange", () => {
      this.#load((document) => this.#page.replace(document));
    });
    for (const key of document.querySelectorAll("kbd.command")) {
      key.textContent = IS_MAC ? "⌘" : "Ctrl";
    }
  }

  /** The page is wired: read the link, ask for the models. */
  async start() {
    await this.#load((document) => this.#page.open(document));
    // On a phone the keyboard would cover half of a page that nobody has seen yet.
    if (matchMedia("(pointer: fine)").matches) this.#page.editor.area.focus();
    await this.#connect();
  }

  show(view) {
    const changed = view.running !== this.#view.running;
    this.#view = view;
    const go = byId("go");
    if (changed) {
      go.dataset.running = view.running;
      byId("go-label").textContent = view.running ? "Stop" : "Generate";
      byId("go-command").textContent = view.running ? "Esc" : IS_MAC ? "⌘ ↵" : "Ctrl ↵";
      byId("stage").setAttribute("aria-busy", view.running);
    }
    byId("retry").disabled = !view.canRetry;
    byId("undo").disabled = !view.canUndo;
    this.stateChanged();
  }

  // --- messages -----------------------------------------------------------------------------

  /** What a screen reader hears, and everyone reads: never single tokens. */
  say(message) {
    byId("status").textContent = message;
    byId("error").textContent = "";
  }

  fail(message) {
    byId("status").textContent = "";
    byId("error").textContent = message;
  }

  /** A refusal: a missing key is asked for and the request made again, all else is told. */
  failed(error, again) {
    if (error.status === 401) return this.#askForKey(again);
    if (error.status !== undefined) return this.fail(error.message);
    console.error(error);
    return this.fail("The server's answer could not be understood.");
  }

  /** How fast it goes; how many tokens only until the status says so. */
  measured({ tokens, rate, firstMs, seed }, running) {
    const facts = running ? [counted(tokens)] : [];
    if (rate !== null) facts.push(`${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`);
    if (firstMs !== null) facts.push(`first after ${duration(firstMs)}`);
    facts.push(`seed ${seed}`);
    byId("facts").textContent = facts.join(" · ");
  }

  ended(drawing) {
    this.measured(drawing, false);
    const finishes = new Set(drawing.bodies.map(({ finish }) => finish));
    const [finish] = finishes;
    const how = finishes.size === 1 ? (ENDS[finish] ?? ".") : ".";
    this.say(`Drew ${counted(drawing.tokens)}${how}`);
  }

  // --- buttons and keys ---------------------------------------------------------------------

  #wireButtons() {
    const page = this.#page;
    byId("go").addEventListener("click", () => this.#go());
    byId("retry").addEventListener("click", () => page.retry());
    byId("undo").addEventListener("click", () => page.undo());
    byId("share").addEventListener("click", () => this.#share());
    byId("help-open").addEventListener("click", showHelp);
    byId("theme").addEventListener("click", () => this.#switchTheme());
    for (const close of document.querySelectorAll("dialog .close")) {
      close.addEventListener("click", () => close.closest("dialog").close());
    }
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#useKey();
    });
    byId("settings-open").addEventListener("click", () => this.#toggleSettings());
    byId("models").addEventListener("change", () => {
      page.server.model = byId("models").value;
      this.stateChanged();
    });
  }

  #go() {
    if (document.body.classList.contains("settings-open")) this.#toggleSettings();
    if (this.#view.running) this.#page.stop();
    else this.#page.generate();
  }

  #toggleSettings() {
    const open = document.body.classList.toggle("settings-open");
    byId("settings-open").setAttribute("aria-expanded", open);
  }

  #key(event) {
    // A key that chooses among an input method's proposals is not for the page.
    if (event.isComposing || document.querySelector("dialog[open]")) return;
    const act = this.#actionOf(event);
    if (!act) return;
    event.preventDefault();
    act();
  }

  #actionOf({ key, ctrlKey, metaKey, shiftKey, altKey }) {
    const page = this.#page;
    const slot = page.slotOf(document.activeElement);
    const command = ctrlKey || metaKey;
    if (command && key === "Enter") return () => (shiftKey ? page.retry() : page.generate(slot ?? undefined));
    if (command && key === "/") return showHelp;
    if (key === "Escape" && page.card.isOpen) return () => page.card.close();
    if (key === "Escape" && this.#view.running) return () => page.stop();
    if (key === "Escape" && document.body.classList.contains("settings-open")) {
      return () => this.#toggleSettings();
    }
    const isField = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
    if (slot === null && isField) return null;
    if (command && !altKey && key.toLowerCase() === "z") {
      return () => (shiftKey ? page.redo() : page.undo());
    }
    if (ctrlKey && key.toLowerCase() === "y") return () => page.redo();
    if (altKey && key === "ArrowDown" && slot !== null) return this.#inspection(slot);
    return null;
  }

  #inspection(slot) {
    const editor = this.#page.editorOf(slot);
    const index = editor.tokenAtCaret();
    return index < 0 ? null : () => this.#page.card.open(editor, index, { focus: true });
  }

  #buildExamples() {
    for (const { name, text, mono = false } of EXAMPLES) {
      const button = element("button", { type: "button", class: "chip" }, name);
      button.addEventListener("click", () => {
        this.#page.replace({ main: { ...EMPTY, text }, samples: [] });
        this.#toggle("mono", mono);
        this.#page.editor.area.focus();
      });
      byId("examples").append(button);
    }
  }

  // --- how it looks -------------------------------------------------------------------------

  #wireToggles() {
    for (const name of ["mono", "tints"]) {
      byId(name).addEventListener("click", () => {
        this.#toggle(name, byId(name).getAttribute("aria-pressed") !== "true");
      });
    }
    this.#toggle("tints", recall("localStorage", "gptj.tints") !== "off");
    this.#nameTheme();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#nameTheme());
  }

  #toggle(name, on) {
    byId(name).setAttribute("aria-pressed", on);
    document.body.classList.toggle(name, on);
    if (name === "tints") remember("localStorage", "gptj.tints", on ? "on" : "off");
    this.stateChanged();
  }

  get #isDark() {
    const { theme } = document.documentElement.dataset;
    return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  #switchTheme() {
    const theme = this.#isDark ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    remember("localStorage", "gptj.theme", theme);
    this.#nameTheme();
  }

  #nameTheme() {
    byId("theme").setAttribute("aria-label", `Switch to ${this.#isDark ? "light" : "dark"} theme`);
  }

  // --- the link -----------------------------------------------------------------------------

  /** Once nothing has changed for a moment, the address says the state, and its tokens are counted. */
  stateChanged() {
    clearTimeout(this.#settling);
    if (!this.#view.running) this.#settling = setTimeout(() => this.#settled(), SETTLED_MS);
  }

  async #settled() {
    await this.#writeLink();
    const { main } = this.#page.document;
    const count = await this.#page.server.count(main.text);
    if (main === this.#page.document.main) byId("count").textContent = count;
  }

  async #writeLink() {
    const page = this.#page;
    const state = [page.document, page.controls.values];
    const fragment = await toFragment(...state, document.body.classList.contains("mono"));
    // Packing takes a moment, in which the state may have moved on.
    if (state[0] !== page.document || state[1] !== page.controls.values) return;
    this.#fragment = fragment;
    const { pathname, search } = location;
    history.replaceState(null, "", fragment ? `#${fragment}` : pathname + search);
  }

  async #load(show) {
    const fragment = location.hash.slice(1);
    if (fragment === this.#fragment) return;
    this.#fragment = fragment;
    const { document: read, settings, mono } = await fromFragment(fragment);
    this.#page.controls.show(settings);
    this.#toggle("mono", mono);
    show(read);
  }

  async #share() {
    await this.#writeLink();
    try {
      await navigator.clipboard.writeText(location.href);
      this.say("The link is copied: it holds the text, its probabilities and the settings.");
    } catch {
      this.say("The link is in the address bar: this browser lets no page copy it here.");
    }
  }

  // --- the server ---------------------------------------------------------------------------

  async #connect() {
    const { server } = this.#page;
    try {
      await server.connect();
    } catch (error) {
      return this.failed(error, () => {});
    }
    const [several, select] = [server.models.length > 1, byId("models")];
    byId("model").textContent = several ? "" : server.model;
    select.hidden = !several;
    select.replaceChildren(...server.models.map((id) => element("option", { value: id }, id)));
    this.stateChanged();
  }

  #askForKey(again) {
    const { server } = this.#page;
    byId("key-wrong").hidden = !server.key;
    this.#afterKey = again;
    this.say("This server wants an API key.");
    if (!byId("key-dialog").open) byId("key-dialog").showModal();
  }

  async #useKey() {
    this.#page.server.useKey(byId("key").value.trim());
    byId("key-dialog").close();
    byId("key").value = "";
    this.say("");
    await this.#connect();
    if (this.#page.server.model) this.#afterKey?.();
  }
}

export function counted(tokens) {
  return `${tokens} ${tokens === 1 ? "token" : "tokens"}`;
}

/** Read from its top: by itself a dialog gives its first button the focus. */
function showHelp() {
  byId("help").showModal();
  byId("help-title").focus();
}

function duration(milliseconds) {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return `${(milliseconds / 1000).toFixed(1)} s`;
}
