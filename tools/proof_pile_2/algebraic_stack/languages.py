# SPDX-License-Identifier: Apache-2.0
"""AlgebraicStack's table: what a file of each of the 17 languages must be.

From the released recipe of Llemma (arXiv 2310.10631, appendix A and its scripts). A language is where its
files come from, what they are called, and conditions, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tools.proof_pile_2.algebraic_stack.conditions import (
    AtMostBytes,
    Condition,
    ContainsAny,
    ContainsNone,
    DigitsAtMost,
    EnglishTex,
    FewDigitsIfLarge,
    HasText,
    ManyTestsIfLarge,
    Matches,
    MatchesNone,
    NoLineWith,
    PathEndsWith,
    PathLacks,
    RepositoryMatchesNone,
    StartsWithNone,
)

STACK, GITHUB = "Stack", "GitHub"
BLANK = HasText()
# The standard rule.
STD = (BLANK, AtMostBytes(1_048_575), DigitsAtMost(0.5))


@dataclass(frozen=True)
class Language:
    """A row of the table. `stack_names` are the folders that the Stack may have it in."""

    name: str
    origin: str
    suffixes: tuple[str, ...]
    conditions: tuple[Condition, ...] = STD
    stack_names: tuple[str, ...] = ()


def imports(template: str, *names: str) -> tuple[str, ...]:
    """The template with each name in the place of X; alternatives are parted by a bar."""
    return tuple(form.replace("X", name) for name in names for form in template.split("|"))


PYTHON_MODULES = (
    "numpy", "scipy", "sympy", "sage", "numba", "numexpr", "theano", "statsmodels", "networkx", "mpmath",
    "pymc3", "astropy", "cupy", "pycuda", "cvxpy", "pyomo", "jax",
)  # fmt: skip
HASKELL_MODULES = (
    "Numeric.LinearAlgebra", "Numeric.SpecFunctions", "Numeric.Vector", "Statistics", "Data.Complex",
)  # fmt: skip
C_HEADERS = (
    "fftw.h", "fftw3.h", "rfftw.h", "gsl", "cblas.h", "blas.h", "lapacke.h", "nlopt.h", "petsc.h",
)  # fmt: skip
CPP_LIBRARIES = (
    "adept", "alglib", "boost", "armadillo", "blitz", "Eigen", "deal.II", "dlib", "NTL", "mtl",
)  # fmt: skip
SECTIONING = r"\\(?:chapter|section|subsection|subsubsection|paragraph|subparagraph)(?![A-Za-z])"

LANGUAGES: tuple[Language, ...] = (
    Language("agda", STACK, (".agda", ".lagda")),
    Language("c", STACK, (".c", ".h"), (
        *STD,
        ContainsAny(imports("#include <X", *C_HEADERS), "no mathematical header"),
    )),
    Language("coq", GITHUB, (".v",), (
        *STD,
        ContainsAny(("Theorem", "Proof", "Qed", "Inductive", "Definition", "Fixpoint"), "no Coq"),
        ContainsNone(("pragma", "endmodule", "posedge", "negedge", "wire"), "Verilog"),
        ContainsNone(("This file was automatically generated",), "generated"),
    )),
    Language("cpp", STACK, (".cpp", ".cc", ".cxx", ".hpp", ".hh", ".hxx", ".h"), (
        *STD,
        DigitsAtMost(0.1),
        ContainsAny(imports("#include <X", *CPP_LIBRARIES), "no mathematical library"),
    ), ("c++", "cpp")),
    Language("fortran", STACK, (".f", ".f90", ".f95", ".f03", ".f08", ".for")),
    Language("gap", STACK, (".g", ".gap", ".gd", ".gi", ".tst")),
    Language("haskell", STACK, (".hs", ".lhs"), (
        *STD,
        ContainsAny(imports("import X|import qualified X", *HASKELL_MODULES), "no mathematical import"),
    )),
    Language("idris", STACK, (".idr", ".lidr")),
    Language("isabelle", GITHUB, (".thy",), (
        *STD,
        ContainsAny(("theorem ", "lemma "), "no theorem"),
        RepositoryMatchesNone(r"(?:^|[/_-])afp(?:[/_-]|$)", "mirror of the AFP"),
    )),
    Language("julia", STACK, (".jl",), (
        BLANK,
        StartsWithNone(("%", "{", "[")),
        ManyTestsIfLarge(100_000, "@test", 0.1),
        FewDigitsIfLarge(100_000, 0.5),
    )),
    Language("jupyter", STACK, (".ipynb",), (
        BLANK,
        ContainsAny((r"\begin{equation}", r"\begin{align}", "import sympy", "from sympy"), "no mathematics",
                    fold=True),
    ), ("jupyter-notebook", "jupyter")),
    Language("lean", GITHUB, (".lean",), (
        *STD,
        ContainsAny(("theorem ", "lemma ", "example "), "no theorem"),
        RepositoryMatchesNone(r"proof-?net(?!s)|mini-?f2f", "a benchmark's repository"),
        PathLacks("_target/deps/"),
    )),
    Language("maple", STACK, (".mpl", ".maple", ".mm"), (
        *STD,
        AtMostBytes(100_000),
        StartsWithNone(("<?xml",)),
    )),
    Language("matlab", GITHUB, (".m",), (
        *STD,
        ContainsNone(("#import", "@interface", "@implementation", "@property", "#include"), "Objective-C"),
        NoLineWith(" main(", "{", "a main function of C"),
    )),
    Language("python", STACK, (".py",), (
        *STD,
        StartsWithNone(("{",), after_blanks=True),
        ContainsAny(imports("import X|from X", *PYTHON_MODULES), "no mathematical import"),
    )),
    Language("r", STACK, (".r",), (
        *STD,
        ContainsNone(("/* Resource fork",), "resource fork"),
        MatchesNone(r"Requirement\s+\{\s+Identifier", "requirements' identifiers"),
        StartsWithNone(("<?xml", "{")),
    )),
    Language("tex", STACK, (".tex",), (
        BLANK,
        AtMostBytes(10_000_000),
        PathEndsWith(".tex"),
        PathLacks("latex/"),
        ContainsNone(("gnuplot",), "gnuplot"),
        Matches(SECTIONING, "no sections"),
        EnglishTex(),
    )),
)  # fmt: skip


def by_name() -> dict[str, Language]:
    """The rows by their names."""
    return {language.name: language for language in LANGUAGES}


def table() -> Iterator[str]:
    """The rules as lines of text, as --show-rules prints them."""
    for language in LANGUAGES:
        yield f"{language.name} (from {language.origin}, {' '.join(language.suffixes)})"
        for condition in language.conditions:
            yield f"    dropped: {condition.rule}"
