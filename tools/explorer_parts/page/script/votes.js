// SPDX-License-Identifier: Apache-2.0
// The vote over an item's samples: each class of answers with its size.
"use strict";

explorer.votes = (() => {
  const { h, count } = explorer.dom;
  const S = explorer.states;
  const SHOWN = 6;

  function draw(vote, asSource) {
    const votes = vote.votes; // [answer, number], the largest first
    const most = Math.max(1, ...votes.map((each) => each[1]));
    const bar = ([answer, number]) => {
      const isWinner = answer === vote.answer;
      const verdict = isWinner ? S.ofBoolean(vote.correct) : S.UNJUDGED;
      return h("tr", { class: isWinner ? "winner" : null },
        h("th", { scope: "row" }, h("div", { class: "tex", dir: "auto" }, answerText(answer, asSource))),
        h("td", { class: "vote-bar" }, h("div", { class: S.CLASSES[verdict], style: { width: `${(100 * number) / most}%` } })),
        h("td", { class: "vote-count" }, count(number), isWinner ? S.mark(verdict) : null));
    };
    const rest = votes.slice(SHOWN);
    return h("section", { class: "votes", "aria-label": "Votes" },
      h("h4", null, "Votes"),
      votes.length ? h("table", null, h("tbody", null, votes.slice(0, SHOWN).map(bar))) : h("p", { class: "quiet" }, "No sample has an answer."),
      rest.length ? h("details", null, h("summary", null, `${count(rest.length)} more answers`), h("table", null, h("tbody", null, rest.map(bar)))) : null);
  }

  /** An answer is TeX without dollars, more often than not. */
  function answerText(answer, asSource) {
    return asSource || !/[\\^_{}]/.test(answer) || answer.includes("$")
      ? explorer.formulas.render(answer, asSource)
      : explorer.formulas.render(`$${answer}$`);
  }

  return { draw, answerText };
})();
