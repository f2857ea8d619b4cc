# SPDX-License-Identifier: Apache-2.0
"""Isabelle's outer syntax, as far as a proof of a model has to be read before Isabelle may see it.

A theory can run any ML program on the machine, so this is a gate: a proof consists of proof commands alone.
Commands are reserved words of Isabelle, which no name can be, so refusing a word refuses no proof that
Isabelle would take.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

HAMMER = "sledgehammer"

# What a proof may begin with: anything else would go on with the statement, such as `if "False"`.
BEGINNINGS = frozenset({
    "proof", "by", "apply", "using", "unfolding", "supply", "including", "subgoal", "defer", "prefer", HAMMER,
    ".", "..", "done",
})  # fmt: skip

# Reserved words of Isabelle/HOL that are no commands of a proof (etc/symbols and the `keywords` of Pure,
# HOL, Main and HOL-Library, Isabelle 2022 to 2025): theory commands, programs, documents, diagnosis, and
# what leaves a gap.
_FORBIDDEN_WORDS = """
    sorry oops \\<proof> theory begin end imports keywords abbrevs context locale experiment class subclass
    instantiation instance overloading interpretation global_interpretation sublocale bundle unbundle
    open_bundle close_bundle theorem lemma corollary proposition schematic_goal lemmas theorems declare
    axiomatization axioms consts definition abbreviation typedecl type_synonym default_sort judgment alias
    type_alias hide_class hide_type hide_const hide_fact named_theorems syntax no_syntax translations
    no_translations notation no_notation type_notation no_type_notation write nonterminal
    parse_ast_translation parse_translation print_translation typed_print_translation
    print_ast_translation syntax_consts syntax_types ML ML_file ML_file_debug ML_file_no_debug ML_prf
    ML_val ML_command ML_export SML_file SML_file_debug SML_file_no_debug SML_export SML_import setup
    local_setup attribute_setup method_setup declaration syntax_declaration simproc_setup oracle method
    tactic raw_tactic ML_tactic text txt text_raw chapter section subsection subsubsection paragraph
    subparagraph datatype codatatype datatype_compat free_constructors old_rep_datatype record typedef fun
    function partial_function primrec primcorec primcorecursive corec corecursive friend_of_corec
    termination nunchaku inductive inductive_set coinductive coinductive_set inductive_cases
    inductive_simps fun_cases specification quotient_type quotient_definition lift_definition
    setup_lifting lifting_forget lifting_update bnf lift_bnf copy_bnf functor recdef recdef_tc
    ax_specification realizers realizability extract extract_type code_datatype code_printing
    code_reserved code_identifier code_monad code_reflect code_pred code_thms code_deps code_abort
    export_code print_codeproc print_codesetup lazy_code test_code values_prolog value values
    export_generated_files generate_file external_file bibtex_file ROOTS_file compile_generated_files
    scala_build_generated_files quickcheck_params quickcheck_generator quickcheck nitpick nitpick_params
    refute refute_params sledgehammer_params try try0 solve_direct find_theorems find_consts
    find_unused_assms unused_thms find_index statespace adhoc_overloading no_adhoc_overloading derive
    import_file import_tptp import_type_map import_const_map spark_open spark_vc spark_status spark_end
    spark_types spark_proof_functions boogie_file domain domaindef domain_isomorphism fixrec pcpodef
    cpodef nominal_datatype atom_decl nominal_inductive nominal_primrec atp_minimize smt_status
    print_state print_theory welcome kill_proof undo thy_deps thm_deps thm_oracles term prop typ
    print_commands
"""
FORBIDDEN = frozenset(_FORBIDDEN_WORDS.split())

# Control symbols that only change how a name looks.
_HARMLESS_CONTROLS = ("\\<^sub>", "\\<^sup>", "\\<^bold>", "\\<^isub>", "\\<^isup>")
_CONTROL = re.compile(r"\\<\^[^>\s]*>?")
_SYMBOL = re.compile(r"\\<\^?[A-Za-z][A-Za-z0-9_']*>")
# A symbol ends a word here, though Greek ones may be part of a name: `\<dots>sorry` is a symbol and a
# command.
_WORD = re.compile(r"[A-Za-z](?:[A-Za-z0-9_']|\.(?=[A-Za-z]))*")
_STATED_NAME = re.compile(
    r"\s*(?:theorem|lemma|corollary|proposition)\s+([A-Za-z][A-Za-z0-9_']*)\s*(?:\[[^\]]*\])?\s*:"
)


class Unreadable(ValueError):
    """The text is not whole: a string, comment or cartouche does not end."""


@dataclass(frozen=True)
class Token:
    """A piece of outer syntax and where it begins. Kinds: `word`, `quoted` (strings, cartouches), `comment`,
    `mark`."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def tokens(text: str) -> Iterator[Token]:
    """The tokens of a text, blanks left out.

    Raises:
        Unreadable: it is not whole.
    """
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        token = _token(text, at)
        yield token
        at = token.end


