/** What tests ask of a page as it stands. An expression: an object of functions. */
({
  /** Text that stands out less than `least` from what is behind it, and how many were looked at. */
  faint(least) {
    const parse = (colour) => {
      const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
      return { r, g, b, a };
    };
    const linear = (value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    };
    const luminance = ({ r, g, b }) =>
      0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = (each) => {
      for (let at = each; at; at = at.parentElement) {
        const colour = parse(getComputedStyle(at).backgroundColor);
        if (colour.a === 1) return colour;
      }
      throw new Error("nothing is behind it");
    };
    const found = [];
    let checked = 0;
    const check = (each, ink) => {
      const [light, dark] = [luminance(parse(ink)), luminance(behind(each))].sort((a, b) => b - a);
      const ratio = (light + 0.05) / (dark + 0.05);
      if (ratio < least) found.push([each.outerHTML.slice(0, 90), ratio.toFixed(2)]);
      checked += 1;
    };
    for (const each of document.querySelectorAll("body *")) {
      if (!each.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
      const words = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (each.closest(".mirror")) {
        const area = each.closest(".frame").querySelector("textarea");
        if (each.matches(".token")) check(each, getComputedStyle(area).color);
      } else if (words || each.matches("input, textarea, select")) {
        check(each, getComputedStyle(each).color);
        if (each.placeholder) check(each, getComputedStyle(each, "::placeholder").color);
      }
    }
    return [found, checked];
  },

  /** Controls without a name, ids that stand twice, and references to none. */
  nameless() {
    const found = [];
    const named = (each) => {
      const labels = [...(each.labels ?? [])].map((label) => label.innerText);
      const other = document.getElementById(each.getAttribute("aria-labelledby"))?.innerText;
      const own = each.matches("button, summary") ? each.innerText : "";
      return [each.getAttribute("aria-label"), other, own, ...labels].some((name) => name?.trim());
    };
    const controls = "button, input, textarea, select, summary, dialog, [role]";
    for (const each of document.querySelectorAll(controls)) {
      if (each.closest("[aria-hidden=true]")) found.push(["hidden", each.outerHTML]);
      const isLive = each.matches("[role=status], [role=alert]");
      if (!isLive && each.checkVisibility() && !named(each)) found.push(["no name", each.outerHTML]);
    }
    const ids = [...document.querySelectorAll("[id]")].map((each) => each.id);
    found.push(...ids.filter((id, i) => ids.indexOf(id) !== i).map((id) => ["twice", id]));
    for (const kind of ["aria-describedby", "aria-labelledby", "aria-controls", "for"]) {
      for (const each of document.querySelectorAll(`[${kind}]`)) {
        const id = each.getAttribute(kind);
        if (!document.getElementById(id)) found.push([kind, id]);
      }
    }
    return found;
  },

  /** What has the focus, and whether one sees that. */
  focused() {
    const each = document.activeElement;
    if (each === document.body) return ["nothing", true];
    const hasRing = (one) => {
      const { outlineStyle, outlineWidth } = getComputedStyle(one);
      return outlineStyle === "solid" && parseFloat(outlineWidth) >= 2;
    };
    const { nextElementSibling: beside } = each;
    const frame = each.closest(".frame");
    const isMarked = hasRing(each) || (beside !== null && hasRing(beside));
    const name = each.id || each.name || each.innerText || each.tagName;
    return [name, isMarked || (frame !== null && getComputedStyle(frame).boxShadow !== "none")];
  },

  /** Controls that are narrower or lower than `least` pixels. */
  cramped(least) {
    const controls = "button, select, summary, input, textarea, .segments label";
    return [...document.querySelectorAll(controls)]
      .filter((each) => each.checkVisibility() && !each.closest(".frame, .segments label > *"))
      .map((each) => [each.outerHTML.slice(0, 80), each.getBoundingClientRect()])
      .filter(([, box]) => box.width < least || box.height < least)
      .map(([html, box]) => [html, box.width, box.height]);
  },

  /** Characters that the textarea has at another place than the mirror, and how many agree. */
  displaced() {
    const area = document.querySelector("#text textarea");
    const wrong = [];
    let [at, right, isHidden] = [0, 0, false];
    for (const { firstChild: node } of document.querySelectorAll("#text .mirror span")) {
      for (let i = 0; i < node.length; i += 1, at += 1) {
        const range = new Range();
        range.setStart(node, i);
        range.setEnd(node, i + 1);
        const [box] = range.getClientRects();
        const isWide = box?.width >= 2;
        // Beside a character of no width a place is of two characters.
        const isSure = isWide && !isHidden;
        isHidden = !isWide && node.data[i] !== "\n";
        if (!isSure) continue;
        const found = document.caretPositionFromPoint(box.left + 0.5, box.top + box.height / 2);
        if (found.offsetNode === area && found.offset === at) right += 1;
        else wrong.push([at, found.offset, node.data[i]]);
      }
    }
    return [wrong, right];
  },

  /** By how many pixels the mirror's text is wider than the same text in one piece. */
  stretched() {
    const widthOf = (change) => {
      const line = document.querySelector("#text .mirror").cloneNode(true);
      line.style.cssText = "position: absolute; padding: 0; white-space: nowrap";
      change(line);
      document.querySelector("#text").append(line);
      const { width } = line.getBoundingClientRect();
      line.remove();
      return width;
    };
    return widthOf(() => {}) - widthOf((line) => line.replaceChildren(line.textContent));
  },
});
