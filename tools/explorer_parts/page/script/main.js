// SPDX-License-Identifier: Apache-2.0
// The page as a whole: the address says what is shown, and whatever the reader does changes the address.
"use strict";

explorer.main = (() => {
  const { h, byId } = explorer.dom;
  const TYPING_MILLISECONDS = 120;
  let index = null, numbers = null, place = null, listed = "", asSource = false, shownItem = -1, turn = 0, typing = 0;

  function start(content) {
    index = content;
    numbers = new Map(index.items.id.map((id, number) => [`${index.tasks[index.items.task[number]].name}\n${id}`, number]));
    document.title = index.title;
    byId("title").textContent = index.title;
    explorer.filters.start(index);
    explorer.list.start(index, open);
    explorer.search.start(index);
    byId("clear").addEventListener("click", clear);
    byId("toggle-tex").addEventListener("click", toggleSource);
    byId("toggle-theme").addEventListener("click", explorer.theme.toggle);
    byId("show-help").addEventListener("click", help);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("home").addEventListener("click", (event) => { event.preventDefault(); overview(); });
    document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); byId("main").focus(); });
    byId("query").addEventListener("input", type);
    explorer.keys.start({ step, stepSample, edge, search: focusSearch, toggleSource, overview, help, back });
    addEventListener("hashchange", show);
    show();
  }

  /** The models shown: the first, and -1 or the one beside it. */
  function models() {
    const named = (name) => index.models.findIndex((model) => model.name === name);
    let a = named(place.model);
    if (a < 0) a = place.at ? firstWith(itemNumber()) : 0;
    const b = named(place.beside);
    return [a, b === a ? -1 : b];
  }

  function firstWith(item) {
    if (item < 0) return 0;
    return Math.max(0, index.states.findIndex((states) => states[item] & explorer.states.PRESENT));
  }

  const itemNumber = () => (place.at ? numbers.get(`${place.at.task}\n${place.at.item}`) ?? -1 : -1);

  async function show() {
    place = explorer.route.read();
    const mine = ++turn;
    // Letters that are not in the address yet are newer than it.
    if (!typing && byId("query").value.trim() !== place.q.trim()) byId("query").value = place.q;
    const [a, b] = models();
    pick(a, b);
    if (!(await list(a, b, mine))) return;
    explorer.list.select(itemNumber());
    await detail(a, b, mine);
  }

  /** Lists what the filters let through; false where the reader has gone elsewhere meanwhile. */
  async function list(a, b, mine) {
    const wanted = JSON.stringify([a, b, place.q, ...explorer.filters.KEYS.map((key) => place[key])]);
    if (wanted === listed) return true;
    let matches = null;
    if (place.q.trim()) {
      if (!explorer.search.isReady) {
        byId("progress").hidden = false;
        try {
          await explorer.search.prepare((share) => (byId("progress").firstElementChild.style.width = `${100 * share}%`));
        } catch (error) {
          byId("count").textContent = error.message;
          return mine === turn;
        } finally {
          byId("progress").hidden = true;
        }
        if (mine !== turn) return false;
      }
      matches = explorer.search.matcher(place.q);
    }
    const result = explorer.filters.apply(place, a, b, matches);
    explorer.filters.draw(result, place, change);
    explorer.list.set(result.found, b < 0 ? [a] : [a, b]);
    listed = wanted;
    return true;
  }

  async function detail(a, b, mine) {
    const main = byId("main"), number = itemNumber();
    document.body.dataset.view = place.at ? "item" : "list";
    if (!place.at) {
      shownItem = -1;
      main.replaceChildren(explorer.overview.draw(index, a, b, (change) => explorer.route.write({ ...place, ...change, at: null })));
      return;
    }
    if (number < 0) {
      main.replaceChildren(h("p", { class: "none" }, `There is no item ${explorer.dom.label(place.at.item)} of task ${explorer.dom.label(place.at.task)} here.`));
      return;
    }
    try {
      const item = await explorer.store.item(number);
      if (mine !== turn) return;
      const act = { step, sample: chooseSample };
      main.replaceChildren(explorer.item.draw(index, number, item, place, b < 0 ? [a] : [a, b], act, asSource));
      if (shownItem !== number) main.scrollTop = 0;
      shownItem = number;
      explorer.search.highlight(main, place.q);
    } catch (error) {
      if (mine === turn) main.replaceChildren(h("p", { class: "none" }, error.message));
    }
  }

  /** The menus of models, where there is a choice. */
  function pick(a, b) {
    if (index.models.length < 2) return;
    const menu = (id, label, chosen, options, key) =>
      h("label", { for: id }, h("span", { class: "hidden" }, label),
        h("select", { id, change: (event) => change(key, event.target.value) },
          options.map(([value, name]) => h("option", { value, selected: value === chosen }, name))));
    const names = index.models.map((model) => [model.name, explorer.dom.label(model.name)]);
    const focused = document.activeElement?.id;
    byId("pick").replaceChildren(
      menu("model", "Model", index.models[a].name, names, "model"), h("span", { class: "quiet" }, "beside"),
      menu("beside", "Second model", b < 0 ? "" : index.models[b].name, [["", "no other"], ...names.filter((_, at) => at !== a)], "beside"));
    if (focused === "model" || focused === "beside") byId(focused).focus();
  }

  function change(key, value) {
    const next = { ...asked(), [key]: value };
    if (key === "model" || key === "beside") Object.assign(next, { verdict: "", sample: "", sample2: "" });
    explorer.route.go(next, true);
  }

  /** Searches when the reader stops typing. */
  function type(event) {
    clearTimeout(typing);
    typing = setTimeout(() => {
      typing = 0;
      change("q", event.target.value);
    }, TYPING_MILLISECONDS);
  }

  function clear() {
    clearTimeout(typing);
    typing = 0;
    byId("query").value = "";
    explorer.route.go({ ...asked(), q: "", ...Object.fromEntries(explorer.filters.KEYS.map((key) => [key, ""])) });
  }

  /** What is asked for: the address is ahead of what is shown when keys follow each other quickly. */
  const asked = () => (place = explorer.route.read());

  function open(number, isStep = false) {
    if (number === undefined) return;
    asked();
    const at = { task: index.tasks[index.items.task[number]].name, item: index.items.id[number] };
    explorer.route.go({ ...place, at, sample: "", sample2: "" }, isStep);
  }

  function step(steps) {
    asked();
    const { at, total } = explorer.list.placeOf(itemNumber());
    const from = at < 0 && steps < 0 ? total : at; // from outside the list: onto its first or its last item
    open(explorer.list.itemAt(Math.min(total - 1, Math.max(0, from + steps))), true);
  }

  const edge = (direction) => step(-direction * Infinity);

  function chooseSample(column, number) {
    explorer.route.go({ ...asked(), [column ? "sample2" : "sample"]: String(number) }, true);
  }

  /** The next sample, in both columns where two models are shown. */
  async function stepSample(steps) {
    const number = itemNumber();
    if (number < 0) return;
    const item = await explorer.store.item(number);
    const next = { ...place };
    models().forEach((model, column) => {
      const samples = (model >= 0 && item.runs[model]?.samples) || [], key = column ? "sample2" : "sample";
      const at = Math.max(0, samples.findIndex((sample) => String(sample.n) === place[key]));
      if (samples.length) next[key] = String(samples[Math.min(samples.length - 1, Math.max(0, at + steps))].n);
    });
    explorer.route.go(next, true);
  }

  function toggleSource() {
    asSource = !asSource;
    byId("toggle-tex").setAttribute("aria-pressed", String(asSource));
    show();
  }

  const overview = () => explorer.route.go({ ...place, at: null, sample: "", sample2: "" });

  const help = () => byId("help").showModal();

  function focusSearch() {
    byId("query").focus();
    byId("query").select();
  }

  function back() {
    if (document.body.dataset.view === "item") overview();
  }

  return { start };
})();
