# SPDX-License-Identifier: Apache-2.0
"""LLMLean's few-shot requests: what ends a tactic there, though LLMLean does not say so.

LLMLean (github.com/cmu-l3/llmlean) asks base models by the prompt of Llemma's formal-to-formal proving
(arXiv:2310.10631, section 3.4): tactic states and next tactics in blocks between lines of `---`. Its stop
list is that of instructed models, ["[/TAC]"], so a base model would go on with examples of its own until
max_tokens.
"""

from __future__ import annotations

TACTIC_STOP = "---"
_STOP_OF_TACTICS = "[/TAC]"
_OPENING = "\nNext tactic:\n---\n"


def stops_of(prompt: str, stops: tuple[str, ...], tactic_stop: str) -> tuple[str, ...]:
    """`stops`, and `tactic_stop` where the prompt is LLMLean's few-shot one. "" adds nothing.

    Its signs are both in the request: the stop list has LLMLean's own mark, and the prompt ends in a tactic's
    block that is still open. No other client's text ends differently for it.
    """
    if not tactic_stop or _STOP_OF_TACTICS not in stops:
        return stops
    before, opening, begun = prompt.rpartition(_OPENING)
    is_open = bool(opening) and TACTIC_STOP not in begun
    return (*stops, tactic_stop) if is_open and "Tactic state:\n---\n" in before else stops
