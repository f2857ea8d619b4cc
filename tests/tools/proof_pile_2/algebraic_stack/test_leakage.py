# SPDX-License-Identifier: Apache-2.0
"""Test theorems are cut out: all of a file, no others, whatever form the user's file of them has."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.neox_arguments.errors import UserError
from tests.data.corpora import shared_folder
from tools.proof_pile_2.algebraic_stack.leakage import (
    DECLARATIONS,
    CutTheorems,
    DropStatements,
    Theorem,
    read_theorems,
)
from tools.proof_pile_2.documents import Document, Dropped

LEAN = """import algebra

namespace nat

theorem add_zero (n : ℕ) : n + 0 = n :=
begin
  refl
end

@[simp] lemma keep_me : true := trivial

section
lemma zero_add (n : ℕ) : 0 + n = n := by simp
  -- its last line

end
end nat

theorem add_zero : 1 = 1 := rfl
"""
ISABELLE = """theory T imports Main begin

lemma keep: "a = a"
  by simp

theorem (in group) secret [simp]:
  fixes x :: nat
  shows "x = x"
proof -
  show ?thesis

  by simp
qed

lemma "x = (x::nat)" by simp

lemma secret_too: "True" by simp
end
"""


def cut(language: str, text: str, *names: str, path: str = "T", file: str = "") -> str | Dropped:
    theorems = tuple(Theorem(name, file=file) for name in names)
    outcome = CutTheorems(language, theorems)(Document(text, {"path": path}))
    return outcome.text if isinstance(outcome, Document) else outcome


def test_in_lean_namespaces_count_and_a_theorem_ends_at_a_blank_line() -> None:
    kept = cut("lean", LEAN, "nat.add_zero", "nat.zero_add")
    assert isinstance(kept, str)
    assert kept.count("add_zero") == 1
    assert "theorem add_zero : 1 = 1" in kept
    assert "begin" not in kept
    assert "keep_me" in kept
    assert "last line" not in kept
    assert cut("lean", LEAN, "other.add_zero", "keep") == LEAN


def test_every_theorem_of_a_file_is_cut_and_not_one_a_file() -> None:
    file = "src/data/nat/basic.lean"
    kept = cut("lean", LEAN, "nat.add_zero", "nat.zero_add", "nat.keep_me", path=f"mathlib/{file}", file=file)
    assert isinstance(kept, str)
    assert not any(name in kept for name in ("zero_add", "keep_me", "add_zero"))
    # where the file is another one, only the full name counts
    assert "theorem add_zero : 1 = 1" in str(cut("lean", LEAN, "nat.add_zero", path="src/b.lean", file=file))


LEAN_FORMS = {
    "bar": "theorem bar.{u} (x : Type u) : x = x := rfl",
    "nr": "nonrec theorem nr : 2 = 2 := rfl",
    "opn": "open Classical in theorem opn : 4 = 4 := rfl",
    "doc": '@[to_additive "a [x] b"] theorem doc : 3 = 3 := rfl',
    "quoted name": "theorem «quoted name» : 6 = 6 := rfl",
    "above": "/-- Told\n\nin words. -/\n@[simp]\nset_option maxHeartbeats 4 in\n"
    "private theorem above : 7 = 7 := rfl",
}


@pytest.mark.parametrize("name", LEAN_FORMS)
def test_forms_of_a_lean_theorem(name: str) -> None:
    around = "namespace Foo\n\n/- a comment -/\n\n@[simp] theorem stays : True := trivial\n\n{}\n\nend Foo\n"
    text = around.format(LEAN_FORMS[name])
    assert str(cut("lean", text, f"Foo.{name}")).split() == around.format("").split()
    assert cut("lean", text, "Foo.other") == text


def test_a_long_line_takes_no_long_time() -> None:
    for part in (
        "open a in ",
        "@[a] ",
        "private ",
        "variable x in in ",
        '@[a "b] ',
        "«",
        "lemma ",
        "/-- -/\n@[x]\n",
    ):
        assert cut("lean", part * 20000, "x") == part * 20000


def test_a_root_name_has_no_namespace() -> None:
    text = "namespace Foo\n\ntheorem _root_.Top.thm : 1 = 1 := rfl\n\nend Foo\n"
    assert "Top" not in str(cut("lean", text, "Top.thm"))
    assert cut("lean", text, "Foo.Top.thm") == text


def test_statements_of_isabelle_that_have_no_name_or_a_mark() -> None:
    said = 'lemma "x = anonymous5"'
    theorems = (
        Theorem("", said),
        Theorem("imp", 'lemma %important imp: "a1 = a1"'),
        Theorem("priv"),
        Theorem("u"),
    )
    kept = """lemma "x = keepme1" by simp
