# SPDX-License-Identifier: Apache-2.0
"""Tactics from a Hugging Face model in this process: beam search as in the paper, or draws.

Legend: N answers, S tokens, V ids.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron.neox_arguments.errors import UserError
from tools.prove_parts.asking import STOP, STOP_TOKENS, Asking
from tools.prove_parts.proposers import Candidate, TooLong, unique_best_first

# Answers whose logits are computed together: [8, S, V] in float32 is 260 MB at 256 tokens and 32,000 ids.
_ANSWERS_TOGETHER = 8


class HFModel:
    """See `Proposer`. One state at a time."""

    def __init__(self, folder: Path, dtype: str, asking: Asking) -> None:
        """Reads it onto the GPU if there is one.

        Raises:
            UserError: it cannot be read.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._folder, self._dtype, self._asking = folder, dtype, asking
        self._lock = threading.Lock()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as error:
            raise UserError(f"--hf={folder}: cannot be read ({error}); give a Hugging Face folder") from None
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._most_tokens = int(getattr(self._model.config, "max_position_embeddings", 0) or 1 << 30)

    def propose(self, goals: str) -> list[Candidate]:
        """See `Proposer.propose`."""
        asking = self._asking
        inputs = self._tokenizer(asking.prompt(goals), return_tensors="pt").to(self._model.device)
        prompt_tokens = inputs["input_ids"].shape[1]
        if prompt_tokens + asking.tactic_tokens > self._most_tokens:
            raise TooLong(
                f"{prompt_tokens} tokens and {asking.tactic_tokens} new ones of {self._most_tokens}"
            )
        with self._lock, torch.inference_mode():
            answers_NS = self._answers(inputs, goals)
            candidates = [
                candidate
                for part_NS in answers_NS.split(_ANSWERS_TOGETHER)
                for candidate in self._scored(part_NS, prompt_tokens)
            ]
        return unique_best_first(candidates)

    def _answers(self, inputs: Mapping[str, torch.Tensor], goals: str) -> torch.Tensor:
        """The prompt with each answer behind it, [N, S]."""
        asking = self._asking
        how: dict[str, Any]
        if asking.decoding == "beam":
            how = {"num_beams": asking.candidates, "do_sample": False}
        else:
            torch.manual_seed(asking.seed_of(goals))
            how = {"do_sample": True, "temperature": asking.temperature, "top_p": asking.top_p, "top_k": 0}
        prompt_tokens = inputs["input_ids"].shape[1]

        def is_at_end(ids_NS: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            """transformers' own criterion for texts does not read every tokenizer."""
            ended_N = [self._ends(ids_S) for ids_S in ids_NS[:, prompt_tokens:].tolist()]
            return torch.tensor(ended_N, device=ids_NS.device)

        answers: torch.Tensor = self._model.generate(
            **inputs,
            **how,
            num_return_sequences=asking.candidates,
            max_new_tokens=asking.tactic_tokens,
            stopping_criteria=[is_at_end],
            pad_token_id=self._padding_id,
        )
        return answers

    @property
    def _padding_id(self) -> int:
        """What stands behind an answer that ended before the longest."""
        known = (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id, 0)
        return int(next(value for value in known if value is not None))

    def _scored(self, answers_NS: torch.Tensor, prompt_tokens: int) -> list[Candidate]:
        """Each answer with the mean log-probability of its tokens, its end included, at temperature 1."""
        logits_NSV = self._model(answers_NS).logits[:, prompt_tokens - 1 : -1].float()
        new_NS = answers_NS[:, prompt_tokens:]
        logprobs_NS = torch.log_softmax(logits_NSV, -1).gather(-1, new_NS[..., None])[..., 0]
        found = []
        for ids_S, logprobs_S in zip(new_NS, logprobs_NS, strict=True):
            tokens = self._tokens_of(ids_S.tolist())
            text = self._tokenizer.decode(ids_S[:tokens], skip_special_tokens=True)
            found.append(Candidate(text.split(STOP, 1)[0], float(logprobs_S[:tokens].mean())))
        return found

    def _tokens_of(self, ids: Sequence[int]) -> int:
        """How many of the ids are the answer, with the one that ended it; the rest is padding."""
        return next((at for at in range(1, len(ids) + 1) if self._ends(ids[:at])), len(ids))

    def _ends(self, ids: Sequence[int]) -> bool:
        """Whether the last of an answer's ids ends it."""
        if ids[-1] == self._tokenizer.eos_token_id:
            return True
        return STOP in self._tokenizer.decode(ids[-STOP_TOKENS:])

    def settings(self) -> Mapping[str, Any]:
        """See `Proposer.settings`."""
        return {"proposer": "hf", "model": str(self._folder), "dtype": self._dtype, **self._asking.settings()}

    def close(self) -> None:
        """The model goes with the process."""
