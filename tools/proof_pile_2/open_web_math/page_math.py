# SPDX-License-Identifier: Apache-2.0
"""Formulas that are elements of a page: each kind as a row of a table, replaced by a mark where it stands.

A row is looked for only on pages that hold one of its words, and rows come in the order in which one kind
may hold another: a MathJax script before the output rendered from it, KaTeX and Wikipedia's elements before
the MathML that is in them, services that draw a URL before the alternative text of any image."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tools.proof_pile_2.open_web_math.asciimath import asciimath_to_latex
from tools.proof_pile_2.open_web_math.formulas import Formula, Marks, clean_formula, is_wrapped
from tools.proof_pile_2.open_web_math.mathml import is_display, mathml_to_latex

if TYPE_CHECKING:
    from resiliparse.parse.html import ElementNode, HTMLTree

KEEP = "keep"
"""What a reader says of an element that is no formula and stays in the page."""


@dataclass(frozen=True)
class Kind:
    """One way in which pages hold formulas. `words` are looked for in the page's lower-cased bytes; `read`
    gives the formula, None for an element to drop, or KEEP."""

    name: str
    words: tuple[bytes, ...]
    selector: str
    read: Callable[[ElementNode], Formula | str | None]


def take_elements(tree: HTMLTree, page_lower: bytes, marks: Marks) -> None:
    """Replace the formulas of `tree` by marks; `page_lower` is the page it was parsed from, in lower case."""
    document = tree.document
    if document is None:
        return
    has_math = b"math" in page_lower  # most words hold this one, so that most pages are searched for few
    for kind in KINDS:
        if not any((has_math or b"math" not in word) and word in page_lower for word in kind.words):
            continue
        for element in document.query_selector_all(kind.selector).values():
            found = kind.read(element)
            if isinstance(found, Formula):
                element.replace_with(document.create_text_node(marks.take(found)))
            elif found is None:
                element.remove()


def _script(element: ElementNode) -> Formula | str | None:
    """MathJax 2: `<script type="math/tex; mode=display">`, `math/mml`, `math/asciimath`."""
    kind = (element.getattr("type") or "").lower()
    source = element.text or ""
    display = "mode=display" in kind.replace(" ", "")
    if kind.startswith("math/tex"):
        source = source.removeprefix("% <![CDATA[").removesuffix("%]]>").strip()
        return clean_formula(source, display, "math/tex script")
    if kind.startswith("math/asciimath"):
        return clean_formula(asciimath_to_latex(source) or "", display, "AsciiMath")
    return _parsed_mathml(source, display, "math/mml script") if kind.startswith("math/mml") else None


def _parsed_mathml(source: str, display: bool, kind: str) -> Formula | None:
    """MathML that stands in a script or an attribute as text."""
    from resiliparse.parse.html import HTMLTree

    document = HTMLTree.parse(source).document
    math = None if document is None else document.query_selector("math")
    if math is None:
        return None
    return clean_formula(mathml_to_latex(math) or "", display or is_display(math), kind)


def _katex(element: ElementNode) -> Formula | str | None:
    """KaTeX's output: its annotation, else its MathML. An output without either stays as text."""
    math = element.query_selector("math")
    if math is None:
        return KEEP
    display = "katex-display" in (element.class_name or "") or is_display(math)
    return clean_formula(mathml_to_latex(math) or "", display, "KaTeX") or KEEP


def _wikipedia(element: ElementNode) -> Formula | str | None:
    """`mwe-math-element`: hidden MathML and a fallback image with the same formula."""
    math = element.query_selector("math")
    if math is not None:
        found = clean_formula(mathml_to_latex(math) or "", is_display(math), "MathML")
        if found:
            return found
    image = element.query_selector("img[alt]")
    return (
        KEEP if image is None else clean_formula(image.getattr("alt") or "", False, "image alt text") or KEEP
    )


def _mathjax_output(element: ElementNode) -> Formula | str | None:
    """What MathJax rendered into a saved page: `mjx-container` with assistive MathML, or `data-mathml`."""
    display = element.getattr("display") == "true" or "MathJax_Display" in (element.class_name or "")
    parent = element.parent_element
    if parent is not None and "MathJax_Display" in (parent.class_name or ""):
        display = True
    source = element.getattr("data-mathml") or ""
    if source:
        return _parsed_mathml(source, display, "MathJax output")
    math = element.query_selector("math")
    if math is None:
        return KEEP
    return clean_formula(mathml_to_latex(math) or "", display or is_display(math), "MathJax output")


def _mathml(element: ElementNode) -> Formula | str | None:
    return clean_formula(mathml_to_latex(element) or "", is_display(element), "MathML") or KEEP


_TEX_IN_URL = re.compile(
    r"(?:codecogs\.com/[a-z.]*(?:latex|image|eq)[a-z.]*\?|(?:mimetex|mathtex|mathtex2?|tex)\.cgi\?"
    r"|[?&](?:latex|tex|chl|formula|eq)=|cgi-bin/math?tex\?)(.+)",
    re.IGNORECASE | re.DOTALL,
)
# Settings that services take in front of a formula (CodeCogs, "Equation editor": fonts, sizes, colours).
_URL_SETTING = re.compile(
    r"\s*(?:\\(?:dpi|fn|bg|fg|opaque)(?:_?\{[^}]*\}|_[a-z]+)|\\(?:inline|opaque|tiny|small|normalsize|large|"
    r"Large|LARGE|huge|reverse|png|gif|usepackage(?:\[[^\]]*\])?\{[^}]*\}|space|displaystyle)(?![A-Za-z])|&space;)"
)
_NAMED_PARAMETER = re.compile(r"[?&](?:latex|tex|chl|formula|eq)=", re.IGNORECASE)


