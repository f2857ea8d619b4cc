# SPDX-License-Identifier: Apache-2.0
"""Documentation strings to LaTeX: construct by construct, and on whole packages as installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.quickstart_parts.corpus import place_of
from tools.quickstart_parts.latex import docstring_to_latex, escape, module_to_latex


@pytest.mark.parametrize(
    ("docstring", "latex", "formulas"),
    [
        ("The root :math:`\\sqrt{x}` of x.", "The root $\\sqrt{x}$ of x.", 1),
        ("For $x \\in \\mathbb{R}$ and\n$y$.", "For $x \\in \\mathbb{R}$ and\n$y$.", 2),
        (".. math::\n\n    a = b\n    + c\n\n    d = e\n", "\\[\na = b\n+ c\n\\]\n\n\\[\nd = e\n\\]", 2),
        (".. math:: e^{i\\pi} = -1", "\\[\ne^{i\\pi} = -1\n\\]", 1),
        (".. math ::\n   :label: eq\n\n   x", "\\[\nx\n\\]", 1),
        (".. math::\n\n   a &= b \\\\\n   &= c",
         "\\[\n\\begin{split}\na &= b \\\\\n&= c\n\\end{split}\n\\]", 1),
        (
            ".. math::\n\n   \\begin{align} a &= b \\end{align}",
            "\\begin{align} a &= b \\end{align}",
            1,
        ),
        (".. math::\n\n   \\frac{a{b}", "", 0),  # a brace is missing: it would break the document
        ("50% of a_b & #1", "50\\% of a\\_b \\& \\#1", 0),
        ("Use ``a_b`` or :func:`~scipy.special.zeta`.",
         "Use \\texttt{a\\_b} or \\texttt{scipy.special.zeta}.", 0),
        (":class:`the class <pkg.C>`", "\\texttt{the class}", 0),
        ("**Bold** and *slanted*, a*b*c", "\\textbf{Bold} and \\emph{slanted}, a*b*c", 0),
        ("See [1]_ and `a page <http://a.b/c_d#e>`_.",
         "See [1] and \\href{http://a.b/c_d\\#e}{a page}.", 0),
        ("Notes\n-----\nText", "\\subsubsection*{Notes}\n\nText", 0),
        (">>> 1 + 1\n2\n\nText", "\\begin{verbatim}\n>>> 1 + 1\n2\n\\end{verbatim}\n\nText", 0),
        ("As in::\n\n    a_b = 1\n\nText",
         "As in:\n\n\\begin{verbatim}\na_b = 1\n\\end{verbatim}\n\nText", 0),
        ("- one\n- two\n  lines", "\\begin{itemize}\n\n\\item one\n\n\\item two\nlines\n\n\\end{itemize}", 0),
        ("1. one\n2. two", "\\begin{enumerate}\n\n\\item one\n\n\\item two\n\n\\end{enumerate}", 0),
        ("x : float\n    At :math:`x`.",
         "\\begin{description}\n\n\\item[x : float] At $x$.\n\n\\end{description}", 1),
        (".. [1] A. Author, *Title*.", "[1] A. Author, \\emph{Title}.", 0),
        (".. note::\n\n   Mind :math:`x`.", "Mind $x$.", 1),
        (".. plot::\n\n   import x\n\nText", "Text", 0),
        (".. a comment\n   of two lines\n\nText", "Text", 0),
        ("=== ===\n a   b\n=== ===", "\\begin{verbatim}\n=== ===\n a   b\n=== ===\n\\end{verbatim}", 0),
    ],
)  # fmt: skip
def test_constructs(docstring: str, latex: str, formulas: int) -> None:
    # After an empty line, as where the quotes stand alone: the first line says nothing of the indentation.
    assert docstring_to_latex("\n" + docstring, False) == (latex, formulas)


def test_single_backquotes_are_formulas_only_where_the_package_says_so() -> None:
    docstring = "With `x^2` and `expand_func()`."
    assert docstring_to_latex(docstring, True) == ("With $x^2$ and \\texttt{expand\\_func()}.", 1)
    assert docstring_to_latex(docstring, False)[1] == 0


SOURCE = '''
"""Module without mathematics."""

def plain():
    """Nothing here."""

class Curve:
    r"""A curve of :math:`x^2`."""

    def at_zero(self):
        r"""Is :math:`0`.

        .. math:: \\\\int f
        """
        def inner():
            r"""Inner :math:`z`."""
'''


def test_a_module_becomes_a_document_of_what_has_formulas() -> None:
    document, formulas = module_to_latex(SOURCE, "pkg.a_b", False)
    assert formulas == 3
    assert re.findall(r"\\(?:sub)?section\{.*\}", document) == [
        "\\section{pkg.a\\_b}", "\\subsection{Curve}", "\\subsection{Curve.at\\_zero}",
    ]  # fmt: skip
    assert "Nothing here" not in document
    assert "Inner" not in document


@pytest.mark.parametrize(
    "source", ["def broken(:\n  '$x$'", "x = '$x$'", '"""No formula, $5 only."""', "\0$"]
)
def test_no_document_without_formulas_or_syntax(source: str) -> None:
    assert module_to_latex(source, "m", True) == ("", 0)


@given(st.text(alphabet="ab `$:*_\\{}[]-=.>\n\t1", max_size=120), st.booleans())
def test_anything_gives_balanced_latex(docstring: str, default_role_is_math: bool) -> None:
    latex, _ = docstring_to_latex(docstring, default_role_is_math)
    assert_balanced(latex)


def test_escaped_text_is_the_text() -> None:
    special = "a_b & 50% of #1 {x} ~ ^ \\ $"
    escaped = escape(special)
    for command, character in (("textbackslash", "\\"), ("textasciitilde", "~"), ("textasciicircum", "^")):
        escaped = escaped.replace(f"\\{command}{{}}", character if command != "textbackslash" else "\0")
    assert re.sub(r"\\(.)", r"\1", escaped).replace("\0", "\\") == special


@pytest.mark.parametrize("package", ["mpmath", "networkx"])
def test_whole_packages_convert_to_balanced_documents(package: str) -> None:
    documents = formulas = 0
    for path in sorted(place_of(package).rglob("*.py")):
        document, found = module_to_latex(path.read_text(encoding="utf-8"), path.stem, package == "mpmath")
        if found:
            documents, formulas = documents + 1, formulas + found
            assert_balanced(document)
    assert documents >= 20
    assert formulas >= 200


def assert_balanced(latex: str) -> None:
    """Environments close in order, and dollars come in pairs, outside of verbatim."""
    prose = re.sub(r"\\begin\{verbatim\}.*?\\end\{verbatim\}", "", latex, flags=re.DOTALL)
    assert "{verbatim}" not in prose
    prose = prose.replace("\\\\", "")
    assert len(re.findall(r"(?<!\\)\$", prose)) % 2 == 0
    outside = re.sub(r"(?<!\\)\$[^$]*\$|\\\[.*?\\\]", "", prose, flags=re.DOTALL)
    open_environments = []
    for kind, name in re.findall(r"\\(begin|end)\{(itemize|enumerate|description)\}", outside):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments


def test_places_are_folders_with_sources() -> None:
    assert (place_of("mpmath") / "__init__.py").is_file()
    assert isinstance(place_of("mpmath"), Path)
