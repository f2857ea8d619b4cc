# SPDX-License-Identifier: Apache-2.0
"""Notebooks become Markdown: hand-written ones in both versions of the format, and absurd ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.proof_pile_2.algebraic_stack.notebooks import NotebookToMarkdown, without_media
from tools.proof_pile_2.documents import Document, Dropped

PNG = {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "<Figure>"}}
STREAM = {"output_type": "stream", "name": "stdout", "text": ["one\n", "\x1b[31mtwo\x1b[0m\n"]}
LATEX = {"output_type": "execute_result", "data": {"text/latex": "$$x^2$$", "text/plain": "x**2"}}
ERROR = {"output_type": "error", "ename": "E", "evalue": "", "traceback": ["Traceback"]}


def code(source: str | list[str], *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "outputs": list(outputs)}


def markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": source}


def convert(*cells: Any, **notebook: Any) -> str:
    document = NotebookToMarkdown()(Document(json.dumps({"cells": cells, "nbformat": 4, **notebook})))
    assert isinstance(document, Document)
    return document.text


def test_cells_outputs_and_the_language() -> None:
    julia = {"kernelspec": {"language": "Julia"}}
    assert convert(markdown("# Title\n"), code(["x = 1\n", "x"], STREAM, LATEX), metadata=julia) == (
        "# Title\n\n```julia\nx = 1\nx\n```\n\n    one\n    two\n\n$$x^2$$\n"
    )


def test_outputs_of_a_cell_with_a_png_or_an_error_are_cleared() -> None:
    assert convert(code("plot()", STREAM, PNG)) == "```python\nplot()\n```\n"
    assert convert(code("raise E", STREAM, ERROR)) == "```python\nraise E\n```\n"
    assert "one" in convert(code("plot()", PNG), code("x", STREAM))


def test_fences_in_code_are_kept_apart() -> None:
    assert convert(code("'''\n```\n````\n'''")).startswith("`````python\n")


@pytest.mark.parametrize(("text", "kept"), [
    ("a ![plot](data:image/png;base64,AAA=) b", "a  b"),
    ("![a](x(1).png)![b](y.png) c", " c"),
    ("![not an image] (x)", "![not an image] (x)"),
    ("![cut](off", "![cut](off"),
    ("a <img src='x.png' /> b <IMG src=y> c", "a  b  c"),
    ("a <video controls><source src='x'></video> b", "a  b"),
    ("a <script type='text/x'>if (1 < 2) {}</script> b <script src='x'/> c", "a  b  c"),
    ("<iframe src='x'>\nfallback\n</iframe\n>end", "end"),
    ("a <script>never closed", "a never closed"),
    ("x < image and y > z", "x < image and y > z"),
    ("a <b>bold</b> [link](x)", "a <b>bold</b> [link](x)"),
])  # fmt: skip
def test_media_are_removed(text: str, kept: str) -> None:
    assert without_media(text) == kept


def test_version_3() -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Ideals"]},
        {"cell_type": "code", "input": "x", "language": "python",
         "outputs": [{"output_type": "pyout", "latex": ["$x$"], "text": ["x"]}]},
        {"cell_type": "code", "input": "y", "outputs": [{"output_type": "pyout", "png": "A"}]},
    ]  # fmt: skip
    document = NotebookToMarkdown()(Document(json.dumps({"worksheets": [{"cells": cells}], "nbformat": 3})))
    assert isinstance(document, Document)
    assert document.text == "## Ideals\n\n```python\nx\n```\n\n$x$\n\n```python\ny\n```\n"


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", "1", "{}", '{"cells": {}}', "[" * 100_000, '{"cells": [1', "null"]
)
def test_what_is_no_notebook_is_dropped(text: str) -> None:
    assert NotebookToMarkdown()(Document(text)) == Dropped("not a notebook")


def test_an_empty_notebook_is_dropped() -> None:
    assert NotebookToMarkdown()(Document('{"cells": [1, {}, {"cell_type": "code"}]}')) == Dropped(
        "an empty notebook"
    )


KEYS = st.sampled_from(
    ["cell_type", "source", "outputs", "output_type", "data", "text", "text/plain", "level"]
)
LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    ["code", "markdown", "heading", "raw", "stream", "error", None, 1, True, [1], {}]
)
CELLS = st.dictionaries(KEYS, LEAVES | st.lists(st.dictionaries(KEYS, LEAVES, max_size=3), max_size=2))


@settings(deadline=None, max_examples=80)
@given(cells=st.lists(CELLS | LEAVES, max_size=3), metadata=st.dictionaries(st.just("kernelspec"), LEAVES))
def test_any_json_in_the_place_of_cells_is_converted_or_dropped(cells: list[Any], metadata: Any) -> None:
    notebook = json.dumps({"cells": cells, "metadata": metadata})
    assert isinstance(NotebookToMarkdown()(Document(notebook)), (Document, Dropped))


@settings(deadline=None, max_examples=150)
@given(
    parts=st.lists(
        st.sampled_from(["<script", "<img ", ">", "/>", "</script>", "![", "](", ")", "(", "\n", "İ", "x"])
    )
)
def test_nothing_but_media_is_removed(parts: list[str]) -> None:
    text = "".join(parts)
    kept = iter(text)
    assert all(character in kept for character in without_media(text))  # a subsequence
    if "<" not in text and "![" not in text:
        assert without_media(text) == text


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece", ["<script>", "<script", "![a](", "![", "<img ", "<svg/>", "(", "![a](((", "<video>"]
)
def test_absurd_media_take_linear_time(piece: str) -> None:
    without_media(piece * 100_000)
