/** Light or dark: as the system has it, until the user chooses. Runs before the page is drawn. */
{
  const KEY = "fastsam3d-theme";
  const root = document.documentElement;
  try {
    const chosen = localStorage.getItem(KEY);
    if (chosen) root.dataset.theme = chosen;
  } catch { /* in another page's frame the browser may keep nothing */ }

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const dark = matchMedia("(prefers-color-scheme: dark)").matches;
      const present = root.dataset.theme ?? (dark ? "dark" : "light");
      root.dataset.theme = present === "dark" ? "light" : "dark";
      try {
        localStorage.setItem(KEY, root.dataset.theme);
      } catch { /* chosen for now */ }
    });
  });
}
