// The read-out: pointing at a step in one chart reads that step in all of them.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [low, high] = data.steps;
  const charts = [...document.querySelectorAll(".chart")].map((element, index) => {
    const words = element.querySelector(".readout");
    return {
      frame: element.querySelector(".frame"),
      cursor: element.querySelector(".cursor"),
      words, note: words.textContent, series: data.charts[index],
    };
  });
  let at = null;

  const text = (value) => {
    const size = Math.abs(value);
    if (size && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e");
    return value.toLocaleString("en", { maximumSignificantDigits: size < 1e4 ? 4 : 7 });
  };

  function nearest(steps, step) {
    let from = 0, to = steps.length - 1;
    while (to - from > 1) {
      const middle = (from + to) >> 1;
      if (steps[middle] <= step) from = middle; else to = middle;
    }
    return step - steps[from] <= steps[to] - step ? from : to;
  }

  function show(step) {
    at = Math.min(high, Math.max(low, Math.round(step)));
    const left = `${100 * (at - low) / (high - low)}%`;
    const near = data.marks.filter(([step]) => Math.abs(step - at) <= (high - low) / 250);
    const happened = near.slice(0, 2)
      .map(([step, word]) => `  ·  ${word} at ${step.toLocaleString("en")}`).join("");
    for (const chart of charts) {
      chart.cursor.style.left = left;
      chart.cursor.style.display = "block";
      let words = `step ${at.toLocaleString("en")}`;
      for (const { name, mean, x, y } of chart.series) {
        const found = nearest(x, at);
        const away = Math.abs(x[found] - at) > (high - low) / 100;
        const where = away ? ` at ${x[found].toLocaleString("en")}` : "";
        const value = text(y[found]) + where;
        words += mean ? ` (mean ${value})` : `  ·  ${name} ${value}`;
      }
      if (chart === charts[0]) words += happened;
      chart.words.textContent = words;
      chart.words.classList.add("live");
    }
  }

  function hide() {
    at = null;
    for (const chart of charts) {
      chart.cursor.style.display = "";
      chart.words.textContent = chart.note;
      chart.words.classList.remove("live");
    }
  }

  for (const { frame } of charts) {
    frame.tabIndex = 0;
    frame.addEventListener("pointermove", (event) => {
      const box = frame.getBoundingClientRect();
      show(low + (high - low) * (event.clientX - box.left) / box.width);
    });
    frame.addEventListener("pointerleave", hide);
    frame.addEventListener("blur", hide);
    frame.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      const stride = Math.max(1, (high - low) / 200);
      show((at ?? high) + move * (event.shiftKey ? 10 : 1) * stride);
    });
  }
})();
