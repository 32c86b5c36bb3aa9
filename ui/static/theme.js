// Runs before the first paint: the chosen theme, and a mark that scripts run (classic script, so that nothing flashes).
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  try {
    const theme = localStorage.getItem("hive-theme");
    if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  } catch {
    // storage is closed to us: the system's choice holds
  }
})();
