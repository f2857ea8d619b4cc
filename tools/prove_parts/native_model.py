# SPDX-License-Identifier: Apache-2.0
"""Tactics from a checkpoint of this program: beam search as in the paper, one state at a time; or draws, the
answers of all workers in one batch.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.checkpointing.convert import write_all_but_weights
from megatron.checkpointing.inference import OpenedModel
from megatron.neox_arguments.errors import ConfigError, UserError
from megatron.text_generation import BeamOrder, ModelSession, NewToken, Request, TextStream
from tools.prove_parts.asking import STOP, STOP_TOKENS, Asking
from tools.prove_parts.proposers import Candidate, TooLong, unique_best_first


@dataclass
class _Answer:
    """One draw under way."""

    stream: TextStream
    logprob: float = 0.0
    tokens: int = 0
    is_done: bool = False


def beginning_ids(opened: OpenedModel) -> list[int]:
    """What transformers puts before a text with the tokenizer of this checkpoint's export: <s> for a Llama.

    Raises:
        UserError: it cannot read the tokenizer.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="tokenizer-") as name:
        write_all_but_weights(opened.folder, opened.record, Path(name), opened.folder.name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{opened.folder}: transformers cannot read its tokenizer ({error}); convert the checkpoint "
                "with tools/convert_checkpoint.py neox-to-hf and use --hf"
            ) from None
    bos = tokenizer.bos_token_id
    return [int(bos)] if bos is not None and tokenizer("x")["input_ids"][:1] == [bos] else []


class NativeModel:
    """See `Proposer`. On rank 0 of the model's ranks; the others follow the session."""

    def __init__(
        self,
        checkpoint: Path,
        opened: OpenedModel,
        session: ModelSession,
        asking: Asking,
        *,
        cache_tokens: int,
    ) -> None:
        """With draws the session has an engine of `cache_tokens`; beams take no more than that.

        Raises:
            UserError: beams do not fit, whatever the goals.
        """
        self._checkpoint, self._opened, self._session, self._asking = checkpoint, opened, session, asking
        self._cache_tokens = cache_tokens
        self._beginning = beginning_ids(opened)
        least = self._order(self._ids_of("")).cache_tokens
        if asking.decoding == "beam" and least > cache_tokens:
            raise UserError(
                f"--cache-tokens={cache_tokens}: {asking.candidates} beams of {asking.tactic_tokens} tokens "
                f"and the prompt without goals need {least:,}; raise it, or lower --candidates or "
                "--tactic-tokens"
            )
        self._lock = threading.Lock()
        self._answers: dict[int, _Answer] = {}

    def propose(self, goals: str) -> list[Candidate]:
        """See `Proposer.propose`."""
        prompt_ids = self._ids_of(goals)
        how = self._by_beams if self._asking.decoding == "beam" else self._by_draws
        return unique_best_first(how(prompt_ids, goals))

    def _ids_of(self, goals: str) -> list[int]:
        return [*self._beginning, *self._opened.tokenizer.encode(self._asking.prompt(goals))]

    def _order(self, prompt_ids: list[int]) -> BeamOrder:
        return BeamOrder(tuple(prompt_ids), self._asking.candidates, self._asking.tactic_tokens)

    def _by_beams(self, prompt_ids: list[int], goals: str) -> list[Candidate]:
        tokenizer, order = self._opened.tokenizer, self._order(prompt_ids)
        if order.cache_tokens > self._cache_tokens:
            raise TooLong(
                f"{len(prompt_ids):,} tokens and {order.beams} answers of {order.max_new_tokens} need "
                f"{order.cache_tokens:,} places of {self._cache_tokens:,} (--cache-tokens)"
            )

        def ends(ids: Sequence[int]) -> bool:
            return ids[-1] == tokenizer.eod_id or STOP in tokenizer.decode(ids[-STOP_TOKENS:])

        with self._lock:
            beams = self._session.search_beams(order, ends)
        found = []
        for beam in beams:
            stream = TextStream(tokenizer, prompt_ids, [STOP])
            stream.feed([token for token in beam.ids if token != tokenizer.eod_id])
            stream.finish()
            found.append(Candidate(stream.text, beam.score))
        return found

    def _by_draws(self, prompt_ids: list[int], goals: str) -> list[Candidate]:
        asking, tokenizer = self._asking, self._opened.tokenizer
        numbers = []
        with self._lock:
            for number in range(asking.candidates):
                request = Request(
                    prompt_ids,
                    asking.tactic_tokens,
                    temperature=asking.temperature,
                    top_p=asking.top_p,
                    seed=asking.seed_of(goals, number),
                    stop_ids=(tokenizer.eod_id,),
                )
                try:
                    numbers.append(self._session.add(request))
                except ConfigError as error:
                    raise TooLong(str(error)) from None
                self._answers[numbers[-1]] = _Answer(TextStream(tokenizer, prompt_ids, [STOP]))
        while not self._step(numbers):
            pass
        with self._lock:
            mine = [self._answers.pop(number) for number in numbers]
        return [Candidate(answer.stream.text, answer.logprob / max(answer.tokens, 1)) for answer in mine]

    def _step(self, numbers: list[int]) -> bool:
        """Whether all of these are done; if not, one step for the answers of every worker."""
        with self._lock:
            if all(self._answers[number].is_done for number in numbers):
                return True
            for token in self._session.step():
                self._take(token)
            return False

    def _take(self, token: NewToken) -> None:
        answer = self._answers.get(token.request)
        if answer is None or answer.is_done:  # of one that was ended by its text in the same step
            return
        answer.logprob += token.logprob
        answer.tokens += 1
        if token.finish_reason != "stop":
            answer.stream.feed([token.token_id])
        if answer.stream.stopped_by is not None:
            answer.is_done = True
            if token.finish_reason is None:
                self._session.cancel(token.request)
        elif token.finish_reason is not None:
            answer.stream.finish()
            answer.is_done = True

    def settings(self) -> Mapping[str, Any]:
        """See `Proposer.settings`."""
        record = self._opened.record
        return {
            "proposer": "native",
            "model": str(self._checkpoint),
            "iteration": record.iteration,
            "dtype": str(self._opened.built.config.params_dtype).removeprefix("torch."),
            **self._asking.settings(),
        }

    def close(self) -> None:
        """Lets the other ranks go."""
        self._session.close()
