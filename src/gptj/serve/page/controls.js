/** The panel of sampling controls: built from settings.js, and the one holder of their values. */

import { byId, element } from "./dom.js";
import { DEFAULTS, MODES, MOST_SAMPLES, SLIDERS, accepted, modeOf, seedOf } from "./settings.js";

const MODE_NAMES = { greedy: "Greedy", nucleus: "p = 0.9", custom: "Custom" };
const MODE_HINTS = {
  greedy: "Always the likeliest token: the same text every time.",
  nucleus: "Draws from the likeliest tokens that together have a probability of 0.9.",
  custom: "As set below.",
};

export class Controls {
  #numbers = new Map();
  #sliders = new Map();
  #modes = new Map();
  #samples = [];

  /** `onChange` is told whenever a person changed something. */
  constructor(onChange) {
    this.values = { ...DEFAULTS };
    this.onChange = onChange;
    this.#buildModes();
    this.#buildSamples();
    for (const slider of SLIDERS) {
      byId(slider.more ? "more-sliders" : "sliders").append(this.#buildSlider(slider));
    }
    for (const name of ["seed", "stop"]) {
      byId(name).addEventListener("input", () => this.#change({ [name]: byId(name).value }));
    }
    byId("reset").addEventListener("click", () => this.#change(DEFAULTS));
    this.show(DEFAULTS);
  }

  show(values) {
    this.values = { ...values };
    for (const { name } of SLIDERS) this.#showNumber(name, true);
    for (const name of ["seed", "stop"]) {
      if (byId(name).value !== values[name]) byId(name).value = values[name];
    }
    byId("seed").setAttribute("aria-invalid", String(this.seedIsWrong));
    this.#samples[values.n - 1].checked = true;
    const mode = modeOf(values);
    for (const [name, radio] of this.#modes) radio.checked = name === mode;
    this.#modes.get("custom").parentElement.hidden = mode !== "custom";
    byId("mode-hint").textContent = MODE_HINTS[mode];
    byId("reset").disabled = Object.keys(DEFAULTS).every((name) => values[name] === DEFAULTS[name]);
  }

  get seedIsWrong() {
    return this.values.seed.trim() !== "" && seedOf(this.values.seed) === null;
  }

  #change(some) {
    this.show({ ...this.values, ...some });
    this.onChange();
  }

  /** While a number is being typed its box is left as it is: "0." is on the way to "0.5". */
  #showNumber(name, rewrite) {
    const value = this.values[name];
    const box = this.#numbers.get(name);
    this.#sliders.get(name).value = value;
    if (rewrite && (Number(box.value) !== value || !box.value) && box !== document.activeElement) {
      box.value = value;
    }
  }

  #buildSlider({ name, label, min, max, step, least = min, most = max, hint }) {
    const about = `${name}-hint`;
    const number = element("input", {
      id: name, type: "number", min: least, max: most, step: step === 1 ? 1 : "any",
      inputmode: step === 1 ? "numeric" : "decimal", "aria-describedby": about,
    });
    // The number is the control that keyboards and screen readers use; the slider is its handle.
    const slider = element("input", {
      type: "range", min, max, step, "aria-label": `${label}, slider`, tabindex: -1,
    });
    this.#numbers.set(name, number);
    this.#sliders.set(name, slider);
    number.addEventListener("input", () => {
      const value = accepted(name, number.value);
      if (value !== null) this.#change({ [name]: value });
    });
    number.addEventListener("blur", () => {
      number.value = this.values[name];
    });
    slider.addEventListener("input", () => {
      number.value = slider.value;
      this.#change({ [name]: accepted(name, slider.value) });
    });
    const head = element("div", { class: "row" }, element("label", { for: name }, label), number);
    return element("div", { class: "control" }, head, slider, element("p", { id: about }, hint));
  }

  #buildModes() {
    for (const [mode, label] of Object.entries(MODE_NAMES)) {
      const radio = element("input", { type: "radio", name: "mode", value: mode });
      radio.addEventListener("change", () => this.#change(MODES[mode] ?? {}));
      this.#modes.set(mode, radio);
      byId("modes").append(element("label", {}, radio, element("span", {}, label)));
    }
  }

  #buildSamples() {
    for (let n = 1; n <= MOST_SAMPLES; n += 1) {
      const radio = element("input", { type: "radio", name: "n", value: n });
      radio.addEventListener("change", () => this.#change({ n }));
      this.#samples.push(radio);
      byId("samples-wanted").append(element("label", {}, radio, element("span", {}, String(n))));
    }
  }
}
