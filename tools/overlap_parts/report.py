# SPDX-License-Identifier: Apache-2.0
"""What a search found, as JSON for programs and as one HTML page for people.

The page holds all it needs and runs nothing: every text in it is escaped, and its policy forbids scripts,
pictures and connections. Nothing in either depends on when or how often the search was started."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from tools.overlap_parts.items import Item, Spec
from tools.overlap_parts.results import Share, Table
from tools.overlap_parts.scan import State, read_hits, write_output

SHOWN_HITS = 500  # on the page; hits.jsonl has them all
SHOWN_CHARACTERS = 600

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2b2f36; max-width: 68rem; margin: 2rem auto;
padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; text-align: left;
vertical-align: top; border-bottom: 1px solid #e4e6ea } td.n, th.n { text-align: right; white-space: nowrap;
font-variant-numeric: tabular-nums } code, .gram { font: 13px/1.45 ui-monospace, monospace; overflow-wrap:
anywhere } .gram { background: #fdf1e3; white-space: pre-wrap } .dim { color: #6b7280 }
"""
_HEAD = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
)


def collect(
    spec: Spec,
    items: Sequence[Item],
    short: Sequence[int],
    unmatched: Sequence[int],
    state: State,
    corpora: Sequence[str],
    output: Path,
) -> dict[str, Any]:
    """The report, but for results and cleaning."""
    by_corpus: dict[str, set[Any]] = {name: set() for name in corpora}
    documents_of: dict[Any, int] = {}
    last: dict[Any, str] = {}
    for hit in read_hits(output):
        for item in hit["items"]:
            by_corpus[hit["corpus"]].add(item)
            # Hits of a document stand together, so that the last place is enough to count documents.
            if last.get(item) != hit["where"]:
                last[item] = hit["where"]
                documents_of[item] = documents_of.get(item, 0) + 1
    return {
        "test": str(spec.test),
        "key": spec.key,
        "unit": spec.unit,
        "ngram": spec.ngram,
        "match_short_from": spec.match_short_from,
        "items": len(items),
        "items_too_short": len(short),
        "items_that_cannot_hit": [items[number].id for number in unmatched],
        "items_with_hits": len(documents_of),
        "corpora": [
            {"corpus": name, **asdict(counts), "items_with_hits": len(by_corpus[name])}
            for name, counts in zip(corpora, state.counts, strict=True)
        ],
        "hits_by_item": [
            {"item": item.id, "level": item.level, "documents": documents_of[item.id]}
            for item in items
            if item.id in documents_of
        ],
    }


def hit_items(content: dict[str, Any]) -> set[Any]:
    """The ids of the items with hits."""
    return {entry["item"] for entry in content["hits_by_item"]}


