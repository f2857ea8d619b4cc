// SPDX-License-Identifier: Apache-2.0
// Full-text search: every text of an item in lower case, one string an item, looked through from end to end.
// The strings are made while the browser is idle, or at once when the reader searches.
"use strict";

explorer.search = (() => {
  const IDLE_LIMIT_BYTES = 300e6; // beyond it nothing is read ahead of a search
  let index = null, texts = [], isReady = false, loading = null;

  /** Begins with a new index; reads ahead where the data is not too large for it. */
  function start(content) {
    index = content;
    texts = new Array(content.items.id.length).fill(null);
    if (content.data_bytes <= IDLE_LIMIT_BYTES) idle(() => prepare(null, true).catch(() => null)); // said at a search
  }

  const idle = (work) => (window.requestIdleCallback ? requestIdleCallback(work, { timeout: 2000 }) : setTimeout(work, 200));

  function textOf(item) {
    const words = [item.problem, item.reference, item.statement];
    for (const run of item.runs) {
      for (const sample of run?.samples || []) words.push(sample.text, sample.answer, sample.program?.code, sample.program?.output);
      if (run?.proof) words.push(run.proof.proof, run.proof.status, ...(run.proof.tree || []).map((node) => node.tactic));
    }
    return words.filter(Boolean).join("\n").toLowerCase();
  }

  /** Reads every chunk; `report(share)` is told how far it is. */
  function prepare(report, isIdle = false) {
    loading ||= readAll();
    loading.report = report || loading.report;
    if (!isIdle) loading.hurry?.();
    return loading;
  }

  function readAll() {
    const state = {};
    const promise = (async () => {
      const starts = index.chunk_starts;
      for (let chunk = 0; chunk < starts.length; chunk++) {
        if (!state.isHurried) await new Promise((resolve) => ((state.wake = resolve), idle(resolve)));
        (await explorer.store.load(chunk)).forEach((item, at) => {
          const place = starts[chunk] + at;
          texts[place] = `${index.items.id[place]}\n${textOf(item)}`.toLowerCase();
        });
        promise.report?.((chunk + 1) / starts.length);
      }
      isReady = true;
    })();
    promise.catch(() => (loading = null)); // a missing file may be put back
    promise.hurry = () => {
      state.isHurried = true;
      state.wake?.();
    };
    return promise;
  }

  /** Lower-case words and "phrases" of a query. */
  function terms(query) {
    return [...query.toLowerCase().matchAll(/"([^"]+)"|([^\s"]+)/g)].map((match) => match[1] || match[2]);
  }

  /** A function item number → whether all terms are in it. Only once `prepare` is through. */
  function matcher(query) {
    const wanted = terms(query);
    return (item) => wanted.every((term) => texts[item].includes(term));
  }

  /** Marks the terms in an element, where the browser can do so without touching its nodes. */
  function highlight(element, query) {
    if (!window.Highlight || !CSS.highlights) return;
    CSS.highlights.delete("found");
    const wanted = terms(query).filter((term) => term.length > 1);
    if (!wanted.length) return;
    const ranges = [];
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()) && ranges.length < 2000;) {
      if (node.parentElement.closest(".katex")) continue;
      const text = node.data.toLowerCase();
      if (text.length !== node.data.length) continue; // a letter whose lower case is longer: places would be off
      for (const term of wanted)
        for (let at = text.indexOf(term); at >= 0; at = text.indexOf(term, at + term.length)) {
          const range = new Range();
          range.setStart(node, at);
          range.setEnd(node, at + term.length);
          ranges.push(range);
        }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  }

  return { start, prepare, matcher, highlight, terms, get isReady() { return isReady; } };
})();
