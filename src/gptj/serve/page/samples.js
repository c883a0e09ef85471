/** Several continuations of one text side by side, each editable like the text itself. */

import { byId, element } from "./dom.js";
import { Editor } from "./editor.js";
import { MOST_SAMPLES } from "./settings.js";

const FINISHES = { stop: "ended", length: "full length", null: "stopped" };

export class Samples {
  /** `on.editor(index)` gives what an Editor wants to be told; `on.keep(index)` is a button's. */
  constructor(on) {
    this.root = byId("samples");
    this.panes = [];
    for (let index = 0; index < MOST_SAMPLES; index += 1) this.panes.push(pane(index, on));
    this.root.append(...this.panes.map(({ root }) => root));
  }

  /** Below a long text in a narrow window, where they would begin out of sight. */
  showStart() {
    this.root.scrollIntoView({ block: "start" });
  }

  show(bodies, running) {
    this.root.hidden = bodies.length === 0;
    this.root.dataset.count = bodies.length;
    this.root.closest(".stage").classList.toggle("split", bodies.length > 0);
    this.panes.forEach(({ root, editor, about, keep }, index) => {
      const body = bodies[index];
      root.hidden = !body;
      if (!body) return;
      editor.show(body, running);
      const count = body.tokens.reduce((sum, { parts }) => sum + parts, 0);
      const finish = body.finish ?? null;
      const state = running && finish === null ? "drawing" : (FINISHES[finish] ?? finish);
      const said = `${count} ${count === 1 ? "token" : "tokens"}, ${state}`;
      if (about.textContent !== said) about.textContent = said;
      keep.disabled = running;
    });
  }
}

function pane(index, on) {
  const name = `Sample ${index + 1}`;
  const about = element("span", { class: "about" });
  const label = `Keep sample ${index + 1}`;
  const keep = element("button", { type: "button", class: "quiet", "aria-label": label }, "Keep");
  keep.addEventListener("click", () => on.keep(index));
  const frame = element("div", { class: "frame" });
  const head = element("div", { class: "sample-head" }, element("h3", {}, name), about, keep);
  const root = element("section", { class: "sample", "aria-label": name }, head, frame);
  return { root, about, keep, editor: new Editor(frame, `${name}, text`, on.editor(index)) };
}