def latex_of_url(url: str) -> str | None:
    """The LaTeX a formula service (CodeCogs, mimeTeX, mathTeX, WordPress, Google Charts) is asked to draw."""
    found = _TEX_IN_URL.search(url)
    if found is None:
        return None
    latex = found.group(1)
    if _NAMED_PARAMETER.match(found.group(0)):
        latex = latex.partition("&")[0].replace("+", " ")
    latex = unquote(latex, errors="replace").replace("&space;", " ").replace("&plus;", "+")
    while setting := _URL_SETTING.match(latex):
        latex = latex[setting.end() :]
    return latex.strip() or None


def _image_source(element: ElementNode) -> str:
    return element.getattr("src") or element.getattr("data-src") or element.getattr("data-lazy-src") or ""


def _wordpress(element: ElementNode) -> Formula | str | None:
    """`latex.php?latex=…`, with the same LaTeX as alternative text."""
    latex = latex_of_url(_image_source(element))
    alt = element.getattr("alt") or ""
    return clean_formula(alt or latex or "", _alone_in_block(element), "WordPress latex") or KEEP


def _image_url(element: ElementNode) -> Formula | str | None:
    latex = latex_of_url(_image_source(element))
    return clean_formula(latex or "", _alone_in_block(element), "image URL") or KEEP


_MATH_CLASS = re.compile(
    r"(?:^|[\s_-])(?:math|tex|latex|mathimg|mathtex|mimetex|formula|eqn?|equation)(?:$|[\s_-])", re.IGNORECASE
)
_TEX_COMMAND = re.compile(r"\\[A-Za-z]+|[\^_]\{")


def _image_alt(element: ElementNode) -> Formula | str | None:
    """The alternative text of an image: one of a class for formulas, or text that is TeX."""
    alt = element.getattr("alt") or ""
    if not alt.strip():
        return KEEP
    if _MATH_CLASS.search(element.class_name or "") or is_wrapped(alt) or _TEX_COMMAND.search(alt):
        return clean_formula(alt, _alone_in_block(element), "image alt text") or KEEP
    return KEEP


def _alone_in_block(element: ElementNode) -> bool:
    """Whether an image is the only content of a `div.math` (Sphinx) or of a centred or display block."""
    block = element.parent_element
    for _ in range(2):
        if block is None:
            return False
        if block.tag == "div":
            return bool(re.search(r"math|equation|display|eqn|center", block.class_name or "", re.IGNORECASE))
        block = block.parent_element
    return False


def _tex_element(element: ElementNode) -> Formula | str | None:
    """`span.math`, `.math-container`, `.tex` and the like, where they hold TeX as text and nothing else."""
    text = element.text or ""
    if is_wrapped(text):
        return clean_formula(text, element.tag == "div", "element")
    classes = set((element.class_name or "").split())
    if element.first_element_child is not None or not classes & {"tex", "latex", "inline", "display"}:
        return KEEP
    if _TEX_COMMAND.search(text) or ("math" in classes and text.strip()):  # pandoc --katex has bare TeX
        return clean_formula(text, element.tag == "div" or "display" in classes, "element") or KEEP
    return KEEP


def _drop(element: ElementNode) -> None:
    return None


_RENDERED = (
    ".MathJax_Preview, .MathJax, .MathJax_Display, .MathJax_SVG, .MathJax_SVG_Display, .MathJax_CHTML, "
    ".MathJax_MathML, #MathJax_Message, .MJX_Assistive_MathML"
)
_SERVICES = (b"codecogs", b"mimetex", b"mathtex", b"tex.cgi", b"cht=tx", b"/math?tex")
_TEX_ELEMENTS = (
    ".math-container, span.math, div.math, span.tex, span.latex, div.tex, div.latex, math-renderer"
)
_TEX_WORDS = (b"math-", b'"math', b" math", b'"tex', b'"latex', b"=math", b"=tex", b" tex")
KINDS: tuple[Kind, ...] = (
    # name, words that a page with it holds, elements, reader
    Kind("math script", (b"math/",), 'script[type^="math/" i]', _script),
    Kind("KaTeX block", (b"katex-display",), ".katex-display", _katex),
    Kind("KaTeX", (b"katex",), ".katex", _katex),
    Kind("Wikipedia", (b"mwe-math",), ".mwe-math-element", _wikipedia),
    Kind("MathJax", (b"mjx-container", b"data-mathml"), "mjx-container, [data-mathml]", _mathjax_output),
    Kind("rendered", (b"mathjax",), _RENDERED, _drop),
    Kind("MathML", (b"<math", b":math"), r"math, m\:math, mml\:math, mathml\:math", _mathml),
    Kind("WordPress", (b"latex.php",), 'img[src*="latex.php"]', _wordpress),
    Kind("image URL", _SERVICES, ", ".join(f'img[src*="{word.decode()}"]' for word in _SERVICES), _image_url),
    Kind("image alt", (b"alt=",), "img[alt]", _image_alt),
    Kind("element", _TEX_WORDS, _TEX_ELEMENTS, _tex_element),
)  # fmt: skip
