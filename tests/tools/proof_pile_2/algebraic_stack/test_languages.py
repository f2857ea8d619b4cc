# SPDX-License-Identifier: Apache-2.0
"""Every rule of AlgebraicStack's table: for each language a file that is kept, and one for each rule that
drops it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.proof_pile_2.algebraic_stack.conditions import digit_share, tex_prose
from tools.proof_pile_2.algebraic_stack.languages import LANGUAGES, by_name
from tools.proof_pile_2.algebraic_stack.steps import LanguageRules
from tools.proof_pile_2.documents import Document, Dropped

LARGE = "x" * 1_048_576
DIGITS = "1234567890 " * 3
ENGLISH = "We prove that every bounded sequence of real numbers has a subsequence that converges to a limit. "
FRENCH = "Nous montrons que toute suite bornée de nombres réels possède une sous-suite convergente. "
TEX = "\\section{Compactness}\n" + 5 * ENGLISH
TEST_LINES = "@test f(1) == 1\n" * 7000

# (language, a file that is kept, its meta)
KEPT: list[tuple[str, str, dict[str, Any]]] = [
    ("agda", "module Nat where\ndata ℕ : Set where\n  zero : ℕ\n  suc : ℕ → ℕ\n", {}),
    ("c", "#include <gsl/gsl_sf_bessel.h>\nint main(void) { return 0; }\n", {}),
    ("c", "#include <fftw3.h>\n", {}),
    ("coq", "Theorem plus_O_n : forall n, 0 + n = n.\nProof. reflexivity. Qed.\n", {}),
    ("cpp", "#include <Eigen/Dense>\nint main() { Eigen::MatrixXd m; }\n", {}),
    ("cpp", "#include <boost/math/special_functions.hpp>\n", {}),
    ("fortran", "program p\n  implicit none\nend program\n", {}),
    ("gap", "G := SymmetricGroup(4);;\nOrder(G);\n", {}),
    ("haskell", "module M where\nimport qualified Numeric.LinearAlgebra as L\n", {}),
    ("haskell", "import Data.Complex\n", {}),
    ("idris", "plus : Nat -> Nat -> Nat\nplus Z m = m\nplus (S k) m = S (plus k m)\n", {}),
    ("isabelle", 'lemma add_0: "0 + n = (n::nat)"\n  by simp\n', {"repo": "someone/safps"}),
    ("julia", "using LinearAlgebra\nf(x) = x^2\n", {}),
    ("julia", DIGITS, {}),  # the standard rule does not apply
    ("julia", TEST_LINES, {}),
    ("jupyter", '{"cells": [{"source": "\\\\begin{align}"}]}', {}),
    ("jupyter", '{"cells": [{"source": "From SymPy import *"}]}', {}),
    ("lean", "theorem foo : 1 = 1 := rfl\n", {"repo": "someone/maths", "path": "src/foo.lean"}),
    ("maple", "f := x -> x^2;\ndiff(f(x), x);\n", {}),
    ("matlab", "function y = f(x)\n  y = x.^2;\nend\n", {}),
    ("python", "import numpy as np\nprint(np.pi)\n", {}),
    ("python", "def f():\n    from sympy.abc import x\n", {}),
    ("r", "fit <- lm(y ~ x)\nsummary(fit)\n", {}),
    ("tex", TEX, {"path": "notes/analysis.tex"}),
    ("tex", TEX, {"ext": "tex"}),
]  # fmt: skip

# (language, a file that is dropped, its meta, the rule)
DROPPED: list[tuple[str, str, dict[str, Any], str]] = [
    *[(language.name, "", {}, "blank") for language in LANGUAGES],
    *[(language.name, " \n\t", {}, "blank") for language in LANGUAGES],
    *[(language.name, LARGE, {}, "more than 1,048,575 bytes")
      for language in LANGUAGES if language.name not in ("julia", "jupyter", "tex")],
    *[(language.name, DIGITS, {}, "digits above 0.5")
      for language in LANGUAGES if language.name not in ("julia", "jupyter", "tex")],
    ("c", "#include <stdio.h>\nint main(void) { return 0; }\n", {}, "no mathematical header"),
    ("coq", "Require Import Arith.\n", {}, "no Coq"),
    ("coq", "module m(input clk); // Definition\nalways @(posedge clk)\n", {}, "Verilog"),
    ("coq", "(* This file was automatically generated *)\nDefinition a := 0.\n", {}, "generated"),
    ("cpp", "#include <vector>\n", {}, "no mathematical library"),
    ("cpp", "#include <Eigen/Dense>\nint a[] = {12345678, 12345678};\n", {}, "digits above 0.1"),
    ("haskell", "import Data.List\n", {}, "no mathematical import"),
    ("isabelle", "theory T imports Main begin end\n", {}, "no theorem"),
    ("isabelle", 'lemma a: "x=x" by simp', {"repo": "isabelle-prover/mirror-afp-devel"}, "mirror of the AFP"),
    ("isabelle", 'lemma a: "x = x" by simp', {"path": "AFP/thys/A.thy"}, "mirror of the AFP"),
    *[("julia", start + "text", {}, "starts with % or { or [") for start in "%{["],
    ("julia", "f(x) = x\n" * 12_000, {},
     "from 100,000 bytes on, fewer than 0.1 @test a line"),
    ("julia", "@test f(12345678) == 12345678\n" * 4000, {}, "from 100,000 bytes on, digits above 0.5"),
    ("jupyter", '{"cells": [{"source": "import pandas"}]}', {}, "no mathematics"),
    ("lean", "def a := 1\n", {}, "no theorem"),
    ("lean", "theorem a : 1 = 1 := rfl", {"repo": "zhangir-azerbayev/ProofNet"}, "a benchmark's repository"),
    ("lean", "theorem a : 1 = 1 := rfl", {"repo": "openai/miniF2F"}, "a benchmark's repository"),
    ("lean", "theorem a : 1 = 1 := rfl", {"path": "_target/deps/mathlib/a.lean"}, "path with _target/deps/"),
    ("maple", "f := x -> x^2;\n" * 7000, {}, "more than 100,000 bytes"),
    ("maple", "<?xml version='1.0'?>", {}, "starts with <?xml"),
    *[("matlab", f"{word} Foo\n", {}, "Objective-C")
      for word in ("#import", "@interface", "@implementation", "@property", "#include")],
    ("matlab", "int main(int argc) {\n", {}, "a main function of C"),
    ("python", ' \n{"import numpy": 1}', {}, "starts with {"),
    ("python", "import os\n", {}, "no mathematical import"),
    ("r", "/* Resource fork */\n", {}, "resource fork"),
    ("r", "Requirement  {\n Identifier", {}, "requirements' identifiers"),
    ("r", "<?xml version='1.0'?>", {}, "starts with <?xml or {"),
    ("r", "{}", {}, "starts with <?xml or {"),
    ("tex", TEX + "x" * 10_000_000, {"path": "a.tex"}, "more than 10,000,000 bytes"),
    ("tex", TEX, {"path": "a.sty"}, "not called *.tex"),
    ("tex", TEX, {"ext": "bib"}, "not called *.tex"),
    ("tex", TEX, {"path": "latex/a.tex"}, "path with latex/"),
    ("tex", TEX + "gnuplot", {"path": "a.tex"}, "gnuplot"),
    ("tex", ENGLISH + "\\sectionmark", {"path": "a.tex"}, "no sections"),
    ("tex", "\\section{Suites}\n" + 5 * FRENCH, {"path": "a.tex"}, "not English"),
    ("tex", "\\section{1} $x$", {"path": "a.tex"}, "not English"),
]  # fmt: skip


@pytest.mark.parametrize(("language", "text", "meta"), KEPT)
def test_kept(language: str, text: str, meta: dict[str, Any]) -> None:
    assert LanguageRules(by_name()[language])(Document(text, meta)) == Document(text, meta)


@pytest.mark.parametrize(("language", "text", "meta", "rule"), DROPPED)
def test_dropped(language: str, text: str, meta: dict[str, Any], rule: str) -> None:
    assert LanguageRules(by_name()[language])(Document(text, meta)) == Dropped(rule)


def test_every_rule_of_the_table_is_tried_above() -> None:
    rules = {(language.name, condition.rule) for language in LANGUAGES for condition in language.conditions}
    assert rules == {(language, rule) for language, _, _, rule in DROPPED}
    assert {language for language, _, _ in KEPT} == {language.name for language in LANGUAGES}
    assert len(LANGUAGES) == 17


def test_the_limit_is_in_bytes_of_utf8_and_exact() -> None:
    rules = LanguageRules(by_name()["agda"])
    assert isinstance(rules(Document("∀" * 349_525)), Document)  # 1,048,575 bytes
    assert rules(Document("∀" * 349_526)) == Dropped("more than 1,048,575 bytes")


def test_every_mathematical_module_and_header_counts() -> None:
    modules = ["numpy", "scipy", "sage", "numba", "numexpr", "theano", "networkx", "mpmath", "pymc3", "jax"]
    for name in modules:
        assert isinstance(LanguageRules(by_name()["python"])(Document(f"import {name}")), Document)
    for name in ["fftw", "fftw3", "rfftw", "cblas", "blas", "lapacke", "nlopt", "petsc"]:
        assert isinstance(LanguageRules(by_name()["c"])(Document(f"#include <{name}.h>")), Document)


def test_digits_are_counted_among_what_is_not_blank() -> None:
    assert digit_share("") == digit_share("  \n") == 0
    assert digit_share("1 a\n2 b") == 0.5


@given(text=st.text(st.characters(max_codepoint=200) | st.sampled_from("0123456789 ٣²"), max_size=40))
def test_digits_are_counted_alike_in_ascii_and_elsewhere(text: str) -> None:
    solid = [character for character in text if not character.isspace()]
    digits = [character for character in solid if character.isdecimal()]
    assert digit_share(text) == (len(digits) / len(solid) if solid else 0)


def test_prose_of_tex_has_no_formulas_comments_or_commands() -> None:
    assert tex_prose("\\emph{Let} $x^2$ be % nothing\n50\\% of $$\\alpha$$ it") == "Let be of it"


@pytest.mark.timeout(120)
def test_no_condition_takes_more_than_linear_time() -> None:
    pieces = [" main(", "Requirement {", "\\section", "$", "%", "import ", "\\", "["]
    for language in LANGUAGES:
        for piece in pieces:  # in quadratic time one of them alone would take longer
            LanguageRules(language)(Document(piece * (300_000 // len(piece)), {"path": "a.tex"}))


def test_a_changed_rule_changes_the_version() -> None:
    versions = {LanguageRules(language).version for language in LANGUAGES}
    assert len(versions) == len(LANGUAGES)
