# SPDX-License-Identifier: Apache-2.0
"""Which of several kernels that compute the same serves a run: tried, timed on its device, remembered.

A kernel is tried where it will run: forward and backward on a few tokens, compared with the formula in
float32. What remains is timed forward and backward at the run's own shape. The first rank measures, and all
ranks take the fastest that every one of them can run, so that no two ranks compute with different kernels.
The times are kept in a file for each GPU, shape and set of versions; `cache_folder` says where.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
Tensors = Sequence[torch.Tensor]

# A kernel whose results are this far from the formula's, relative in the L2 norm, computes something else: a
# rounding to bfloat16 is at most 2^-8 off, and fused kernels are within 0.3% of theirs (docs/kernels.md).
LARGEST_DIFFERENCE = 0.03
# Calls before the clock starts (compilation, caches) and timed calls, of which the median counts.
WARM_UP_CALLS, TIMED_CALLS = 3, 10
# Memory that is written over before each timed call, twice: it empties the GPU's caches, as the rest of a
# layer does, and takes longer than the processor needs to hand over a call of several kernels (0.6 ms at
# 3.3 TB/s).
HEAD_START_BYTES = 2**30
# Of the file below; another number is another question, so old files are left alone.
_FORM = 1


class Unfit(Exception):
    """A kernel cannot serve this run; the message says why, in a few words."""


@dataclass(frozen=True)
class Candidate(Generic[Kernel]):
    """A kernel that may serve.

    Attributes:
        load: imports it. Raises Unfit, or ImportError where it is not installed.
        packages: names under which it may be installed; their versions decide whether old times still hold.
    """

    name: str
    load: Callable[[], Kernel]
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task(Generic[Kernel]):
    """What is to be computed, at a run's own shape.

    Attributes:
        kind: what is chosen, for logs and file names.
        shape: everything that the time of a kernel may depend on, with plain values.
        inputs: leaves that want gradients, at the run's shape, or of few tokens where the argument is true.
        call: a kernel on inputs; the results whose gradients count.
        reference: the formula in torch's own operations. It gets the inputs in float32.
    """

    kind: str
    shape: Mapping[str, Any]
    inputs: Callable[[bool], Tensors]
    call: Callable[[Kernel, Tensors], Tensors]
    reference: Kernel


@dataclass(frozen=True)
class Choice(Generic[Kernel]):
    """A kernel, its name, and why it was taken."""

    kind: str
    name: str
    reason: str
    kernel: Kernel

    def describe(self) -> str:
        return f"{self.kind}: {self.name} ({self.reason})"


class Clock(Protocol):
    """Seconds that one call of `step` takes."""

    def __call__(self, step: Callable[[], object]) -> float: ...


def cuda_clock(step: Callable[[], object], timed_calls: int = TIMED_CALLS) -> float:
    """What the GPU takes, by events on the current stream; the median of `timed_calls`."""
    for _ in range(WARM_UP_CALLS):
        step()
    other = torch.empty(HEAD_START_BYTES, dtype=torch.int8, device="cuda")
    spans = []
    for _ in range(timed_calls):
        other.zero_().zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        spans.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in spans) / 1e3


def forward_backward(task: Task[Kernel], kernel: Kernel, inputs: Tensors) -> list[torch.Tensor]:
    """The results and the gradients of the inputs. The results' own gradients are the same numbers always."""
    results = list(task.call(kernel, inputs))
    # Not all ones: the rows of a norm's output would have a gradient of nearly zero.
    weights = [torch.linspace(-1, 1, r.numel(), device=r.device).view(r.shape).to(r.dtype) for r in results]
    return results + list(torch.autograd.grad(results, list(inputs), weights))


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected| in the L2 norm; NaN where `found` has one."""
    expected = expected.detach().to(torch.promote_types(expected.dtype, torch.float32))
    distance = torch.linalg.vector_norm(found.detach().to(expected.dtype) - expected)
    return float(distance / torch.linalg.vector_norm(expected).clamp_min(1e-30))


def why_unfit(task: Task[Kernel], candidate: Candidate[Kernel]) -> str | None:
    """Tries a kernel forward and backward on a few tokens; returns what is wrong with it here, or None."""
    try:
        kernel = candidate.load()
        inputs = task.inputs(True)
        found = forward_backward(task, kernel, inputs)
        exact = [x.detach().float().requires_grad_() for x in inputs]
        expected = forward_backward(task, task.reference, exact)
        worst = max(relative_difference(*pair) for pair in zip(found, expected, strict=True))
    except ImportError as error:
        return f"not installed ({_one_line(error)})"
    except Exception as error:  # a kernel may fail in any way its author thought of
        return _one_line(error)
    if not worst <= LARGEST_DIFFERENCE:
        return f"its results are {worst:.1%} from the formula's"
    return None


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@dataclass
class Measured:
    """Seconds forward and backward of the kernels that ran, and why the others did not."""

    seconds: dict[str, float] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)

    @property
    def fastest_first(self) -> list[str]:
        return sorted(self.seconds, key=lambda name: self.seconds[name])

    def describe(self) -> str:
        times = [f"{name} {self.seconds[name] * 1e3:.3g} ms" for name in self.fastest_first]
        return ", ".join(times + [f"{name}: {reason}" for name, reason in self.passed_over.items()])


def measure(task: Task[Kernel], candidates: Sequence[Candidate[Kernel]], clock: Clock) -> Measured:
    """Times every candidate that works, at the run's shape. Leaves no memory taken."""
    measured = Measured()
    for candidate in candidates:
        unfit = why_unfit(task, candidate)
        if unfit is None:
            try:
                kernel, inputs = candidate.load(), task.inputs(False)
                measured.seconds[candidate.name] = clock(_step(task, kernel, inputs))
            except Exception as error:
                unfit = _one_line(error)
            kernel = inputs = None  # type: ignore[assignment]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if unfit is not None:
            measured.passed_over[candidate.name] = unfit
    return measured


