// SPDX-License-Identifier: Apache-2.0
// Light or dark: as the system has it until the reader chooses; the choice is kept where the browser lets us.
"use strict";

explorer.theme = (() => {
  const KEY = "sample-explorer-theme";

  function kept() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  const isDark = () =>
    (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) ===
    "dark";

  function set(theme) {
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
    explorer.dom.byId("toggle-theme").textContent = isDark() ? "☀" : "☾";
  }

  function toggle() {
    const theme = isDark() ? "light" : "dark";
    set(theme);
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // Private windows keep nothing; the choice holds until the page is closed.
    }
  }

  set(kept());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => set(null));
  return { toggle };
})();
