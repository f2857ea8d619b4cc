# SPDX-License-Identifier: Apache-2.0
"""The explorer's page in a real browser, opened from the disk: what is shown, and what no model may do."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from urllib.parse import quote

import pytest

from tests.data.corpora import shared_folder
from tests.tools.chromium import Page, browser, missing
from tests.tools.explorer_results import HOSTILE, MATH, write_hostile, write_lines, write_results
from tools import explorer

REASON = missing()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
MISSING = "page_with_a_missing_file"
BIG_ITEMS = 20_000


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab: Page, tmp_path: Path) -> Iterator[Page]:
    """The tab, which after each test must have had no error, and have asked for nothing but files.

    `tmp_path` is asked for so that it is removed after the page that may still read files of it is left."""
    tab.resize(1440, 900)
    tab.errors.clear()
    tab.requests.clear()
    yield tab
    tab.leave()
    # A file that is missing on purpose may be asked for, and complained of, while the next test begins.
    assert [error for error in tab.errors if MISSING not in error] == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:,", "about:"))] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    return make(folder / "page", *write_results(folder / "results"))


def make(output: Path, *results: Path, options: tuple[str, ...] = ()) -> Path:
    explorer.main([*map(str, results), "--output", str(output), *options])
    return output / "index.html"


def open_page(page: Page, site: Path, fragment: str = "") -> None:
    page.open(site, fragment)
    page.wait(
        "document.querySelector('#count').textContent && document.querySelector('#main').children.length"
    )


def listed(page: Page) -> int:
    """How many items the list says it has."""
    return int(re.split(r"\D", page.text("#count").replace(",", ""))[0])


def test_an_item_of_two_models_with_votes_and_two_graders(page: Page, site: Path) -> None:
    open_page(page, site, "#llemma_math/math_5?beside=llemma_34b&sample=2")
    page.wait("document.querySelector('.item-id')?.textContent === 'math_5'")
    assert page.text(".steps span") == "8 of 12"
    assert [page.text(f".run:nth-child({at}) .model") for at in (1, 2)] == ["llemma_7b", "llemma_34b"]
    # TeX of the problem and the reference, as KaTeX keeps it beside what it draws.
    tex = page.run("[...document.querySelectorAll('.given annotation')].map((node) => node.textContent)")
    assert tex == ["6", "3", *re.findall(r"\$([^$]+)\$", MATH[5][1])]
    assert page.run("document.querySelectorAll('.run')[0].querySelectorAll('.vote-count').length") == 3
    assert page.text(".run .votes .winner .vote-count") == "4✓"
    assert page.run("document.querySelectorAll('.run')[0].querySelectorAll('.tick').length") == 8
    # Sample 4 of the first model is 0.3125: wrong by Minerva's rule, right by math-verify.
    given = [answer for answer, count in zip(MATH[5][4], MATH[5][5], strict=True) for _ in range(count)]
    sample = next(number for number in range(8) if given[number * 3 % 8] == "0.3125")
    page.click(f".run .tick:nth-child({sample + 1})")
    page.wait("document.querySelector('.run .differ-chip')")
    chips = page.run(
        "[...document.querySelectorAll('.run:nth-child(1) .verdicts .chip')].map((c) => c.textContent)"
    )
    assert chips == ["✗wrong", "✗Minerva", "✓math-verify", "≠ graders differ"]
    assert f"sample={sample}" in page.run("location.hash")


# The tactics on the way to the first model's proof.
PATH = """[...document.querySelector('.run').querySelectorAll(
  '.path > .leaf > .tactic, .path > details > summary > .tactic')].map((tactic) => tactic.textContent)"""


def test_programs_likelihoods_and_proofs(page: Page, site: Path) -> None:
    open_page(page, site, "#llemma_gsm8k_python/gsm8k_1?beside=llemma_34b")
    assert "NameError: name 'speed' is not defined" in page.text(".run:nth-child(1) .output.failed")
    assert page.text(".run:nth-child(2) .output") == "150.0"
    open_page(page, site, "#llemma_math_perplexity/solution_0")
    assert re.sub(r"\s+", " ", page.text(".run .facts")).startswith("log-likelihood -30.500 bytes")
    open_page(page, site, "#proofs/plus_n_O?beside=llemma_34b")
    assert page.text(".run .code") == "intros n.\ninduction n.\nall: simpl; auto."
    assert page.run(PATH) == ["statement", "induction n.", "all: simpl; auto."]
    page.run(
        "[...document.querySelectorAll('summary')].find((s) => s.textContent.startsWith('ring.')).click()"
    )
    page.wait("document.querySelector('.run .said')?.textContent.startsWith('Tactic failure')")


def test_the_overview_has_measures_intervals_and_the_pair(page: Page, site: Path) -> None:
    open_page(page, site, "#?beside=llemma_34b")
    labels = page.run("[...document.querySelectorAll('.interval [role=img]')].map((i) => i.ariaLabel)")
    assert "43.8%, 95% interval 23.8% to 58.8%" in labels
    assert "Llemma 7B: 18.0%" in labels
    table = page.text(".measures")
    assert "llemma_7b: not comparable with what was published: 6 items of our own" in table
    assert "published: Llemma 7B 18.0%, maj@256 33.5%; Llemma 34B 25.0%, maj@256 43.1%" in table
    assert "pass@8" in table
    assert "pass@1" not in table
    page.run("[...document.querySelectorAll('.measures button')].forEach((button) => button.click())")
    assert "pass@1" in page.text(".measures")
    # Item by item, as the votes, verdicts and proofs say.
    assert page.run("[...document.querySelectorAll('.pair a')].map((a) => a.textContent)") == [
        "5",
        "0",
        "5",
        "0",
    ]
    page.run("document.querySelectorAll('.pair a')[2].click()")
    page.wait("location.hash.includes('wrong-right')")
    page.wait("document.querySelector('#count').textContent.startsWith('5 of 12')")


# Right samples of 8, of each item, by model; an item of "weak" has no verdicts at all.
RIGHT_OF_8: dict[str, list[int | None]] = {"weak": [0, 2, 4, 8, 6, None], "strong": [8, 6, 4, 8, 2, 3]}


def judged_samples(path: Path) -> Path:
    """Eight samples of each item and model, without votes and without results.json."""
    return write_lines(path, [
        {
            "task": "gsm8k", "item": str(item), "model": model, "problem": f"Problem {item}",
            "sample": sample, "generation": f"{sample}",
            "correct": None if right is None else sample < right,
        }
        for model, counts in RIGHT_OF_8.items() for item, right in enumerate(counts) for sample in range(8)
    ])  # fmt: skip


def test_several_samples_without_a_vote_count_by_their_share(page: Page, tmp_path: Path) -> None:
    site = make(tmp_path / "page", judged_samples(tmp_path / "k8.jsonl"))
    open_page(page, site, "#?model=weak&beside=strong")
    rows = page.run(
        "[...document.querySelectorAll('.measures tr')].map((row) => [...row.cells].slice(-4).map("
        "(cell) => cell.querySelector('[role=img]')?.ariaLabel || cell.textContent))"
    )
    for row, model, note in zip(rows, RIGHT_OF_8, ("of 5 items, 1 not judged", "of 6 items"), strict=True):
        shares = [right / 8 for right in RIGHT_OF_8[model] if right is not None]
        middle, half = mean(shares), 1.96 * stdev(shares) / len(shares) ** 0.5
        bounds = f"95% interval {100 * max(0, middle - half):.1f}% to {100 * min(1, middle + half):.1f}%"
        assert row[:2] == ["mean of samples", f"{100 * middle:.1f}%"]
        assert row[2:] == [f"{100 * middle:.1f}%, {bounds}", f"{8 * len(shares)} samples {note}"]
    pair = page.run(
        "[...document.querySelectorAll('.pair tr')].map((row) => row.innerText.split(/\\s*\\t\\s*/))"
    )
    assert pair[1:] == [
        ["weak correct", "1", "0"], ["weak wrong", "1", "0"],
        ["weak more often", "1"], ["equally often", "1"], ["strong more often", "1"],
    ]  # fmt: skip
    options = "[...document.querySelector('#facet-verdict').options].map((option) => option.text)"
    assert page.run(options) == [
        "all", "both (1)", "only strong (1)", "weak more often (1)", "strong more often (1)",
        "equally often (1)", "not comparable (1)",
    ]  # fmt: skip
    page.run("document.querySelectorAll('.pair a')[6].click()")
    page.wait("document.querySelector('#count').textContent.startsWith('1 of 6')")
    assert page.text(".row-title") == "Problem 1"


def test_a_subject_without_a_word_is_none(page: Page, tmp_path: Path) -> None:
    lines = [
        {"item": str(at), "problem": "p", "generation": "g", "subject": subject}
        for at, subject in enumerate(["", "", "Algebra", "Geometry"])
    ]
    open_page(page, make(tmp_path / "page", write_lines(tmp_path / "s.jsonl", lines)))
    options = "[...document.querySelector('#facet-subject').options].map((option) => option.text)"
    assert page.run(options) == ["all", "Algebra (1)", "Geometry (1)"]


@pytest.mark.parametrize(("fragment", "items"), [
    ("", 12), ("#?task=llemma_math", 6), ("#?level=4", 2), ("#?subject=Geometry", 1), ("#?verdict=right", 5),
    ("#?verdict=wrong", 5), ("#?verdict=unjudged", 2), ("#?graders=math-verify", 1), ("#?graders=minerva", 0),
    ("#?program=any", 2), ("#?program=failed", 1), ("#?program=failed&model=llemma_34b", 0),
    ("#?beside=llemma_34b&verdict=wrong-right", 5), ("#?q=incircle", 1), ("#?q=COIN%20heads", 1),
    ("#?q=incircle%20coin", 0),
    ("#?q=%22exactly%20%243%24%20heads%22", 1), ("#?q=%22heads%20exactly%22", 0), ("#?q=NameError", 0),
    ("#?q=induction", 1), ("#?q=recall&level=4", 2), ("#?q=math_3", 1),
])  # fmt: skip
def test_filters_and_search(page: Page, site: Path, fragment: str, items: int) -> None:
    open_page(page, site, fragment)
    page.wait("document.querySelector('#progress').hidden")
    assert listed(page) == items
    assert page.run("document.querySelectorAll('.row').length") == items


def test_menus_count_what_they_would_leave(page: Page, site: Path) -> None:
    open_page(page, site, "#?task=llemma_math")
    names = page.run("[...document.querySelector('#facet-level').options].map((option) => option.text)")
    assert names == ["all", "Level 2 (1)", "Level 3 (2)", "Level 4 (2)", "Level 5 (1)"]
    page.choose("#facet-level", "3")
    page.wait("document.querySelector('#count').textContent === '2 of 12 items'")
    assert "level=3" in page.run("location.hash")
    page.click("#clear")
    page.wait("document.querySelector('#count').textContent === '12 items'")


def test_the_keyboard_goes_everywhere(page: Page, site: Path) -> None:
    open_page(page, site)
    opened = "document.querySelector('.item-id')?.textContent"
    page.press("j")
    page.wait(f"{opened} === 'gsm8k_0'")
    for _ in range(2):
        page.press("ArrowDown")
    page.wait(f"{opened} === 'math_0'")
    page.press("l")
    page.wait("location.hash.includes('sample=1')")
    page.press("k")
    page.wait(f"{opened} === 'gsm8k_1'")
    page.press("/")
    page.type("coin")
    page.wait("document.querySelector('#count').textContent === '1 of 12 items'")
    page.press("j")  # a letter in the field, not a step
    page.wait("document.querySelector('#count').textContent.startsWith('0 of')")
    page.press("Escape")
    page.press("m")
    page.wait("document.querySelector('#toggle-tex').getAttribute('aria-pressed') === 'true'")
    assert page.run("document.querySelectorAll('main .katex').length") == 0
    page.press("m")
    page.press("?")
    page.wait("document.querySelector('#help').open")
    page.press("Escape")
    page.run("document.querySelector('#help').close()")
    page.press("Escape")
    page.wait("document.querySelector('.overview')")
    page.press("t")
    first = page.run("document.documentElement.dataset.theme")
    page.press("t")
    assert {first, page.run("document.documentElement.dataset.theme")} == {"light", "dark"}


# The address changes between a letter and the search for it.
TYPED_ON_THE_WAY = """(() => {
  location.hash = '#llemma_math/math_0';
  const field = document.querySelector('#query');
  field.value = 'coin';
  field.dispatchEvent(new Event('input'));
})()"""


def test_letters_typed_while_an_item_opens_are_kept(page: Page, site: Path) -> None:
    open_page(page, site)
    page.run(TYPED_ON_THE_WAY)
    page.wait("document.querySelector('.item-id')?.textContent === 'math_0'")
    page.wait("location.hash.includes('q=')")
    page.wait("document.querySelector('#count').textContent === '1 of 12 items'")
    assert page.run("document.querySelector('#query').value") == "coin"
    page.click("#clear")
    page.wait("document.querySelector('#count').textContent === '12 items'")
    assert page.run("document.querySelector('#query').value") == ""


FORBIDDEN = (
    "script, iframe, object, embed, img, textarea, style, [onerror], [onload], [srcdoc], [data-a], .top"
)


def test_what_a_model_writes_is_text(page: Page, tmp_path: Path) -> None:
    site = make(tmp_path / "page", write_hostile(tmp_path / "hostile.jsonl"))
    open_page(page, site)
    assert page.run("document.querySelectorAll('.row').length") == 2
    for _ in range(2):
        page.press("j")
        page.wait("document.querySelector('.item')")
        page.run("document.querySelectorAll('details').forEach((details) => (details.open = true))")
        time.sleep(0.2)
        assert page.run("window.ran") is None
        assert (
            page.run(f"document.querySelectorAll('#main :is({FORBIDDEN}), #list :is({FORBIDDEN})').length")
            == 0
        )
        links = page.run("[...document.querySelectorAll('a')].map((a) => a.protocol + a.hash)")
        assert all(link.startswith("file:") for link in links)
        # Nothing is drawn over the rest of the page.
        assert page.run("document.elementFromPoint(40, 20).closest('header') !== null")
        assert page.run("document.querySelector('main').scrollHeight") < 50_000  # 9,999 em would be 170,000
        page.press("m")
        page.wait("!document.querySelector('main .katex')")
        shown = page.run("document.querySelector('.problem .prose').textContent")
        assert shown == HOSTILE.replace("\x00", "\ufffd") or shown == HOSTILE
        page.press("m")
    assert page.run("({}).polluted") is None


# Each point of the window where something of a formula is that lies outside of its text's box.
OUTSIDE = """(() => {
  const found = [];
  for (let x = 2; x < innerWidth; x += 13)
    for (let y = 2; y < innerHeight; y += 13) {
      const node = document.elementFromPoint(x, y)?.closest('.katex');
      if (!node) continue;
      const box = node.closest('.tex, .row-title')?.getBoundingClientRect();
      const isBeside = !box || x < box.left - 1 || x > box.right + 1;
      if (isBeside || y < box.top - 1 || y > box.bottom + 1) found.push([x, y]);
    }
  return found;
})()"""
# Where a text may be: neither over a verdict nor a control, nor another text.
OVERLAPS = """(() => {
  const boxes = [...document.querySelectorAll('.item :is(.tex, .chip, button, h3, .vote-count)')];
  const rects = boxes.map((box) => box.getBoundingClientRect());
  const isBefore = (a, b) => a.right <= b.left + 1 || a.bottom <= b.top + 1;
  const meet = (a, b) => !isBefore(a, b) && !isBefore(b, a);
  return rects.flatMap((a, at) => rects.slice(at + 1).filter((b) => meet(a, b)).map((b) => [a, b]));
})()"""


@pytest.mark.parametrize("tex", [
    r"\rule{39em}{12em}", r"\kern-39em\rule{60em}{5em}", r"\rule{10000em}{10000em}",
    r"\smash{\raisebox{3em}{\rule{20em}{9em}}}", r"\smash{\raisebox{-9em}{\rule{20em}{9em}}}",
    r"\rlap{\rule{40em}{2em}}\llap{\rule{40em}{2em}}",
])  # fmt: skip
def test_a_formula_stays_in_the_box_of_its_text(page: Page, tmp_path: Path, tex: str) -> None:
    line = {
        "item": "a", "problem": f"p ${tex}$", "generation": f"g ${tex}$\n\\[{tex}\\]", "answer": tex,
        "reference": f"${tex}$", "correct": False, "choices": [f"${tex}$", "2"],
    }  # fmt: skip
    open_page(page, make(tmp_path / "page", write_lines(tmp_path / "a.jsonl", [line])))
    page.press("j")
    page.wait("document.querySelector('.item .katex') && document.querySelector('.row-title .katex')")
    for top in (0, 400, 800, 1600):
        page.run(f"document.querySelector('main').scrollTop = {top}")
        assert page.run(OUTSIDE) == []
    assert page.run(OVERLAPS) == []


def test_a_formula_has_no_colour_but_keeps_its_words(page: Page, tmp_path: Path) -> None:
    colours = (
        r"$\color{white}a$ $\textcolor{#0f0}{b \over c}$ $\colorbox{lightgreen}{✓ correct}$ "
        r"$\fcolorbox{red}{lime}{d $x$}$ $\phantom{e}f$ \(\let\c\color\c{white}g\)"
    )
    line = {"item": "a", "problem": "p", "generation": colours, "correct": False}
    open_page(page, make(tmp_path / "page", write_lines(tmp_path / "a.jsonl", [line])))
    page.press("j")
    page.wait("document.querySelector('.generation .katex')")
    assert page.run("document.querySelectorAll('.formula-source').length") == 0
    styles = page.run(
        "[...document.querySelectorAll('.generation .katex-html *')].map((node) => getComputedStyle(node))"
        ".map((style) => [style.color, style.backgroundColor])"
    )
    ink = page.run("getComputedStyle(document.querySelector('.generation')).color")
    nothing = "rgba(0, 0, 0, 0)"
    assert {color for color, _ in styles} == {ink, nothing}, "the phantom alone is not seen"
    assert {ground for _, ground in styles} == {nothing}
    words = page.run("[...document.querySelectorAll('.generation .katex-html')].map((n) => n.textContent)")
    assert [re.sub(r"[\s\u200b]", "", word) for word in words] == ["a", "cb", "✓correct", "dx", "ef", "g"]


def test_what_katex_may_not_follow_is_shown_whole(page: Page, tmp_path: Path) -> None:
    sources = [
        r"$\href{javascript:alert(1)}{x}$", r"$\href{java script:alert(1)}{x}$", r"$\url{http://a.invalid}$",
        r"$\includegraphics{http://a.invalid/b.png}$", r"$\htmlClass{foo}{x}$", r"$\htmlId{foo}{x}$",
        r"$\htmlStyle{color:red}{x}$", r"$\htmlData{a=b}{x}$", r"$1 + \text{\href{http://a.invalid}{x}}$",
    ]  # fmt: skip
    line = {"item": "a", "problem": "p", "generation": " ".join(sources)}
    open_page(page, make(tmp_path / "page", write_lines(tmp_path / "a.jsonl", [line])))
    page.press("j")
    page.wait("document.querySelector('.generation')")
    shown = "[...document.querySelectorAll('.generation .formula-source')]"
    assert page.run(f"{shown}.map((node) => node.textContent)") == sources
    assert page.run(f"{shown}[0].title") == "\\href is not followed on this page"


@pytest.mark.parametrize(("tex", "count"), [
    (r"\frac{1}{", 200), ("x^{", 300), (r"\sqrt{1+", 200), (r"\boxed{", 100), (r"\left(", 200),
    (r"\def\a#1{\sqrt{\sqrt{\sqrt{#1}}}}\a{", 40),
])  # fmt: skip
def test_a_deep_formula_is_shown_as_source(page: Page, tmp_path: Path, tex: str, count: int) -> None:
    def nested(times: int) -> str:
        *once, again = tex.split("}}}}") if "def" in tex else [tex]
        closer = r"\right)" if "left" in tex else "}"
        return "".join(f"{each}}}}}}}}}" for each in once) + again * times + "x" + closer * times

    line = {"item": "a", "problem": "p", "generation": f"${nested(count)}$ and ${nested(4)}$"}
    open_page(page, make(tmp_path / "page", write_lines(tmp_path / "a.jsonl", [line])))
    page.press("j")
    page.wait("document.querySelector('.generation')")
    shown = page.run(
        "[...document.querySelectorAll('.generation > :is(.formula-source, .formula)')]"
        ".map((node) => [node.className, node.title])"
    )
    assert shown == [["formula-source", "nested too deep"], ["formula", ""]]


def chain(nodes: int, siblings: int = 0) -> list[dict[str, Any]]:
    """A search that went straight to its proof; beside each step so many that led nowhere."""
    tree: list[dict[str, Any]] = [{"parent": None, "outcome": "open", "cost": 0.0, "goals": "goal 0"}]
    parent = 0
    for step in range(1, nodes):
        for other in range(siblings):
            tree.append({"parent": parent, "outcome": "error", "cost": 1.0, "tactic": f"fail{other}."})
        tree.append(
            {"parent": parent, "outcome": "open", "cost": 0.1 * step, "tactic": f"intros x{step}.",
             "goals": f"goal {step}"}
        )  # fmt: skip
        parent = len(tree) - 1
    tree[-1] |= {"outcome": "proved"}
    return tree


def proofs_of(path: Path, *trees: list[dict[str, Any]]) -> Path:
    return write_lines(path, [
        {"theorem": f"t{at}", "statement": f"Theorem t{at} : True.", "proved": True, "proof": "exact I.",
         "seconds": 1.0, "expansions": 9, "status": "proved", "tree": tree}
        for at, tree in enumerate(trees)
    ])  # fmt: skip


@pytest.mark.parametrize(("nodes", "siblings"), [(3000, 0), (800, 2)])
def test_a_deep_proof_is_shown(page: Page, tmp_path: Path, nodes: int, siblings: int) -> None:
    site = make(tmp_path / "page", proofs_of(tmp_path / "proofs.jsonl", chain(nodes, siblings)))
    open_page(page, site, "#proofs/t0")
    page.wait("document.querySelector('.tree')")
    assert page.text(".given, [aria-label=Statement] .code") == "Theorem t0 : True."
    assert page.text(".run .code") == "exact I."
    steps = 1 + (nodes - 1) * (1 + siblings)
    assert page.run("document.querySelectorAll('.tree li').length") == 301
    for _ in range(2):
        page.click(".tree li button")
    assert page.text(".tree li button") == f"{steps - 900:,} more steps"
    deepest = "Math.max(...[...document.querySelectorAll('.tree li')].map((li) => li.offsetLeft))"
    assert page.run(deepest) - page.run("document.querySelector('.tree').offsetLeft") < 60


@pytest.mark.parametrize("width", [390, 1440])
def test_steps_without_siblings_are_not_indented(page: Page, tmp_path: Path, width: int) -> None:
    site = make(tmp_path / "page", proofs_of(tmp_path / "proofs.jsonl", chain(40)))
    page.resize(width, 900)
    open_page(page, site, "#proofs/t0")
    page.wait("document.querySelectorAll('.tree .tactic').length === 40")
    lefts = page.run("[...new Set([...document.querySelectorAll('.tree .tactic')].map((t) => t.offsetLeft))]")
    assert len(lefts) == 1
    assert page.run("[...document.querySelectorAll('.tree .tactic')].at(-1).offsetHeight") < 30


def test_equations_are_numbered_in_each_text(page: Page, tmp_path: Path) -> None:
    text = r"\begin{equation}a\end{equation} \begin{align}b\\c\end{align}"
    line = {"item": "a", "problem": text, "reference": text, "generation": text}
    open_page(page, make(tmp_path / "page", write_lines(tmp_path / "a.jsonl", [line])))
    page.press("j")
    page.wait("document.querySelector('.generation .eqn-num')")
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    words = [node["name"]["value"] for node in tree if node["role"]["value"] == "InlineTextBox" or (
        node["role"]["value"] == "StaticText")]  # fmt: skip
    numbers = [word for word in words if re.fullmatch(r"\(|[0-9]+|\)|\([0-9]+\)", word)]
    assert "".join(numbers).count("(1)") >= 3, numbers


@pytest.mark.parametrize(("text", "parts"), [
    ("a $x$ b", ["a ", ("inline", "x"), " b"]),
    ("$$x$$ and \\[y\\], \\(z\\)", [("display", "x"), " and ", ("display", "y"), ", ", ("inline", "z")]),
    ("He has $5 and $6.", ["He has $5 and $6."]),
    ("from $30 to $100, or $7-$8", ["from $30 to $100, or $7-$8"]),
    ("\\$30 a day for \\$4", ["$30 a day for $4"]),
    ("it costs $5 when $x = 2$", ["it costs $5 when ", ("inline", "x = 2")]),
    ("$ x^2 $ here", [("inline", " x^2 "), " here"]),
    ("$\\text{if $x$ is}$ so", [("inline", "\\text{if $x$ is}"), " so"]),
    ("$a\\$b$", [("inline", "a\\$b")]),
    ("$never closed", ["$never closed"]),
    ("$x\n\ny$", ["$x\n\ny$"]),
    ("\\begin{align*}a&=b\\end{align*}!", [("display", "\\begin{align*}a&=b\\end{align*}"), "!"]),
    ("line\\\\[2pt] \\(x\\)", ["line\\\\[2pt] ", ("inline", "x")]),
    ("[asy]draw();[/asy]", [("figure", "draw();")]),
])  # fmt: skip
def test_where_formulas_begin_and_end(page: Page, site: Path, text: str, parts: list[Any]) -> None:
    if page.run("typeof explorer") == "undefined":
        open_page(page, site)
    found = page.run(f"explorer.formulas.split({json.dumps(text)})")
    assert [
        part["text"] if part["kind"] == "text" else (part["kind"], part["text"]) for part in found
    ] == parts
    # Nothing is lost: the sources, end to end, are the text (but for the backslash of an escaped sign).
    assert "".join(part.get("source", part["text"]) for part in found) == re.sub(
        r"\\([$%&#_])(?![^$]*\$$)", r"\1", text
    )


CONTROLS = {
    "button", "combobox", "searchbox", "option", "link", "listbox", "image", "navigation", "main", "search",
}  # fmt: skip


def test_every_control_has_a_name(page: Page, site: Path) -> None:
    for fragment in ("", "#llemma_math/math_0?beside=llemma_34b", "#proofs/plus_n_O"):
        open_page(page, site, fragment)
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        controls = [node for node in nodes if not node["ignored"] and node["role"]["value"] in CONTROLS]
        assert len(controls) > 15
        names = [(node["role"]["value"], node.get("name", {}).get("value", "").strip()) for node in controls]
        assert [role for role, name in names if not name] == []


CONTRAST = """(() => {
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const value = (name) => {
    const probe = document.createElement('i');
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const rgb = getComputedStyle(probe).color.match(/[0-9.]+/g).map(Number);
    probe.remove();
    return light(rgb);
  };
  const pairs = [['--ink', '--card'], ['--ink', '--ground'], ['--ink', '--sunk'], ['--quiet', '--card'],
    ['--quiet', '--ground'], ['--quiet', '--sunk'], ['--quiet', '--accent-ground'], ['--accent', '--card'],
    ['--right', '--right-ground'], ['--wrong', '--wrong-ground'], ['--mixed', '--mixed-ground'],
    ['--ink', '--found'], ['--right', '--accent-ground'], ['--wrong', '--accent-ground']];
  const ratio = (x, y) => (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  return pairs.map(([a, b]) => [a, b, ratio(value(a), value(b))]);
})()"""


@pytest.mark.parametrize("is_dark", [False, True])
def test_words_stand_out_from_their_ground(page: Page, site: Path, is_dark: bool) -> None:
    """WCAG 2.1, 1.4.3: text has a contrast of 4.5 to what is behind it."""
    page.dark(is_dark)
    open_page(page, site)
    page.run("delete document.documentElement.dataset.theme")
    assert [pair for pair in page.run(CONTRAST) if pair[2] < 4.5] == []
    page.dark(False)


@pytest.mark.parametrize("width", [320, 700, 1000, 2200])
def test_no_width_cuts_the_page(page: Page, site: Path, width: int) -> None:
    page.resize(width, 800)
    for fragment in ("#?beside=llemma_34b", "#llemma_math/math_4?beside=llemma_34b", "#proofs/plus_n_O"):
        open_page(page, site, fragment)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.run(
            "document.querySelector('main').scrollWidth <= document.querySelector('main').clientWidth"
        )


def test_names_are_seen_and_no_page_long(page: Page, tmp_path: Path) -> None:
    shared = {"problem": "p", "generation": "g", "subject": "s" * 3000}
    lines = [
        {**shared, "task": task, "item": item, "sample": number}
        for task, item in ((" ", "\u200b"), ("t" * 3000, "i" * 3000))
        for number in range(64)
    ]
    # The name of a file is a model's, and as long as file names are.
    site = make(tmp_path / "page", write_lines(tmp_path / f"{'m' * 240}.jsonl", lines))
    page.resize(500, 900)
    open_page(page, site)
    links = page.run("[...document.querySelectorAll('.measures .task a')].map((a) => a.textContent)")
    assert links == ['" "', "t" * 120 + "…"]
    assert page.run("document.querySelector('main').scrollHeight") < 1200
    for task, item, shown in ((" ", "\u200b", ['" "', '"\u200b"']), ("t" * 3000, "i" * 3000, None)):
        open_page(page, site, "#" + quote(task) + "/" + quote(item))
        page.wait("document.querySelector('.item .strip')")
        names = page.run("[...document.querySelector('.item h2').children].map((each) => each.textContent)")
        assert names == (shown or ["t" * 120 + "…", "i" * 120 + "…"])
        assert page.run("document.querySelector('.item-head').offsetHeight") < 400
        # Each of the 64 samples' buttons is whole.
        strip = "document.querySelector('.strip')"
        assert page.run(f"{strip}.scrollHeight <= {strip}.clientHeight")
    page.press("g")
    page.wait("document.querySelector('.overview')")


def test_unknown_items_and_missing_files_are_said(page: Page, site: Path, tmp_path: Path) -> None:
    open_page(page, site, "#llemma_math/nothing")
    assert "There is no item nothing of task llemma_math" in page.text("#main")
    open_page(page, site, "#%E0%A4%A/x")
    assert "There is no item" in page.text("#main")
    broken = make(tmp_path / MISSING, *write_results(tmp_path / "results"))
    (broken.parent / "data" / "items-00000.js").unlink()
    open_page(page, broken, "#llemma_math/math_0")
    page.wait("document.querySelector('main').innerText.includes('items-00000.js is missing')")
    open_page(page, broken, "#?q=coin")
    page.wait("document.querySelector('#count').textContent.includes('items-00000.js is missing')")


# [items found, milliseconds] of a search through all texts.
SEARCH = """(() => {
  const start = performance.now(), matches = explorer.search.matcher('"number 77"');
  let found = 0;
  for (let item = 0; item < ITEMS; item++) found += matches(item);
  return [found, performance.now() - start];
})()""".replace("ITEMS", str(BIG_ITEMS))
TYPE_SEARCH = """(() => {
  const field = document.querySelector('#query');
  field.value = '"number 77"';
  field.dispatchEvent(new Event('input'));
})()"""
# Milliseconds of the slowest of 60 frames, while the list goes by.
SCROLL = """new Promise((done) => {
  const list = document.querySelector('#list');
  let frames = 0, slowest = 0, last = performance.now();
  const step = (now) => {
    slowest = Math.max(slowest, now - last);
    last = now;
    list.scrollTop += 6000;
    ++frames < 60 ? requestAnimationFrame(step) : done(slowest);
  };
  requestAnimationFrame(step);
})"""


def test_twenty_thousand_samples_stay_fluent(
    page: Page, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (
        {
            "task": f"task_{number % 3}", "item": f"item {number}", "level": number % 5 + 1,
            "correct": number % 7 == 0, "problem": f"{MATH[number % 6][0]} Number {number}.",
            "reference": MATH[number % 6][1],
            "generation": f"Try {number}: {MATH[number % 6][1]} " + "We go on with $x_1 + x_2 = 3$. " * 18,
        }
        for number in range(BIG_ITEMS)
    )  # fmt: skip
    site = make(tmp_path / "page", write_lines(tmp_path / "big.jsonl", lines))
    open_page(page, site)
    listed_ms = page.run("performance.now()")
    paint_ms = page.run("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert listed(page) == BIG_ITEMS
    page.wait("explorer.search.isReady")
    ready_ms = page.run("performance.now()")
    found, search_ms = page.run(SEARCH)
    assert found == sum("number 77" in f"number {number}" for number in range(BIG_ITEMS))
    page.run(TYPE_SEARCH)
    page.wait(f"document.querySelector('#count').textContent.startsWith('{found} of')")
    page.click("#clear")
    page.wait(f"document.querySelector('#count').textContent === '{BIG_ITEMS:,} items'")
    slowest_ms = page.run(SCROLL)
    assert page.run("document.querySelectorAll('.row').length") < 60
    page.press("End")
    page.wait("document.querySelector('.item-id')?.textContent === 'item 19997'")
    with capsys.disabled():
        print(
            f"\n{BIG_ITEMS:,} samples: paint {paint_ms:.0f} ms, list {listed_ms:.0f} ms, all texts read "
            f"{ready_ms:.0f} ms, a search {search_ms:.0f} ms, slowest frame of 60 {slowest_ms:.0f} ms"
        )


# [formulas, those shown as source] of every text of a chunk.
FORMULAS = """(async () => {
  const box = document.createElement('div');
  let formulas = 0, failed = 0;
  for (const item of await explorer.store.load(0))
    for (const text of [item.problem, item.reference, item.runs[0].samples[0].text]) {
      box.replaceChildren(explorer.formulas.render(text));
      formulas += box.querySelectorAll('.katex').length;
      failed += box.querySelectorAll('.formula-source').length;
    }
  return [formulas, failed];
})()"""


def test_real_generations(page: Page, tmp_path: Path) -> None:
    """Llemma-34B's own: all are listed, and few formulas are beyond KaTeX."""
    data = shared_folder() / "math_llemma34b_samples.jsonl"
    open_page(page, make(tmp_path / "page", data))
    assert listed(page) == 350
    formulas, failed = page.run(FORMULAS)
    assert formulas > 4000
    assert failed < formulas / 200
