# SPDX-License-Identifier: Apache-2.0
"""A web page as text with its mathematics as LaTeX.

Resiliparse parses the page and lays out its text; here formulas and code are put aside first, as marks that
no rule for text touches, and are put back at the end."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.proof_pile_2.open_web_math.delimiters import Delimiters, page_delimiters, take_delimited
from tools.proof_pile_2.open_web_math.formulas import MARK_END, MARK_START, Marks
from tools.proof_pile_2.open_web_math.page_math import take_elements
from tools.proof_pile_2.open_web_math.page_rules import (
    MOST_LINKS,
    clean_lines,
    count_links,
    drop_elements,
    drop_link_blocks,
)

if TYPE_CHECKING:
    from resiliparse.parse.html import HTMLTree

_OWN_MARKS = str.maketrans({MARK_START: "\ufffd", MARK_END: "\ufffd", "\0": None})
_HEADINGS = "h1, h2, h3, h4, h5, h6"
# MathJax does not look into these (its options skipHtmlTags and ignoreHtmlClass); a page's own lines of code
# too.
_VERBATIM = "pre, code, kbd, samp, tt, .tex2jax_ignore, .mathjax_ignore"
_OPENS_A_FORMULA = re.compile(r"[$`\\]")


@dataclass(frozen=True)
class PageText:
    """A page's text; `formulas` counts those in it by kind. `skipped` is the rule by which the page has no
    text, or None."""

    text: str
    title: str
    formulas: dict[str, int]
    skipped: str | None = None


def extract_text(html: str) -> PageText:
    """The text of a page, its formulas as `$…$`, `$$…$$` and environments.

    Elements that no reader sees, navigation, buttons and blocks of links are left out. A page of more than
    3,000 links comes back skipped."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    if MARK_START in html or MARK_END in html or "\0" in html:
        html = html.translate(_OWN_MARKS)
    tree = HTMLTree.parse(html)
    title = " ".join((tree.title or "").split())
    if count_links(tree) > MOST_LINKS:
        return PageText("", title, {}, f"more than {MOST_LINKS:,} links")
    marks = Marks()
    page_lower = html.encode("utf-8", "replace").lower()
    delimiters = page_delimiters(html, page_lower)
    take_elements(tree, page_lower, marks)
    drop_elements(tree)
    drop_link_blocks(tree)
    _take_verbatim(tree, delimiters, marks)
    _mark_headings(tree)
    text = extract_plain_text(tree, preserve_formatting=True, alt_texts=False, form_fields=False)
    text = clean_lines(take_delimited(text, delimiters, marks))
    kinds = Counter(formula.kind for formula in marks.formulas())
    whole = re.sub(r"\n{3,}", "\n\n", marks.put_back(text)).strip()
    return PageText(whole, title, dict(sorted(kinds.items())))


def _take_verbatim(tree: HTMLTree, delimiters: Delimiters, marks: Marks) -> None:
    """Put code aside: whole blocks, and what could be taken for the beginning of a formula."""
    document = tree.document
    if document is None:
        return
    for element in document.query_selector_all(_VERBATIM).values():
        is_block = element.tag == "pre"
        text = element.text or ""
        if MARK_START in text or not (is_block or _OPENS_A_FORMULA.search(text)):
            continue
        if is_block:
            text = "\n" + text.strip("\n") + "\n"
        element.replace_children(document.create_text_node(marks.take(text)))


def _mark_headings(tree: HTMLTree) -> None:
    """Headings as in Markdown."""
    document = tree.document
    if document is None:
        return
    for element in document.query_selector_all(_HEADINGS).values():
        element.prepend(document.create_text_node("#" * int((element.tag or "h1")[1]) + " "))
