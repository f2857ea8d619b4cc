// SPDX-License-Identifier: Apache-2.0
// The list of items found. Only rows in sight exist; formulas in them are set once the list stands still.
"use strict";

explorer.list = (() => {
  const { h, byId, count, label } = explorer.dom;
  const S = explorer.states;
  const ROW = 88, BEYOND = 6; // pixels of a row, as in style/list.css; rows kept out of sight on either side
  const STILL_MILLISECONDS = 90;
  let index = null, open = null, found = [], shown = [], selected = -1, timer = 0, drawn = "";

  /** `choose(item)` is told which item the reader opens. */
  function start(content, choose) {
    index = content;
    open = choose;
    const list = byId("list");
    list.addEventListener("scroll", () => draw(), { passive: true });
    list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) open(Number(row.dataset.item));
    });
    new ResizeObserver(() => draw()).observe(list);
  }

  /** Lists item numbers with the verdicts of `models`. */
  function set(items, models) {
    found = items;
    shown = models;
    drawn = "";
    const total = index.items.id.length;
    byId("count").textContent = found.length === total ? `${count(total)} items` : `${count(found.length)} of ${count(total)} items`;
    byId("list-space").style.height = `${Math.max(1, found.length) * ROW}px`;
    draw();
  }

  function select(item) {
    selected = item;
    drawn = "";
    const at = found.indexOf(item), list = byId("list");
    if (at >= 0) {
      const top = at * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    }
    draw();
  }

  function draw() {
    const list = byId("list"), space = byId("list-space");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - BEYOND);
    const end = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + BEYOND);
    if (drawn === `${first}-${end}`) return;
    drawn = `${first}-${end}`;
    const rows = [];
    for (let at = first; at < end; at++) rows.push(row(found[at], at));
    space.replaceChildren(...(rows.length ? rows : [h("p", { class: "none" }, "Nothing matches.")]));
    const at = found.indexOf(selected);
    if (at >= first && at < end) list.setAttribute("aria-activedescendant", `row-${selected}`);
    else list.removeAttribute("aria-activedescendant");
    clearTimeout(timer);
    timer = setTimeout(setFormulas, STILL_MILLISECONDS);
  }

  function row(item, at) {
    const { items, tasks, subjects } = index;
    const about = [label(items.id[item]), items.level[item] === null ? null : `level ${items.level[item]}`,
      items.subject[item] === null ? null : label(subjects[items.subject[item]])].filter(Boolean).join(" · ");
    return h("div", {
      class: "row", id: `row-${item}`, role: "option", "data-item": item, "aria-posinset": at + 1, "aria-setsize": found.length,
      "aria-selected": String(item === selected), style: { transform: `translateY(${at * ROW}px)` },
    },
    h("div", { class: "row-title", dir: "auto" }, items.title[item] || label(items.id[item])),
    h("div", { class: "row-about" }, tasks.length > 1 ? h("span", { class: "row-task" }, label(tasks[items.task[item]].name)) : null, about),
    h("div", { class: "row-marks" }, shown.map((model) => marks(model, item))));
  }

  function marks(model, item) {
    const state = index.states[model][item];
    if (!(state & S.PRESENT)) return h("span", { class: "mark absent", role: "img", "aria-label": "no sample" }, "–");
    const samples = index.samples[model][item], kind = index.tasks[index.items.task[item]].kind;
    return h("span", { class: "row-mark" },
      samples > 1 ? h("span", { class: "row-share" }, `${index.right[model][item]}/${samples}`) : null,
      state & (S.MINERVA_ONLY | S.MATH_VERIFY_ONLY) ? h("span", { class: "differ", role: "img", "aria-label": "graders differ", title: "graders differ" }, "≠") : null,
      S.mark(S.verdict(state), kind));
  }

  function setFormulas() {
    for (const title of byId("list-space").querySelectorAll(".row-title:not(.set)")) {
      title.classList.add("set");
      if (/[\\$]/.test(title.textContent)) title.replaceChildren(explorer.formulas.renderLine(title.textContent));
    }
  }

  /** The item at a place of the list; undefined outside of it. */
  const itemAt = (place) => found[place];

  const placeOf = (item) => ({ at: found.indexOf(item), total: found.length });

  return { start, set, select, itemAt, placeOf };
})();
