/** Undo for whole documents: what was typed, drawn, branched or kept, with its probabilities.
 * The browser's own undo knows only what was typed into one box. */

const MOST = 200;
const PAUSE_MS = 900;

export class History {
  #past = [];
  #future = [];
  #typedAt = -Infinity;

  /** To be called with the document as it is before a change. Typing without a pause is one. */
  record(document, typing = false) {
    const now = performance.now();
    const goesOn = typing && now - this.#typedAt < PAUSE_MS;
    this.#typedAt = typing ? now : -Infinity;
    this.#future = [];
    if (goesOn) return;
    this.#past.push(document);
    if (this.#past.length > MOST) this.#past.shift();
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  /** The document before `current`, or null. */
  undo(current) {
    return this.#move(this.#past, this.#future, current);
  }

  redo(current) {
    return this.#move(this.#future, this.#past, current);
  }

  #move(from, to, current) {
    if (!from.length) return null;
    this.#typedAt = -Infinity;
    to.push(current);
    return from.pop();
  }
}
