// SPDX-License-Identifier: Apache-2.0
// One item: problem and reference, and beside each other what one or two models made of it.
"use strict";

explorer.item = (() => {
  const { h, count } = explorer.dom;

  /** The page of an item. `act` has step(n), sample(column, number). */
  function draw(index, number, item, place, models, act, asSource) {
    const { items, tasks, subjects } = index;
    const { at, total } = explorer.list.placeOf(number);
    const chips = [items.level[number] === null ? null : `level ${items.level[number]}`, items.subject[number] === null ? null : explorer.dom.label(subjects[items.subject[number]])].filter(Boolean);
    return h("article", { class: "item" },
      h("header", { class: "item-head" },
        h("a", { class: "back", href: explorer.route.write({ ...place, at: null }), "aria-label": "Back to the list" }, "‹ List"),
        h("h2", null, h("span", { class: "item-task", title: tasks[items.task[number]].name }, explorer.dom.breakable(tasks[items.task[number]].name)), h("span", { class: "item-id", title: items.id[number] }, explorer.dom.label(items.id[number]))),
        chips.map((chip) => h("span", { class: "chip" }, chip)),
        h("span", { class: "steps" },
          h("button", { type: "button", "aria-label": "Previous item", disabled: at <= 0, click: () => act.step(-1) }, "↑"),
          h("span", { class: "quiet" }, at < 0 ? "not in the list" : `${count(at + 1)} of ${count(total)}`),
          h("button", { type: "button", "aria-label": "Next item", disabled: at < 0 || at + 1 >= total, click: () => act.step(1) }, "↓"))),
      problem(item, asSource),
      h("div", { class: models.length > 1 ? "runs two" : "runs" }, models.map((model, column) => run(index, item, model, column, place, act, asSource))));
  }

  function problem(item, asSource) {
    if (item.statement !== undefined)
      return h("section", { class: "card", "aria-label": "Statement" }, h("h3", null, "Statement"), h("pre", { class: "code" }, item.statement),
        item.problem ? block(item.problem, asSource) : null);
    return h("div", { class: "given" },
      h("section", { class: "card problem", "aria-label": "Problem" }, h("h3", null, "Problem"), block(item.problem, asSource), choices(item.choices, asSource)),
      item.reference ? h("section", { class: "card reference", "aria-label": "Reference" }, h("h3", null, "Reference"), block(item.reference, asSource)) : null);
  }

  const block = (text, asSource) => explorer.samples.prose("prose tex", text, asSource);

  const choices = (choices, asSource) =>
    choices?.length ? h("ol", { class: "choices" }, choices.map((choice) => h("li", null, h("div", { class: "prose tex", dir: "auto" }, explorer.formulas.render(String(choice), asSource))))) : null;

  function run(index, item, model, column, place, act, asSource) {
    const name = index.models[model].name;
    const made = item.runs[model];
    return h("section", { class: "card run", "aria-label": name, "data-column": column },
      h("h3", null, h("span", { class: "model", dir: "auto" }, explorer.dom.label(name))),
      !made ? h("p", { class: "quiet" }, "This model has no sample of this item.")
        : made.proof ? explorer.proof.draw(made.proof)
          : explorer.samples.draw(made, column ? place.sample2 : place.sample, asSource, (number) => act.sample(column, number)));
  }

  return { draw };
})();
