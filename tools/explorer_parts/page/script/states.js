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

  const ofBoolean = (value) => (value === true ? RIGHT : value === false ? WRONG : UNJUDGED);

  return {
    MINERVA_ONLY, MATH_VERIFY_ONLY, PRESENT, PROGRAM, PROGRAM_FAILED, UNJUDGED, RIGHT, WRONG, MIXED,
    WORDS, CLASSES, MARKS, verdict, mark, ofBoolean,
  };
})();
