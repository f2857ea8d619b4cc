# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - a row of the table of formulas is a line, whatever HTML it needs
"""Pages to text: every kind of formula, what is dropped, what is kept."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tools.proof_pile_2.open_web_math.pages import MATHJAX, page

pytest.importorskip("resiliparse", reason="needs requirements/requirements-data.txt")

from tools.proof_pile_2.open_web_math.html_to_text import extract_text
from tools.proof_pile_2.open_web_math.page_math import latex_of_url

V2 = (
    '<script type="text/x-mathjax-config">MathJax.Hub.Config({tex2jax: {inlineMath: [["@","@"],["\\\\(","\\\\)"]], '
    'displayMath: [["@@","@@"]]}});</script>'
)
KATEX_SCRIPT = (
    '<link href="katex.min.css"><script>renderMathInElement(document.body, {delimiters: ['
    '{left: "$$", right: "$$", display: true}, {left: "$", right: "$", display: false}]});</script>'
)
MATHML = "<mfrac><mi>a</mi><msup><mi>β</mi><mn>2</mn></msup></mfrac>"
ANNOTATED = f"<semantics><mrow>{MATHML}</mrow><annotation encoding='application/x-tex'>\\frac a{{\\beta^2}}</annotation></semantics>"

LOADED = '<script src="tex-chtml.js" id="MathJax-script"></script>'

# name: head, body, what the text holds, the kind it is counted under
FORMULAS: dict[str, tuple[str, str, str, str]] = {
    "equation": ("", r"<p>\begin{equation} a &lt; b \end{equation}</p>", r"\begin{equation} a < b \end{equation}", "environment"),
    "align*": ("", "<p>\\begin{align*}\na &amp;= b \\\\\nc &amp;= d\n\\end{align*}</p>", r"\begin{align*} a &= b \\ c &= d \end{align*}", "environment"),
    "inline, nothing configured": (LOADED, r"<p>so \(x+1\) is $5</p>", r"so $x+1$ is \$5", "delimiters"),
    "display, nothing configured": (LOADED, r"<p>so \[x+1\] is</p>", "so\n$$x+1$$\nis", "delimiters"),
    "inline, no renderer": ("", r"<p>so \(x+1\) is</p>", "so $x+1$ is", "delimiters"),
    "inline by default": (MATHJAX, r"<p>so \(x+1\) is</p>", "so $x+1$ is", "delimiters"),
    "display by default": (MATHJAX, r"<p>so \[x+1\] is</p>", "so\n$$x+1$$\nis", "delimiters"),
    "two dollars": (MATHJAX, "<p>so $$x+1$$ is</p>", "so\n$$x+1$$\nis", "delimiters"),
    "a dollar, configured": (MATHJAX, "<p>so $x$ is</p>", "so $x$ is", "delimiters"),
    "configured for version 2": (V2, "<p>so @x@ is $5</p><p>@@y@@</p>", "so $x$ is \\$5\n\n$$y$$", "delimiters"),
    "KaTeX auto-render": (KATEX_SCRIPT, "<p>so $x$ is</p>", "so $x$ is", "delimiters"),
    "dollars around TeX, not configured": ("", r"<p>so $\alpha_1$ is</p>", r"so $\alpha_1$ is", "dollars"),
    "braces hide a delimiter": (MATHJAX, r"<p>so $a\text{ if $b$}$ is</p>", r"so $a\text{ if $b$}$ is", "delimiters"),
    "math/tex": ("", '<p>so <span class="MathJax_Preview">x</span><script type="math/tex">x_1</script> is</p>', "so $x_1$ is", "math/tex script"),
    "math/tex, display": ("", '<p>so <script type="math/tex; mode=display">x &amp; y</script> is</p>', "so\n$$x &amp; y$$\nis", "math/tex script"),
    "math/mml": ("", f'<p>so <script type="math/mml"><math>{MATHML}</math></script></p>', r"$\frac{a}{\beta^{2}}$", "math/mml script"),
    "math/asciimath": ("", '<p>so <script type="math/asciimath">x^2/3</script></p>', r"$\frac{x^{2}}{3}$", "AsciiMath"),
    "AsciiMath in backticks": ('<script src="MathJax.js?config=TeX-MML-AM_CHTML"></script>', "<p>so `sum_(i=1)^n i` is</p>", r"so $\sum_{i = 1}^{n} i$ is", "AsciiMath"),
    "MathML, annotation": ("", f"<p>so <math alttext='no'>{ANNOTATED}</math></p>", r"so $\frac a{\beta^2}$", "MathML"),
    "MathML, alttext": ("", f"<p>so <math alttext='a/b'>{MATHML}</math></p>", "so $a/b$", "MathML"),
    "MathML, translated": ("", f"<p>so <math display='block'>{MATHML}</math></p>", "so\n$$\\frac{a}{\\beta^{2}}$$", "MathML"),
    "MathML with a prefix": ("", "<p>so <mml:math><mml:mi>y</mml:mi></mml:math></p>", "so $y$", "MathML"),
    "KaTeX": ("", f'<p>so <span class="katex"><span class="katex-mathml"><math>{ANNOTATED}</math></span><span class="katex-html">aβ2</span></span> is</p>', r"so $\frac a{\beta^2}$ is", "KaTeX"),
    "KaTeX, display": ("", f'<span class="katex-display"><span class="katex"><math>{ANNOTATED}</math></span></span>', r"$$\frac a{\beta^2}$$", "KaTeX"),
    "MathJax 3 output": ("", f'<p>so <mjx-container display="true"><mjx-math>aβ2</mjx-math><mjx-assistive-mml><math>{MATHML}</math></mjx-assistive-mml></mjx-container></p>', "so\n$$\\frac{a}{\\beta^{2}}$$", "MathJax output"),
    "MathJax 2 output": ("", '<p>so <span class="MathJax" data-mathml="&lt;math&gt;&lt;mi&gt;z&lt;/mi&gt;&lt;/math&gt;">z</span></p>', "so $z$", "MathJax output"),
    "Wikipedia": ("", f'<p>so <span class="mwe-math-element"><span style="display: none;"><math alttext="{{\\displaystyle q}}">{MATHML}</math></span><img alt="{{\\displaystyle q}}" src="q.svg"></span></p>', "so $q$", "MathML"),
    "WordPress": ("", r'<p>so <img src="//s0.wp.com/latex.php?latex=%5Cpi&amp;bg=fff" alt="\pi" class="latex"></p>', r"so $\pi$", "WordPress latex"),
    "WordPress without alt": ("", '<p>so <img src="//s0.wp.com/latex.php?latex=%5Cpi+%2B+1&amp;bg=fff"></p>', r"so $\pi + 1$", "WordPress latex"),
    "CodeCogs": ("", '<p>so <img src="https://latex.codecogs.com/gif.latex?%5Cdpi%7B110%7D%20%5Cinline%20%5Cfrac%7B1%7D%7B2%7D"></p>', r"so $\frac{1}{2}$", "image URL"),
    "mimeTeX": ("", '<p>so <img src="/cgi-bin/mimetex.cgi?x^2"></p>', "so $x^2$", "image URL"),
    "mathTeX": ("", r'<p>so <img src="/cgi-bin/mathtex.cgi?\large\sqrt{2}"></p>', r"so $\sqrt{2}$", "image URL"),
    "alt text, class": ("", '<p>so <img class="math" src="a.png" alt="n/2"></p>', "so $n/2$", "image alt text"),
    "alt text, TeX": ("", r'<p>so <img src="a.png" alt="\int f"></p>', r"so $\int f$", "image alt text"),
    "alt text, delimiters": ("", '<p>so <img src="a.png" alt="$x$"></p>', "so $x$", "image alt text"),
    "alt text in Sphinx's block": ("", '<div class="math"><p><img class="math" src="a.png" alt="x^2"/></p></div>', "$$x^2$$", "image alt text"),
    "math-container": ("", '<p>so <span class="math-container">$x$</span></p>', "so $x$", "element"),
    "Sphinx": ("", r'<div class="math notranslate">\[\begin{split}a\end{split}\]</div>', r"$$\begin{split}a\end{split}$$", "element"),
    "class tex": ("", r'<p>so <span class="tex">\tau</span></p>', r"so $\tau$", "element"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_become_latex(name: str) -> None:
    head, body, expected, kind = FORMULAS[name]
    found = extract_text(page(body, head))
    assert " ".join(expected.split()) in " ".join(found.text.split())
    if "\n" in expected and "begin{align" not in expected:
        assert expected in found.text  # display formulas stand on their own lines
    assert kind in found.formulas
    assert "display" not in found.formulas
    assert all(part not in found.text for part in ("aβ2", "displaystyle", "MathJax_Preview"))


@pytest.mark.parametrize(("body", "expected"), [
    ("<p>It costs $5 and then $6.</p>", r"It costs \$5 and then \$6."),
    ("<p>It costs $20,000 and $30,000.</p>", r"It costs \$20,000 and \$30,000."),
    ("<p>so <code>$x$</code> and <kbd>\\(y\\)</kbd></p>", "so $x$ and \\(y\\)"),
    (r"<p>an escaped \\(x\\) is none</p>", r"an escaped \\(x\\) is none"),
    ("<p>open \\(x</p><p>closed\\) elsewhere</p>", "open \\(x\n\nclosed\\) elsewhere"),
    ('<p>a <img src="cat.png" alt="a cat"> cat</p>', "a cat"),
    ('<p class="tex2jax_ignore">so \\(x\\)</p>', "so \\(x\\)"),
    ("<p>so <math></math> is</p>", "so is"),
])  # fmt: skip
def test_what_is_no_formula_stays_text(body: str, expected: str) -> None:
    found = extract_text(page(body))
    assert found.text == expected
    assert found.formulas == {}


LINKS = "".join(f'<li><a href="/{i}">Another page {i}</a></li>' for i in range(6))


@pytest.mark.parametrize(("body", "gone", "kept"), [
    ('<p>seen</p><p style="display: none">unseen</p>', "unseen", "seen"),
    ('<p>seen</p><p style="color:red;DISPLAY:NONE">unseen</p>', "unseen", "seen"),
    ('<p>seen</p><p style="visibility:hidden">unseen</p>', "unseen", "seen"),
    ("<p>seen</p><div hidden>unseen</div>", "unseen", "seen"),
    ("<nav>Menu</nav><p>seen</p>", "Menu", "seen"),
    ('<div role="navigation">Menu</div><p>seen</p>', "Menu", "seen"),
    ("<p>seen</p><button>Press</button>", "Press", "seen"),
    ("<p>seen</p><script>var x</script><style>p {}</style><noscript>no</noscript>", "var x", "seen"),
    (f"<p>seen</p><ul>{LINKS}</ul>", "Another page", "seen"),
    ("<p>seen</p><p>Log in</p>", "Log in", "seen"),
    ("<p>seen</p><p>Share this</p><p>We share this view of it</p>", "Share this\n", "We share this view"),
    ("<h1>Title</h1><h2>Empty</h2><h2>Full</h2><p>seen</p>", "Empty", "# Title"),
    ("<h1>Title</h1><p>seen</p><h2>Last and empty</h2>", "Last", "# Title"),
    ("<h1>Title</h1><h2></h2><h2>Part</h2><p>seen</p>", "## \n", "## Part"),
    ('<h1>Title<a class="headerlink" href="#t">¶</a></h1><p>seen</p>', "¶", "# Title"),
])  # fmt: skip
def test_what_no_reader_reads_is_dropped(body: str, gone: str, kept: str) -> None:
    text = extract_text(page(body)).text
    assert gone not in text
    assert kept in text


def test_what_looks_like_it_is_kept() -> None:
    """Boilerplate on lines with mathematics or code; few links; links among words; headings over others."""
    body = (
        f"<h1>One</h1><h2>Two</h2><ul><li><a>first</a></li><li><a>second</a></li></ul>"
        f"<pre>Log in\n\n\n\n    indented $x$</pre><p>Read more $x^2$</p><div>{'words ' * 30}<ul>{LINKS[:40]}</ul></div>"
    )
    text = extract_text(page(body, MATHJAX)).text
    assert "# One\n\n## Two" in text
    assert "first" in text
    assert "Log in" in text
    assert "    indented $x$" in text
    assert "Read more $x^2$" in text
    assert "Another page 0" in text


def test_tables_are_plain_and_lines_are_few() -> None:
    body = (
        "<table><tr><td>1</td><td>$x$</td></tr><tr><td>2</td><td>b</td></tr></table>"
        + "<p></p><br><br>" * 9
        + "<p>end</p>"
    )
    text = extract_text(page(body, MATHJAX)).text
    assert "1\t$x$\n2\tb" in text
    assert "\n\n\n" not in text
    assert "|" not in text


def test_a_page_of_too_many_links_is_skipped() -> None:
    links = "<p>word <a>link</a></p>"
    assert extract_text(page(links * 3001)).skipped == "more than 3,000 links"
    assert extract_text(page(links * 3000)).skipped is None


def test_private_characters_of_a_page_are_not_taken_for_marks() -> None:
    found = extract_text(page("<p>so \ue0000\ue001 and \\(x\\)</p>", MATHJAX))
    assert found.text == "so \ufffd0\ufffd and $x$"


@pytest.mark.parametrize(("url", "latex"), [
    ("https://latex.codecogs.com/svg.latex?x%5E2", "x^2"),
    ("https://latex.codecogs.com/png.image?\\bg_white\\large&space;a&plus;b", "a+b"),
    ("http://www.forkosh.com/mimetex.cgi?\\frac12", "\\frac12"),
    ("https://chart.googleapis.com/chart?cht=tx&chl=a%2Bb&chf=x", "a+b"),
    ("https://s0.wp.com/latex.php?latex=a%26b&bg=ffffff&s=0", "a&b"),
    ("/cgi-bin/tex.cgi?x", "x"),
    ("https://example.org/cat.png", None),
])  # fmt: skip
def test_urls_of_formula_services(url: str, latex: str | None) -> None:
    assert latex_of_url(url) == latex


TAGS = ["p", "div", "ul", "li", "a", "math", "mi", "mfrac", "msup", "span class=katex", "pre", "script", "table", "td", "h2", "img alt=$x$", "span class=math", "template", "svg", "annotation encoding=TeX", "!--", "b", "mjx-container"]  # fmt: skip
PIECES = st.one_of(
    st.sampled_from([f"<{tag}>" for tag in TAGS] + [f"</{tag.split()[0]}>" for tag in TAGS]),
    st.sampled_from(["$", "$$", "\\(", "\\)", "\\[", "\\begin{align}", "\\end{align}", "{", "}", "`", "&amp;", "&#xd800;", "\ue000", "\ue0010", "\0", "\\"]),
    st.text(max_size=6),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(PIECES, max_size=40),
    st.sampled_from(["", MATHJAX, V2, KATEX_SCRIPT, "<script src='ASCIIMathML.js'>"]),
)
def test_no_page_is_too_odd(pieces: list[str], head: str) -> None:
    html = page("".join(pieces), head)
    found = extract_text(html)
    assert extract_text(html) == found
    assert "\ue000" not in found.text
    assert "\n\n\n" not in found.text or "<pre" in html
    found.text.encode("utf-8")
