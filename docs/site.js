// A page that is opened as a file may start no worker, and the search runs in one. So the worker's
// program runs in a frame without content instead; it uses only what is here.
class FramedWorker {
  constructor(url) {
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    document.body.append(this.frame);
    const inside = this.frame.contentWindow;
    inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data: structuredClone(data) }));
    this.ready = new Promise((loaded) => {
      const script = inside.document.createElement("script");
      script.src = new URL(url, document.baseURI);
      script.onload = loaded;
      script.onerror = (event) => this.onerror?.(event);
      inside.document.head.append(script);
    });
  }

  postMessage(data) {
    const copy = structuredClone(data);
    this.ready.then(() => this.frame.contentWindow?.onmessage({ data: copy }));
  }

  terminate() {
    this.frame.remove();
  }
}

if (location.protocol === "file:") window.Worker = FramedWorker;

// A word of code is not broken, but for one in a line that a phone has no room for: see site.css.
for (const code of document.querySelectorAll(":not(pre) > code")) {
  const pieces = code.textContent.split(/(\s+)/).map((text) => {
    if (/^\s*$/.test(text) || (text.length > 32 && !code.closest("table"))) return text;
    const word = document.createElement("span");
    word.className = "word";
    word.textContent = text;
    return word;
  });
  code.replaceChildren(...pieces);
}