def write_reports(content: dict[str, Any], table: Table | None, items: Sequence[Item], output: Path) -> None:
    """Writes `report.json` and `report.html`."""
    content = {**content, "results": None if table is None else table.as_json()}
    write_output(output / "report.json", orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    page = _page(content, table, items, read_hits(output))
    write_output(output / "report.html", page.encode("utf-8", "replace"))


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _row(cells: Iterable[tuple[str, bool]], tag: str = "td") -> str:
    """A row of cells, already escaped, each with whether it is a number."""
    return "".join(
        f'<{tag} class="n">{cell}</{tag}>' if is_number else f"<{tag}>{cell}</{tag}>"
        for cell, is_number in cells
    )


def _table(head: Sequence[tuple[str, bool]], rows: Iterable[str]) -> str:
    lines = [f"<tr>{_row(head, 'th')}</tr>", *(f"<tr>{row}</tr>" for row in rows)]
    return "<table>\n" + "\n".join(lines) + "\n</table>\n"


def _page(
    content: dict[str, Any], table: Table | None, items: Sequence[Item], hits: Iterable[dict[str, Any]]
) -> str:
    unit = "words" if content["unit"] == "words" else "tokens"
    parts = [
        f"{_HEAD}<title>Overlap with {_text(content['test'])}</title><style>{_STYLE}</style></head><body>\n",
        f"<h1>Overlap with <code>{_text(content['test'])}</code></h1>\n",
        f"<p>{content['items_with_hits']:,} of {content['items']:,} items share {content['ngram']} "
        f"consecutive {unit} with a document. {_short_items(content)}</p>\n<h2>Corpora</h2>\n",
        _corpora(content),
    ]
    if table is not None:
        parts += ["<h2>Accuracy with and without hits</h2>\n", _accuracy(table)]
    if "clean" in content:
        clean = content["clean"]
        parts.append(
            f"<h2>Clean corpora</h2>\n<p><code>{_text(clean['folder'])}</code>: {clean['kept']:,} documents "
            f"kept, {clean['masked']:,} masked, {clean['dropped']:,} dropped, {clean['unsearched']:,} places "
            "left out that could not be searched.</p>\n"
        )
    parts += ["<h2>Hits</h2>\n", _hits(items, hits), "</body></html>\n"]
    return "".join(parts)


def _short_items(content: dict[str, Any]) -> str:
    short, cannot = content["items_too_short"], len(content["items_that_cannot_hit"])
    if content["match_short_from"] is None:
        return f"{short:,} items are shorter and can never hit."
    return (
        f"{short:,} items are shorter; those from {content['match_short_from']} on were matched whole, "
        f"{cannot:,} can never hit."
    )


def _corpora(content: dict[str, Any]) -> str:
    read = "bytes of text" if content["unit"] == "words" else "tokens or bytes"
    head = [("corpus", False), ("documents", True), (read, True), ("documents with hits", True),
            ("n-grams found", True), ("items with hits", True), ("not searched", True)]  # fmt: skip
    rows = [
        _row(
            [
                (f"<code>{_text(corpus['corpus'])}</code>", False),
                *(
                    (f"{corpus[name]:,}", True)
                    for name in ("documents", "read", "hit_documents", "hits", "items_with_hits", "broken")
                ),
            ]
        )
        for corpus in content["corpora"]
    ]
    return _table(head, rows)


def shown_share(share: Share) -> str:
    """`73.1% [65.0, 80.1]`, or a dash for nothing."""
    if share.accuracy is None or share.interval is None:
        return "–"
    low, high = share.interval
    return f"{100 * share.accuracy:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _accuracy(table: Table) -> str:
    head = [("level", False), ("with hits", True), ("items", True), ("without", True), ("items", True)]
    rows = [
        _row(
            [
                (_text(row.level), False),
                (shown_share(row.with_hits), True),
                (f"{row.with_hits.of:,}", True),
                (shown_share(row.without_hits), True),
                (f"{row.without_hits.of:,}", True),
            ]
        )
        for row in table.rows
    ]
    return _table(head, rows) + (
        f'<p class="dim">In brackets: Wilson score intervals at 95%. {table.results:,} results, '
        f"{table.unmatched_results:,} of no item; {table.items_without_result:,} items have no result.</p>\n"
    )


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _hits(items: Sequence[Item], hits: Iterable[dict[str, Any]]) -> str:
    """The first n-gram of each document and item, up to `SHOWN_HITS`."""
    texts = {item.id: item.text for item in items}
    rows: list[str] = []
    last: tuple[str, tuple[Any, ...]] | None = None
    for hit in hits:
        this = (hit["where"], tuple(hit["items"]))
        if this == last:
            continue
        last = this
        if len(rows) == SHOWN_HITS:
            note = f'<p class="dim">The first {SHOWN_HITS:,} places; hits.jsonl has all.</p>\n'
            return note + _table(_HITS_HEAD, rows)
        shown = ", ".join(str(item) for item in hit["items"][:8])
        question = _text(_cut(texts[hit["items"][0]]))
        rows.append(
            _row(
                [
                    (f"<code>{_text(hit['where'])}</code>", False),
                    (f"{hit['position']:,}", True),
                    (f'<span class="gram">{_text(_cut(hit["ngram"]))}</span>', False),
                    (f'{_text(shown)}<br><span class="dim">{question}</span>', False),
                ]
            )
        )
    return _table(_HITS_HEAD, rows) if rows else "<p>None.</p>\n"


_HITS_HEAD = (("document", False), ("at", True), ("first n-gram", False), ("items", False))
