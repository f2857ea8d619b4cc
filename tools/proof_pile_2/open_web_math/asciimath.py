# SPDX-License-Identifier: Apache-2.0
"""AsciiMath to LaTeX, after the grammar and the symbol tables of asciimath.org:

v ::= [A-Za-z] | greek letters | numbers | other constant symbols
u ::= sqrt | text | bb | other unary symbols for font commands
b ::= frac | root | stackrel | other binary symbols
l ::= ( | [ | { | (: | {:          r ::= ) | ] | } | :) | :}
S ::= v | l E r | u S | b S S      I ::= S_S | S^S | S_S^S | S      E ::= I E | I/I
"""

from __future__ import annotations

import re

_GREEK = (
    "alpha beta gamma Gamma delta Delta epsilon varepsilon zeta eta theta Theta vartheta iota kappa "
    "lambda Lambda mu nu xi Xi pi Pi rho sigma Sigma tau upsilon phi Phi varphi chi psi Psi omega Omega"
)
_FUNCTIONS = (
    "sin cos tan sec csc cot arcsin arccos arctan sinh cosh tanh coth exp log ln det dim lim mod gcd lcm "
    "min max sup inf ker deg arg Pr"
)
_OWN_COMMAND = {"lcm", "mod"}  # LaTeX has no command for these

_CONSTANTS: dict[str, str] = {
    **{name: f"\\{name}" for name in f"{_GREEK} {_FUNCTIONS}".split() if name not in _OWN_COMMAND},
    **{name: f"\\operatorname{{{name}}}" for name in _OWN_COMMAND},
    "*": "\\cdot", "**": "\\ast", "***": "\\star", "//": "/", "\\\\": "\\backslash", "xx": "\\times",
    "times": "\\times", "-:": "\\div", "div": "\\div", "@": "\\circ", "o+": "\\oplus", "ox": "\\otimes",
    "o.": "\\odot", "sum": "\\sum", "prod": "\\prod", "^^": "\\wedge", "^^^": "\\bigwedge", "vv": "\\vee",
    "vvv": "\\bigvee", "nn": "\\cap", "nnn": "\\bigcap", "uu": "\\cup", "uuu": "\\bigcup", "=": "=",
    "!=": "\\ne", "ne": "\\ne", ":=": ":=", "<": "<", "lt": "<", "<=": "\\le", "le": "\\le", ">": ">",
    "gt": ">", ">=": "\\ge", "ge": "\\ge", "-<": "\\prec", ">-": "\\succ", "-<=": "\\preceq",
    ">-=": "\\succeq", "in": "\\in", "!in": "\\notin", "notin": "\\notin", "sub": "\\subset",
    "sup": "\\supset", "sube": "\\subseteq", "supe": "\\supseteq", "-=": "\\equiv", "~=": "\\cong",
    "~~": "\\approx", "prop": "\\propto", "~": "\\sim", "and": "\\quad\\text{and}\\quad",
    "or": "\\quad\\text{or}\\quad", "not": "\\neg", "=>": "\\Rightarrow", "implies": "\\Rightarrow",
    "if": "\\quad\\text{if}\\quad", "<=>": "\\Leftrightarrow", "iff": "\\Leftrightarrow", "AA": "\\forall",
    "EE": "\\exists", "_|_": "\\bot", "TT": "\\top", "|--": "\\vdash", "|==": "\\models", "int": "\\int",
    "oint": "\\oint", "del": "\\partial", "grad": "\\nabla", "+-": "\\pm", "-+": "\\mp", "O/": "\\emptyset",
    "oo": "\\infty", "aleph": "\\aleph", "...": "\\ldots", "cdots": "\\cdots", "vdots": "\\vdots",
    "ddots": "\\ddots", ":.": "\\therefore", ":'": "\\because", "/_": "\\angle", "quad": "\\quad",
    "qquad": "\\qquad", "diamond": "\\diamond", "square": "\\square", "CC": "\\mathbb{C}",
    "NN": "\\mathbb{N}", "QQ": "\\mathbb{Q}", "RR": "\\mathbb{R}", "ZZ": "\\mathbb{Z}", "dx": "dx",
    "dy": "dy", "dz": "dz", "dt": "dt", "uarr": "\\uparrow", "darr": "\\downarrow", "rarr": "\\rightarrow",
    "->": "\\to", "to": "\\to", "larr": "\\leftarrow", "harr": "\\leftrightarrow", "|->": "\\mapsto",
    ">->": "\\rightarrowtail", "->>": "\\twoheadrightarrow", "rArr": "\\Rightarrow", "lArr": "\\Leftarrow",
    "hArr": "\\Leftrightarrow", "|": "|", "%": "\\%", "$": "\\$", "#": "\\#", "&": "\\&",
}  # fmt: skip
_UNARY = {
    "sqrt": "\\sqrt", "hat": "\\hat", "bar": "\\overline", "overline": "\\overline", "ul": "\\underline",
    "underline": "\\underline", "vec": "\\vec", "dot": "\\dot", "ddot": "\\ddot", "tilde": "\\tilde",
    "bb": "\\mathbf", "mathbf": "\\mathbf", "bbb": "\\mathbb", "mathbb": "\\mathbb", "cc": "\\mathcal",
    "mathcal": "\\mathcal", "tt": "\\mathtt", "fr": "\\mathfrak", "sf": "\\mathsf", "cancel": "\\cancel",
    "ubrace": "\\underbrace", "obrace": "\\overbrace",
}  # fmt: skip
_FENCED = {
    "abs": ("|", "|"), "norm": ("\\|", "\\|"), "floor": ("\\lfloor ", "\\rfloor "),
    "ceil": ("\\lceil ", "\\rceil "),
}  # fmt: skip
_BINARY = {
    "frac": "\\frac{%s}{%s}", "root": "\\sqrt[%s]{%s}", "stackrel": "\\overset{%s}{%s}",
    "overset": "\\overset{%s}{%s}", "underset": "\\underset{%s}{%s}", "color": "\\color{%s}{%s}",
}  # fmt: skip
_TEXT = {"text", "mbox"}
_LEFT = {"(": "(", "[": "[", "{": "\\{", "(:": "\\langle ", "<<": "\\langle ", "{:": "."}
_RIGHT = {")": ")", "]": "]", "}": "\\}", ":)": "\\rangle ", ">>": "\\rangle ", ":}": "."}

