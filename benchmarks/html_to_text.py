# SPDX-License-Identifier: Apache-2.0
"""How fast pages become text, and how many of their formulas come with it.

Each extractor reads the same pages in this process, one after another; CPU seconds are counted. The
formulas that a page holds are counted apart, by lxml: every element of class `math`, every `<math>` and every
`math/tex` script, with its LaTeX. One is recovered if its LaTeX stands in the text, white space aside, as
often as the page has it.

The peers are not needed by anything else: `pip install trafilatura==2.3.1 lxml_html_clean==0.4.6`. Real
pages, Debian's documentation of SymPy (formulas are images with LaTeX as alternative text) and of statsmodels
(MathJax):

    mkdir -p /tmp/pages && cd /tmp/pages && apt-get download python-sympy-doc python-statsmodels-doc
    for package in *.deb; do dpkg -x "$package" .; done && cd -
    python benchmarks/html_to_text.py /tmp/pages --megabytes 40 \
        --json benchmarks/html_to_text.json --markdown benchmarks/html_to_text.md
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.proof_pile_2.open_web_math.guard import Ended, GuardedExtractor, PageLimits
from tools.proof_pile_2.open_web_math.html_to_text import extract_text

Extractor = Callable[[str], str]


def pages_of(folders: list[Path], megabytes: float) -> list[str]:
    """About so many megabytes of pages: every n-th of all, in the order of their paths."""
    files = sorted(path for folder in folders for path in folder.rglob("*.html") if path.is_file())
    total = sum(path.stat().st_size for path in files)
    step = max(1, round(total / (megabytes * 1e6)))
    return [path.read_text(encoding="utf-8", errors="replace") for path in files[::step]]


def formulas_of(html: str) -> Counter[str]:
    """The LaTeX of a page's formulas without white space and delimiters, each with how often it is there."""
    import lxml.html

    found: Counter[str] = Counter()
    for element in lxml.html.document_fromstring(html.encode()).iter():
        if not isinstance(element.tag, str):
            continue
        classes = (element.get("class") or "").split()
        if element.tag == "img" and "math" in classes:
            latex = element.get("alt") or ""
        elif element.tag == "script" and (element.get("type") or "").startswith("math/tex"):
            latex = element.text or ""
        elif element.tag == "math":
            latex = element.get("alttext") or element.text_content()
        elif "math" in classes and not element.xpath(".//*[contains(@class, 'math')]"):
            latex = element.text_content()
        else:
            continue
        bare = bare_latex(latex)
        if bare:
            found[bare] += 1
    return found


def bare_latex(latex: str) -> str:
    """Without white space and the delimiters around it."""
    bare = "".join(latex.split())
    for left, right in (("\\[", "\\]"), ("\\(", "\\)"), ("$$", "$$"), ("$", "$")):
        if bare.startswith(left) and bare.endswith(right) and len(bare) >= len(left) + len(right):
            return bare[len(left) : len(bare) - len(right)]
    return bare


def recovered(formulas: Counter[str], text: str) -> int:
    """How many of a page's formulas are in its text."""
    bare = "".join(text.split())
    return sum(min(count, bare.count(latex)) for latex, count in formulas.items())


def extractors() -> dict[str, Extractor]:
    """The extractors by name, ours first."""
    import trafilatura
    from resiliparse.extract.html2text import extract_plain_text

    guarded = GuardedExtractor(PageLimits())

    def in_a_process(html: str) -> str:
        page = guarded(html)
        return "" if isinstance(page, Ended) else page.text

    return {
        "open-web-math": lambda html: extract_text(html).text,
        "open-web-math, in a process of its own": in_a_process,
        f"Resiliparse {version('resiliparse')}": lambda html: extract_plain_text(
            html, main_content=True, alt_texts=True
        ),
        f"trafilatura {version('trafilatura')}": lambda html: trafilatura.extract(html) or "",
        f"trafilatura {version('trafilatura')}, fast": lambda html: (
            trafilatura.extract(html, fast=True) or ""
        ),
    }


def cpu_seconds() -> float:
    """Of this process and of those it started and that have ended or are still there."""
    children = sum(_children_seconds())
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + children


def _children_seconds() -> list[float]:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = [ended.ru_utime + ended.ru_stime]
    ticks = 100.0
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            seconds.append((int(fields[11]) + int(fields[12])) / ticks)
    return seconds


def measure(extract: Extractor, pages: list[str], held: list[Counter[str]], rounds: int) -> dict[str, Any]:
    """Best of some rounds, and what was recovered."""
    extract(pages[0])
    best = float("inf")
    texts: list[str] = []
    for _ in range(rounds):
        start = cpu_seconds()
        texts = [extract(page) for page in pages]
        best = min(best, cpu_seconds() - start)
    megabytes = sum(len(page.encode()) for page in pages) / 1e6
    return {
        "megabytes_per_cpu_second": round(megabytes / best, 2),
        "formulas_recovered": sum(recovered(h, text) for h, text in zip(held, texts, strict=True)),
        "characters": sum(map(len, texts)),
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    total = result["formulas"]
    rows = [
        f"| {name} | {row['megabytes_per_cpu_second']:.1f} | {row['formulas_recovered']:,} of {total:,} "
        f"({row['formulas_recovered'] / max(1, total):.1%}) |"
        for name, row in result["extractors"].items()
    ]
    return "\n".join([
        "# HTML to text",
        "",
        f"{result['pages']:,} pages, {result['megabytes']:.1f} MB, of {', '.join(result['folders'])}; "
        f"{result['machine']}, Python {result['python']}, {result['date']}. Best of {result['rounds']} "
        "rounds.",
        "",
        "| Extractor | MB of HTML per CPU second | Formulas recovered |",
        "|---|---|---|",
        *rows,
        "",
        f"    {result['command']}",
        "",
    ])  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--megabytes", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    pages = pages_of(arguments.folders, arguments.megabytes)
    held = [formulas_of(page) for page in pages]
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/html_to_text.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "folders": [str(folder) for folder in arguments.folders],
        "pages": len(pages),
        "megabytes": round(sum(len(page.encode()) for page in pages) / 1e6, 1),
        "rounds": arguments.rounds,
        "formulas": sum(map(sum, (h.values() for h in held))),
        "extractors": {},
    }
    for name, extract in extractors().items():
        result["extractors"][name] = measure(extract, pages, held, arguments.rounds)
        print(name, result["extractors"][name], file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
