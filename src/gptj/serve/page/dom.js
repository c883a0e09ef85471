/** The few things that every part of the page does with the DOM. Text is only ever text here:
 * nothing in these modules assigns innerHTML, so what a model writes cannot become markup. */

/** A new element; strings among `children` become text nodes. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Storage throws where a browser forbids it (private windows, blocked cookies): the page then
 * forgets, and works all the same. */
export function recall(storage, name) {
  try {
    return window[storage].getItem(name);
  } catch {
    return null;
  }
}

export function remember(storage, name, value) {
  try {
    window[storage].setItem(name, value);
  } catch {
    // Nothing depends on it.
  }
}
