# SPDX-License-Identifier: Apache-2.0
"""Metrics of a run and where they go: console, JSONL, TensorBoard, W&B, and plots drawn from the record."""

from megatron.monitoring.metrics import EvalReport, Monitor, Sink, StepReport
from megatron.monitoring.opening import open_monitor

__all__ = ["EvalReport", "Monitor", "Sink", "StepReport", "open_monitor"]
