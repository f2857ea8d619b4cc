// SPDX-License-Identifier: Apache-2.0
// What became of an item under a model, as the index says it in one number (tools/explorer_parts/states.py).
"use strict";

explorer.states = (() => {
  const VERDICT = 3, MINERVA_ONLY = 4, MATH_VERIFY_ONLY = 8, PRESENT = 16, PROGRAM = 32, PROGRAM_FAILED = 64;
  const UNJUDGED = 0, RIGHT = 1, WRONG = 2, MIXED = 3;
  const WORDS = {
    samples: ["not judged", "correct", "wrong", "some samples correct"],
    proofs: ["not tried", "proved", "not proved", "some proved"],
  };
  const MARKS = ["·", "✓", "✗", "~"];
  const CLASSES = ["unjudged", "right", "wrong", "mixed"];

  const verdict = (state) => state & VERDICT;

  /** A mark that says the verdict by its sign, its colour and its name. */
  function mark(verdict, kind = "samples") {
    return explorer.dom.h(
      "span",
      { class: `mark ${CLASSES[verdict]}`, role: "img", "aria-label": WORDS[kind][verdict], title: WORDS[kind][verdict] },
      MARKS[verdict],
    );
  }

  /** What two models made of an item, as the filter names it: their verdicts where both are sure of theirs; else
      which has the larger share of right samples; "other" where one has none that is judged. */
  function pairOf(index, a, b, item) {
    const [one, other] = [a, b].map((model) => verdict(index.states[model][item]));
    if ([one, other].every((each) => each === RIGHT || each === WRONG)) return `${CLASSES[one]}-${CLASSES[other]}`;
    const [mine, theirs] = [a, b].map((model) => share(index, model, item));
    if (mine === null || theirs === null) return "other";
    return mine > theirs ? "more" : mine < theirs ? "less" : "equal";
  }

  /** The share of an item's judged samples that are right; 0 or 1 where only its vote is judged, else null. */
  function share(index, model, item) {
    if (index.judged[model][item]) return index.right[model][item] / index.judged[model][item];
    return { [RIGHT]: 1, [WRONG]: 0 }[verdict(index.states[model][item])] ?? null;
  }

  const ofBoolean = (value) => (value === true ? RIGHT : value === false ? WRONG : UNJUDGED);

  return {
    MINERVA_ONLY, MATH_VERIFY_ONLY, PRESENT, PROGRAM, PROGRAM_FAILED, UNJUDGED, RIGHT, WRONG, MIXED,
    WORDS, CLASSES, MARKS, verdict, mark, ofBoolean, pairOf, share,
  };
})();
