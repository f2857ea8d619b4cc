// SPDX-License-Identifier: Apache-2.0
// One prover's work on a theorem: the proof, what it took, and the tree that was searched.
"use strict";

explorer.proof = (() => {
  const { h, count } = explorer.dom;
  const S = explorer.states;

  const STATUS = { proved: "right", error: "wrong", rejected: "wrong" };
  const MOST_LINES = 300; // of a list at once

  function draw(proof) {
    const verdict = S.ofBoolean(proof.proved);
    const facts = [
      ["seconds", proof.seconds === null ? null : proof.seconds.toFixed(1)],
      ["expansions", proof.expansions === null ? null : count(proof.expansions)],
      ["status", proof.status || null], ...proof.more,
    ].filter((fact) => fact[1] !== null);
    return [
      h("div", { class: "verdicts" }, h("span", { class: `chip ${S.CLASSES[verdict]}` }, S.mark(verdict, "proofs"), S.WORDS.proofs[verdict])),
      proof.proof ? [h("h4", null, "Proof"), h("pre", { class: "code" }, proof.proof)] : null,
      explorer.samples.table(facts),
      proof.tree?.length ? [h("h4", null, `Search tree · ${count(proof.tree.length)} nodes`), tree(proof.tree)] : null,
    ];
  }

  /** Nodes as {id, parent, tactic, state, score, status, message, on_path}; a node without a parent is a root. */
  function tree(nodes) {
    const children = new Map();
    const known = new Set(nodes.map((node) => node.id));
    for (const node of nodes) {
      const parent = known.has(node.parent) && node.parent !== node.id ? node.parent : null;
      if (!children.has(parent)) children.set(parent, []);
      children.get(parent).push(node);
    }
    return h("div", { class: "tree" }, branch(children, null, new Set()));
  }

  /** What is below a node, as one list: a node without siblings goes on from the line before it, and so does the one
      on the way to the proof, behind its siblings. So a long proof is neither deep nor indented. */
  function branch(children, parent, drawn) {
    const lines = [];
    for (let below = children.get(parent) || []; below.length;) {
      const fresh = below.filter((node) => !drawn.has(node));
      fresh.forEach((node) => drawn.add(node)); // each node once, whatever its parents say
      const next = fresh.length === 1 ? fresh[0] : fresh.find((node) => node.on_path);
      lines.push(...fresh.filter((node) => node !== next).map((node) => ({ node, isAside: Boolean(next) })));
      if (!next) break;
      lines.push({ node: next, isTrunk: true });
      below = children.get(next.id) || [];
    }
    return lines.length ? list(lines, children, drawn) : null;
  }

  function list(lines, children, drawn) {
    const ul = h("ul", null);
    let shown = 0;
    const show = () => {
      explorer.dom.append(ul, lines.slice(shown, shown + MOST_LINES).map((line) => item(line, children, drawn)));
      shown += MOST_LINES;
      if (shown < lines.length) ul.append(h("li", null, h("button", { type: "button", click: more }, `${count(lines.length - shown)} more steps`)));
    };
    const more = (event) => {
      event.target.closest("li").remove();
      show();
    };
    show();
    return ul;
  }

  /** What is below one that is not gone on from is made when it is opened: a search may have thousands of nodes. */
  function item({ node, isTrunk, isAside }, children, drawn) {
    const below = children.get(node.id)?.length || 0;
    const title = [
      h("code", { class: "tactic" }, node.tactic || "statement"),
      node.score === null || node.score === undefined ? null : h("span", { class: "quiet" }, node.score.toFixed(3)),
      node.status ? h("span", { class: `node-status ${STATUS[node.status] || ""}` }, node.status) : null,
      below > 1 ? h("span", { class: "quiet" }, ` ${count(below)} branches`) : null,
    ];
    const state = [node.message ? h("pre", { class: "state said" }, node.message) : null, node.state ? h("pre", { class: "state" }, node.state) : null].filter(Boolean);
    const kind = [node.on_path ? "path" : "", isAside ? "aside" : ""].filter(Boolean).join(" ") || null;
    if (!state.length && (isTrunk || !below)) return h("li", { class: kind }, h("div", { class: "leaf" }, title));
    const inside = h("div", null);
    const fill = () => inside.firstChild || explorer.dom.append(inside, [state, isTrunk ? null : branch(children, node.id, drawn)]);
    const details = h("details", { toggle: () => details.open && fill() }, h("summary", null, title), inside);
    if ((isTrunk && node.on_path) || node.parent === null) {
      fill();
      details.open = true;
    }
    return h("li", { class: kind }, details);
  }

  return { draw };
})();
