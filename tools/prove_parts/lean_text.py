# SPDX-License-Identifier: Apache-2.0
"""Lean's text: what a statement is called, and which words may not stand in a proof of a model.

A tactic of Lean can run any program, so some words are refused before Lean sees them. A proof that passes is
judged by its axioms; a run with a model that is not trusted belongs in a container all the same.
"""

from __future__ import annotations

import re

# Ways to leave a goal unproved.
_GIVES_UP = {"sorry", "admit", "stop"}
# Words that begin a command: behind a proof they would be taken for the next one.
_COMMANDS = {
    "abbrev", "attribute", "axiom", "class", "constant", "declare_syntax_cat", "def", "deriving", "elab",
    "elab_rules", "end", "example", "export", "import", "include", "inductive", "infix", "infixl", "infixr",
    "initialize", "builtin_initialize", "instance", "lemma", "macro", "macro_rules", "mutual", "namespace",
    "noncomputable", "notation", "omit", "opaque", "partial", "postfix", "prefix", "private", "protected",
    "register_option", "run_cmd", "scoped", "section", "structure", "syntax", "theorem", "universe", "unsafe",
    "variable", "variables",
}  # fmt: skip
# Words that run programs, or put something in front of the kernel.
_PROGRAMS = {
    "by_elab", "csimp", "extern", "implemented_by", "include_str", "run_elab", "run_meta", "run_tac",
}  # fmt: skip
_COMPILED = {"native_decide", "bv_decide"}
_REFUSED = {
    **dict.fromkeys(_GIVES_UP, "gives a goal up"),
    **dict.fromkeys(_COMMANDS, "is a command"),
    **dict.fromkeys(_PROGRAMS, "runs a program"),
}
# Whoever allows this axiom allows tactics that trust the compiler.
COMPILER_AXIOM = "Lean.ofReduceBool"

_WORD = re.compile(r"(?<![\w.'!?])[^\W\d][\w'!?]*")
_HASH = re.compile(r"#(?:eval|exit|print|reduce|check|synth|help|guard|with_exporting)\w*")
# Namespaces of the compiler itself; `Lean.` and `IO.` have nothing that a mathematical proof needs.
_META = re.compile(r"(?<![\w'])(?:Lean|IO|Elab|Meta|MetaM|TacticM|CoreM)\s*\.(?!\s)")
# Constants that are refused under whatever name they are reached.
_CONSTANTS = re.compile(
    r"(?<![\w'])(?:sorryAx|unsafeCast|unsafeIO|unsafeEIO|unsafeBaseIO|reduceBool|ofReduceBool|trustCompiler)(?![\w'])"
)
_OPTION = re.compile(r"\bset_option\s+(\S+)")
_HARMLESS_OPTIONS = {"maxHeartbeats", "maxRecDepth", "synthInstance.maxHeartbeats", "linter.all"}
_OPEN = re.compile(r"(?<![\w.'])open\b")
_NAME = re.compile(r"\b(?:theorem|lemma)\s+([^\s:({\[⦃]+)")


def without_comments(text: str) -> str:
    """The text with comments replaced by blanks; text with quotes stays as it is, since a quote may hide one.

    So a word in a comment is refused only where there are quotes too.
    """
    if '"' in text or "'" in re.sub(r"\w'+", "", text):
        return text
    kept, at, depth = [], 0, 0
    while at < len(text):
        if text.startswith("/-", at):
            depth, at = depth + 1, at + 2
        elif depth and text.startswith("-/", at):
            depth, at = depth - 1, at + 2
        elif not depth and text.startswith("--", at):
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        else:
            kept.append(" " if depth and text[at] != "\n" else text[at])
            at += 1
    return "".join(kept)


def why_forbidden(text: str, trusts_compiler: bool = False) -> str | None:
    """Why a text may not stand in a proof; None if it may.

    Args:
        trusts_compiler: `native_decide` and its like may stand there.
    """
    bare = without_comments(text)
    if found := _HASH.search(bare):
        return f"{found[0]} is a command"
    if found := _META.search(bare):
        return f"{found[0]} reaches into the compiler"
    if found := _CONSTANTS.search(bare):
        return f"{found[0]} proves anything, or reaches into the compiler"
    if found := _OPEN.search(bare):
        return f"{found[0]} changes what names mean"
    for option in _OPTION.finditer(bare):
        if option[1] not in _HARMLESS_OPTIONS:
            return f"set_option {option[1]} is not one of {', '.join(sorted(_HARMLESS_OPTIONS))}"
    for word in _WORD.finditer(bare):
        if word[0] in _COMPILED and not trusts_compiler:
            return f"{word[0]} trusts the compiler; allow {COMPILER_AXIOM} if you do"
        if word[0] in _REFUSED:
            return f"{word[0]} {_REFUSED[word[0]]}"
    if "native" in bare and re.search(r"\+\s*native\b|native\s*:=", bare) and not trusts_compiler:
        return f"decide +native trusts the compiler; allow {COMPILER_AXIOM} if you do"
    return None


def stated_name(statement: str) -> str:
    """The name of what is to be proved.

    Raises:
        ValueError: it states no theorem with a name.
    """
    found = _NAME.findall(without_comments(statement))
    if not found:
        raise ValueError("it states no theorem with a name (theorem, lemma)")
    return str(found[-1])


def indented(proof: str) -> str:
    """The proof as it stands below `by`."""
    return "\n".join(f"  {line}" if line.strip() else "" for line in proof.expandtabs().splitlines())