_WORDS = sorted(
    {*_CONSTANTS, *_UNARY, *_FENCED, *_BINARY, *_TEXT, *_LEFT, *_RIGHT, "/", "_", "^", ","},
    key=len,
    reverse=True,
)
_TOKEN = re.compile(
    r"\s*(?:(\"[^\"]*\")|([0-9]+(?:\.[0-9]+)?)|(" + "|".join(re.escape(word) for word in _WORDS) + r")|(\S))"
)
_LONGEST = 5_000
_DEEPEST = 60


class _NotAsciiMath(Exception):
    """Nested too deeply."""


def asciimath_to_latex(source: str) -> str | None:
    """The LaTeX of an AsciiMath formula; None for one that is empty, over 5,000 characters or nested over 60
    deep. As in browsers, nothing is a syntax error: an unmatched bracket is a bracket."""
    if not source.strip() or len(source) > _LONGEST:
        return None
    try:
        return _Reader(source).expression(None, 0).strip() or None
    except _NotAsciiMath:
        return None


class _Reader:
    """Recursive descent over the tokens of one formula."""

    def __init__(self, source: str) -> None:
        self._tokens = [found.group(0).strip() for found in _TOKEN.finditer(source)]
        self._next = 0

    def _peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def expression(self, closing: set[str] | None, depth: int) -> str:
        """E, up to a right bracket where one is awaited."""
        if depth > _DEEPEST:
            raise _NotAsciiMath
        parts: list[str] = []
        while (token := self._peek()) is not None and not (closing and token in closing):
            part = self._intermediate(depth)
            if self._peek() == "/":
                self._next += 1
                below = self._intermediate(depth) if self._peek() is not None else ""
                part = f"\\frac{{{_unbracketed(part)}}}{{{_unbracketed(below)}}}"
            parts.append(part)
        return " ".join(parts)

    def _intermediate(self, depth: int) -> str:
        base = self._simple(depth)
        lower = upper = ""
        if self._peek() == "_":
            self._next += 1
            lower = f"_{{{_unbracketed(self._simple(depth))}}}"
        if self._peek() == "^":
            self._next += 1
            upper = f"^{{{_unbracketed(self._simple(depth))}}}"
        return f"{base}{lower}{upper}"

    def _simple(self, depth: int) -> str:
        token = self._peek()
        if token is None or depth > _DEEPEST:
            if token is not None:
                raise _NotAsciiMath
            return ""
        self._next += 1
        if token.startswith('"') and len(token) > 1:
            return f"\\text{{{token[1:-1]}}}"
        if token in _TEXT:
            return f"\\text{{{self._raw_argument()}}}"
        if token in _LEFT:
            return self._bracketed(token, depth)
        if token in _UNARY:
            return f"{_UNARY[token]}{{{_unbracketed(self._simple(depth + 1))}}}"
        if token in _FENCED:
            left, right = _FENCED[token]
            return f"\\left{left}{_unbracketed(self._simple(depth + 1))}\\right{right}".rstrip()
        if token in _BINARY:
            first = _unbracketed(self._simple(depth + 1))
            return _BINARY[token] % (first, _unbracketed(self._simple(depth + 1)))
        return _CONSTANTS.get(token, {"\\": "\\backslash", "}": "\\}"}.get(token, token))

    def _bracketed(self, left: str, depth: int) -> str:
        start = self._next
        inside = self.expression(set(_RIGHT), depth + 1)
        right = self._peek()
        if right is None:
            return f"{_LEFT[left] if left != '{:' else ''}{inside}"
        tokens = self._tokens[start : self._next]
        self._next += 1
        matrix = _matrix(left, right, tokens, depth)
        return matrix or f"\\left{_LEFT[left]}{inside}\\right{_RIGHT[right]}".rstrip()

    def _raw_argument(self) -> str:
        """`(…)` after `text`, as it stands."""
        if self._peek() not in ("(", "[", "{"):
            return ""
        self._next += 1
        words: list[str] = []
        while (token := self._peek()) is not None and token not in (")", "]", "}"):
            words.append(token)
            self._next += 1
        self._next += 1
        return " ".join(words)


