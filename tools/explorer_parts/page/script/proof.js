// SPDX-License-Identifier: Apache-2.0
// One prover's work on a theorem: the proof, what it took, and the tree that was searched.
"use strict";

explorer.proof = (() => {
  const { h, count } = explorer.dom;
  const S = explorer.states;

  const STATUS = { proved: "right", error: "wrong", rejected: "wrong" };

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

  function branch(children, parent, above) {
    const nodes = (children.get(parent) || []).filter((node) => !above.has(node.id));
    if (!nodes.length) return null;
    return h("ul", null, nodes.map((node) => leafOrBranch(children, node, new Set([...above, node.id]))));
  }

  /** Branches are made when they are opened: a search may have thousands of nodes. */
  function leafOrBranch(children, node, above) {
    const below = children.get(node.id)?.length || 0;
    const title = [
      h("code", { class: "tactic" }, node.tactic || "statement"),
      node.score === null || node.score === undefined ? null : h("span", { class: "quiet" }, node.score.toFixed(3)),
      node.status ? h("span", { class: `node-status ${STATUS[node.status] || ""}` }, node.status) : null,
    ];
    const state = [node.message ? h("pre", { class: "state said" }, node.message) : null, node.state ? h("pre", { class: "state" }, node.state) : null].filter(Boolean);
    if (!below && !state.length) return h("li", { class: node.on_path ? "path" : null }, h("div", { class: "leaf" }, title));
    const inside = h("div", null);
    const fill = () => inside.firstChild || explorer.dom.append(inside, [state, branch(children, node.id, above)]);
    const details = h("details", { toggle: () => details.open && fill() }, h("summary", null, title, below > 1 ? h("span", { class: "quiet" }, ` ${count(below)} branches`) : null), inside);
    if (node.on_path || node.parent === null) {
      fill();
      details.open = true;
    }
    return h("li", { class: node.on_path ? "path" : null }, details);
  }

  return { draw };
})();
