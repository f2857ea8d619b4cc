# SPDX-License-Identifier: Apache-2.0
"""Samples made in batches and saved as they come: a kill costs at most the batch under way.

The batches of a task are laid out once, from all of its requests. A start that goes on makes each batch whole
that has a sample missing, and saves what is missing: what a request is batched with, and the seed of its
draws, are those of an uninterrupted run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval_tasks.results.samples import SampleWriter, iterate_samples, samples_file
from eval_tasks.runs.requests import Request
from megatron.neox_arguments.errors import UserError

TELL_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Model:
    """lm-eval's model, with what this program has to know of it."""

    lm: Any
    requests_per_call: int
    # Whether a request takes a seed of its own; else one seed is set before each call.
    takes_seeds: bool
    # Settings of the back end that go with each request where tokens are drawn.
    when_sampling: Mapping[str, Any] = field(default_factory=dict)
    set_seed: Callable[[int], None] = lambda seed: None
    # Of lm-eval's own classes: their progress bars, one a batch, stay away.
    call_options: Mapping[str, Any] = field(default_factory=dict)

    def answers(self, requests: list[Request], is_sampled: bool) -> Iterator[tuple[Request, Any, int | None]]:
        """Each request with lm-eval's answer to it and the tokens of that, as they come."""
        if is_sampled and not self.takes_seeds:
            self.set_seed(requests[0].seed)
        instances = []
        for request in requests:
            settings = dict(self.when_sampling) if is_sampled else {}
            if is_sampled and self.takes_seeds:
                settings["seed"] = request.seed
            instances.append(request.instance(settings))
        kind = instances[0].request_type
        if kind == "generate_until" and hasattr(self.lm, "generate"):  # this engine's, one by one
            for made in self.lm.generate(instances):
                yield requests[made.place], made.text, len(made.ids)
            return
        answers = getattr(self.lm, kind)(instances, **self.call_options)
        for request, answer in zip(requests, answers, strict=True):
            yield request, answer, self._count_tokens(answer)

    def _count_tokens(self, answer: Any) -> int | None:
        """Of a generation; None where the back end has no tokenizer here."""
        if not isinstance(answer, str) or getattr(self.lm, "tokenizer", None) is None:
            return None
        return len(self.lm.tok_encode(answer, add_special_tokens=False))


def check_lengths(lm: Any, requests: list[Request], max_new_tokens: int | None) -> None:
    """Raises:
    UserError: a prompt does not fit in the model's context with what may be written after it; lm-eval would
        cut it from the left.
    """
    room = getattr(lm, "max_length", None)
    if room is None or getattr(lm, "tokenizer", None) is None:
        return
    longest: tuple[int, Request | None] = (0, None)
    for request in requests:
        if request.sample == 0:
            after = max_new_tokens or len(lm.tok_encode(str(request.item.arguments[1])))
            needed = len(lm.tok_encode(request.item.prompt)) + after
            longest = max(longest, (needed, request), key=lambda pair: pair[0])
    needed, worst = longest
    if worst is None or needed <= room:
        return
    remedy = "take a model with a longer context"
    if max_new_tokens and max_new_tokens > needed - room:
        remedy = f"give --max-new-tokens {max_new_tokens - (needed - room)}, or {remedy}"
    raise UserError(
        f"{worst.task}: the longest prompt (item {worst.item.name}) needs {needed} tokens with what may follow "
        f"it, and the model's context is {room}; {remedy}"
    )


def missing(folder: Path, task: str, requests: list[Request]) -> set[tuple[str, int]]:
    """The keys of the requests that have no sample yet.

    Raises:
        UserError: the folder has a sample that was never asked for, or a broken line.
    """
    wanted = {request.key for request in requests}
    path = samples_file(folder, task)
    saved = {each.key for each in iterate_samples(path, task)} if path.is_file() else set()
    if saved - wanted:
        item, sample = sorted(saved - wanted)[0]
        raise UserError(
            f"{path}: has sample {sample} of item {item}, which is not of this run; choose another --output"
        )
    return wanted - saved


def batches(requests: list[Request], size: int) -> Iterator[list[Request]]:
    """The requests in their order, cut."""
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def make_samples(
    folder: Path,
    requests: list[Request],
    model: Model,
    is_sampled: bool,
    tell: Callable[[str], None],
    writer: SampleWriter,
) -> None:
    """Makes the samples of a task that are missing, and saves them with `writer`, which has its file."""
    task = requests[0].task
    open_keys = missing(folder, task, requests)
    done, made, started, told_at = len(requests) - len(open_keys), 0, time.monotonic(), 0.0
    if done:
        tell(f"{task}: {done} of {len(requests)} samples are here")
    for batch in batches(requests, model.requests_per_call):
        if not any(request.key in open_keys for request in batch):
            continue
        for request, answer, tokens in model.answers(batch, is_sampled):
            if request.key in open_keys:
                writer.append([request.sample_of(answer, tokens)])
                made += 1
        seconds = time.monotonic() - started
        if seconds - told_at >= TELL_EVERY_SECONDS or made == len(open_keys):
            told_at = seconds
            tell(_progress(task, done + made, len(requests), made / seconds))


def _progress(task: str, saved: int, of: int, per_second: float) -> str:
    left_minutes = (of - saved) / per_second / 60
    return f"{task}: {saved} of {of} samples, {per_second * 60:.1f} a minute, {left_minutes:.0f} min left"
