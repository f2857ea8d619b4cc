# SPDX-License-Identifier: Apache-2.0
"""What of a page is not its text: which elements are dropped, which blocks are lists of links, how lines are
cleaned. The rules of OpenWebMath (Paster et al. 2023, section 3), as data."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tools.proof_pile_2.open_web_math.formulas import MARK

if TYPE_CHECKING:
    from resiliparse.parse.html import HTMLTree

MOST_LINKS = 3_000
"""A page with more links is skipped (OpenWebMath)."""

DENSEST_LINKS = 0.8
"""A block is dropped if more than this share of its characters are in links (OpenWebMath)."""

_FEWEST_LINKS_OF_A_BLOCK = 4  # ours: a sentence that is one link is text

DROPPED: dict[str, tuple[str, ...]] = {
    "hidden": (
        "[hidden]", '[style*="display:none" i]', '[style*="display: none" i]',
        '[style*="visibility:hidden" i]',
        '[style*="visibility: hidden" i]',
    ),
    "navigation": (
        "nav", "footer", "[role=navigation]", "[role=search]", "[role=contentinfo]", ".navbar",
        ".breadcrumb", ".breadcrumbs",
        ".pagination", ".sphinxsidebar", ".sidebar", "#sidebar", ".headerlink", ".mw-editsection",
        ".skip-link",
    ),
    "buttons": ("button", "[role=button]", "input", "select", "textarea", "option", ".btn", ".share-buttons"),
    "no text": (
        "script", "style", "template", "noscript", "iframe", "svg", "canvas", "object", "audio", "video",
        "map",
    ),
}  # fmt: skip
_DROPPED = ", ".join(selector for selectors in DROPPED.values() for selector in selectors)
_LINK_BLOCKS = "ul, ol, dl, table, section, aside, div"

BOILERPLATE: tuple[str, ...] = (
    r"(?:accept|manage|reject) (?:all )?cookies", r"add (?:a )?comment", r"all rights reserved",
    r"back to top",
    r"click (?:here )?to (?:share|print|email|expand|view|continue)", r"copyright (?:©|\(c\)|\d{4})",
    r"create (?:a |an )?(?:free )?account", r"email this", r"follow us", r"forgot (?:your )?password",
    r"home ?page",
    r"jump to (?:navigation|search|content)", r"leave a (?:comment|reply)", r"like this:?", r"loading\.*",
    r"log ?in(?: or (?:register|sign ?up))?", r"log ?out", r"next (?:page|post|topic)", r"permalink",
    r"powered by",
    r"previous (?:page|post|topic)", r"print this(?: page)?", r"privacy policy", r"read more\.*",
    r"register(?: now)?",
    r"report (?:this|abuse)", r"(?:share|tweet)(?: this| on \w+)?", r"show (?:more|less|comments)",
    r"sign ?(?:in|up)",
    r"skip to (?:main )?(?:content|navigation)", r"subscribe(?: to .{0,40})?", r"table of contents",
    r"terms of (?:use|service)",
    r"this (?:site|website) uses cookies.{0,80}", r"view (?:all|more|source|profile)",
    r"you (?:must|need to) (?:be logged|log) in.{0,60}",
)  # fmt: skip
_BOILERPLATE = re.compile(r"\W*(?:" + "|".join(BOILERPLATE) + r")\W*", re.IGNORECASE)
_LONGEST_BOILERPLATE_CHARACTERS = 100
_HEADING = re.compile(r"(#{1,6})(?:\s+(.*))?")


def drop_elements(tree: HTMLTree) -> None:
    """Take what is hidden, for navigation, for pressing or without text out of the tree."""
    if tree.document is not None:
        for element in tree.document.query_selector_all(_DROPPED).values():
            element.remove()


def count_links(tree: HTMLTree) -> int:
    """Number of links of the page."""
    return 0 if tree.document is None else len(tree.document.get_elements_by_tag_name("a"))


def drop_link_blocks(tree: HTMLTree) -> int:
    """Take blocks out whose characters are mostly links; returns how many. White space is not counted."""
    dropped = 0
    if tree.document is None:
        return dropped
    anchors = tree.document.get_elements_by_tag_name("a").values()
    if len(anchors) < _FEWEST_LINKS_OF_A_BLOCK:
        return dropped
    linked_on_page = sum(_visible(anchor.text) for anchor in anchors)
    for block in tree.document.query_selector_all(_LINK_BLOCKS).values():
        own = block.get_elements_by_tag_name("a")
        if len(own) < _FEWEST_LINKS_OF_A_BLOCK:
            continue
        characters = _visible(block.text)
        if DENSEST_LINKS * characters >= linked_on_page:  # not even with all links of the page
            continue
        linked = sum(_visible(anchor.text) for anchor in own.values())
        if linked > DENSEST_LINKS * characters:
            block.replace_children()  # so that blocks inside count nothing
            block.remove()
            dropped += 1
    return dropped


def _visible(text: str | None) -> int:
    """Number of characters but white space."""
    return len(text) - text.count(" ") - text.count("\n") - text.count("\t") if text else 0


def clean_lines(text: str) -> str:
    """Lines without boilerplate and empty headings; dollars that are no formula are escaped; at most one
    blank line follows another. Formulas and code are marks, and a line with one is never boilerplate."""
    text = text.replace("\t\t", "\t").replace("\\$", "$").replace("$", "\\$")
    kept: list[str] = []
    for line in text.split("\n"):
        line = line.rstrip()
        is_short_text = len(line) <= _LONGEST_BOILERPLATE_CHARACTERS and not MARK.search(line)
        if line and is_short_text and _BOILERPLATE.fullmatch(line):
            continue
        kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_without_empty_headings(kept))).strip("\n")


def _without_empty_headings(lines: list[str]) -> list[str]:
    """Without headings that have no words, or nothing under them before one of their rank or above, or the
    end."""
    kept: list[str] = []
    rank_below = 0  # of the last heading seen, going up; 0: text lies between; 1 at the end of the page
    at_end = True
    for line in reversed(lines):
        heading = _HEADING.fullmatch(line)
        if heading is None:
            if line.strip():
                rank_below, at_end = 0, False
            kept.append(line)
            continue
        rank, words = len(heading.group(1)), heading.group(2)
        empty = at_end or (0 < rank_below <= rank)
        if not words or empty:
            continue
        rank_below = rank
        kept.append(line)
    return kept[::-1]
