# SPDX-License-Identifier: Apache-2.0
"""A page can end the process it is extracted in, and nothing else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.tools.proof_pile_2.open_web_math.pages import MATHJAX, page

pytest.importorskip("resiliparse", reason="needs requirements/requirements-data.txt")

from tools.proof_pile_2.open_web_math.guard import Ended, GuardedExtractor, PageLimits
from tools.proof_pile_2.open_web_math.html_to_text import PageText, extract_text

GOOD = page("<p>so \\(x\\)</p>", MATHJAX)
ENTITIES = "".join(f'<!ENTITY e{i} "&e{i - 1};&e{i - 1};">' for i in range(1, 40))
MANY_ATTRIBUTES = "<p " + " ".join(f"a{i}=1" for i in range(120_000)) + ">"  # quadratic in the parser


@pytest.fixture
def extractor() -> Iterator[GuardedExtractor]:
    guarded = GuardedExtractor(PageLimits(cpu_seconds=1.0, memory_bytes=1 << 30))
    yield guarded
    guarded.close()


def test_the_same_as_without(extractor: GuardedExtractor) -> None:
    assert extractor(GOOD) == extract_text(GOOD)


def test_a_page_that_takes_too_long_is_ended_and_the_next_goes_on(extractor: GuardedExtractor) -> None:
    assert extractor(MANY_ATTRIBUTES) == Ended("took more than 1 seconds of CPU")
    assert extractor(GOOD) == extract_text(GOOD)


def test_a_page_that_takes_too_much_memory(extractor: GuardedExtractor) -> None:
    small = GuardedExtractor(PageLimits(cpu_seconds=20.0, memory_bytes=150 << 20))
    try:
        assert isinstance(small("<b>" + "x" * 30_000_000), Ended)
        assert small(GOOD) == extract_text(GOOD)
    finally:
        small.close()


def test_a_process_that_dies_is_counted_and_replaced(extractor: GuardedExtractor) -> None:
    extractor(GOOD)
    process = extractor._process
    assert process is not None
    os.kill(process.pid, signal.SIGSEGV)
    assert extractor(GOOD) == Ended("ended the parser (SIGSEGV)")
    assert extractor(GOOD) == extract_text(GOOD)


ABSURD = ["nesting", "formatting", "tables", "MathML", "entities", "no tag", "openings", "entity bomb", "NUL"]


@pytest.mark.parametrize("html", [
    "<div>" * 200_000 + "deep",
    "<b><p>" * 5_000,
    "<table>" * 20_000,
    "<math>" + "<mrow>" * 20_000 + "<mi>x",
    "&lt;" * 300_000,
    "x" * 3_000_000,
    "\\(" * 100_000,
    f"<!DOCTYPE html [{ENTITIES}]><p>&e39;</p>",
    "\0" * 1000,
], ids=ABSURD)  # fmt: skip
def test_absurd_pages_end(extractor: GuardedExtractor, html: str) -> None:
    assert isinstance(extractor(html), PageText)


def test_the_process_ends_with_its_parent() -> None:
    """Its standard input ends, and so does it."""
    import subprocess

    program = (
        "from tools.proof_pile_2.open_web_math.guard import *\n"
        "import os\n"
        "guarded = GuardedExtractor(PageLimits())\n"
        "guarded('<p>x')\n"
        "print(guarded._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=os.getcwd()
    )
    child = int(done.stdout)
    for _ in range(200):
        try:
            state = open(f"/proc/{child}/stat").read().rpartition(")")[2].split()[0]  # noqa: SIM115
        except FileNotFoundError:
            return
        if state == "Z":
            return
        import time

        time.sleep(0.1)
    pytest.fail("it still runs")
