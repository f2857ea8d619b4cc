# SPDX-License-Identifier: Apache-2.0
"""What is kept and dropped by AlgebraicStack's rules, and that nothing held out is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron.neox_arguments.errors import UserError
from tools.proof_pile_2.algebraic_stack.languages import STD
from tools.quickstart_parts import corpus
from tools.quickstart_parts.corpus import (
    Document,
    is_english,
    is_held_out,
    is_mathematical_python,
    is_mathematical_tex,
    passes,
    tex_documents,
    write_corpus,
)

ENGLISH_TEX = (
    "\\section{Limits}\nA sequence is a map from the natural numbers to the reals, and the limit of it is "
    "the number that all but finitely many of its terms are close to.\n"
)
GERMAN_TEX = (
    "\\section{Grenzwerte}\nEine Folge ist eine Abbildung der natürlichen Zahlen in die reellen Zahlen, und "
    "ihr Grenzwert ist die Zahl, der fast alle Glieder beliebig nahe kommen.\n"
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("import numpy as np\n", True),
        ("from sympy.core import S\n", True),
        ("x = 1\n", False),
        ("import os\n", False),
        ('  \n{"cells": "import numpy"}', False),  # a notebook
        (
            "# no import of numpyro, but it contains the words\nimport numpyro\n",
            True,
        ),  # as the rule is written
        ("import numpy\n" + "1" * 10, True),  # 11 letters, 10 digits
        ("import numpy\n" + "1" * 11, True),  # half is not more than half
        ("import numpy\n" + "1 " * 12, False),
        ("import numpy\n" + "a" * (1_048_575 - 13), True),
        ("import numpy\n" + "a" * (1_048_575 - 12), False),
        ("import numpy\n" + "é" * ((1_048_575 - 13) // 2 + 1), False),  # bytes are counted, not characters
    ],
)
def test_python_rule(text: str, kept: bool) -> None:
    assert is_mathematical_python(text) is kept


def test_an_empty_file_is_dropped_and_not_divided_by() -> None:
    assert not passes(STD, "")
    assert not passes(STD, " \n")


@pytest.mark.parametrize(
    ("path", "text", "kept"),
    [
        ("/usr/share/doc/a/limits.tex", ENGLISH_TEX, True),
        ("/usr/share/doc/a/limits.sty", ENGLISH_TEX, False),
        ("/usr/share/texmf/tex/latex/a/limits.tex", ENGLISH_TEX, False),
        ("/usr/share/doc/a/limits.tex", ENGLISH_TEX + "% drawn with gnuplot", False),
        ("/usr/share/doc/a/limits.tex", ENGLISH_TEX.replace("\\section", "\\emph"), False),
        ("/usr/share/doc/a/limits.tex", ENGLISH_TEX.replace("\\section", "\\subparagraph"), True),
        ("/usr/share/doc/a/limits.tex", GERMAN_TEX, False),
        ("/usr/share/doc/a/limits.tex", ENGLISH_TEX * 30_000, True),
        ("/usr/share/doc/a/limits.tex", ENGLISH_TEX * 70_000, False),
    ],
)
def test_tex_rule(path: str, text: str, kept: bool) -> None:
    assert is_mathematical_tex(path, text) is kept


def test_code_without_words_is_not_english() -> None:
    assert not is_english("\\def\\x#1{#1} \\newcommand{\\foo}{bar}")
    assert not is_english("12 + 3 = 15")


def test_tex_files_are_found_in_any_encoding_and_missing_folders_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old.tex").write_bytes((ENGLISH_TEX + "% Möbius").encode("latin-1"))
    (tmp_path / "a" / "new.tex").write_text(ENGLISH_TEX + "% Erdős", encoding="utf-8")
    (tmp_path / "a" / "folder.tex").mkdir()
    found = {Path(d.path).name: d.text for d in tex_documents([tmp_path / "none", tmp_path])}
    assert set(found) == {"old.tex", "new.tex"}
    assert found["old.tex"].endswith("Möbius")
    assert found["new.tex"].endswith("Erdős")


def test_a_hash_of_the_path_holds_out_one_file_in_twelve() -> None:
    paths = [f"sympy/{n}.py" for n in range(6000)]
    share = sum(map(is_held_out, paths)) / len(paths)
    assert share == pytest.approx(1 / 12, abs=0.015)
    # Fixed for good: another hash would move files between the splits of an existing corpus.
    assert [n for n in range(60) if is_held_out(f"sympy/{n}.py")] == [13, 14, 15, 40, 49]


def texts_of(folder: Path, source: str, split: str) -> list[dict[str, object]]:
    lines = (folder / f"{source}_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.integers(0, 80), st.sampled_from(["python", "latex"])),
        min_size=0,
        max_size=60,
    )
)
def test_no_text_and_no_file_is_in_both_splits(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[str, int, str]]
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    documents = [Document(text, source, f"p/{number}.py") for text, number, source in drawn]
    # So that no source is empty: both splits have a text of their own.
    both = ["p/train.py", next(f"p/{n}.py" for n in range(999) if is_held_out(f"p/{n}.py"))]
    assert not is_held_out(both[0])
    documents += [Document(f"own {path}", source, path) for path in both for source in ("python", "latex")]
    counts = write_corpus(documents, folder)
    train_paths, valid_paths, all_texts = set(), set(), []
    for source in ("python", "latex"):
        train, valid = texts_of(folder, source, "train"), texts_of(folder, source, "valid")
        train_paths |= {str(d["meta"]["path"]) for d in train}  # type: ignore[index]
        valid_paths |= {str(d["meta"]["path"]) for d in valid}  # type: ignore[index]
        texts = [d["text"] for d in [*train, *valid]]
        assert len(texts) == len(set(texts))
        all_texts += texts
        assert counts[source]["train"].documents == len(train)
        assert counts[source]["valid"].documents == len(valid)
    assert not train_paths & valid_paths
    assert not any(map(is_held_out, train_paths))
    assert all(map(is_held_out, valid_paths))
    duplicates = sum(count.duplicates for of_source in counts.values() for count in of_source.values())
    assert len(all_texts) + duplicates == len(documents)


def test_a_limit_is_kept_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_SPLIT_BYTES", {"train": 100, "valid": 1000})
    documents = [
        Document(f"{source} {n:03d} " + "é" * 10, source, f"p/{n}.py")
        for source in ("python", "latex")
        for n in range(40)
    ]
    counts = write_corpus(documents, tmp_path)
    for of_source in counts.values():
        assert 60 < of_source["train"].text_bytes <= 100
        total = sum(count.documents + count.beyond_limit for count in of_source.values())
        assert total == 40
    text = "".join(str(d["text"]) for d in texts_of(tmp_path, "python", "train"))
    assert len(text.encode("utf-8")) == counts["python"]["train"].text_bytes


def test_a_source_without_documents_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="python, valid: no document was found"):
        write_corpus([Document("a", "python", "p/train.py")], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_packages_give_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On mpmath and networkx as installed: code and documentation of a file share its split."""
    monkeypatch.setattr(corpus, "PYTHON_PACKAGES", ("mpmath", "networkx"))
    monkeypatch.setattr(corpus, "DOCUMENTED_PACKAGES", ("mpmath", "networkx"))
    documents = list(corpus.package_documents())
    write_corpus(documents, tmp_path / "once")
    write_corpus(list(reversed(documents)), tmp_path / "again")
    for path in sorted((tmp_path / "once").iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    split_of: dict[str, str] = {}
    for source in ("python", "latex"):
        for split in ("train", "valid"):
            for document in texts_of(tmp_path / "once", source, split):
                path_ = str(document["meta"]["path"])  # type: ignore[index]
                assert split_of.setdefault(path_, split) == split
    assert len(split_of) > 100
