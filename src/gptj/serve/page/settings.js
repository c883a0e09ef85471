/** What can be set about drawing: names, bounds, explanations, and how requests say it. */

/** The sliders. `off` is the value that leaves a control out; `least` and `most` bound what may be
 * typed where that is wider than the slider's own range. */
export const SLIDERS = [
  {
    name: "max_tokens", label: "Length", value: 96, min: 1, max: 512, step: 1, most: 100000,
    hint: "The most tokens to draw. One is about four letters of English.",
  },
  {
    name: "temperature", label: "Temperature", value: 1, min: 0, max: 2, step: 0.05, most: 100,
    hint: "Below 1 sharpens what the model prefers, above 1 flattens it; 0 always takes the likeliest.",
  },
  {
    name: "top_p", label: "Top-p", value: 0.9, min: 0.01, max: 1, step: 0.01, least: 0.0001,
    hint: "Draw from the likeliest tokens that together have this probability. 1 is off.",
  },
  {
    name: "top_k", label: "Top-k", value: 0, min: 0, max: 100, step: 1, most: 1000000, more: true,
    hint: "Draw from this many likeliest tokens. 0 is off.",
  },
  {
    name: "min_p", label: "Min-p", value: 0, min: 0, max: 1, step: 0.01, more: true,
    hint: "Leave out tokens less probable than this times the likeliest. 0 is off.",
  },
  {
    name: "typical_p", label: "Typical-p", value: 1, min: 0.01, max: 1, step: 0.01, more: true,
    least: 0.0001,
    hint: "Draw from the tokens about as surprising as one expects that together have this probability. 1 is off.",
  },
  {
    name: "repetition_penalty", label: "Repetition penalty", value: 1, min: 0.5, max: 2, step: 0.01,
    least: 0.01, most: 100, more: true,
    hint: "Above 1 makes what is already in the text less likely, below 1 more so. 1 is off.",
  },
  {
    name: "presence_penalty", label: "Presence penalty", value: 0, min: -2, max: 2, step: 0.05,
    more: true,
    hint: "Taken from the score of each token that the continuation already has. 0 is off.",
  },
  {
    name: "frequency_penalty", label: "Frequency penalty", value: 0, min: -2, max: 2, step: 0.05,
    more: true,
    hint: "The same, as many times as the continuation already has it. 0 is off.",
  },
];

export const MOST_SAMPLES = 4;
export const MOST_SEED = 2 ** 32 - 1;
const ALTERNATIVES = 5;

/** As the page is first met: drawn from the likeliest 90 %. `seed` and `stop` are as typed. */
export const DEFAULTS = Object.freeze({
  ...Object.fromEntries(SLIDERS.map(({ name, value }) => [name, value])),
  n: 1,
  seed: "",
  stop: "",
});

const NUCLEUS = { temperature: 1, top_p: 0.9, top_k: 0, min_p: 0, typical_p: 1 };

/** What the switch between the two usual ways of drawing changes. */
export const MODES = { greedy: { temperature: 0 }, nucleus: NUCLEUS };

export function modeOf(settings) {
  if (settings.temperature === 0) return "greedy";
  const nucleus = Object.entries(NUCLEUS).every(([name, value]) => settings[name] === value);
  return nucleus ? "nucleus" : "custom";
}

/** A number that slider `name` takes, or null. Links and hands may bring anything. */
export function accepted(name, typed) {
  const { min, max, step, least = min, most = max } = SLIDERS.find((each) => each.name === name);
  const value = Number(typed);
  if (String(typed).trim() === "" || !Number.isFinite(value)) return null;
  const bounded = Math.min(most, Math.max(least, value));
  return step === 1 ? Math.round(bounded) : bounded;
}

/** The seed as a number; null where none was typed, or none that the server takes. */
export function seedOf(typed) {
  const seed = /^\d{1,10}$/.test(typed.trim()) ? Number(typed) : Infinity;
  return seed <= MOST_SEED ? seed : null;
}

/** One string a line; `\n` and `\t` in it are a line break and a tab, `\\` a backslash. */
export function stopStrings(typed) {
  const escapes = { n: "\n", t: "\t", "\\": "\\" };
  const unescaped = (line) => line.replace(/\\([nt\\])/g, (_, letter) => escapes[letter]);
  return typed.split("\n").filter(Boolean).map(unescaped);
}

/** The request's body. A control that is off stays out, so that any server of the protocol will
 * do that knows those in use. */
export function requestBody(settings, { model, prompt, seed, n }) {
  const body = { prompt, seed, n, logprobs: ALTERNATIVES, top_p: settings.top_p };
  if (model) body.model = model;
  body.max_tokens = settings.max_tokens;
  body.temperature = settings.temperature;
  const off = { top_k: 0, min_p: 0, typical_p: 1, repetition_penalty: 1 };
  for (const [name, value] of Object.entries({ ...off, presence_penalty: 0, frequency_penalty: 0 })) {
    if (settings[name] !== value) body[name] = settings[name];
  }
  const stop = stopStrings(settings.stop);
  if (stop.length) body.stop = stop;
  return body;
}
