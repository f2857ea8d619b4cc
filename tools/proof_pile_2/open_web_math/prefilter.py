# SPDX-License-Identifier: Apache-2.0
"""Which pages are worth extracting: the first look at bytes, and the second at text (OpenWebMath, section
3.1)."""

from __future__ import annotations

import re
from enum import Enum

MATH_WORDS: tuple[bytes, ...] = (
    b"MathJax", b"mathjax", b"<math", b"math-container", b"katex.min.css", b"latex.php", b"codecogs",
    b"tex.cgi",
    b'class="tex"', b"class='tex'",
)  # fmt: skip
"""A page with one of these is taken to hold mathematics."""

_TEX_COMMAND = re.compile(rb"\\[a-z]{2,}")

# The hundred commonest LaTeX commands of mathematical text, our own choice: the released list is not
# reproduced.
_COMMON_COMMAND_NAMES = (
    "frac sum int lim infty partial nabla sqrt prod alpha beta gamma delta epsilon varepsilon zeta eta "
    "theta lambda mu nu xi pi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi "
    "Psi Omega leq geq neq approx equiv sim cong propto notin subset subseteq cup cap setminus emptyset "
    "forall exists neg wedge vee rightarrow leftarrow Rightarrow Leftrightarrow mapsto implies iff times "
    "cdot pm mp circ otimes oplus ldots cdots dots sin cos tan log ln exp max min sup inf det mathbb "
    "mathbf mathcal mathrm mathfrak operatorname overline hat tilde vec bar binom displaystyle"
)
COMMON_COMMANDS: tuple[str, ...] = tuple(_COMMON_COMMAND_NAMES.split())
_COMMON_COMMAND = re.compile(r"\\(?:" + "|".join(COMMON_COMMANDS) + r")(?![A-Za-z])")

FEWEST_CHARACTERS_BY_SCORE = 500
"""A page without any LaTeX needs more characters than this to be judged by its words (OpenWebMath)."""


class FirstLook(Enum):
    """What the bytes of a page promise."""

    MATH = "mathematics"
    PERHAPS = "a TeX command; its text decides"
    WORDS = "no TeX command; MathScore decides"


# An element of MathML, whatever the case and prefix; AsciiMath's script; Google's pictures of formulas.
_MATH_MARK = re.compile(
    rb"<(?:[a-z]\w*:)?math[\s/>]|ascii-?math|chart\.googleapis\.com/chart\?", re.IGNORECASE
)


def first_look(data: bytes) -> FirstLook:
    """Judge a page by its bytes, before it is parsed."""
    if any(word in data for word in MATH_WORDS) or _MATH_MARK.search(data):
        return FirstLook.MATH
    return FirstLook.PERHAPS if _TEX_COMMAND.search(data) else FirstLook.WORDS


def has_common_command(text: str) -> bool:
    """Whether plain text holds one of the hundred commonest LaTeX commands."""
    return _COMMON_COMMAND.search(text) is not None
