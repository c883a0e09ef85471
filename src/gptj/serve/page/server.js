/** The server as this page knows it: its models, and the key it may want. */

import { recall, remember } from "./dom.js";
import { countTokens, models } from "./stream.js";

/** For this tab only, and never part of a link. */
const KEY = "gptj.key";

export class Server {
  model = "";
  models = [];
  #counts = true;
  #counting = new AbortController();

  constructor() {
    this.key = recall("sessionStorage", KEY) ?? "";
  }

  useKey(key) {
    this.key = key;
    remember("sessionStorage", KEY, key);
  }

  /** Raises ApiError, of status 401 where a key is wanted. */
  async connect() {
    this.models = await models(this.key);
    if (!this.models.includes(this.model)) this.model = this.models[0] ?? "";
  }

  /** How many tokens `text` has, and could have, in words; "" where that is not known, since it is
   * only ever a help. A newer question ends an older one, and a server that does not count is not
   * asked again. */
  async count(text) {
    this.#counting.abort();
    this.#counting = new AbortController();
    if (!this.#counts || !this.model || !text) return "";
    try {
      const { count, max_model_len: most } = await countTokens(text, this.key, this.#counting.signal);
      return most ? `${count} / ${most} tokens` : `${count} tokens`;
    } catch (error) {
      if (error.status === 404) this.#counts = false;
      return "";
    }
  }
}
