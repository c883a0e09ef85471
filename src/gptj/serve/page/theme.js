// Loaded before the page is drawn, so that a remembered theme does not flash in late.
try {
  const theme = localStorage.getItem("gptj.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is forbidden here: the system's theme it is.
}
