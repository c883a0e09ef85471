/** The whole state as a URL fragment, which a browser never sends to any server.
 *
 * The text and the settings that differ from the usual are there to be read and written by hand:
 * `#text=Once upon&temperature=0.7`. What the model drew is packed: `drawn=` is base64url of
 * deflated JSON. Links come from anywhere, so all that is read is checked. */

import { EMPTY, plain } from "./text.js";
import { DEFAULTS, MOST_SAMPLES, SLIDERS, accepted, seedOf } from "./settings.js";

/** Longer addresses get cut by programs that pass them on; then the link tells less. */
const LONGEST = 8000;
const ALL = 2;
const WITHOUT_ALTERNATIVES = 1;
const TEXT_ALONE = 0;

export async function toFragment(document, settings, mono) {
  let fragment = "";
  for (const detail of [ALL, WITHOUT_ALTERNATIVES, TEXT_ALONE]) {
    fragment = await written(document, settings, mono, detail);
    if (fragment.length <= LONGEST) break;
  }
  return fragment;
}

async function written({ main, samples }, settings, mono, detail) {
  const fields = new URLSearchParams();
  if (main.text) fields.set("text", main.text);
  for (const [name, value] of Object.entries(DEFAULTS)) {
    if (settings[name] !== value) fields.set(name, settings[name]);
  }
  if (mono) fields.set("mono", "1");
  const hasTokens = detail > TEXT_ALONE && main.tokens.length > 0;
  if (hasTokens || samples.length) {
    const bodies = samples.map((body) => [body.text, packed(body, detail), body.finish ?? null]);
    fields.set("drawn", await deflated(JSON.stringify([packed(main, detail), bodies])));
  }
  return fields.toString();
}

function packed(body, detail) {
  if (detail === TEXT_ALONE) return [];
  const rounded = (logprob) => logprob && Math.round(logprob * 1000) / 1000;
  return body.tokens.map(({ start, end, logprob, top, parts }) => {
    const alternatives = detail === ALL ? top.map(([piece, each]) => [piece, rounded(each)]) : [];
    return [start, end, rounded(logprob), parts, alternatives];
  });
}

/** The state that `fragment` tells: {document, settings, mono}. What is malformed is left out. */
export async function fromFragment(fragment) {
  const fields = new URLSearchParams(fragment);
  const text = plain(fields.get("text") ?? "");
  const document = { main: { ...EMPTY, text }, samples: [] };
  if (fields.has("drawn")) {
    try {
      const [tokens, samples] = JSON.parse(await inflated(fields.get("drawn")));
      document.main = checked(text, tokens);
      document.samples = samples.slice(0, MOST_SAMPLES).map(([sample, drawn, finish]) => ({
        ...checked(plain(String(sample)), drawn),
        finish: finish === null ? null : String(finish),
      }));
    } catch {
      // A link that was cut short still has its text.
    }
  }
  return { document, settings: settingsIn(fields), mono: fields.get("mono") === "1" };
}

function settingsIn(fields) {
  const settings = { ...DEFAULTS };
  for (const { name } of SLIDERS) {
    const value = fields.has(name) ? accepted(name, fields.get(name)) : null;
    if (value !== null) settings[name] = value;
  }
  const n = Number(fields.get("n"));
  if (Number.isInteger(n) && n >= 1 && n <= MOST_SAMPLES) settings.n = n;
  if (seedOf(fields.get("seed") ?? "") !== null) settings.seed = fields.get("seed").trim();
  settings.stop = fields.get("stop") ?? "";
  return settings;
}

function checked(text, tokens) {
  let at = 0;
  const read = tokens.map(([start, end, logprob, parts, top]) => {
    const fits = Number.isInteger(start) && Number.isInteger(end) && at <= start && start < end;
    if (!fits || end > text.length || !isLogprob(logprob)) throw new RangeError("no such token");
    at = end;
    const alternatives = top.map(([piece, each]) => {
      if (typeof piece !== "string" || !isLogprob(each)) throw new RangeError("no such token");
      return [piece, each];
    });
    return { start, end, run: 0, logprob, parts: Number(parts) || 1, top: alternatives };
  });
  return { text, tokens: read };
}

function isLogprob(value) {
  return value === null || (Number.isFinite(value) && value <= 0);
}

async function deflated(text) {
  const stream = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function inflated(encoded) {
  const binary = atob(encoded.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).text();
}
