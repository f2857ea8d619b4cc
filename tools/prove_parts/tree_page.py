# SPDX-License-Identifier: Apache-2.0
"""The search tree of a theorem as one HTML page: no script, nothing loaded, all text escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

_FAILED = ("error", "timeout", "forbidden", "seen")
# What a browser opens in a second or two. A search with the paper's settings has at most 3,201.
_MOST_NODES = 20_000
_WORDS = {
    "open": "goals left", "done": "no goals left", "proved": "proved and replayed",
    "rejected": "refused at the replay", "error": "error", "timeout": "out of time", "forbidden": "forbidden",
    "seen": "goals seen before",
}  # fmt: skip
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2330;
  margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
pre, code { font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
pre { background: #f4f5f8; border-radius: 4px; padding: .5rem .7rem; margin: .3rem 0; }
details { border-left: 2px solid #d5d9e2; margin: .25rem 0; padding-left: .8rem; }
.aside { margin-left: 1.6rem; }
summary { cursor: pointer; }
.path > summary > code { font-weight: 700; }
.path { border-left-color: #16803c; }
.proved { color: #16803c; } .rejected, .forbidden { color: #b42318; } .quiet { color: #667085; }
table { border-collapse: collapse; } td { padding: .1rem .8rem .1rem 0; vertical-align: top; }
"""


def tree_page(line: Mapping[str, Any]) -> str:
    """The page for a line of `proofs.jsonl`.

    Its tree is a list of nodes; `parent` is a place in it, and None for the statement.
    """
    tree: Sequence[Mapping[str, Any]] = line.get("tree") or []
    children: dict[int, list[int]] = {}
    for number, node in enumerate(tree):
        if node["parent"] is not None:
            children.setdefault(node["parent"], []).append(number)
    name = _text(line["theorem"])
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style></head>',
        "<body>",
        f"<h1>{name}</h1>",
        f"<pre>{_text(line['statement'])}</pre>",
        f"<p>{_outcome(line)}</p>",
    ]
    if line["proof"] is not None:
        parts.append(f"<h2>Proof</h2><pre>{_text(line['proof'])}</pre>")
    for rejected in line.get("rejected") or []:
        parts.append(
            f'<h2 class="rejected">Refused at the replay</h2><pre>{_text(rejected["proof"])}</pre>'
            f"<p>{_text(rejected['message'])}</p>"
        )
    parts.append("<h2>Search</h2>")
    parts += _nodes(tree, children, _path_to_proof(tree)) if tree else ["<p>There was none.</p>"]
    return "\n".join([*parts, "</body></html>", ""])


def _outcome(line: Mapping[str, Any]) -> str:
    tried = sum(node["parent"] is not None for node in line.get("tree") or [])
    said = f" {line['message']}" if line.get("message") else ""
    return _text(
        f"{line['status']}{said}: {line['expansions']} states expanded, {tried} tactics tried, "
        f"{line['seconds']:.1f} s"
    )


def _path_to_proof(tree: Sequence[Mapping[str, Any]]) -> set[int]:
    path: set[int] = set()
    at = next((number for number, node in enumerate(tree) if node["outcome"] == "proved"), None)
    while at is not None:
        path.add(at)
        at = tree[at]["parent"]
    return path


def _nodes(
    tree: Sequence[Mapping[str, Any]], children: Mapping[int, Sequence[int]], path: set[int]
) -> list[str]:
    """All nodes below the statement, without recursion.

    Of the nodes below one, the one on the path to the proof, else the one with most below itself, goes on at
    the same depth, behind its siblings: a proof of 3,000 steps is neither nested nor indented, and no
    browser nests deeper than the logarithm of the number of nodes.
    """
    sizes = _sizes(tree)
    parts: list[str] = []
    stack: list[int | str] = [0]
    asides: set[int] = set()
    shown = 0
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        if shown >= _MOST_NODES:
            continue  # the closing tags that wait are still written
        below = children.get(item, [])
        failed = [number for number in below if tree[number]["outcome"] in _FAILED]
        going_on = [number for number in below if tree[number]["outcome"] not in _FAILED]
        trunk = max(going_on, key=lambda number: (number in path, sizes[number]), default=None)
        others = [number for number in going_on if number != trunk]
        asides.update(others)
        shown += 1 + len(failed)
        parts.append(_head(tree[item], item in path, item in asides))
        # One of several is closed around all that comes after it, the trunk's around its goals.
        (stack if item in asides else parts).append("</details>")
        stack += [] if trunk is None else [trunk]
        stack += [*reversed(others), *([_failed(tree, failed)] if failed else [])]
    if shown < len(tree):
        parts.append(f'<p class="quiet">{len(tree) - shown:,} more nodes are in proofs.jsonl.</p>')
    return parts


def _sizes(tree: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many nodes are below each one, itself included; a parent stands before its children."""
    sizes = [1] * len(tree)
    for number in range(len(tree) - 1, 0, -1):
        sizes[tree[number]["parent"]] += sizes[number]
    return sizes


def _head(node: Mapping[str, Any], on_path: bool, is_aside: bool) -> str:
    is_open = ' open class="path"' if on_path else ' class="aside"' if is_aside else ""
    tactic = node.get("tactic", "the statement")
    rank = f", expanded as number {node['expanded'] + 1}" if "expanded" in node else ""
    parts = [
        f"<details{is_open}><summary><code>{_text(tactic)}</code> "
        f'<span class="{_text(node["outcome"])}">{_word(node)}</span> '
        f'<span class="quiet">cost {node["cost"]:.3f}{rank}</span></summary>'
    ]
    if "goals" in node:
        parts.append(f"<pre>{_text(node['goals'])}</pre>")
    if node.get("message"):
        parts.append(f"<p>{_text(node['message'])}</p>")
    return "".join(parts)


def _failed(tree: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> str:
    rows = "".join(
        f"<tr><td><code>{_text(tree[number]['tactic'])}</code></td><td>{_word(tree[number])}</td>"
        f"<td>{_text(tree[number].get('message', ''))}</td></tr>"
        for number in numbers
    )
    head = f'<summary class="quiet">{len(numbers)} that led nowhere</summary>'
    return f'<details class="aside">{head}<table>{rows}</table></details>'


def _word(node: Mapping[str, Any]) -> str:
    return _text(_WORDS.get(node["outcome"], node["outcome"]))


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