def _matrix(left: str, right: str, tokens: list[str], depth: int) -> str | None:
    """`[[a, b], [c, d]]` as a matrix; None if the rows are not rows of equal length, two or more."""
    if len(tokens) < 2 or tokens[0] not in ("[", "(") or tokens[-1] not in ("]", ")"):
        return None
    rows: list[list[list[str]]] = []
    level = 0
    for token in tokens:
        if token in _LEFT:
            level += 1
            if level == 1:
                rows.append([[]])
                continue
        elif token in _RIGHT:
            level -= 1
            if level == 0:
                continue
        if level == 0:
            if token != ",":
                return None
        elif token == "," and level == 1:
            rows[-1].append([])
        elif rows:
            rows[-1][-1].append(token)
    if len(rows) < 2 or len({len(row) for row in rows}) != 1:
        return None
    body = " \\\\ ".join(" & ".join(_translated(cell, depth) for cell in row) for row in rows)
    return f"\\left{_LEFT[left]}\\begin{{matrix}}{body}\\end{{matrix}}\\right{_RIGHT[right]}".rstrip()


def _translated(tokens: list[str], depth: int) -> str:
    reader = _Reader("")
    reader._tokens = tokens
    return reader.expression(None, depth + 1)


def _unbracketed(latex: str) -> str:
    """Without the brackets that only grouped an argument."""
    for left, right in (("\\left(", "\\right)"), ("\\left[", "\\right]"), ("\\left\\{", "\\right\\}")):
        if latex.startswith(left) and latex.endswith(right):
            inside = latex[len(left) : -len(right)]
            if _closes_at_end(inside):
                return inside
    return latex


def _closes_at_end(inside: str) -> bool:
    """Whether every `\\right` inside has its `\\left` inside."""
    depth = 0
    for found in re.finditer(r"\\(left|right)(?![A-Za-z])", inside):
        depth += 1 if found.group(1) == "left" else -1
        if depth < 0:
            return False
    return depth == 0
