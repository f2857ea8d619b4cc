// SPDX-License-Identifier: Apache-2.0
// One model's samples of an item: which of them, what it says, what the graders say of it, and its program.
"use strict";

explorer.samples = (() => {
  const { h, count } = explorer.dom;
  const S = explorer.states;
  const LONGEST_TEXT = 60000; // characters shown at once
  const FIELDS = { correct: null, minerva: "Minerva", math_verify: "math-verify" };

  /** `choose(number)` is told which sample the reader wants. */
  function draw(run, number, asSource, choose) {
    const at = Math.max(0, run.samples.findIndex((sample) => String(sample.n) === String(number)));
    const sample = run.samples[at];
    return [
      run.vote ? explorer.votes.draw(run.vote, asSource) : null,
      run.samples.length > 1 ? strip(run.samples, at, choose) : null,
      run.left_out ? h("p", { class: "quiet" }, `${count(run.left_out)} more samples were left out of this page.`) : null,
      h("div", { class: "sample" }, verdicts(sample, asSource), program(sample.program), text(sample, asSource), likelihood(sample), more(sample.more)),
    ];
  }

  function strip(samples, at, choose) {
    return h("div", { class: "strip", role: "group", "aria-label": "Samples" },
      samples.map((sample, place) => {
        const verdict = S.ofBoolean(sample.correct);
        return h("button", {
          type: "button", class: `tick ${S.CLASSES[verdict]}`, "aria-pressed": String(place === at),
          "aria-label": `Sample ${sample.n}, ${S.WORDS.samples[verdict]}`, title: `Sample ${sample.n}: ${S.WORDS.samples[verdict]}`,
          click: () => choose(sample.n),
        }, S.MARKS[verdict]);
      }));
  }

  function verdicts(sample, asSource) {
    const judged = Object.keys(FIELDS).filter((field) => sample[field] !== null && sample[field] !== undefined);
    const chips = judged.map((field) => {
      const verdict = S.ofBoolean(sample[field]);
      return h("span", { class: `chip ${S.CLASSES[verdict]}` }, S.mark(verdict), FIELDS[field] || S.WORDS.samples[verdict]);
    });
    const differ = sample.minerva !== null && sample.math_verify !== null && sample.minerva !== sample.math_verify;
    return h("div", { class: "verdicts" }, chips,
      judged.length || typeof sample.loglikelihood === "number" ? null : h("span", { class: "chip unjudged" }, "not judged"),
      differ ? h("span", { class: "chip differ-chip" }, "≠ graders differ") : null,
      sample.answer === null || sample.answer === undefined ? null
        : h("span", { class: "answer" }, h("span", { class: "quiet" }, "answer "), h("span", { class: "tex", dir: "auto" }, explorer.votes.answerText(sample.answer, asSource))),
      sample.tokens ? h("span", { class: "quiet tokens" }, `${count(sample.tokens)} tokens`) : null);
  }

  function text(sample, asSource) {
    if (sample.text === null || sample.text === undefined) return null;
    if (sample.program) // the generation is a program, or holds it: code, not prose
      return sample.text.trim() === (sample.program.code || "").trim() ? null
        : h("details", { class: "more" }, h("summary", null, "Whole generation"), h("pre", { class: "code" }, sample.text));
    return prose("prose tex generation", sample.text, asSource);
  }

  /** A text in a box of its own, out of which its formulas cannot draw; the rest of a very long one on demand. */
  function prose(kind, text, asSource) {
    const box = h("div", { class: kind, dir: "auto" }, explorer.formulas.render(text.slice(0, LONGEST_TEXT), asSource));
    if (text.length <= LONGEST_TEXT) return box;
    const showAll = (event) => {
      box.replaceChildren(text);
      event.target.remove();
    };
    return [box, h("button", { type: "button", class: "rest", click: showAll }, `Show all ${count(text.length)} characters, as source`)];
  }

  function likelihood(sample) {
    if (sample.loglikelihood === null || sample.loglikelihood === undefined) return null;
    const facts = [["log-likelihood", sample.loglikelihood.toFixed(3)]];
    if (sample.bytes)
      facts.push(["bytes", count(sample.bytes)], ["bits per byte", (-sample.loglikelihood / sample.bytes / Math.LN2).toFixed(4)]);
    return table(facts);
  }

  function program(program) {
    if (!program) return null;
    return h("section", { class: "program", "aria-label": "Program" },
      h("h4", null, "Program"), h("pre", { class: "code" }, program.code || ""),
      program.output ? [h("h4", null, "Output"), h("pre", { class: "output" }, program.output)] : null,
      program.error ? [h("h4", { class: "wrong" }, "Error"), h("pre", { class: "output failed" }, program.error)] : null);
  }

  const more = (fields) =>
    fields?.length ? h("details", { class: "more" }, h("summary", null, "More fields"), table(fields)) : null;

  /** [name, value] of each fact. */
  const table = (facts) =>
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", { dir: "auto" }, String(value)))));

  return { draw, table, prose };
})();
