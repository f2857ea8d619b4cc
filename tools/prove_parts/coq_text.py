# SPDX-License-Identifier: Apache-2.0
"""Coq's sentences: where one ends, and which may stand in a proof of a model.

What Coq's manual (Basic notions, lexical conventions) says: comments nest, a string within one counts as one,
a sentence ends with a full stop before a blank or the end; bullets and braces are sentences without a stop.
To Coq `.(` is a word of its own, even where a comment begins there. Here a stop before a comment ends the
sentence too, as its author will have meant it; sentences go to Coq with blanks between them.

Other words of Coq end in `(` too: "`(*" begins no comment, and a notation of a header may add such words. So
a sentence of a model goes to Coq without its comments, and with no stop before a blank but the one at its
end, not even in a string (`plain`): wherever Coq takes comments and strings to be, it ends where we say.
"""

from __future__ import annotations

import re

_BULLET = re.compile(r"-+|\++|\*+")
_BRACE = re.compile(r"(?:(?:\d+|\[\s*[\w']+\s*\])\s*:\s*)?\{|\}")
_SELECTOR = re.compile(
    r"(?:all|par|!|\[\s*[\w']+\s*\]|\d+(?:\s*-\s*\d+)?(?:\s*,\s*\d+(?:\s*-\s*\d+)?)*)\s*:(?!=)\s*"
)
# Ways to leave a goal unproved. Commands need no list: each begins with a capital letter, no tactic does.
_GIVES_UP = re.compile(r"(?<![\w.'])(?:admit|give_up)(?![\w'])")
_STATEMENT = re.compile(
    r"(?:#\[[^\]]*\]\s*)*(?:(?:Local|Global|Program|Polymorphic|Monomorphic)\s+)*"
    r"(?:Theorem|Lemma|Fact|Remark|Corollary|Proposition|Property|Example|Definition)\s+([\w']+)"
)
_FRAME = re.compile(r"(?:Proof(?:\s+(?:using|with)\b.*)?|Admitted|Abort)\s*\.", re.DOTALL)
# What ends a sentence, whatever stands around it; Coq's own blanks are four of these.
_STOP = re.compile(r"\.(?=\s)")
_END = re.compile(r"(?<!\.)(?:\.|\.\.\.)\Z")
# A line that a pipe takes whole, whether or not its reader reads.
_LONGEST_TACTIC_CHARACTERS = 10_000


class Unfinished(ValueError):
    """A comment or a string has no end, or the last sentence has no stop."""


def _after_string(text: str, at: int) -> int:
    """The place behind the string that begins at `at`; a doubled quote in it ends it and begins another."""
    end = text.find('"', at + 1)
    if end < 0:
        raise Unfinished("a string has no end")
    return end + 1


def _after_comment(text: str, at: int) -> int:
    depth = 0
    while at < len(text):
        if text.startswith("(*", at):
            depth, at = depth + 1, at + 2
        elif text.startswith("*)", at):
            depth, at = depth - 1, at + 2
            if depth == 0:
                return at
        elif text[at] == '"':
            at = _after_string(text, at)
        else:
            at += 1
    raise Unfinished("a comment has no end")


def _after_blanks(text: str, at: int) -> int:
    while at < len(text):
        if text[at].isspace():
            at += 1
        elif text.startswith("(*", at):
            at = _after_comment(text, at)
        else:
            break
    return at


def _after_sentence(text: str, at: int) -> int:
    while at < len(text):
        if text.startswith("(*", at):
            at = _after_comment(text, at)
        elif text[at] == '"':
            at = _after_string(text, at)
        elif text[at] == ".":
            dots = at
            while at < len(text) and text[at] == ".":
                at += 1
            if at - dots != 2 and (at == len(text) or text[at].isspace() or text.startswith("(*", at)):
                return at  # `..` belongs to notations such as [ x ; .. ; y ]
        else:
            at += 1
    raise Unfinished("the last sentence has no full stop")


def sentences(text: str) -> list[str]:
    """The sentences of a text, comments between them left out.

    Raises:
        Unfinished: it stops within one.
    """
    found, at = [], _after_blanks(text, 0)
    while at < len(text):
        short = _BULLET.match(text, at) or _BRACE.match(text, at)
        end = short.end() if short else _after_sentence(text, at)
        found.append(text[at:end])
        at = _after_blanks(text, end)
    return found


