# SPDX-License-Identifier: Apache-2.0
"""A formula as LaTeX, and the marks that stand for formulas and code while the text around them is worked
on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MARK_START, MARK_END = "\ue000", "\ue001"
"""Two characters of the private use area; a page's own are replaced before anything else is done."""

MARK = re.compile(f"{MARK_START}([0-9]+){MARK_END}")
_MARK_AND_SPACES = re.compile(f"([ \t]*){MARK_START}([0-9]+){MARK_END}([ \t]*)")

# Environments that are mathematics by themselves (amsmath's guide, section 3); those that need `$$` around
# them (aligned, cases, matrix) are not among them.
ENVIRONMENTS = (
    "equation", "align", "alignat", "flalign", "gather", "multline", "eqnarray", "displaymath", "math",
)  # fmt: skip
_BARE_ENVIRONMENT = re.compile(r"\\begin\{(?:" + "|".join(ENVIRONMENTS) + r")\*?\}")
_WRAPPED = (("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False), ("$", "$", False))
_DISPLAYSTYLE = re.compile(r"\{\s*\\displaystyle(?![A-Za-z])\s*(.*)\}", re.DOTALL)
_BLANK_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Formula:
    """LaTeX without delimiters; `display` if it stands on lines of its own; `kind` says where it was
    found."""

    latex: str
    display: bool
    kind: str

    def in_text(self) -> str:
        """As it is written into the document: `$…$`, `$$…$$`, or an environment as it stands."""
        if not self.display:
            return f"${self.latex}$"
        return self.latex if _BARE_ENVIRONMENT.match(self.latex) else f"$${self.latex}$$"


def clean_formula(latex: str, display: bool, kind: str) -> Formula | None:
    """A formula without the delimiters and wrappers it came in; None if nothing is in it.

    Delimiters found inside decide over `display`: `\\[` and `$$` are display, `\\(` and `$` inline."""
    latex = latex.strip()
    for left, right, wraps_display in _WRAPPED:
        if latex.startswith(left) and latex.endswith(right) and len(latex) >= len(left) + len(right):
            inside = latex[len(left) : len(latex) - len(right)]
            if left == "$" and ("$" in inside.replace("\\$", "") or inside.endswith("\\")):
                continue  # several formulas with text between them, or a price
            latex, display = inside.strip(), wraps_display
            break
    wrapped = _DISPLAYSTYLE.fullmatch(latex)  # Wikipedia's habit
    if wrapped and _is_balanced(wrapped.group(1)):
        latex = wrapped.group(1).strip()
    latex = _BLANK_LINES.sub("\n", latex)  # a blank line ends a formula in TeX
    if not display:
        latex = " ".join(latex.split())
    if not latex or MARK_START in latex:
        return None
    return Formula(latex, display or bool(_BARE_ENVIRONMENT.match(latex)), kind)


def is_wrapped(latex: str) -> bool:
    """Whether the text begins and ends with delimiters of mathematics."""
    latex = latex.strip()
    if _BARE_ENVIRONMENT.match(latex) and latex.endswith("}"):
        return True
    return any(
        latex.startswith(left) and latex.endswith(right) and len(latex) > len(left) + len(right)
        for left, right, _ in _WRAPPED
    )


def _is_balanced(latex: str) -> bool:
    """Whether braces never close before they open and all close."""
    depth, escaped = 0, False
    for character in latex:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth < 0:
                return False
    return depth == 0


@dataclass
class Marks:
    """What was taken out of a page, in order: formulas and stretches of code. Each has a mark in the text."""

    taken: list[Formula | str] = field(default_factory=list)

    def take(self, content: Formula | str) -> str:
        """Put `content` aside and return the mark for it."""
        self.taken.append(content)
        return f"{MARK_START}{len(self.taken) - 1}{MARK_END}"

    def formulas(self) -> list[Formula]:
        """The formulas among what was taken, in the order they were found."""
        return [content for content in self.taken if isinstance(content, Formula)]

    def put_back(self, text: str) -> str:
        """`text` with its marks replaced; display formulas and code of several lines stand on their own
        lines."""

        def replacement(found: re.Match[str]) -> str:
            before, number, after = found.group(1), int(found.group(2)), found.group(3)
            content = self.taken[number] if number < len(self.taken) else ""
            words = content if isinstance(content, str) else content.in_text()
            alone = "\n" in content if isinstance(content, str) else content.display
            if not alone:
                return f"{before}{words}{after}"
            starts_line = found.start() == 0 or text[found.start() - 1] == "\n"
            ends_line = found.end() == len(text) or text[found.end()] == "\n"
            return f"{'' if starts_line else chr(10)}{words}{'' if ends_line else chr(10)}"

        return _MARK_AND_SPACES.sub(replacement, text)

    def leave_out(self, text: str) -> str:
        """`text` without its formulas, code put back."""

        def replacement(found: re.Match[str]) -> str:
            number = int(found.group(1))
            content = self.taken[number] if number < len(self.taken) else ""
            return content if isinstance(content, str) else " "

        return MARK.sub(replacement, text)