def _token(text: str, at: int) -> Token:
    if text.startswith("(*", at):
        return Token("comment", _nested(text, at, "(*", "*)"), at)
    for opening, closing in (("\\<open>", "\\<close>"), ("\u2039", "\u203a")):
        if text.startswith(opening, at):
            return Token("quoted", _nested(text, at, opening, closing), at)
    if text[at] in '"`':
        end = at + 1
        while end < len(text) and text[end] != text[at]:
            # A backslash hides the next character, but begins a symbol where that is `<`.
            end += 2 if text[end] == "\\" and not text.startswith("\\<", end) else 1
        if end >= len(text):
            raise Unreadable("a string does not end")
        return Token("quoted", text[at : end + 1], at)
    word = _WORD.match(text, at)
    if word is not None:
        return Token("word", word[0], at)
    symbol = _SYMBOL.match(text, at)
    if symbol is not None:
        return Token("mark", symbol[0], at)
    if text.startswith("..", at) and not text.startswith("...", at):
        return Token("mark", "..", at)
    return Token("mark", text[at], at)


def _nested(text: str, at: int, opening: str, closing: str) -> str:
    depth, end = 0, at
    while end < len(text):
        if text.startswith(opening, end):
            depth, end = depth + 1, end + len(opening)
        elif text.startswith(closing, end):
            depth, end = depth - 1, end + len(closing)
            if depth == 0:
                return text[at:end]
        else:
            end += 1
    raise Unreadable(f"what begins with {opening} does not end")


def proof_of(generation: str) -> str:
    """The proof in a generation: up to where the next example would begin, without an `end` of the theory.

    One of the published examples has such an `end`, so models write it.
    """
    text = generation.split("\n\n\n")[0].split("\nInformal:")[0].rstrip()
    if re.search(r"\bend\s*\Z", text):
        text = re.sub(r"\bend\s*\Z", "", text).rstrip()
    return text.strip()


def why_refused(proof: str) -> str | None:
    """Why a proof may not be shown to Isabelle; None where it may."""
    try:
        found = [token for token in tokens(proof) if token.kind != "comment"]
    except Unreadable as error:
        return str(error)
    if not found:
        return "the proof is empty"
    if found[0].text not in BEGINNINGS:
        return f"a proof does not begin with {found[0].text[:40]!r}"
    for token in found:
        controls = [each for each in _CONTROL.findall(token.text) if each not in _HARMLESS_CONTROLS]
        if controls:
            return f"{controls[0]} is forbidden in proofs"
        if "@{" in token.text:
            return "@{…} is forbidden in proofs"
        if token.kind != "quoted" and not token.text.isascii():
            # Isabelle reads such characters as its symbols, some of which are commands.
            return f"{token.text} outside of quotes is forbidden in proofs"
        if token.text in FORBIDDEN:
            return f"{token.text} is forbidden in proofs"
    return None


def hammers(proof: str) -> list[Token]:
    """Where a proof calls sledgehammer, in order."""
    return [token for token in tokens(proof) if token.kind == "word" and token.text == HAMMER]


def with_hammers_replaced(proof: str, replacements: list[str]) -> str:
    """The proof with a text in place of each call of sledgehammer."""
    parts, at = [], 0
    for token, replacement in zip(hammers(proof), replacements, strict=True):
        parts += [proof[at : token.start], replacement]
        at = token.end
    return "".join([*parts, proof[at:]])


def stated_name(statement: str) -> str:
    """The name of the theorem.

    Raises:
        ValueError: it has none.
    """
    match = _STATED_NAME.match(statement)
    if match is None:
        raise ValueError("the statement is no `theorem NAME: …`")
    return match[1]
