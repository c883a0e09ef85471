/** The playground: one document, what is done to it, and what the page shows of it. */

import { Card } from "./card.js";
import { Controls } from "./controls.js";
import { byId } from "./dom.js";
import { Drawing } from "./drawing.js";
import { Editor } from "./editor.js";
import { History } from "./history.js";
import { Samples } from "./samples.js";
import { MOST_SEED, modeOf, requestBody, seedOf } from "./settings.js";
import { Server } from "./server.js";
import { Shell, counted } from "./shell.js";
import { EMPTY, cut, describe, joined, startOfRun } from "./text.js";

const MAIN = "main";
const PLACEHOLDER = "Write a beginning, or take one from above. The model goes on from it.";

class Playground {
  constructor() {
    this.document = { main: EMPTY, samples: [] };
    this.history = new History();
    this.drawing = null;
    this.runs = 0;
    this.controls = new Controls(() => this.shell.stateChanged());
    this.editor = new Editor(byId("text"), "Text", this.#editorEvents(MAIN), PLACEHOLDER);
    this.samples = new Samples({
      editor: (index) => this.#editorEvents(index),
      keep: (index) => this.keep(index),
    });
    this.server = new Server();
    this.card = new Card((editor, index, piece, logprob) => {
      this.branch(this.slotOf(editor.area), index, piece, logprob);
    });
    this.shell = new Shell(this);
    for (const editor of this.editors) this.card.watch(editor);
    this.show();
  }

  get editors() {
    return [this.editor, ...this.samples.panes.map((pane) => pane.editor)];
  }

  /** The slot of the document that a textarea shows: MAIN, a sample's index, or null. */
  slotOf(area) {
    const index = this.editors.findIndex((editor) => editor.area === area);
    return [null, MAIN, 0, 1, 2, 3][index + 1];
  }

  editorOf(slot) {
    return slot === MAIN ? this.editor : this.samples.panes[slot].editor;
  }

  bodyOf(slot, document = this.document) {
    return slot === MAIN ? document.main : document.samples[slot];
  }

  #editorEvents(slot) {
    return {
      beforeEdit: () => this.stop(),
      edit: (body) => {
        this.history.record(this.document, true);
        this.document = withBody(this.document, slot, body);
        this.card.close();
        this.show();
      },
      undo: () => this.undo(),
      redo: () => this.redo(),
    };
  }

  show() {
    const running = this.drawing !== null;
    this.editor.show(this.document.main, running);
    this.samples.show(this.document.samples, running);
    this.shell.show({
      running,
      canUndo: this.history.canUndo,
      canRetry: !running && this.#again() !== null,
    });
  }

  /** Change the whole document, as one step that can be undone. */
  replace(document) {
    this.stop();
    this.history.record(this.document);
    this.#become(document);
  }

  /** Begin with a document: there is nothing before it to go back to. */
  open(document) {
    this.history = new History();
    this.#become(document);
  }

  #become(document) {
    this.card.close();
    this.document = document;
    this.show();
  }

  undo() {
    this.stop();
    const before = this.history.undo(this.document);
    if (before) this.#become(before);
  }

  redo() {
    this.stop();
    const after = this.history.redo(this.document);
    if (after) this.#become(after);
  }

  /** Go on from the text; from one sample if `slot` is one. */
  generate(slot = MAIN) {
    this.stop();
    const { main } = this.document;
    const { n } = this.controls.values;
    if (slot !== MAIN) this.#draw([slot], this.document);
    else if (n === 1) this.#draw([MAIN], { main, samples: [] });
    else this.#draw(range(n), { main, samples: range(n).map(() => ({ ...EMPTY, finish: null })) });
  }

  /** Draw anew what was drawn last, if the text still ends with it. */
  retry() {
    const again = this.#again();
    if (this.drawing || !again) return;
    this.#draw(again.slots, again.document);
    if (modeOf(this.controls.values) === "greedy" || this.controls.values.seed.trim()) {
      this.shell.say("Drawing the same text: greedy and a fixed seed leave no chance.");
    }
  }

  #again() {
    const { main, samples } = this.document;
    if (samples.length) {
      const fresh = samples.map(() => ({ ...EMPTY, finish: null }));
      return { slots: range(samples.length), document: { main, samples: fresh } };
    }
    const last = main.tokens.at(-1);
    if (!last || last.end !== main.text.length) return null;
    const start = startOfRun(main, last.run);
    return { slots: [MAIN], document: { main: cut(main, start), samples } };
  }

  /** Write `piece` in place of a token, and go on from there. */
  branch(slot, index, piece, logprob) {
    this.stop();
    const body = this.bodyOf(slot);
    const token = body.tokens[index];
    const { text } = describe(piece);
    const kept = cut(body, token.start);
    if (text === "") {
      return this.replace(withBody(this.document, slot, { ...kept, finish: "stop" }));
    }
    const chosen = { ...token, end: token.start + text.length, logprob, parts: 1 };
    const branched = { ...kept, text: kept.text + text, tokens: [...kept.tokens, chosen] };
    return this.#draw([slot], withBody(this.document, slot, branched));
  }

  keep(index) {
    const { main, samples } = this.document;
    this.replace({ main: joined(main, samples[index]), samples: [] });
    this.editor.area.focus();
    this.shell.say(`Sample ${index + 1} is now the text.`);
  }

  async #draw(slots, document) {
    if (this.controls.seedIsWrong) {
      return this.shell.fail(`The seed must be a whole number up to ${MOST_SEED}, or empty.`);
    }
    this.replace(document);
    this.editor.showEnd(); // which is what is gone on from
    if (slots.length > 1) this.samples.showStart();
    const ahead = slots[0] === MAIN ? "" : document.samples[slots[0]].text;
    const prompt = document.main.text + ahead;
    const seed = seedOf(this.controls.values.seed) ?? Math.floor(Math.random() * (MOST_SEED + 1));
    const request = requestBody(this.controls.values, {
      model: this.server.model, prompt, seed, n: slots.length,
    });
    this.runs += 1;
    const bodies = slots.map((slot) => this.bodyOf(slot));
    const drawing = new Drawing(bodies, this.runs, seed, (grown) => {
      slots.forEach((slot, i) => {
        this.document = withBody(this.document, slot, grown[i]);
      });
      this.show();
      this.shell.measured(drawing, true);
    });
    this.drawing = drawing;
    this.show();
    this.shell.say(slots.length > 1 ? `Drawing ${slots.length} samples.` : "Drawing.");
    const failure = await drawing.go(request, this.server.key);
    // One that was stopped has nothing to report, nor has one that another has followed.
    if (this.drawing !== drawing) return;
    this.drawing = null;
    if (failure && !drawing.tokens) this.undo();
    if (failure) this.shell.failed(failure, () => this.#draw(slots, document));
    else this.shell.ended(drawing);
    this.show();
  }

  stop() {
    const { drawing } = this;
    if (!drawing) return;
    drawing.stop();
    this.drawing = null;
    this.shell.measured(drawing, false);
    this.shell.say(`Stopped after ${counted(drawing.tokens)}.`);
    this.show();
  }
}

function range(n) {
  return Array.from({ length: n }, (_, i) => i);
}

function withBody(document, slot, body) {
  if (slot === MAIN) return { ...document, main: body };
  return { ...document, samples: document.samples.map((old, i) => (i === slot ? body : old)) };
}

new Playground().shell.start();
