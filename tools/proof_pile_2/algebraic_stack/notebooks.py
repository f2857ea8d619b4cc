# SPDX-License-Identifier: Apache-2.0
"""Jupyter notebooks as Markdown, in time linear in their size.

Own code and not nbconvert, which renders templates and HTML of others in Python and is not bounded in
time; the form is nbconvert's: Markdown cells as they are, code in fences, outputs indented. Of an output's
forms LaTeX is taken, then Markdown, then plain text. Outputs of a cell that made a PNG or an error are
left out, and so are images, video, scripts and frames anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from tools.proof_pile_2.documents import Document, Dropped

_ESCAPES = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")
_MEDIA = re.compile(r"<(img|video|audio|script|iframe|svg|picture|object|embed)(?=[\s>/])", re.IGNORECASE)
_VOID = frozenset(("img", "embed"))
_FORMS = ("text/latex", "text/markdown", "text/plain")
_OLD_FORMS = {"latex": "text/latex", "text": "text/plain", "png": "image/png"}


@dataclass(frozen=True)
class NotebookToMarkdown:
    """A notebook's JSON to Markdown."""

    name: str = "notebook to Markdown"
    version: str = "1"

    def __call__(self, document: Document) -> Document | Dropped:
        """Convert, or drop what is no notebook."""
        try:
            notebook = orjson.loads(document.text)
            markdown = "\n\n".join(part for part in _parts(notebook) if part)
        except (orjson.JSONDecodeError, _NoNotebook):
            return Dropped("not a notebook")
        return document.with_text(markdown + "\n") if markdown.strip() else Dropped("an empty notebook")


class _NoNotebook(Exception):
    """The JSON is something else."""


def _parts(notebook: object) -> Iterator[str]:
    if not isinstance(notebook, dict):
        raise _NoNotebook
    sheets = notebook.get("worksheets")  # notebooks of version 3
    cells = [cell for sheet in sheets if isinstance(sheet, dict) for cell in _list(sheet.get("cells"))] if (
        isinstance(sheets, list)
    ) else notebook.get("cells")  # fmt: skip
    if not isinstance(cells, list):
        raise _NoNotebook
    language = _language(notebook)
    for cell in cells:
        if isinstance(cell, dict):
            yield from _cell(cell, language)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _language(notebook: dict[str, Any]) -> str:
    metadata = notebook.get("metadata")
    for key, name in (("language_info", "name"), ("kernelspec", "language")):
        part = metadata.get(key) if isinstance(metadata, dict) else None
        value = part.get(name) if isinstance(part, dict) else None
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9+#_-]{1,30}", value):
            return value.lower()
    return "python"


def _text(value: object) -> str:
    """A multi-line string of a notebook: a string, or a list of them."""
    if isinstance(value, str):
        return value
    return "".join(part for part in value if isinstance(part, str)) if isinstance(value, list) else ""


def _cell(cell: dict[str, Any], language: str) -> Iterator[str]:
    kind = cell.get("cell_type")
    if kind == "code":
        source = _text(cell.get("source", cell.get("input"))).strip("\n")
        if source.strip():
            fence = "```" if "```" not in source else "`" * (1 + max(map(len, re.findall("`+", source))))
            yield f"{fence}{language}\n{source}\n{fence}"
        yield from _outputs([output for output in _list(cell.get("outputs")) if isinstance(output, dict)])
    elif kind == "heading":
        level = cell.get("level")
        yield (
            "#" * (level if isinstance(level, int) and 1 <= level <= 6 else 1)
            + " "
            + without_media(_text(cell.get("source"))).strip()
        )
    elif kind in ("markdown", "html") or (kind == "raw" and _is_markdown(cell)):
        yield without_media(_text(cell.get("source"))).strip("\n")


def _is_markdown(cell: dict[str, Any]) -> bool:
    metadata = cell.get("metadata")
    kind = metadata.get("raw_mimetype", metadata.get("format", "")) if isinstance(metadata, dict) else ""
    return kind in ("", "text/markdown")


def _forms(output: dict[str, Any]) -> dict[str, Any]:
    """What an output holds, by its kind; version 3 has the kinds among the output's own keys."""
    data = output.get("data")
    if isinstance(data, dict):
        return data
    return {_OLD_FORMS[key]: value for key, value in output.items() if key in _OLD_FORMS}


def _outputs(outputs: list[dict[str, Any]]) -> Iterator[str]:
    for output in outputs:
        if output.get("output_type") in ("error", "pyerr") or "traceback" in output:
            return
        if "image/png" in _forms(output):
            return
    for output in outputs:
        forms = (
            {"text/plain": output.get("text")} if output.get("output_type") == "stream" else _forms(output)
        )
        chosen = next((form for form in _FORMS if _text(forms.get(form)).strip()), None)
        if chosen is None:
            continue
        text = without_media(_ESCAPES.sub("", _text(forms[chosen]))).strip("\n")
        yield (
            text if chosen != "text/plain" else "\n".join(f"    {line}".rstrip() for line in text.split("\n"))
        )


def without_media(text: str) -> str:
    """Markdown without images, and without the HTML of images, video, scripts and frames, with what is in
    them."""
    return _without_markdown_images(_without_media_tags(text))


def _without_media_tags(text: str) -> str:
    kept, place, absent = [], 0, set()
    folded = text.lower() if len(text.lower()) == len(text) else text
    for found in _MEDIA.finditer(text):
        if found.start() < place:
            continue
        end = text.find(">", found.end())
        if end < 0:
            break
        tag = found.group(1).lower()
        if tag not in _VOID and tag not in absent and text[end - 1] != "/":
            close = folded.find(f"</{tag}", end)
            if close < 0:
                absent.add(tag)  # from here to the end there is none
            else:
                close = text.find(">", close)
                end = close if close >= 0 else len(text) - 1
        kept.append(text[place : found.start()])
        place = end + 1
    return "".join([*kept, text[place:]])


def _without_markdown_images(text: str) -> str:
    return "\n".join(_line_without_images(line) if "![" in line else line for line in text.split("\n"))


def _line_without_images(line: str) -> str:
    kept, place = [], 0
    while (start := line.find("![", place)) >= 0:
        middle = line.find("](", start)
        end = _closing(line, middle + 2) if middle >= 0 else -1
        if end < 0:
            break
        kept.append(line[place:start])
        place = end + 1
    return "".join([*kept, line[place:]])


def _closing(line: str, start: int) -> int:
    """The bracket that closes the one before `start`, or -1."""
    depth = 1
    for found in re.compile(r"[()]").finditer(line, start):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.start()
    return -1
