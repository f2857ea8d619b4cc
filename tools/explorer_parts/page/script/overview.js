// SPDX-License-Identifier: Apache-2.0
// What stands before any item is opened: every task's measures with their intervals beside the published figures.
"use strict";

explorer.overview = (() => {
  const { h, count, percent, label } = explorer.dom;
  const S = explorer.states;
  const Z = 1.959964; // 95%, two-sided, of the normal distribution

  function draw(index, a, b, link) {
    const samples = index.samples.flat().reduce((sum, number) => sum + number, 0);
    return h("article", { class: "overview" },
      h("h2", null, index.title),
      h("p", { class: "quiet" }, `${count(index.items.id.length)} items, ${count(samples)} samples, ${plural(index.models.length, "model")}, ${plural(index.tasks.length, "task")}`),
      measures(index, a, link),
      b >= 0 ? pair(index, a, b, link) : null,
      h("section", { class: "card" }, h("h3", null, "Models"), index.models.map(model)));
  }

  const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

  function measures(index, a, link) {
    const task = (task, number) => {
      const rows = index.models.flatMap((model, at) => lines(index, model, at, task, number));
      const others = index.models.flatMap((model, at) => lesser(index, model, task.results[at]));
      if (others.length) rows.push(h("tr", null, h("td", { colspan: 5 }, button(others))));
      const published = task.results.find((results) => results?.published.length)?.published;
      const notes = [published ? publishedText(published) : null, ...index.models.map((model, at) => reason(index, model, task.results[at]))];
      rows.push(...notes.filter(Boolean).map((note) => h("tr", null, h("td", { colspan: 5, class: "quiet published" }, note))));
      rows[0]?.firstChild.before(h("th", { scope: "rowgroup", rowspan: rows.length + others.length, class: "task" }, h("a", { href: link(itemsOf(index, a, task, number)), title: task.name }, explorer.dom.breakable(task.name))));
      return h("tbody", null, rows);
    };
    return h("section", { class: "card", "aria-label": "Measures" }, h("table", { class: "measures" }, index.tasks.map(task)));
  }

  /** Where a task's items are listed: under the model shown, or the first that has the task. */
  function itemsOf(index, a, task, number) {
    const has = (model) => index.states[model].some((state, item) => index.items.task[item] === number && state & S.PRESENT);
    return has(a) ? { task: task.name } : { task: task.name, model: index.models[index.models.findIndex((_, model) => has(model))].name, beside: "" };
  }

  /** One line a measure; counted from the verdicts where no results were given. */
  function lines(index, model, at, task, number) {
    const results = task.results[at];
    const main = measured(results).filter(([name]) => isMain(name, results));
    if (!main.length) return counted(index, model, at, task, number);
    return main.map(([name, metric], place) => line(place ? null : named(index, model), name, metric, results, place ? null : about(results)));
  }

  const measured = (results) => (results?.metrics || []).filter(([, metric]) => metric.value !== null);

  /** Of pass@1, pass@2, … and maj@1, maj@2, … only the last stands in the table from the start. */
  function isMain(name, results) {
    const [kind, k] = name.split("@");
    return k === undefined || !measured(results).some(([other]) => other.startsWith(`${kind}@`) && Number(other.split("@")[1]) > Number(k));
  }

  function lesser(index, model, results) {
    const rest = measured(results).filter(([name]) => !isMain(name, results));
    return rest.map(([name, metric], place) => line(place ? null : named(index, model), name, metric, results, null));
  }

  function button(rows) {
    const click = (event) => event.target.closest("tr").replaceWith(...rows);
    return h("button", { type: "button", click }, `${count(rows.length)} more measures`);
  }

  function line(model, name, metric, results, note) {
    return h("tr", null,
      h("th", { scope: "row" }, model),
      h("td", { class: "measure" }, name),
      h("td", { class: "value" }, isShare(metric) ? percent(metric.value) : metric.value.toPrecision(4)),
      h("td", { class: "plot" }, isShare(metric) ? interval(metric, publishedOf(results, name)) : null),
      h("td", { class: "quiet" }, note));
  }

  /** Why a model's measures may not stand beside the published ones. */
  function reason(index, model, results) {
    if (!results?.published.length || results.comparable === true) return null;
    return `${index.models.length > 1 ? `${label(model.name)}: ` : ""}not comparable with what was published: ${results.comparable || "no reason given"}`;
  }

  function about(results) {
    const items = typeof results.items === "number" ? plural(results.items, "item") : "";
    if (!results.published.length) return items;
    return `${items}, ${results.comparable === true ? "comparable" : "not comparable"}`;
  }

  /** A model's lines on a task without results. Of several samples of an item the mean, as `accuracy` of results.json
      is, and the vote where there was one. */
  function counted(index, model, at, task, number) {
    const present = index.items.task.flatMap((itsTask, item) => (itsTask === number && index.states[at][item] & S.PRESENT ? [item] : []));
    if (!present.length) return [];
    const judged = present.filter((item) => S.share(index, at, item) !== null);
    const shares = judged.map((item) => S.share(index, at, item));
    const missing = judged.length < present.length ? `, ${count(present.length - judged.length)} not judged` : "";
    const row = (name, measure, value, bounds, note) => h("tr", null,
      h("th", { scope: "row" }, name),
      h("td", { class: "measure" }, measure),
      h("td", { class: "value" }, value === null ? "–" : percent(value)),
      h("td", { class: "plot" }, value === null ? null : interval({ value, ...bounds }, [])),
      h("td", { class: "quiet" }, note));
    const name = named(index, model), word = task.kind === "proofs" ? "proved" : "correct";
    if (!judged.length) return [row(name, word, null, null, `${plural(present.length, "item")}, not judged`)];
    if (judged.every((item) => index.judged[at][item] <= 1)) {
      const right = shares.reduce((sum, each) => sum + each, 0);
      return [row(name, word, right / judged.length, wilson(right, judged.length), `${count(right)} of ${count(judged.length)}${missing}`)];
    }
    const samples = judged.reduce((sum, item) => sum + index.judged[at][item], 0);
    const rows = [row(name, "mean of samples", ...mean(shares), `${count(samples)} samples of ${plural(judged.length, "item")}${missing}`)];
    // A verdict although samples differ is that of a vote.
    const verdicts = judged.map((item) => S.verdict(index.states[at][item]));
    if (judged.some((item, place) => verdicts[place] !== S.MIXED && ![0, 1].includes(S.share(index, at, item)))) {
      const won = verdicts.filter((each) => each === S.RIGHT).length;
      rows.push(row(null, "majority vote", won / judged.length, wilson(won, judged.length), `${count(won)} of ${count(judged.length)}`));
    }
    return rows;
  }

  /** [mean, {low, high}] of the items' shares, at 95% by their standard error, since samples of one item are no
      independent trials. Where all shares are equal there is no error to be seen, and no interval. */
  function mean(shares) {
    const value = shares.reduce((sum, each) => sum + each, 0) / shares.length;
    const squares = shares.reduce((sum, each) => sum + (each - value) ** 2, 0);
    if (!squares || shares.length < 2) return [value, { low: null, high: null }];
    const half = Z * Math.sqrt(squares / (shares.length - 1) / shares.length);
    return [value, { low: Math.max(0, value - half), high: Math.min(1, value + half) }];
  }

  const named = (index, model) => (index.models.length > 1 ? h("span", { class: "model", dir: "auto" }, label(model.name)) : null);

  /** Wilson's score interval at 95%. */
  function wilson(right, total) {
    const share = right / total, below = 1 + (Z * Z) / total;
    const middle = (share + (Z * Z) / (2 * total)) / below;
    const half = (Z * Math.sqrt((share * (1 - share)) / total + (Z * Z) / (4 * total * total))) / below;
    return { low: middle - half, high: middle + half };
  }

  const isShare = (metric) => metric.value >= 0 && metric.value <= 1;

  /** A line from low to high with a dot at the value, and a diamond at each published figure. */
  function interval(metric, published) {
    const at = (share) => `${100 * Math.min(1, Math.max(0, share))}%`;
    const hasInterval = metric.low !== null && metric.high !== null;
    const words = hasInterval ? `${percent(metric.value)}, 95% interval ${percent(metric.low)} to ${percent(metric.high)}` : percent(metric.value);
    return h("div", { class: "interval" },
      h("span", { class: "interval-words", role: "img", "aria-label": words, title: words }),
      hasInterval ? h("span", { class: "interval-line", style: { left: at(metric.low), width: `${100 * (metric.high - metric.low)}%` } }) : null,
      published.map(([model, value]) => h("span", { class: "interval-published", role: "img", "aria-label": `${model}: ${percent(value)}`, title: `${model}: ${percent(value)}`, style: { left: at(value) } })),
      h("span", { class: "interval-dot", style: { left: at(metric.value) } }));
  }

  /** [model, share] of each published figure of a measure. */
  const publishedOf = (results, name) =>
    results.published.flatMap(([model, figures]) => figures.filter((figure) => figure[0] === name).map((figure) => [model, figure[1]]));

  const publishedText = (published) =>
    ["◇ published: ", published.map(([model, figures]) => `${model} ${figures.map(([name, value]) => `${name === "accuracy" ? "" : `${name} `}${percent(value)}`).join(", ")}`).join("; ")];

  /** Both, one, the other, neither, and who is right more often where samples of an item differ; each number opens
      its items. */
  function pair(index, a, b, link) {
    const counts = { "right-right": 0, "right-wrong": 0, "wrong-right": 0, "wrong-wrong": 0, more: 0, equal: 0, less: 0, other: 0 };
    index.items.id.forEach((_, item) => counts[S.pairOf(index, a, b, item)]++);
    const some = (...keys) => keys.some((key) => counts[key]);
    const cell = (key) => h("td", null, h("a", { href: link({ verdict: key }) }, count(counts[key])));
    const [first, second] = [index.models[a].name, index.models[b].name].map(label);
    const sure = some("right-right", "right-wrong", "wrong-right", "wrong-wrong")
      ? h("table", null,
        h("thead", null, h("tr", null, h("td", null), h("th", { scope: "col" }, `${second} correct`), h("th", { scope: "col" }, `${second} wrong`))),
        h("tbody", null,
          h("tr", null, h("th", { scope: "row" }, `${first} correct`), cell("right-right"), cell("right-wrong")),
          h("tr", null, h("th", { scope: "row" }, `${first} wrong`), cell("wrong-right"), cell("wrong-wrong"))))
      : null;
    const mixed = some("more", "equal", "less")
      ? [h("p", { class: "quiet" }, "Items of which some samples are correct, by the share that is:"),
        h("table", null, h("tbody", null,
          h("tr", null, h("th", { scope: "row" }, `${first} more often`), cell("more")),
          h("tr", null, h("th", { scope: "row" }, "equally often"), cell("equal")),
          h("tr", null, h("th", { scope: "row" }, `${second} more often`), cell("less"))))]
      : null;
    return h("section", { class: "card pair" }, h("h3", null, "Item by item"),
      sure || mixed ? [sure, mixed] : h("p", { class: "quiet" }, "The two models have no judged item in common."));
  }

  const model = (model) =>
    h("details", { class: "model-settings" }, h("summary", null, h("span", { class: "model", dir: "auto" }, label(model.name)),
      h("span", { class: "quiet" }, model.sources.filter((source) => source !== model.name).join(", "))),
      model.settings ? explorer.samples.table(model.settings) : h("p", { class: "quiet" }, "No settings were given."));

  return { draw };
})();
