// SPDX-License-Identifier: Apache-2.0
// Which items are listed: facets of the index, each with the counts that choosing a value would give, and the search.
"use strict";

explorer.filters = (() => {
  const { h, byId, count } = explorer.dom;
  const S = explorer.states;
  const KEYS = ["task", "level", "subject", "verdict", "graders", "program"];
  let index = null;

  /** Facets for the models shown: {key, label, values(item) → strings, name(value)}. `b` is -1 without a second. */
  function facets(a, b) {
    const { items, tasks, subjects, states } = index;
    const shown = b < 0 ? [a] : [a, b];
    const state = (item) => shown.reduce((all, model) => all | states[model][item], 0);
    const either = (flags) => (item) => Object.keys(flags).filter((value) => state(item) & flags[value]);
    return [
      { key: "task", label: "Task", values: (item) => [tasks[items.task[item]].name], name: explorer.dom.label },
      { key: "level", label: "Level", values: (item) => (items.level[item] === null ? [] : [String(items.level[item])]), name: (value) => `Level ${value}` },
      { key: "subject", label: "Subject", values: (item) => (items.subject[item] === null ? [] : [subjects[items.subject[item]]]), name: explorer.dom.label },
      b < 0 ? verdictOfOne(a) : verdictOfTwo(a, b),
      {
        key: "graders", label: "Graders differ",
        values: either({ minerva: S.MINERVA_ONLY, "math-verify": S.MATH_VERIFY_ONLY }),
        name: (value) => (value === "minerva" ? "only Minerva accepts" : "only math-verify accepts"),
      },
      {
        key: "program", label: "Program", values: either({ any: S.PROGRAM, failed: S.PROGRAM_FAILED }),
        name: (value) => (value === "any" ? "has a program" : "failed to run"),
      },
    ];
  }

  function verdictOfOne(a) {
    const onlyProofs = index.tasks.every((task) => task.kind === "proofs");
    return {
      key: "verdict", label: "Verdict", values: (item) => [S.CLASSES[S.verdict(index.states[a][item])]],
      name: (value) => (onlyProofs ? S.WORDS.proofs : S.WORDS.samples)[S.CLASSES.indexOf(value)],
      order: ["right", "wrong", "mixed", "unjudged"],
    };
  }

  function verdictOfTwo(a, b) {
    const names = [index.models[a].name, index.models[b].name].map(explorer.dom.label);
    const WORDS = {
      "right-right": "both", "right-wrong": `only ${names[0]}`, "wrong-right": `only ${names[1]}`,
      "wrong-wrong": "neither", more: `${names[0]} more often`, less: `${names[1]} more often`,
      equal: "equally often", other: "not comparable",
    };
    return {
      key: "verdict", label: "Correct in", order: Object.keys(WORDS), name: (value) => WORDS[value] || value,
      values: (item) => [S.pairOf(index, a, b, item)],
    };
  }

  /** {found: item numbers, counts: facet key → Map(value → number)}; `matches` is the search, or null. */
  function apply(place, a, b, matches) {
    const all = facets(a, b), counts = new Map(all.map((facet) => [facet.key, new Map()]));
    const shown = b < 0 ? [a] : [a, b], found = [];
    for (let item = 0; item < index.items.id.length; item++) {
      if (!shown.some((model) => index.states[model][item] & S.PRESENT)) continue;
      if (matches && !matches(item)) continue;
      const values = all.map((facet) => facet.values(item));
      const failed = all.filter((facet, at) => place[facet.key] && !values[at].includes(place[facet.key]));
      if (!failed.length) found.push(item);
      all.forEach((facet, at) => {
        if (failed.length > 1 || (failed.length === 1 && failed[0] !== facet)) return;
        const numbers = counts.get(facet.key);
        for (const value of values[at]) numbers.set(value, (numbers.get(value) || 0) + 1);
      });
    }
    return { found, facets: all, counts };
  }

  /** Draws the menus; `change(key, value)` is told what the reader chooses. */
  function draw(result, place, change) {
    const focused = document.activeElement?.id;
    byId("facets").replaceChildren(...result.facets.map((facet) => menu(facet, result.counts.get(facet.key), place, change)).filter(Boolean));
    if (focused?.startsWith("facet-")) byId(focused)?.focus();
    byId("clear").hidden = !place.q && !KEYS.some((key) => place[key]);
  }

  function menu(facet, counts, place, change) {
    const chosen = place[facet.key];
    const values = [...new Set([...counts.keys(), ...(chosen ? [chosen] : [])])].sort(
      facet.order ? (x, y) => facet.order.indexOf(x) - facet.order.indexOf(y) : naturally);
    const isUseful = facet.key === "graders" || facet.key === "program" ? values.length > 0 : values.length > 1;
    if (!isUseful && !chosen) return null;
    const id = `facet-${facet.key}`;
    const select = h("select", { id, change: (event) => change(facet.key, event.target.value) },
      h("option", { value: "" }, "all"),
      values.map((value) => h("option", { value, selected: value === chosen }, `${facet.name(value)} (${count(counts.get(value) || 0)})`)));
    return h("label", { class: chosen ? "facet set" : "facet", for: id }, h("span", null, facet.label), select);
  }

  const naturally = (x, y) => x.localeCompare(y, "en", { numeric: true });

  return { start: (content) => (index = content), apply, draw, KEYS };
})();
