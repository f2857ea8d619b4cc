# SPDX-License-Identifier: Apache-2.0
"""MathML and AsciiMath to LaTeX."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("resiliparse", reason="needs requirements/requirements-data.txt")

from resiliparse.parse.html import HTMLTree

from tools.proof_pile_2.open_web_math.asciimath import asciimath_to_latex
from tools.proof_pile_2.open_web_math.mathml import mathml_to_latex


def translated(inner: str) -> str | None:
    document = HTMLTree.parse(f"<math>{inner}</math>").document
    assert document is not None
    math = document.query_selector("math")
    assert math is not None
    return mathml_to_latex(math)


@pytest.mark.parametrize(("mathml", "latex"), [
    ("<mi>x</mi><mo>≤</mo><mn>3.5</mn>", r"x \le 3.5"),
    ("<mi>sin</mi><mo>&#x2061;</mo><mi>θ</mi>", r"\sin \theta"),
    ("<mi>rank</mi><mi>A</mi>", r"\operatorname{rank} A"),
    ("<mi mathvariant='double-struck'>R</mi>", r"\mathbb{R}"),
    ("<mtext>if a_b</mtext>", r"\text{if a\_b}"),
    ("<mfrac><mn>1</mn><mrow><mi>n</mi><mo>+</mo><mn>1</mn></mrow></mfrac>", r"\frac{1}{n + 1}"),
    ("<mfrac linethickness='0'><mi>n</mi><mi>k</mi></mfrac>", r"\binom{n}{k}"),
    ("<msqrt><mi>x</mi><mo>+</mo><mi>y</mi></msqrt>", r"\sqrt{x + y}"),
    ("<mroot><mi>x</mi><mn>3</mn></mroot>", r"\sqrt[3]{x}"),
    ("<msub><mi>x</mi><mi>i</mi></msub>", "x_{i}"),
    ("<msup><mrow><mo>(</mo><mi>x</mi><mo>)</mo></mrow><mn>2</mn></msup>", "{( x )}^{2}"),
    ("<msup><mi>f</mi><mo>′</mo></msup>", "f'"),
    ("<msubsup><mo>∫</mo><mn>0</mn><mi>∞</mi></msubsup>", r"\int_{0}^{\infty}"),
    ("<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover>",
     r"\sum_{i = 1}^{n}"),
    ("<munder><mi>lim</mi><mrow><mi>x</mi><mo>→</mo><mn>0</mn></mrow></munder>", r"\lim_{x \to 0}"),
    ("<mover><mi>x</mi><mo>¯</mo></mover>", r"\overline{x}"),
    ("<mover accent='true'><mi>v</mi><mo>→</mo></mover>", r"\vec{v}"),
    ("<mover><mo>=</mo><mtext>def</mtext></mover>", r"\overset{\text{def}}{=}"),
    ("<mmultiscripts><mi>F</mi><mi>a</mi><mi>b</mi><mprescripts/><mi>c</mi><none/></mmultiscripts>",
     "{}_{c}F_{a}^{b}"),
    ("<mfenced open='[' close=']'><mi>a</mi><mi>b</mi></mfenced>", r"\left[ a , b \right]"),
    ("<mtable><mtr><mtd><mn>1</mn></mtd><mtd><mn>2</mn></mtd></mtr><mtr><mtd><mn>3</mn></mtd><mtd><mn>4</mn></mtd></mtr></mtable>",
     r"\begin{matrix} 1 & 2 \\ 3 & 4 \end{matrix}"),
    ("<menclose notation='box'><mi>x</mi></menclose>", r"\boxed{x}"),
    ("<mphantom><mi>x</mi></mphantom>", None),
    ("<mrow>" * 200 + "<mi>x</mi>", None),
    ("<semantics><mi>x</mi><annotation encoding='MathType'>zz</annotation></semantics>", "x"),
])  # fmt: skip
def test_mathml(mathml: str, latex: str | None) -> None:
    assert translated(mathml) == latex


@pytest.mark.parametrize(("source", "latex"), [
    ("x^2+1", "x^{2} + 1"),
    ("x_1^2", "x_{1}^{2}"),
    ("(a+b)/c", r"\frac{a + b}{c}"),
    ("sqrt(x) >= 0", r"\sqrt{x} \ge 0"),
    ("root(3)(x)", r"\sqrt[3]{x}"),
    ("int_0^oo e^(-x) dx", r"\int_{0}^{\infty} e^{- x} dx"),
    ("alpha in RR", r"\alpha \in \mathbb{R}"),
    ("[[a,b],[c,d]]", r"\left[\begin{matrix}a & b \\ c & d\end{matrix}\right]"),
    ("abs(x) < 1", r"\left|x\right| < 1"),
    ('x if "odd"', r"x \quad\text{if}\quad \text{odd}"),
    ("hat(x) != vec v", r"\hat{x} \ne \vec{v}"),
    ("lim_(x->0) sin x / x", r"\lim_{x \to 0} \sin \frac{x}{x}"),
    ("lcm(a, b)", r"\operatorname{lcm} \left(a , b\right)"),
    ("(a", "(a"),
    ("   ", None),
    ("(" * 500, None),
    ("x" * 5001, None),
])  # fmt: skip
def test_asciimath(source: str, latex: str | None) -> None:
    assert asciimath_to_latex(source) == latex


@settings(max_examples=80, deadline=None)
@given(st.text(st.sampled_from('abx19()[]{}_^/,":|*+-=<>~\\ '), max_size=60))
def test_no_asciimath_is_too_odd(source: str) -> None:
    latex = asciimath_to_latex(source)
    assert latex is None or latex.strip() == latex != ""
