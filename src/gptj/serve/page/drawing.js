/** One generation under way: what has come so far, and how fast. */

import { complete } from "./stream.js";
import { Placer, plain } from "./text.js";

export class Drawing {
  #abort = new AbortController();
  #choices;
  #show;
  #frame = 0;
  #asked = 0;
  #first = 0;
  #last = 0;
  #drawnFirst = 0;

  /** Each choice goes on from one of `bodies`. `show(bodies)` is called as they grow, at most once
   * a frame of the screen; `run` is what their tokens are marked with, `seed` what is drawn with. */
  constructor(bodies, run, seed, show) {
    this.#choices = bodies.map((body) => {
      const placer = new Placer(body.text.length, run);
      return { body: { ...body, finish: null }, before: body.tokens, placer, news: "" };
    });
    this.#show = show;
    this.seed = seed;
    this.tokens = 0;
  }

  get bodies() {
    return this.#choices.map(({ body }) => body);
  }

  /** Draw to the end, or until `stop`. Gives what went wrong, if something did. */
  async go(request, key) {
    this.#asked = performance.now();
    try {
      for await (const piece of complete(request, key, this.#abort.signal)) this.#take(piece);
      return null;
    } catch (error) {
      return error;
    } finally {
      if (!this.stopped) this.#flush();
    }
  }

  /** At once: what has come by now is shown and nothing more will be. */
  stop() {
    this.#flush();
    this.#abort.abort();
  }

  get stopped() {
    return this.#abort.signal.aborted;
  }

  #take({ index, text, tokens, finish }) {
    const choice = this.#choices[index];
    if (this.stopped || !choice) return;
    choice.news += plain(text);
    choice.placer.add(tokens);
    choice.body = { ...choice.body, finish: finish ?? choice.body.finish };
    if (tokens.length) this.#clock(tokens.length);
    this.#frame ||= requestAnimationFrame(() => this.#flush());
  }

  #clock(tokens) {
    this.#last = performance.now();
    if (!this.#first) [this.#first, this.#drawnFirst] = [this.#last, tokens];
    this.tokens += tokens;
  }

  #flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    for (const choice of this.#choices) {
      const text = choice.body.text + choice.news;
      const placed = choice.placer.place(text, choice.body.finish !== null);
      choice.news = "";
      choice.body = { ...choice.body, text, tokens: [...choice.before, ...placed] };
    }
    this.#show(this.bodies);
  }

  /** Milliseconds to the first token; null before it. */
  get firstMs() {
    return this.#first ? this.#first - this.#asked : null;
  }

  /** Tokens a second from the first token on; null until that can be told. */
  get rate() {
    const seconds = (this.#last - this.#first) / 1000;
    return seconds > 0 ? (this.tokens - this.#drawnFirst) / seconds : null;
  }
}
