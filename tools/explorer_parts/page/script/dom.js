// SPDX-License-Identifier: Apache-2.0
// Elements from values. Text becomes text nodes: no string is ever read as HTML on this page.
"use strict";

window.explorer = {};

explorer.dom = (() => {
  /** An element. `attributes`: strings, true for an empty one, null or false for none, functions as listeners. */
  function h(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (name === "style") Object.assign(element.style, value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== null && value !== false && value !== undefined) element.setAttribute(name, String(value));
    }
    append(element, children);
    return element;
  }

  function append(element, children) {
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      element.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return element;
  }

  /** A long_name_with_underscores that may break after each of them. */
  const breakable = (name) => label(name).split(/(?<=[_/.-])/).flatMap((part, at) => (at ? [document.createElement("wbr"), part] : [part]));

  const LONGEST_NAME = 120; // characters
  /** A name from the data as it is shown: in quotation marks where nothing of it would be seen, and not a page long. */
  function label(name) {
    if (!/[\p{L}\p{N}\p{P}\p{S}]/u.test(name)) return JSON.stringify(name.slice(0, LONGEST_NAME));
    const letters = name.length > LONGEST_NAME ? [...name.slice(0, 2 * LONGEST_NAME)] : [];
    return letters.length > LONGEST_NAME ? `${letters.slice(0, LONGEST_NAME).join("")}…` : name;
  }

  const byId = (id) => document.getElementById(id);

  const count = (number) => number.toLocaleString("en-US");

  /** 0.3412 as "34.1%" */
  const percent = (share) => `${(100 * share).toFixed(1)}%`;

  return { h, append, breakable, label, byId, count, percent };
})();
