// SPDX-License-Identifier: Apache-2.0
// The keyboard. Keys with Ctrl, Alt or Meta stay the browser's, and letters typed into a field stay letters.
"use strict";

explorer.keys = (() => {
  function start(act) {
    const KEYS = {
      j: () => act.step(1), ArrowDown: () => act.step(1), k: () => act.step(-1), ArrowUp: () => act.step(-1),
      l: () => act.stepSample(1), ArrowRight: () => act.stepSample(1), h: () => act.stepSample(-1), ArrowLeft: () => act.stepSample(-1),
      "/": () => act.search(), m: () => act.toggleSource(), t: () => explorer.theme.toggle(), g: () => act.overview(),
      "?": () => act.help(), Escape: () => act.back(),
      Home: () => act.edge(1), End: () => act.edge(-1), PageDown: () => act.step(10), PageUp: () => act.step(-10),
    };
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || explorer.dom.byId("help").open) return;
      const field = event.target.closest?.("input, select, textarea, summary");
      if (field && event.key === "Escape") return field.blur();
      if (field) return undefined;
      // Arrows and pages scroll an item; in the list they choose.
      const inList = event.target.closest?.("#list") || event.target === document.body;
      if (/^(ArrowUp|ArrowDown|Home|End|Page)/.test(event.key) && !inList) return undefined;
      const key = KEYS[event.key];
      if (!key) return undefined;
      event.preventDefault();
      return key();
    });
  }

  return { start };
})();
