// SPDX-License-Identifier: Apache-2.0
// Text with TeX in it: split into prose and formulas, and formulas set by KaTeX, which gives nodes and no HTML.
"use strict";

explorer.formulas = (() => {
  const LONGEST_FORMULA = 4000; // characters; KaTeX takes about a second for 20,000
  const MOST_FORMULAS = 2000; // of one text
  const DEEPEST = 80; // parts of a formula within each other: 40 fractions. Layout of 60 takes seconds, of 100 minutes
  const ENVIRONMENTS = "equation|align|alignat|gather|CD";
  const OPENERS = new RegExp(
    String.raw`\\\\|\\[$%&#_]|\$\$|\$|\\\(|\\\[|\\begin\{(?:${ENVIRONMENTS})\*?\}|\[asy\]`, "g");
  const OPTIONS = {
    throwOnError: true, trust: false, strict: "ignore", maxSize: 40, maxExpand: 1000, globalGroup: false,
    output: "htmlAndMathml",
  };
  // Without these a text could hide its words, or look like a verdict of the page. Braces keep a colour's reach.
  const COLOURS = {
    "\\color": "\\@secondoftwo{#1}{}",
    "\\textcolor": "\\@secondoftwo{#1}{{#2}}",
    "\\colorbox": "\\@secondoftwo{#1}{\\text{#2}}",
    "\\fcolorbox": "\\@secondoftwo{#1#2}{\\fbox{#3}}",
  };
  // With `trust` off KaTeX would set their names alone, in red, and drop what they were given.
  const REFUSED = ["href", "url", "includegraphics", "htmlClass", "htmlId", "htmlStyle", "htmlData"];
  const refusal = (name) => () => {
    throw new Error(`\\${name} is not followed on this page`);
  };
  const MACROS = { ...COLOURS, ...Object.fromEntries(REFUSED.map((name) => [`\\${name}`, refusal(name)])) };

  /** [{kind: "text" | "inline" | "display" | "figure", text, source}] */
  function split(text) {
    const parts = [];
    let prose = "", at = 0;
    const flush = () => {
      if (prose) parts.push({ kind: "text", text: prose });
      prose = "";
    };
    OPENERS.lastIndex = 0;
    for (let match; (match = OPENERS.exec(text)); OPENERS.lastIndex = at) {
      prose += text.slice(at, match.index);
      const opener = match[0];
      const found = formulaAt(text, match.index, opener);
      if (found) {
        flush();
        parts.push({ ...found, source: text.slice(match.index, found.end) });
        at = found.end;
      } else {
        prose += /^\\[$%&#_]$/.test(opener) ? opener[1] : opener;
        at = match.index + opener.length;
      }
    }
    prose += text.slice(at);
    flush();
    return parts;
  }

  function formulaAt(text, start, opener) {
    const from = start + opener.length;
    if (opener === "$") return inlineAt(text, from);
    if (opener === "[asy]") return until(text, from, "[/asy]", "figure");
    if (opener === "$$") return until(text, from, "$$", "display");
    if (opener === "\\(") return until(text, from, "\\)", "inline");
    if (opener === "\\[") return until(text, from, "\\]", "display");
    if (opener.startsWith("\\begin")) {
      const found = until(text, from, opener.replace("begin", "end"), "display");
      return found && { ...found, text: text.slice(start, found.end) };
    }
    return null;
  }

  function until(text, from, closer, kind) {
    const end = text.indexOf(closer, from);
    return end < 0 ? null : { kind, text: text.slice(from, end), end: end + closer.length };
  }

  /** $…$ by the rule of Pandoc, so that "$5 and $6" stays money: no space inside the dollars, no digit after them.
      Spaces on both sides are allowed around what can only be TeX. */
  function inlineAt(text, from) {
    let depth = 0;
    for (let at = from; at < text.length; at++) {
      const sign = text[at];
      if (sign === "\\") at++;
      else if (sign === "{") depth++;
      else if (sign === "}") depth--;
      else if (sign === "\n" && text[at + 1] === "\n") return null;
      else if (sign === "$" && depth <= 0) return isFormula(text, from, at) ? { kind: "inline", text: text.slice(from, at), end: at + 1 } : null;
    }
    return null;
  }

  function isFormula(text, from, end) {
    const inner = text.slice(from, end);
    if (!inner.trim() || /[0-9]/.test(text[end + 1] || "")) return false;
    const before = /^\s/.test(inner), after = /\s$/.test(inner);
    if (before || after) return before === after && /[\\^_={}]/.test(inner);
    return inner.includes("\\") || !/[A-Za-z]{2,}\s+[A-Za-z]{2,}\s+[A-Za-z]{2,}/.test(inner);
  }

  function formula(part) {
    const { h } = explorer.dom;
    const isDisplay = part.kind === "display";
    const span = h("span", { class: isDisplay ? "formula display" : "formula" });
    if (part.text.length > LONGEST_FORMULA) return source(part, `longer than ${LONGEST_FORMULA} characters`);
    const options = () => ({ ...OPTIONS, macros: { ...MACROS }, displayMode: isDisplay }); // KaTeX adds to macros
    try {
      if (isDeep(katex.__parse(part.text, options()))) return source(part, "nested too deep");
      katex.render(part.text, span, options());
      return span;
    } catch (error) {
      return source(part, error.message); // also a RangeError, where braces are nested too deep
    }
  }

  /** Whether a parsed formula nests deeper than a browser lays out in a blink. Counted in what KaTeX has read and
      not in the text: macros may nest too. */
  function isDeep(tree) {
    const waiting = [[tree, 0]];
    while (waiting.length) {
      const [node, depth] = waiting.pop();
      if (depth > DEEPEST) return true;
      const below = depth + (node.type ? 1 : 0);
      for (const [name, value] of Object.entries(node))
        if (value && typeof value === "object" && name !== "loc") waiting.push([value, below]); // loc: all of the text
    }
    return false;
  }

  const source = (part, reason) => explorer.dom.h("code", { class: "formula-source", title: reason }, part.source);

  function figure(part) {
    const { h } = explorer.dom;
    return h("details", { class: "figure" }, h("summary", null, "Figure (Asymptote source)"), h("pre", null, part.text.trim()));
  }

  /** A fragment of `text`: as it stands where `asSource`, else with its formulas set. */
  function render(text, asSource = false) {
    const fragment = document.createDocumentFragment();
    if (asSource) {
      fragment.append(text);
      return fragment;
    }
    let formulas = 0, afterBlock = false;
    for (const part of split(text.trimEnd())) {
      if (part.kind === "text") {
        fragment.append(afterBlock ? part.text.replace(/^([ \t]*\n)+/, "") : part.text);
        afterBlock = false;
        continue;
      }
      afterBlock = part.kind !== "inline";
      if (afterBlock && fragment.lastChild?.nodeType === Node.TEXT_NODE)
        fragment.lastChild.data = fragment.lastChild.data.replace(/\s+$/, "");
      if (part.kind === "figure") fragment.append(figure(part));
      else fragment.append(++formulas > MOST_FORMULAS ? source(part, `more than ${MOST_FORMULAS} formulas`) : formula(part));
    }
    return fragment;
  }

  /** One line of a text that may be cut (it then ends in …); a formula that was cut is left out. */
  function renderLine(text) {
    const fragment = document.createDocumentFragment();
    const isCut = text.endsWith("…");
    for (const part of split(text)) {
      if (part.kind === "text") {
        const open = isCut ? part.text.search(/\$(?=[\\A-Za-z(][^$]*…$|\d[^$]*[\\^_=][^$]*…$)|\\[([][^$]*…$|\\begin\{[^$]*…$|\[asy\][^$]*…$/) : -1;
        fragment.append(open < 0 ? part.text : `${part.text.slice(0, open)}…`);
      } else if (part.kind === "figure") fragment.append(" [figure] ");
      else fragment.append(formula({ ...part, kind: "inline", text: inlined(part) }));
    }
    return fragment;
  }

  /** A formula made to fit a line: without the lines of align and its like, and no larger than text. */
  function inlined(part) {
    const lines = /^\\begin\{(?:align|gather|equation)\*?\}|\\end\{(?:align|gather|equation)\*?\}$/g;
    const text = lines.test(part.text) ? part.text.replace(lines, "").replace(/&|\\\\/g, " ") : part.text;
    return text.replace(/\\displaystyle(?![A-Za-z])/g, "").replace(/\\dfrac(?![A-Za-z])/g, "\\frac");
  }

  return { split, render, renderLine };
})();