def without_frame(statement: str) -> str:
    """A statement without what begins or replaces its proof (`Proof.`, `Admitted.`, `Abort.`), and without
    comments around that. Text that is not whole stays as it is."""
    at, end = 0, 0
    try:
        at = _after_blanks(statement, at)
        while at < len(statement):
            begun, at = at, _after_sentence(statement, at)
            if not _FRAME.fullmatch(without_comments(statement[begun:at])):
                end = at
            at = _after_blanks(statement, at)
    except Unfinished:
        return statement
    return statement[:end]


def without_comments(sentence: str) -> str:
    """The sentence with each comment replaced by a blank."""
    kept, at = [], 0
    while at < len(sentence):
        if sentence.startswith("(*", at):
            at = _after_comment(sentence, at)
            kept.append(" ")
        elif sentence[at] == '"':
            end = _after_string(sentence, at)
            kept.append(sentence[at:end])
            at = end
        else:
            kept.append(sentence[at])
            at += 1
    return "".join(kept)


def is_structure(sentence: str) -> bool:
    """Whether it is a bullet or a brace."""
    return bool(_BULLET.fullmatch(sentence) or _BRACE.fullmatch(sentence))


def why_forbidden(sentence: str) -> str | None:
    """Why a sentence may not stand in a proof; None if it may.

    A proof consists of tactics, bullets and braces. Commands (`Axiom`, `Admitted`, `Unset Guard Checking`,
    `Notation`, `Redirect`, …) begin with a capital letter or `#[`, also behind a goal selector.
    """
    if "<prompt>" in sentence or "\0" in sentence:
        return "holds coqtop's prompt, or a zero byte"
    if is_structure(sentence):
        return None
    bare = without_comments(sentence).strip()
    selector = _SELECTOR.match(bare)
    tactic = bare[selector.end() :] if selector else bare
    if not tactic or not (tactic[0].islower() or tactic[0] in "([_"):
        return f"is a command and no tactic: {tactic[:40]}"
    given_up = _GIVES_UP.search(_without_strings(tactic))
    return f"gives a goal up: {given_up[0]}" if given_up else None


def _without_strings(text: str) -> str:
    return re.sub(r'"[^"]*"', '""', text)


def plain(sentence: str) -> str:
    """A sentence that may go to Coq: without comments, its text in strings as it is.

    Raises:
        ValueError: Coq might end it before its end.
    """
    found = without_comments(sentence).strip()
    if _STOP.search(found):
        raise ValueError(
            "has a stop before a blank in its midst (in a string, or two of them): Coq might end it there"
        )
    if sentences(found) != [found] or not (is_structure(found) or _END.search(found)):
        raise ValueError("is not one sentence without its comments")
    return found


def one_tactic(text: str) -> str:
    """A proposed tactic as one sentence, its stop added if it has none.

    Raises:
        ValueError: it is none, or more than one, or one that may not be; the message says why.
    """
    if len(text) > _LONGEST_TACTIC_CHARACTERS:
        raise ValueError(f"has more than {_LONGEST_TACTIC_CHARACTERS} characters")
    try:
        found = sentences(text)
    except Unfinished:
        found = sentences(text.rstrip() + ".")
    if len(found) != 1:
        raise ValueError(f"is {len(found)} sentences and not one")
    if is_structure(found[0]) or found[0].strip(". \t\n") == "":
        raise ValueError("is no tactic")
    reason = why_forbidden(found[0])
    if reason is not None:
        raise ValueError(reason)
    sentence = plain(found[0])
    # As written, but for comments and the breaks of lines: one line is one sentence to coqtop.
    return plain(" ".join(sentence.split())) if '"' not in sentence else sentence


def stated_name(statement: str) -> str:
    """The name that the last sentence of a statement gives to what is to be proved.

    Raises:
        ValueError: it is no statement with a name.
    """
    try:
        found = sentences(statement.strip())
    except Unfinished as error:
        raise ValueError(str(error)) from None
    name = _STATEMENT.match(without_comments(found[-1])) if found else None
    if name is None:
        raise ValueError("the last sentence states no theorem with a name (Theorem, Lemma, Example, …)")
    return name[1]
