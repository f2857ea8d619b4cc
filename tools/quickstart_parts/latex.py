# SPDX-License-Identifier: Apache-2.0
"""Documentation strings in reStructuredText as LaTeX: prose with `$…$` and `\\[…\\]`, one document a module.

Converted are headings, paragraphs, lists, definitions, doctests and literal blocks, the usual inline roles,
and mathematics; directives that draw or index are left out. What is not understood stays as escaped text.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# Directives whose body is not prose.
DROPPED = frozenset(
    ("autosummary", "autofunction", "autoclass", "automodule", "automethod", "contents", "currentmodule",
     "deprecated", "figure", "graphviz", "image", "index", "inheritance-diagram", "module", "only", "plot",
     "testcleanup", "testsetup", "toctree")
)  # fmt: skip
VERBATIM = frozenset(
    ("code", "code-block", "doctest", "ipython", "literalinclude", "parsed-literal", "sourcecode")
)

_UNDERLINE = re.compile(r"^([=\-~^\"'`*+#.:_])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"^\.\. +([A-Za-z][\w\-]*) ?:: *(.*)$")
_CITATION = re.compile(r"^\.\. +\[([^\]]+)\] *(.*)$")
_COMMENT = re.compile(r"^\.\.(\s|$)")
_OPTION = re.compile(r"^:[\w\- ]+:")
_BULLET = re.compile(r"^([-*+•]) +(?=\S)")
_ENUMERATION = re.compile(r"^(\(?(?:\d{1,3}|[a-z]|[ivx]{1,4}|#)[.)]) +(?=\S)")
_TABLE_RULE = re.compile(r"^(=+( +=+)+|\+[-=+]+\+)\s*$")

_INLINE = re.compile(
    r"""
      ``(?P<literal>.+?)``
    | :(?P<role>[\w:.+\-]+):`(?P<target>[^`]+)`
    | `(?P<link>[^`<]+?)\s*<(?P<url>[^`>]+)>`__?
    | `(?P<default>[^`]+)`(?P<reference>__?(?!\w))?
    | \*\*(?P<strong>[^*\s](?:[^*]*[^*\s])?)\*\*
    | (?<![\w*])\*(?P<emphasis>[^*\s](?:[^*]*[^*\s])?)\*(?![\w*])
    | \[(?P<footnote>[\w#.]+)\]_(?!\w)
    | \$(?P<dollar>[^$\s](?:[^$]*[^$\s])?)\$
    """,
    re.VERBOSE | re.DOTALL,
)
# In single backquotes, three letters or more are a name that was meant as code, even where formulas stand so.
_NAME = re.compile(r"[A-Za-z_][\w.]{2,}(\(\))?$")
# A module without any of these has no formula, and need not be parsed.
_MAYBE_MATHEMATICS = re.compile(r"\bmath\b|\$|`[^`\n]*[\\^_=]")
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}  # fmt: skip


def escape(text: str) -> str:
    """Plain text with LaTeX's ten special characters escaped."""
    return "".join(_SPECIAL.get(character, character) for character in text)


@dataclass
class _Converter:
    """Converts one documentation string and counts its formulas."""

    default_role_is_math: bool
    formulas: int = 0
    out: list[str] = field(default_factory=list)

    # Blocks: each method takes lines from `at`, writes to `out`, and returns where the next block starts.

    def blocks(self, lines: list[str]) -> None:
        at = 0
        while at < len(lines):
            at = self._block(lines, at)

    def _block(self, lines: list[str], at: int) -> int:
        line = lines[at]
        if not line.strip():
            return at + 1
        indent = _indent(line)
        if indent > 0:  # a block quote, as all of it is indented
            end = _end_of_body(lines, at, indent - 1)
            self.blocks(_dedented(lines[at:end]))
            return end
        for starts, convert in self._kinds():
            if starts(lines, at):
                return convert(lines, at)
        return self._paragraph(lines, at)

    def _kinds(
        self,
    ) -> list[tuple[Callable[[list[str], int], object], Callable[[list[str], int], int]]]:
        return [
            (lambda lines, at: _DIRECTIVE.match(lines[at]), self._directive),
            (lambda lines, at: _CITATION.match(lines[at]), self._citation),
            (lambda lines, at: _COMMENT.match(lines[at]), lambda lines, at: _end_of_body(lines, at + 1, 0)),
            (lambda lines, at: lines[at].startswith(">>>"), self._doctest),
            (_is_heading, self._heading),
            (lambda lines, at: _TABLE_RULE.match(lines[at]), self._table),
            (lambda lines, at: _UNDERLINE.match(lines[at]), lambda lines, at: at + 1),
            (lambda lines, at: _BULLET.match(lines[at]), self._itemize),
            (lambda lines, at: _ENUMERATION.match(lines[at]), self._enumerate),
            (_is_definition, self._description),
        ]

    def _heading(self, lines: list[str], at: int) -> int:
        self.out.append(f"\\subsubsection*{{{self.inline(lines[at].strip())}}}")
        return at + 2

    def _paragraph(self, lines: list[str], at: int) -> int:
        end = at + 1
        while end < len(lines) and lines[end].strip() and _indent(lines[end]) == 0:
            if lines[end].startswith((">>>", ".. ")) or _is_heading(lines, end):
                break
            end += 1
        text = "\n".join(lines[at:end]).rstrip()
        if not text.endswith("::"):
            self.out.append(self.inline(text))
            return end
        if text != "::":
            self.out.append(self.inline(text[:-1]))
        body_end = _end_of_body(lines, end, 0)
        self._verbatim(_dedented(lines[end:body_end]))
        return body_end

    def _doctest(self, lines: list[str], at: int) -> int:
        end = at
        while end < len(lines) and lines[end].strip():
            end += 1
        self._verbatim(lines[at:end])
        return end

    def _table(self, lines: list[str], at: int) -> int:
        end = at
        while end < len(lines) and lines[end].strip():
            end += 1
        self._verbatim(lines[at:end])
        return end

    def _verbatim(self, lines: list[str]) -> None:
        text = "\n".join(lines).strip("\n").replace(r"\end{verbatim}", "")
        if text.strip():
            self.out.append(f"\\begin{{verbatim}}\n{text}\n\\end{{verbatim}}")

    def _directive(self, lines: list[str], at: int) -> int:
        match = _DIRECTIVE.match(lines[at])
        assert match is not None
        name, argument = match.group(1).lower(), match.group(2)
        end = _end_of_body(lines, at + 1, 0)
        body = _dedented(lines[at + 1 : end])
        while body and (_OPTION.match(body[0]) or not body[0].strip()):
            body.pop(0)
        if name == "math":
            self._display_math([argument, *body])
        elif name in VERBATIM:
            self._verbatim(body)
        elif name not in DROPPED:
            # An admonition: its words are prose. An argument is a title, a version, or the first words.
            self.blocks([argument, "", *body] if argument and not body else body)
        return end

    def _display_math(self, lines: list[str]) -> None:
        """Each group of lines is a formula, as in Sphinx; lines parted by `\\\\` are split in one."""
        for group in re.split(r"\n\s*\n", "\n".join(lines)):
            formula = "\n".join(line.strip() for line in group.strip().splitlines())
            if not formula or "$" in formula or not _is_balanced(formula):
                continue
            self.formulas += 1
            if "\\\\" in formula and "\\begin" not in formula:
                formula = f"\\begin{{split}}\n{formula}\n\\end{{split}}"
            own = re.match(r"\\begin\{(equation|align|gather|multline|eqnarray)\*?\}", formula)
            self.out.append(formula if own else f"\\[\n{formula}\n\\]")

    def _citation(self, lines: list[str], at: int) -> int:
        match = _CITATION.match(lines[at])
        assert match is not None
        end = _end_of_body(lines, at + 1, 0)
        text = "\n".join([match.group(2), *_dedented(lines[at + 1 : end])]).strip()
        self.out.append(f"[{escape(match.group(1).lstrip('#'))}] {self.inline(text)}".rstrip())
        return end

    def _itemize(self, lines: list[str], at: int) -> int:
        return self._list(lines, at, "itemize", _BULLET)

    def _enumerate(self, lines: list[str], at: int) -> int:
        return self._list(lines, at, "enumerate", _ENUMERATION)

    def _list(self, lines: list[str], at: int, environment: str, marker: re.Pattern[str]) -> int:
        self.out.append(f"\\begin{{{environment}}}")
        while at < len(lines) and (match := marker.match(lines[at])):
            end = _end_of_body(lines, at + 1, 0)
            first = lines[at][match.end() :]
            self._entry("\\item ", [first, *_dedented(lines[at + 1 : end])])
            at = end
        self.out.append(f"\\end{{{environment}}}")
        return at

    def _description(self, lines: list[str], at: int) -> int:
        """A term above its indented explanation: numpydoc's parameters."""
        self.out.append("\\begin{description}")
        while at < len(lines) and _is_definition(lines, at):
            end = _end_of_body(lines, at + 1, 0)
            self._entry(f"\\item[{self.inline(lines[at].strip())}] ", _dedented(lines[at + 1 : end]))
            at = end
        self.out.append("\\end{description}")
        return at

    def _entry(self, start: str, body: list[str]) -> None:
        """One item of a list: its first paragraph stands on the line of `start`."""
        inner = _Converter(self.default_role_is_math)
        inner.blocks(body)
        self.formulas += inner.formulas
        self.out.append(start + "\n\n".join(inner.out))

    # Inline

    def inline(self, text: str) -> str:
        parts, at = [], 0
        for match in _INLINE.finditer(text):
            parts += [_prose(text[at : match.start()]), self._markup(match)]
            at = match.end()
        return "".join([*parts, _prose(text[at:])])

    def _markup(self, match: re.Match[str]) -> str:
        found = {name: value for name, value in match.groupdict().items() if value is not None}
        if "literal" in found:
            return f"\\texttt{{{escape(found['literal'])}}}"
        if "role" in found:
            if found["role"] == "math":
                return self._formula(found["target"])
            title = re.sub(r"\s*<[^>]*>$", "", found["target"]).lstrip("~!")
            return f"\\texttt{{{escape(title)}}}"
        if "link" in found:
            return f"\\href{{{_url(found['url'])}}}{{{_prose(found['link'])}}}"
        if "default" in found:
            is_name = _NAME.match(found["default"])
            if self.default_role_is_math and not is_name and "reference" not in found:
                return self._formula(found["default"])
            return f"\\texttt{{{escape(found['default'])}}}"
        if "strong" in found:
            return f"\\textbf{{{_prose(found['strong'])}}}"
        if "emphasis" in found:
            return f"\\emph{{{_prose(found['emphasis'])}}}"
        if "dollar" in found:
            return self._formula(found["dollar"])
        return f"[{escape(found['footnote'])}]"

    def _formula(self, formula: str) -> str:
        formula = " ".join(formula.split()).strip("$")
        if not formula or "$" in formula or not _is_balanced(formula):
            return escape(formula)
        self.formulas += 1
        return f"${formula}$"


def _prose(text: str) -> str:
    """Text between markup: reStructuredText's own backslash escapes are taken away."""
    return escape(re.sub(r"\\(\s|[^\w\s])", lambda match: match.group(1).strip(), text))


def _url(text: str) -> str:
    return "".join(text.split()).replace("%", "\\%").replace("#", "\\#")


def _is_balanced(formula: str) -> bool:
    """Whether braces and environments of a formula close in order; a broken one would break the document."""
    depth = 0
    for token in re.findall(r"\\[{}\\]|[{}]", formula):
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth < 0:
            return False
    if re.search(r"(?<!\\)(\\\\)*\\$", formula):  # would escape what ends it
        return False
    begins, ends = re.findall(r"\\begin\b", formula), re.findall(r"\\end\b", formula)
    return depth == 0 and len(begins) == len(ends)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _end_of_body(lines: list[str], at: int, indent: int) -> int:
    """Where the lines that are blank or indented deeper than `indent` end."""
    end = at
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > indent):
        end += 1
    return end


def _dedented(lines: list[str]) -> list[str]:
    depth = min((_indent(line) for line in lines if line.strip()), default=0)
    return [line[depth:] for line in lines]


def _is_heading(lines: list[str], at: int) -> bool:
    if at + 1 >= len(lines) or not _UNDERLINE.match(lines[at + 1]) or _UNDERLINE.match(lines[at]):
        return False
    return bool(lines[at].strip()) and len(lines[at + 1].rstrip()) + 2 >= len(lines[at].strip())


def _is_definition(lines: list[str], at: int) -> bool:
    if _indent(lines[at]) or not lines[at].strip() or at + 1 >= len(lines):
        return False
    return (
        bool(lines[at + 1].strip()) and _indent(lines[at + 1]) > 0 and not lines[at].rstrip().endswith("::")
    )


def docstring_to_latex(docstring: str, default_role_is_math: bool) -> tuple[str, int]:
    """LaTeX of one documentation string, and the number of formulas in it.

    `default_role_is_math`: what single backquotes mean. They are formulas in the documentation of sympy and
    mpmath, and names in that of others.
    """
    converter = _Converter(default_role_is_math)
    converter.blocks([line.expandtabs() for line in inspect.cleandoc(docstring).splitlines()])
    return "\n\n".join(converter.out), converter.formulas


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """(name, documentation string) of a module and of what it defines, in the order of the source."""
    if text := ast.get_docstring(tree, clean=False):
        yield module, text

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, str]]:
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if text := ast.get_docstring(node, clean=False):
                    yield prefix + node.name, text
                if isinstance(node, ast.ClassDef):
                    yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(tree.body, "")


def module_to_latex(source: str, module: str, default_role_is_math: bool) -> tuple[str, int]:
    """A LaTeX document of the documentation strings in a module's source that hold a formula.

    Returns the document and its number of formulas; ("", 0) where there is none, or where the source does
    not parse.
    """
    if not _MAYBE_MATHEMATICS.search(source):
        return "", 0
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return "", 0
    sections, total = [], 0
    for name, docstring in _documented(tree, module):
        text, formulas = docstring_to_latex(docstring, default_role_is_math)
        if formulas:
            total += formulas
            sections.append(text if name == module else f"\\subsection{{{escape(name)}}}\n\n{text}")
    if not total:
        return "", 0
    return "\n\n".join([f"\\section{{{escape(module)}}}", *sections]) + "\n", total