def _step(task: Task[Kernel], kernel: Kernel, inputs: Tensors) -> Callable[[], object]:
    with torch.no_grad():
        gradients = [torch.ones_like(result) for result in task.call(kernel, inputs)]
    return lambda: torch.autograd.grad(list(task.call(kernel, inputs)), list(inputs), gradients)


def question_of(
    task: Task[Kernel], candidates: Sequence[Candidate[Kernel]], device: torch.device
) -> dict[str, Any]:
    """Everything that the answer may depend on, as the file holds it."""
    versions: dict[str, str | None] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    gpu = "CPU"
    if device.type == "cuda":
        gpu = torch.cuda.get_device_name(device)
        versions["cudnn"] = str(torch.backends.cudnn.version())
    for package in sorted({package for candidate in candidates for package in candidate.packages}):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "form": _FORM,
        "kind": task.kind,
        "gpu": gpu,
        "shape": dict(task.shape),
        "candidates": [candidate.name for candidate in candidates],
        "versions": versions,
    }


def cache_folder() -> Path | None:
    """`llemma/kernels` in the folder that XDG_CACHE_HOME names, or in ~/.cache; None without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # the XDG base directory specification: others are ignored
        return Path(named) / "llemma" / "kernels"
    try:
        return Path.home() / ".cache" / "llemma" / "kernels"
    except RuntimeError:
        return None


class Cache:
    """Files of measured times, one for each question, with the question in them."""

    def __init__(self, folder: Path | None, log: Callable[[str], None]) -> None:
        self._folder, self._log = folder, log

    def _path(self, question: Mapping[str, Any]) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:16]
        words = re.sub(r"[^a-z0-9]+", "-", f"{question['kind']} {question['gpu']}".lower()).strip("-")
        return self._folder / f"{words}-{digest}.json"

    def read(self, question: Mapping[str, Any]) -> Measured | None:
        """What was measured before, or None. A file that is damaged is said and left out."""
        path = self._path(question)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["question"] != question:
                raise ValueError("it answers another question")
            seconds = {str(name): float(value) for name, value in content["seconds"].items()}
            if not seconds or not all(0 < value < float("inf") for value in seconds.values()):
                raise ValueError("it has no times")
            reasons = {str(name): str(reason) for name, reason in content["passed_over"].items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._log(f"{path}: damaged ({_one_line(error)}), so the kernels are measured again")
            return None
        return Measured(seconds, reasons)

    def write(self, question: Mapping[str, Any], measured: Measured) -> None:
        """Keeps what was measured; a disk that refuses is said and costs the next start a measurement."""
        path = self._path(question)
        if path is None:
            return
        content = {
            "question": question,
            "seconds": measured.seconds,
            "passed_over": measured.passed_over,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            self._log(f"{path}: times of kernels cannot be kept ({error}); the next start measures again")


def _broadcast(value: Any, device: torch.device) -> Any:
    """The first rank's `value` on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device if device.type == "cuda" else None)
    return box[0]


