#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The quickstart's corpus: mathematical Python as installed, and LaTeX, some files of each held out.

Python is taken under AlgebraicStack's rules for that language. LaTeX is what TeX files the machine has, under
its rules for TeX, and always the documentation of the same packages, converted by latex.py. A file is held
out or not by a hash of its path, so that neither the code nor the documentation of a held-out file is ever
trained on; the same files give the same corpus on every machine.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron.neox_arguments.errors import UserError, exit_on_user_error
from megatron.neox_arguments.whole_files import write_whole
from tools.proof_pile_2.algebraic_stack.conditions import Condition, EnglishTex
from tools.proof_pile_2.algebraic_stack.languages import STD, by_name
from tools.proof_pile_2.documents import Document as StackDocument
from tools.quickstart_parts.latex import module_to_latex

PYTHON_PACKAGES = ("sympy", "mpmath", "networkx", "scipy")
DOCUMENTED_PACKAGES = (*PYTHON_PACKAGES, "numpy")
# Their documentation is built with Sphinx's `default_role = "math"`.
DEFAULT_ROLE_IS_MATH = frozenset({"sympy", "mpmath"})
TEX_FOLDERS = (
    "/usr/share/texmf",
    "/usr/share/texmf-dist",
    "/usr/share/texlive",
    "/usr/local/share/texmf",
    "/usr/local/texlive",
    "/usr/share/doc",
    "/usr/share/maxima",
    "/usr/share/pari",
)
SOURCES, SPLITS = ("python", "latex"), ("train", "valid")
# One file in so many is held out.
HELD_OUT_EVERY = 12
# Each source is cut to this much text in each split: a quickstart reads a small part of it.
MAX_SPLIT_BYTES = {"train": 12_000_000, "valid": 1_500_000}

PYTHON, TEX = by_name()["python"], by_name()["tex"]
# A larger file is not even read: the rule allows half of it, in UTF-8.
MAX_TEX_FILE_BYTES = 20_000_000
_WORD = re.compile(r"[^\W\d_]+")
_ENGLISH = frozenset(
    ("the", "of", "and", "to", "in", "is", "that", "for", "we", "with",
     "be", "by", "this", "are", "on", "as", "it", "from", "an", "which")
)  # fmt: skip
# English prose has about a third of these words; other languages and bare macros stay below a tenth.
MIN_ENGLISH_SHARE = 0.1


@dataclass(frozen=True)
class Document:
    """One text of the corpus. `path` is that of its file below site-packages, or from the root for TeX."""

    text: str
    source: str
    path: str


@dataclass
class Count:
    """What one source has in one split, and what was left out of it."""

    documents: int = 0
    text_bytes: int = 0
    duplicates: int = 0
    beyond_limit: int = 0


def passes(conditions: Sequence[Condition], text: str, path: str = "") -> bool:
    """Whether a file is as AlgebraicStack's table wants it."""
    document = StackDocument(text, {"path": path} if path else {})
    return all(condition.holds(document) for condition in conditions)


def is_english(text: str) -> bool:
    """Whether enough words are the commonest English ones; a rough test, for texts of some length."""
    words = [word.lower() for word in _WORD.findall(text)]
    return bool(words) and sum(word in _ENGLISH for word in words) >= MIN_ENGLISH_SHARE * len(words)


def is_mathematical_python(text: str) -> bool:
    """AlgebraicStack's rule for Python."""
    return passes(PYTHON.conditions, text)


def is_mathematical_tex(path: str, text: str) -> bool:
    """AlgebraicStack's rule for TeX, with a test for English that needs no model."""
    rules = [condition for condition in TEX.conditions if not isinstance(condition, EnglishTex)]
    return passes(rules, text, path) and is_english(text)


def place_in_order(path: str) -> int:
    """A number that a file's path alone decides: it shuffles the files, and says which are held out."""
    return int.from_bytes(hashlib.sha256(path.encode("utf-8")).digest()[:8], "big")


def is_held_out(path: str) -> bool:
    """Whether a file is kept from training."""
    return place_in_order(path) % HELD_OUT_EVERY == 0


