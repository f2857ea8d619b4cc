# SPDX-License-Identifier: Apache-2.0
"""MathML to LaTeX: the TeX annotation, then `alttext`, then a translation of presentation MathML (MathML
Core and the elements of MathML 3, section 3, that pages use). What has no LaTeX becomes its own
characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resiliparse.parse.html import ElementNode

_DEEPEST = 80
_TEX_ENCODINGS = (
    "application/x-tex",
    "application/x-latex",
    "text/x-tex",
    "text/x-latex",
    "tex",
    "latex",
    "text/tex",
)

_OPERATORS = {
    "±": "\\pm", "∓": "\\mp", "×": "\\times", "÷": "\\div", "⋅": "\\cdot", "·": "\\cdot", "∗": "\\ast",
    "∘": "\\circ", "≤": "\\le", "≥": "\\ge", "≠": "\\ne", "≡": "\\equiv", "≈": "\\approx", "≅": "\\cong",
    "≃": "\\simeq", "∼": "\\sim", "∝": "\\propto", "≪": "\\ll", "≫": "\\gg", "≺": "\\prec", "≻": "\\succ",
    "⪯": "\\preceq", "∈": "\\in", "∉": "\\notin", "∋": "\\ni", "⊂": "\\subset", "⊃": "\\supset",
    "⊆": "\\subseteq", "⊇": "\\supseteq", "∪": "\\cup", "∩": "\\cap", "∖": "\\setminus", "∅": "\\emptyset",
    "∧": "\\wedge", "∨": "\\vee", "¬": "\\neg", "∀": "\\forall", "∃": "\\exists", "∄": "\\nexists",
    "∇": "\\nabla", "∂": "\\partial", "∞": "\\infty", "∑": "\\sum", "∏": "\\prod", "∐": "\\coprod",
    "∫": "\\int", "∬": "\\iint", "∭": "\\iiint", "∮": "\\oint", "⋃": "\\bigcup", "⋂": "\\bigcap",
    "⋁": "\\bigvee", "⋀": "\\bigwedge", "⨁": "\\bigoplus", "⨂": "\\bigotimes", "⊕": "\\oplus",
    "⊗": "\\otimes", "⊙": "\\odot", "⊥": "\\perp", "∥": "\\parallel", "∣": "\\mid", "∠": "\\angle",
    "→": "\\to", "←": "\\leftarrow", "↔": "\\leftrightarrow", "⇒": "\\Rightarrow", "⇐": "\\Leftarrow",
    "⇔": "\\Leftrightarrow", "↦": "\\mapsto", "↑": "\\uparrow", "↓": "\\downarrow", "⟶": "\\longrightarrow",
    "⟹": "\\Longrightarrow", "⟺": "\\Longleftrightarrow", "↪": "\\hookrightarrow",
    "↠": "\\twoheadrightarrow", "…": "\\ldots", "⋯": "\\cdots", "⋮": "\\vdots", "⋱": "\\ddots", "′": "'",
    "″": "''", "−": "-", "⁄": "/", "⟨": "\\langle", "⟩": "\\rangle", "⌊": "\\lfloor", "⌋": "\\rfloor",
    "⌈": "\\lceil", "⌉": "\\rceil", "‖": "\\|", "ℝ": "\\mathbb{R}", "ℂ": "\\mathbb{C}", "ℕ": "\\mathbb{N}",
    "ℤ": "\\mathbb{Z}", "ℚ": "\\mathbb{Q}", "ℙ": "\\mathbb{P}", "ℓ": "\\ell", "ℏ": "\\hbar", "ℜ": "\\Re",
    "ℑ": "\\Im", "ℵ": "\\aleph", "†": "\\dagger", "‡": "\\ddagger", "⊢": "\\vdash", "⊨": "\\models",
    "⊤": "\\top", "□": "\\square", "∴": "\\therefore", "∵": "\\because", "{": "\\{", "}": "\\}", "%": "\\%",
    "#": "\\#", "&": "\\&", "$": "\\$", "_": "\\_", "\\": "\\backslash", "\u2061": "", "\u2062": "",
    "\u2063": "", "\u2064": "", "\u200b": "", "\u00a0": "~",
}  # fmt: skip
_GREEK_NAMES = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega epsilon vartheta phi varpi "
    "varrho varsigma"
)
_GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϵϑϕϖϱς", _GREEK_NAMES.split(), strict=True))
_CHARACTERS = {**_OPERATORS, **{letter: f"\\{name}" for letter, name in _GREEK.items()}}
_FUNCTION_NAMES = (
    "sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh coth exp log ln lg det dim lim gcd min "
    "max sup inf ker deg arg hom Pr limsup liminf"
)
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_VARIANTS = {
    "bold": "\\mathbf", "double-struck": "\\mathbb", "script": "\\mathcal", "fraktur": "\\mathfrak",
    "sans-serif": "\\mathsf", "monospace": "\\mathtt", "bold-italic": "\\boldsymbol",
    "bold-fraktur": "\\mathfrak",
}  # fmt: skip
_ACCENTS = {
    "^": "\\hat", "ˆ": "\\hat", "\u0302": "\\hat", "~": "\\tilde", "˜": "\\tilde", "\u0303": "\\tilde",
    "¯": "\\overline", "‾": "\\overline", "_": "\\underline", "\u0304": "\\bar", "→": "\\vec", "⃗": "\\vec",
    "˙": "\\dot", "¨": "\\ddot", "⏞": "\\overbrace", "⏟": "\\underbrace", "ˇ": "\\check", "˘": "\\breve",
}  # fmt: skip
_LARGE = (
    "\\sum",
    "\\prod",
    "\\coprod",
    "\\int",
    "\\lim",
    "\\max",
    "\\min",
    "\\sup",
    "\\inf",
    "\\big",
    "\\oint",
    "\\operatorname",
)
_PASSED_OVER = {
    "annotation",
    "annotation-xml",
    "mphantom",
    "maligngroup",
    "malignmark",
    "none",
    "mprescripts",
}


class _TooDeep(Exception):
    """Nested too deeply to be a formula."""


def mathml_to_latex(math: ElementNode) -> str | None:
    """LaTeX of a `<math>` element: annotation, alttext or translation, in this order. None if all are empty,
    and for what is nested over 80 deep."""
    for annotation in math.get_elements_by_tag_name("annotation").values():
        if (annotation.getattr("encoding") or "").strip().lower() in _TEX_ENCODINGS:
            latex = (annotation.text or "").strip()
            if latex:
                return latex
    alttext = (math.getattr("alttext") or "").strip()
    if alttext:
        return alttext
    try:
        return " ".join(_row(math, 0).split()) or None
    except _TooDeep:
        return None


def is_display(math: ElementNode) -> bool:
    """Whether a `<math>` element stands in display style."""
    return (math.getattr("display") or math.getattr("mode") or "").lower() in ("block", "display")


def _name(node: ElementNode) -> str:
    """The tag without a namespace prefix such as `m:`."""
    return (node.tag or "").lower().rpartition(":")[2]


def _elements(node: ElementNode) -> list[ElementNode]:
    return [child for child in node.children.values() if _name(child) not in _PASSED_OVER]


def _row(node: ElementNode, depth: int) -> str:
    parts = [_latex(child, depth + 1) for child in _elements(node)]
    return " ".join(part for part in parts if part)


def _latex(node: ElementNode, depth: int) -> str:
    if depth > _DEEPEST:
        raise _TooDeep
    name = _name(node)
    translate = _TRANSLATIONS.get(name)
    if translate is not None:
        return translate(node, depth)
    return _row(node, depth) if node.first_element_child is not None else _characters(node.text or "")


def _characters(text: str) -> str:
    """Characters as LaTeX in math mode; commands are followed by a space where a letter comes next."""
    return " ".join("".join(f"{_CHARACTERS[c]} " if c in _CHARACTERS else c for c in text.strip()).split())


def _identifier(node: ElementNode, depth: int) -> str:
    text = (node.text or "").strip()
    if text in _FUNCTIONS:
        return f"\\{text}"
    latex = _characters(text)
    variant = _VARIANTS.get((node.getattr("mathvariant") or "").lower())
    if variant and latex:
        return f"{variant}{{{latex}}}"
    return f"\\operatorname{{{latex}}}" if len(text) > 1 and text.isalpha() and text.isascii() else latex


def _operator(node: ElementNode, depth: int) -> str:
    text = (node.text or "").strip()
    return f"\\{text}" if text in _FUNCTIONS else _characters(text)


def _words(node: ElementNode, depth: int) -> str:
    text = " ".join((node.text or "").split())
    for character in "\\{}$%#&_":
        text = text.replace(character, " " if character == "\\" else f"\\{character}")
    return f"\\text{{{text}}}" if text else ""


def _arguments(node: ElementNode, count: int, depth: int) -> list[str]:
    found = [_latex(child, depth + 1) for child in _elements(node)[:count]]
    return [*found, *[""] * (count - len(found))]


def _fraction(node: ElementNode, depth: int) -> str:
    above, below = _arguments(node, 2, depth)
    if (node.getattr("linethickness") or "") in ("0", "0px", "0pt", "0em"):
        return f"\\binom{{{above}}}{{{below}}}"
    return f"\\frac{{{above}}}{{{below}}}"


def _root(node: ElementNode, depth: int) -> str:
    base, index = _arguments(node, 2, depth)
    return f"\\sqrt[{index}]{{{base}}}"


def _based(base: str) -> str:
    """A base that a script may follow: one token as it stands, more in braces."""
    if len(base) == 1 or base.startswith(_LARGE) or (base.startswith("\\") and base[1:].isalpha()):
        return base
    return f"{{{base}}}"


def _scripts(*marks: str) -> Callable[[ElementNode, int], str]:
    def translate(node: ElementNode, depth: int) -> str:
        base, *scripts = _arguments(node, 1 + len(marks), depth)
        attached = []
        for mark, script in zip(marks, scripts, strict=True):
            if script and set(script) == {"'"} and mark == "^":
                attached.append(script)
            elif script:
                attached.append(f"{mark}{{{script}}}")
        return _based(base) + "".join(attached)

    return translate


def _under_over(under: bool, over: bool) -> Callable[[ElementNode, int], str]:
    def translate(node: ElementNode, depth: int) -> str:
        children = _elements(node)
        base, *scripts = _arguments(node, 1 + under + over, depth)
        if under != over and len(children) > 1:
            accent = _ACCENTS.get((children[1].text or "").strip())
            if accent:
                return f"{accent}{{{base}}}"
        below, above = (scripts[0] if under else "", scripts[-1] if over else "")
        if base.startswith(_LARGE) or base.startswith(("\\underbrace", "\\overbrace")):
            return base + (f"_{{{below}}}" if below else "") + (f"^{{{above}}}" if above else "")
        latex = f"\\underset{{{below}}}{{{base}}}" if below else base
        return f"\\overset{{{above}}}{{{latex}}}" if above else latex

    return translate


def _multiscripts(node: ElementNode, depth: int) -> str:
    children = list(node.children.values())
    names = [_name(child) for child in children]
    split = names.index("mprescripts") if "mprescripts" in names else len(children)
    base = _latex(children[0], depth + 1) if children else ""

    def pairs(nodes: list[ElementNode]) -> str:
        texts = ["" if _name(child) == "none" else _latex(child, depth + 1) for child in nodes]
        lower, upper = "".join(texts[0::2]), "".join(texts[1::2])
        return (f"_{{{lower}}}" if lower else "") + (f"^{{{upper}}}" if upper else "")

    before, after = pairs(children[split + 1 :]), pairs(children[1:split])
    return (f"{{}}{before}" if before else "") + _based(base) + after


def _fenced(node: ElementNode, depth: int) -> str:
    left, right = (node.getattr("open", "(") or ""), (node.getattr("close", ")") or "")
    separators = (node.getattr("separators", ",") or "").replace(" ", "")
    parts = [_latex(child, depth + 1) for child in _elements(node)]
    latex = "" if not parts else parts[0]
    for number, part in enumerate(parts[1:]):
        separator = separators[min(number, len(separators) - 1)] if separators else ""
        latex += f" {_characters(separator)} {part}"
    return f"\\left{_characters(left) or '.'} {latex} \\right{_characters(right) or '.'}"


def _table(node: ElementNode, depth: int) -> str:
    rows = []
    for row in _elements(node):
        cells = [cell for cell in _elements(row) if _name(cell) == "mtd"] or [row]
        if _name(row) == "mlabeledtr":
            cells = cells[1:]
        rows.append(" & ".join(_row(cell, depth + 2) for cell in cells))
    body = " \\\\ ".join(rows)
    return f"\\begin{{matrix}} {body} \\end{{matrix}}"


def _space(node: ElementNode, depth: int) -> str:
    return "\\\\" if node.getattr("linebreak") == "newline" else "\\;"


def _enclosed(node: ElementNode, depth: int) -> str:
    inside, notation = _row(node, depth), node.getattr("notation") or "longdiv"
    if "radical" in notation:
        return f"\\sqrt{{{inside}}}"
    if "strike" in notation:
        return f"\\cancel{{{inside}}}"
    return f"\\boxed{{{inside}}}" if notation in ("box", "roundedbox") else inside


def _semantics(node: ElementNode, depth: int) -> str:
    first = _elements(node)
    return _latex(first[0], depth + 1) if first else ""


def _nothing(node: ElementNode, depth: int) -> str:
    return ""


_TRANSLATIONS: dict[str, Callable[[ElementNode, int], str]] = {
    "mi": _identifier, "mn": _operator, "mo": _operator, "mtext": _words, "ms": _words, "mspace": _space,
    "mfrac": _fraction, "msqrt": lambda node, depth: f"\\sqrt{{{_row(node, depth)}}}", "mroot": _root,
    "msub": _scripts("_"), "msup": _scripts("^"), "msubsup": _scripts("_", "^"),
    "munder": _under_over(True, False), "mover": _under_over(False, True), "munderover": _under_over(True,
    True),
    "mmultiscripts": _multiscripts, "mfenced": _fenced, "mtable": _table, "menclose": _enclosed,
    "semantics": _semantics, "annotation": _nothing, "annotation-xml": _nothing, "mphantom": _nothing,
}  # fmt: skip