def _reasons_of_all(reason: str | None) -> dict[int, str]:
    """Of each rank with a reason against a kernel, the reason; the same on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return {} if reason is None else {0: reason}
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    return {rank: reason for rank, reason in enumerate(reasons) if reason is not None}


def _in_words(reasons: Mapping[int, str]) -> str:
    """Reasons of ranks: once where they are all the same, otherwise the first with its rank."""
    rank, reason = min(reasons.items())
    return reason if rank == 0 else f"{reason} (rank {rank})"


def choose(
    task: Task[Kernel],
    candidates: Sequence[Candidate[Kernel]],
    wanted: str,
    device: torch.device,
    *,
    key: str,
    remedy: str | None = None,
    clock: Clock = cuda_clock,
    cache: Cache | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Choice[Kernel]:
    """The kernel that `wanted` names, or, where it is "auto", the fastest. Every rank calls this.

    `key` is the configuration's and `remedy` what to do where a kernel asked for fails, for messages.

    Raises:
        UserError: on every rank: the kernel that was asked for, or every kernel, fails on some rank.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    if wanted != "auto":
        unfit = why_unfit(task, by_name[wanted]) if wanted in by_name else f"not a kernel for {device.type}"
        if reasons := _reasons_of_all(unfit):
            raise UserError(
                f"{key}={wanted}: no such {task.kind} runs here ({_in_words(reasons)}); "
                + (remedy or f"use {key}: auto")
            )
        return Choice(task.kind, wanted, "by name", by_name[wanted].load())
    measured, source = _measured_by_first_rank(
        task, candidates, device, clock, cache or Cache(cache_folder(), log)
    )
    passed_over = dict(measured.passed_over)
    for name in measured.fastest_first:
        reasons = _reasons_of_all(why_unfit(task, by_name[name]))
        if not reasons:
            words = Measured(measured.seconds, passed_over).describe()
            return Choice(
                task.kind, name, f"the fastest forward and backward, {source}: {words}", by_name[name].load()
            )
        passed_over[name] = _in_words(reasons)
    why = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise UserError(f"{key}=auto: no kernel for {task.kind} runs here ({why})")


def _measured_by_first_rank(
    task: Task[Kernel],
    candidates: Sequence[Candidate[Kernel]],
    device: torch.device,
    clock: Clock,
    cache: Cache,
) -> tuple[Measured, str]:
    """The first rank's measurement, or what it remembers, on every rank; and which of the two it was."""
    found: tuple[Measured, str] | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        question = question_of(task, candidates, device)
        known = cache.read(question)
        if known is not None:
            found = known, "as measured before"
        else:
            found = measure(task, candidates, clock), "measured now"
            if found[0].seconds:
                cache.write(question, found[0])
    answer: tuple[Measured, str] = _broadcast(found, device)
    return answer
