# SPDX-License-Identifier: Apache-2.0
"""How a model is asked for the next tactic: the prompt around the goals, how many answers, where one ends."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eval_tasks.prompts import prompt
from megatron.neox_arguments.errors import UserError

# Llemma: 32 candidates of at most 256 tokens by beam search, ended by a line of dashes.
CANDIDATES = 32
TACTIC_TOKENS = 256
STOP = "---"
# In beams the end is looked for in this many last tokens.
STOP_TOKENS = 6
PLACE = "{goals}"

Decoding = Literal["beam", "sample"]

# What follows the examples of eval_tasks/prompts, by language.
_PROMPTS = {
    "lean": ("lean_next_tactic_3_shot", f"\n\nTactic state:\n---\n{PLACE}\n---\nNext tactic:\n---"),
    "coq": ("coq_next_tactic_3_shot", f"\n\nProof state:\n---\n{PLACE}\n---\nNext tactic:\n---"),
}


@dataclass(frozen=True)
class Asking:
    """What is the same for every state.

    `decoding` is `beam`, the likeliest sequences by beam search, as in the paper, or `sample`: independent
    draws with temperature and top-p, of which each different one counts once.
    """

    template: str
    decoding: Decoding
    candidates: int = CANDIDATES
    tactic_tokens: int = TACTIC_TOKENS
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def prompt(self, goals: str) -> str:
        """The whole prompt for a state."""
        return self.template.replace(PLACE, goals)

    def seed_of(self, goals: str, number: int = 0) -> int:
        """A seed of a state's own, so that its draws depend on nothing that went before; below 2^31."""
        text = f"{self.seed}\n{number}\n{goals}".encode("utf-8", "replace")
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1

    def settings(self) -> Mapping[str, Any]:
        """What decides the answers."""
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return {
            "prompt_sha256": hashlib.sha256(self.template.encode()).hexdigest(),
            "decoding": self.decoding,
            "candidates": self.candidates,
            "tactic_tokens": self.tactic_tokens,
            **(drawn if self.decoding == "sample" else {}),
        }


def template_of(language: str, file: Path | None) -> str:
    """The prompt with a place for the goals: the user's, or the one of the language.

    Raises:
        UserError: the file cannot be read, or has not exactly one place.
    """
    if file is None:
        name, rest = _PROMPTS[language]
        return prompt(name).text + rest
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt={file}: cannot be read ({error})") from None
    if text.count(PLACE) != 1:
        raise UserError(
            f"--prompt={file}: has {text.count(PLACE)} times {PLACE}; put it once, where goals go"
        )
    return text.removesuffix("\n")
