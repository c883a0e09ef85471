/** Texts, and which parts of them the model drew. Pure: nothing here knows the page.
 *
 * A body is {text, tokens}. A token is a stretch of the text that was drawn at once:
 *   start, end   where it stands in the text, in UTF-16 units as JavaScript counts
 *   run          which generation drew it
 *   logprob      by the model's own logits, in nats; null where the server gave none
 *   top          the likeliest tokens there: [[piece, logprob], ...], falling
 *   parts        how many of the model's tokens it is: several where they share a character
 *   stale        the text before it has been edited since
 * A document is {main: body, samples: [body with finish]}. None of them is ever changed in place,
 * so that the history can hold on to them. */

export const EMPTY = Object.freeze({ text: "", tokens: Object.freeze([]) });

/** `text` as a textarea can hold it: browsers make every line break in one a plain "\n". */
export function plain(text) {
  return text.replaceAll("\r", "");
}

/** `body` after someone edited its text. Tokens that the edit touched are theirs now. */
export function edit(body, text, caret = text.length) {
  if (text === body.text) return body;
  const [from, to] = changedRange(body.text, text, caret);
  const shift = text.length - body.text.length;
  const tokens = [];
  for (const token of body.tokens) {
    if (token.end <= from) tokens.push(token);
    else if (token.start >= to) {
      tokens.push({ ...token, start: token.start + shift, end: token.end + shift, stale: true });
    }
  }
  return { ...body, text, tokens };
}

/** Which part of `before` was replaced to give `after`, as [from, to]. The caret stands behind what was typed or deleted, which
 * tells apart the places that a repeated letter could have been typed at. */
export function changedRange(before, after, caret) {
  const most = Math.min(before.length, after.length);
  let tail = 0;
  const mostTail = Math.min(most, after.length - caret);
  while (tail < mostTail && before.at(-1 - tail) === after.at(-1 - tail)) tail += 1;
  let head = 0;
  while (head < most - tail && before[head] === after[head]) head += 1;
  return [head, before.length - tail];
}

/** `body` up to `end`, without the tokens that reach beyond. */
export function cut(body, end) {
  return {
    ...body,
    text: body.text.slice(0, end),
    tokens: body.tokens.filter((token) => token.end <= end),
  };
}

/** Where the text that `run` drew begins; null where nothing of it is left. */
export function startOfRun(body, run) {
  return body.tokens.find((token) => token.run === run)?.start ?? null;
}

/** `first` with `second` after it. */
export function joined(first, second) {
  const shift = first.text.length;
  const moved = second.tokens.map((token) => ({
    ...token,
    start: token.start + shift,
    end: token.end + shift,
  }));
  return { text: first.text + second.text, tokens: [...first.tokens, ...moved] };
}

/** The text in pieces: [{text, index}], `index` the token's or -1 for what a person wrote. */
export function segments(body) {
  const pieces = [];
  let at = 0;
  body.tokens.forEach((token, index) => {
    if (token.start > at) pieces.push({ text: body.text.slice(at, token.start), index: -1 });
    pieces.push({ text: body.text.slice(token.start, token.end), index });
    at = token.end;
  });
  if (at < body.text.length) pieces.push({ text: body.text.slice(at), index: -1 });
  return pieces;
}

const BOUNDS = [0.05, 0.2, 0.5, 0.9];

/** 0 for the most surprising tokens to 4 for the surest; the tints of page.css. */
export function tint(logprob) {
  const bound = BOUNDS.findIndex((most) => Math.exp(logprob) < most);
  return bound < 0 ? BOUNDS.length : bound;
}

/** A probability for people: three digits where they say something. */
export function percent(probability) {
  const hundred = probability * 100;
  if (hundred >= 99.95) return hundred > 99.9999 ? "100 %" : "> 99.9 %";
  if (hundred < 0.01) return "< 0.01 %";
  return `${hundred.toFixed(hundred < 0.995 ? 2 : 1)} %`;
}

