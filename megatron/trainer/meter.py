# SPDX-License-Identifier: Apache-2.0
"""The numbers of a log line: rates, MFU, memory, time left."""

from __future__ import annotations

import time

import psutil
import torch

from megatron.backend import Backend
from megatron.monitoring import StepReport
from megatron.neox_arguments.config import RunConfig
from megatron.planning.flops import flops_per_token
from megatron.planning.gpus import peak_flops
from megatron.trainer.pace import Pace


class Meter:
    """Measures the time between log lines; evaluation and saving are taken out with `pause`."""

    def __init__(self, cfg: RunConfig, backend: Backend, vocab_size: int) -> None:
        self._cfg = cfg
        self._backend = backend
        self._flops, self._causal_flops = flops_per_token(cfg.model, vocab_size)
        self.notice: str | None = None  # what is not measured, and why
        self._peak = self._peak_flops()
        self._started = time.perf_counter()
        self._steps = 0
        self._tokens = 0
        self._most_bytes = 0
        self._is_warm = False
        self._steady_seconds, self._steady_steps = 0.0, 0

    def _peak_flops(self) -> float | None:
        if self._cfg.logging.peak_tflops_per_gpu is not None:
            return self._cfg.logging.peak_tflops_per_gpu * 1e12
        if self._backend.device.type != "cuda" or self._cfg.precision.dtype_name != "bfloat16":
            return None
        name = torch.cuda.get_device_name(self._backend.device)
        peak = peak_flops(name)
        if peak is None:
            self.notice = f"MFU is not shown: the peak of {name} is not known; peak_tflops_per_gpu sets it"
        return peak

    def step_done(self, tokens: int) -> None:
        self._steps += 1
        self._tokens += tokens

    def pause(self) -> float:
        """Call before something that is not training; give the result to `resume` after it.

        One pause may lie in another: a rollback saves.
        """
        return time.perf_counter() - self._started

    def resume(self, counted_seconds: float) -> None:
        self._started = time.perf_counter() - counted_seconds

    def report(
        self,
        iteration: int,
        loss: float,
        lr: float,
        grad_norm: float,
        tokens_seen: int,
        pace: Pace | None = None,
    ) -> StepReport:
        """The log line for the steps since the last one."""
        now = time.perf_counter()
        seconds = max(now - self._started, 1e-9)
        rate = self._tokens / seconds
        rate_per_gpu = rate / self._backend.world_size
        step_seconds = seconds / max(1, self._steps)
        slow, waited = (None, 0.0) if pace is None else (pace.slowest(), pace.longest_wait())
        left = (self._cfg.schedule.train_iters - iteration) * self._steady_step_seconds(seconds)
        data_wait_seconds = waited / max(1, self._steps)
        self._started, self._steps, self._tokens = now, 0, 0
        return StepReport(
            iteration=iteration,
            train_iters=self._cfg.schedule.train_iters,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens_per_second=rate,
            tokens_per_second_per_gpu=rate_per_gpu,
            mfu=None if self._peak is None else rate_per_gpu * self._flops / self._peak,
            mfu_causal=None if self._peak is None else rate_per_gpu * self._causal_flops / self._peak,
            memory_bytes=self._memory_bytes(),
            tokens_seen=tokens_seen,
            seconds_left=left,
            step_seconds=step_seconds,
            data_wait_seconds=data_wait_seconds,
            slowest_rank=None if slow is None else slow.rank,
            slowest_rank_ratio=None if slow is None else slow.ratio,
        )

    def _steady_step_seconds(self, seconds: float) -> float:
        """The mean over all log lines but the first, whose steps compile kernels and fill caches."""
        if not self._is_warm:
            self._is_warm = True
            return seconds / max(1, self._steps)
        self._steady_seconds += seconds
        self._steady_steps += self._steps
        return self._steady_seconds / max(1, self._steady_steps)

    def _memory_bytes(self) -> int:
        if self._backend.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._backend.device))
        self._most_bytes = max(self._most_bytes, int(psutil.Process().memory_info().rss))
        return self._most_bytes