def place_of(package: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{package}: is not installed in {sys.prefix}; install requirements/requirements.txt there, "
            "or run `make quickstart`, which does"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _python_files(packages: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(package, path below site-packages, text) of each Python file; what is not UTF-8 is left out."""
    for package in packages:
        folder = place_of(package)
        for path in sorted(folder.rglob("*.py")):
            try:
                yield package, path.relative_to(folder.parent).as_posix(), path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue


def package_documents() -> Iterator[Document]:
    """Python files, and the LaTeX of their documentation."""
    for package, path, text in _python_files(DOCUMENTED_PACKAGES):
        if package in PYTHON_PACKAGES and is_mathematical_python(text):
            yield Document(text, "python", path)
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        latex, _ = module_to_latex(text, module, package in DEFAULT_ROLE_IS_MATH)
        if latex and passes(STD, latex):
            yield Document(latex, "latex", path)


def tex_documents(folders: Iterable[str | Path]) -> Iterator[Document]:
    """TeX files in `folders` that follow the rule; folders that are not there are passed over."""
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.tex")):
            try:
                if not path.is_file() or path.stat().st_size > MAX_TEX_FILE_BYTES:
                    continue
                content = path.read_bytes()
            except OSError:
                continue
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                text = content.decode("latin-1")  # the encoding of TeX files before UTF-8
            if is_mathematical_tex(path.as_posix(), text):
                yield Document(text, "latex", path.as_posix())


def file_of(folder: Path, source: str, split: str) -> Path:
    return folder / f"{source}_{split}.jsonl"


def choose(
    documents: Iterable[Document], counts: dict[str, dict[str, Count]]
) -> Iterator[tuple[str, Document]]:
    """(split, document) of those that are kept, shuffled by their paths; fills `counts` by source and split.

    Of documents with the same text in one source only the first is kept, over both splits.
    """
    seen: set[tuple[str, bytes]] = set()
    for document in sorted(documents, key=lambda document: (place_in_order(document.path), document.source)):
        split = "valid" if is_held_out(document.path) else "train"
        count = counts[document.source][split]
        content = document.text.encode("utf-8")
        identity = (document.source, hashlib.sha256(content).digest())
        if identity in seen:
            count.duplicates += 1
            continue
        if count.text_bytes + len(content) > MAX_SPLIT_BYTES[split]:
            count.beyond_limit += 1
            continue
        seen.add(identity)
        count.documents += 1
        count.text_bytes += len(content)
        yield split, document


def write_corpus(documents: Iterable[Document], folder: Path) -> dict[str, dict[str, Count]]:
    """Writes FOLDER/{python,latex}_{train,valid}.jsonl and FOLDER/corpus.json; returns the counts.

    The files appear under their names when all are whole.

    Raises:
        UserError: a source has no document in one of the splits, or the folder cannot be written.
    """
    counts = {source: {split: Count() for split in SPLITS} for source in SOURCES}
    names = [(source, split) for source in SOURCES for split in SPLITS]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            unfinished = {
                name: stack.enter_context(open(f"{file_of(folder, *name)}.tmp", "w", encoding="utf-8"))
                for name in names
            }
            for split, document in choose(documents, counts):
                meta = {"source": document.source, "path": document.path}
                line = json.dumps({"text": document.text, "meta": meta}, ensure_ascii=False)
                unfinished[document.source, split].write(line + "\n")
        _refuse_empty(counts)
        for name in names:
            os.replace(f"{file_of(folder, *name)}.tmp", file_of(folder, *name))
        _write_counts(folder / "corpus.json", counts)
    except OSError as error:
        raise UserError(f"--output={folder}: cannot be written ({error.strerror}); choose another") from None
    finally:
        for leftover in folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
    return counts


def _refuse_empty(counts: dict[str, dict[str, Count]]) -> None:
    for source, of_source in counts.items():
        for split, count in of_source.items():
            if not count.documents:
                raise UserError(
                    f"{source}, {split}: no document was found; see that {', '.join(PYTHON_PACKAGES)} are "
                    "installed with their sources"
                )


def _write_counts(path: Path, counts: dict[str, dict[str, Count]]) -> None:
    content = {
        source: {split: asdict(count) for split, count in of_source.items()}
        for source, of_source in counts.items()
    }
    write_whole(path, json.dumps(content, indent=2) + "\n")


def describe(source: str, of_source: dict[str, Count]) -> str:
    """One line: what a source has, and what was left out."""
    kept = (
        f"{split} {count.documents:,} documents, {count.text_bytes / 1e6:.1f} MB"
        for split, count in of_source.items()
    )
    duplicates = sum(count.duplicates for count in of_source.values())
    beyond = sum(count.beyond_limit for count in of_source.values())
    return f"{source:<8}{'; '.join(kept)}; left out: {duplicates:,} duplicates, {beyond:,} beyond the limit"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Build a corpus of mathematical Python and LaTeX.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the .jsonl files")
    parser.add_argument(
        "--tex-folders", nargs="*", default=TEX_FOLDERS, metavar="DIR", help="where to look for .tex files"
    )
    options = parser.parse_args(argv)
    started = time.perf_counter()

    def documents() -> Iterator[Document]:
        yield from package_documents()
        yield from tex_documents(options.tex_folders)

    counts = write_corpus(documents(), options.output)
    for source, of_source in counts.items():
        print(describe(source, of_source))
    print(f"{options.output}: written in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