lemma x: "keepme2" by simp
lemma "x \\<le> keepme3" by simp
lemma %important imp2: "keepme4" by simp
"""
    gone = """lemma
  "x =
  anonymous5" by (rule foo[where x="y"])
lemma%unimportant u: "a" by simp
lemma %important imp: "a1 = a1" by simp
private lemma priv: "b" by simp
"""
    outcome = CutTheorems("isabelle", theorems)(Document(kept + gone + kept))
    assert isinstance(outcome, Document)
    assert outcome.text == kept + kept


def test_in_isabelle_a_theorem_ends_at_the_next_command() -> None:
    kept = cut("isabelle", ISABELLE, "secret")
    assert isinstance(kept, str)
    assert kept == ISABELLE[: ISABELLE.index("theorem")] + ISABELLE[ISABELLE.index('lemma "x') :]
    assert cut("isabelle", ISABELLE, "keep_", "nothing") == ISABELLE


def test_in_coq() -> None:
    text = "Theorem a : True.\nProof. exact I. Qed.\n\nLemma b : True. Admitted.\n"
    assert cut("coq", text, "a") == "Lemma b : True. Admitted.\n"
    assert cut("coq", text, "a", "b") == Dropped("nothing beside test theorems")


@pytest.mark.parametrize(("content", "found"), [
    ('[{"full_name": "nat.a", "file_path": "b.lean"}]', Theorem("nat.a", file="b.lean")),
    ('{"name": "a", "formal_statement": "theorem a"}\n{"name": "a", "formal_statement": "theorem a"}\n',
     Theorem("a", "theorem a")),
    ('[["thys/A.thy", "lemma a: \\"x = x\\""]]', Theorem("a", 'lemma a: "x = x"', "thys/A.thy")),
    ('{"test": [{"problem_name": "a"}]}', Theorem("a")),
    ("a\n\n", Theorem("a")),
    ('{"statement": "lemma \\"x\\""}', Theorem("", 'lemma "x"')),
    ('[["A.thy", "lemma assumes \\"x\\""]]', Theorem("", 'lemma assumes "x"', "A.thy")),
    ('[["A.thy", "lemma %important a: \\"x\\""]]', Theorem("a", 'lemma %important a: "x"', "A.thy")),
    ('{"statement": "theorem a.{u} : True"}', Theorem("a", "theorem a.{u} : True")),
])  # fmt: skip
def test_forms_of_a_file_of_theorems(tmp_path: Path, content: str, found: Theorem) -> None:
    (tmp_path / "t").write_text(content)
    assert read_theorems(tmp_path / "t") == [found]


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{}"])
def test_a_file_without_theorems_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UserError, match=r"t: (holds no|cannot be read)"):
        read_theorems(tmp_path / "t")
    with pytest.raises(UserError, match="absent: cannot be read"):
        read_theorems(tmp_path / "absent")


def test_the_real_test_sets_are_found_in_files_that_hold_them() -> None:
    theorems = read_theorems(shared_folder() / "minif2f_lean4_statements.jsonl")
    assert len(theorems) > 400
    text = "\n\n".join(f"{theorem.statement} := by sorry" for theorem in theorems) + "\n\ntheorem mine : True"
    kept = CutTheorems("lean", tuple(theorems))(Document(text))
    assert isinstance(kept, Document)
    assert kept.text.split() == ["theorem", "mine", ":", "True"]
    theorems = read_theorems(shared_folder() / "minif2f_isabelle_dsp_aligned.jsonl")
    text = "\n".join(theorem.statement for theorem in theorems) + '\nlemma mine: "True"\n'
    kept = CutTheorems("isabelle", tuple(theorems))(Document(text))
    assert isinstance(kept, Document)
    assert kept.text.strip() == 'lemma mine: "True"'


def test_statements_are_found_however_they_are_broken_into_lines() -> None:
    step = DropStatements((Theorem("a", 'lemma a:\n  shows "x = x"'), Theorem("b")))
    assert step(Document('[STATEMENT]\nlemma a: shows\n"x  = x"\n[PROOF STEP]')) == Dropped(
        "holds a test statement"
    )
    assert isinstance(step(Document("lemma a: shows b")), Document)


@settings(deadline=None, max_examples=100)
@given(
    parts=st.lists(
        st.sampled_from(
            ["theorem a", "lemma b", "namespace n", "end", "\n", "\n\n", "section", " : t ", "example "]
        )
    )
)
def test_what_is_left_is_of_the_text_and_without_the_name(parts: list[str]) -> None:
    text = "".join(parts)
    outcome = CutTheorems("lean", (Theorem("a"),))(Document(text))
    if isinstance(outcome, Document):
        kept = iter(text)
        assert all(character in kept for character in outcome.text)
        left = [found for found in DECLARATIONS["lean"].finditer(outcome.text) if found["name"] == "a"]
        assert not left or "namespace n" in text