const BYTES = /^bytes:((?:\\x[0-9a-fA-F]{2})+)$/;
const END = "<|endoftext|>";

/** The bytes that a token spells. Half a character comes as OpenAI's API writes it:
 * `bytes:\xf0\x9f`. */
export function bytesOf(piece) {
  const spelled = BYTES.exec(piece);
  if (!spelled) return new TextEncoder().encode(piece);
  return Uint8Array.from(spelled[1].slice(2).split("\\x"), (hex) => parseInt(hex, 16));
}

/** What a token is to a reader: {text, shown, name}. `text` is what choosing it would write, null
 * where it is no text of its own, "" where it ends the text; `name` says it aloud. */
export function describe(piece) {
  if (piece === "" || piece === END) return { text: "", shown: "end of text", name: "end of text" };
  if (BYTES.test(piece)) {
    const hex = Array.from(bytesOf(piece), (byte) => byte.toString(16).padStart(2, "0")).join(" ");
    return { text: null, shown: `0x ${hex}`, name: `part of a character, ${hex}` };
  }
  if (piece.includes("\ufffd")) {
    return { text: null, shown: piece, name: "part of a character" };
  }
  return { text: plain(piece) || null, shown: visible(piece), name: aloud(piece) };
}

/** Spaces and line breaks as signs one can see. */
export function visible(text) {
  return text
    .replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length))
    .replaceAll("\r", "␍")
    .replaceAll("\n", "↵")
    .replaceAll("\t", "⇥");
}

const SPOKEN = { " ": "space", "\n": "new line", "\t": "tab", "\r": "carriage return" };

function aloud(text) {
  if (text.trim()) return text.trim();
  const [first, count] = [SPOKEN[text[0]] ?? "blank", text.length];
  return count === 1 ? first : `${count} × ${first}`;
}

/** Finds the stretch of text that each token of one stream wrote.
 *
 * Text comes later than the tokens where it may yet be taken back (half a character, the start of
 * a stop string), so both wait for each other here. */
export class Placer {
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #waiting = [];
  #placed = [];

  constructor(start, run) {
    this.cursor = start;
    this.run = run;
  }

  /** Tokens as the server sends them: [{piece, logprob, top}]. */
  add(tokens) {
    for (const token of tokens) {
      const written = this.#decoder.decode(bytesOf(token.piece), { stream: true });
      this.#waiting.push({ ...token, written: plain(written) });
    }
  }

  /** All tokens whose text is there by now. At the end of the stream what is left shares the rest,
   * which is the last one's own if none is left: two halves of different characters, of which the
   * second's sign for "broken" comes only when the text is over. */
  place(text, ended = false) {
    for (;;) {
      const last = this.#waiting.findIndex((token) => token.written !== "");
      if (last < 0) break;
      const written = this.#waiting[last].written;
      const at = text.startsWith(written, this.cursor)
        ? this.cursor
        : text.indexOf(written, this.cursor);
      if (at < 0 && !ended && text.length < this.cursor + written.length) break;
      const group = this.#waiting.splice(0, last + 1);
      if (at >= 0) this.#placed.push(this.#token(group, at + written.length));
    }
    if (ended && this.cursor < text.length) this.#placeRest(text.length);
    return this.#placed;
  }

  #placeRest(end) {
    const last = this.#placed.pop();
    const group = this.#waiting.splice(0);
    if (last) this.#placed.push(group.length ? last : { ...last, end });
    if (group.length) this.#placed.push(this.#token(group, end));
  }

  #token(group, end) {
    const start = this.cursor;
    this.cursor = end;
    const known = group.every((token) => token.logprob !== null);
    const logprob = known ? group.reduce((sum, token) => sum + token.logprob, 0) : null;
    return { start, end, run: this.run, logprob, top: group[0].top, parts: group.length };
  }
}
