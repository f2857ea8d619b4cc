# SPDX-License-Identifier: Apache-2.0
"""Whether a measured time can be that of a kernel on the GPU it is said to be of.

A file with milliseconds for seconds, or with a shape beside another one's time, would make a plan that is
wrong by orders of magnitude and looks like any other. What is refused is what no kernel does; a slow kernel,
or a small one that is done before the next one starts, is a measurement like others.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron.planning.calibration import Calibration
from megatron.planning.gpus import Gpu

# Over the peak of a data sheet, which is at the boost clock: what a clock's error may be.
_MOST_OF_PEAK = 1.2
# Over the memory's rate, for what stays in the caches, which are some times as fast: an assumption.
_MOST_OF_MEMORY = 10.0
# Under both. A kernel that does its work at a thousandth of what the GPU can was not measured alone.
_LEAST_SHARE = 1e-3
# Between the starts of two kernels there are microseconds; between the ends, one never saw less than this.
_LEAST_SECONDS, _LAUNCH_SECONDS = 1e-7, 4e-6


def implausible(gpu: Gpu, calibration: Calibration) -> Iterator[str]:
    """Each time of a kernel that cannot be one of `gpu`: its entry, and what it must be between."""
    for entry, key, seconds, flops, moved_bytes in _times(calibration):
        at_peak = flops / (gpu.bf16_tflops * 1e12)
        at_memory_rate = moved_bytes / (gpu.memory_gb_per_second * 1e9)
        least = max(at_peak / _MOST_OF_PEAK, at_memory_rate / _MOST_OF_MEMORY, _LEAST_SECONDS)
        most = max(at_peak, at_memory_rate, _LAUNCH_SECONDS) / _LEAST_SHARE
        if not least <= seconds <= most:
            yield (
                f"{entry}: {key}={seconds:g} is not between {least:.2g} and {most:.2g}: at its rating "
                f"{gpu.name} takes {max(at_peak, at_memory_rate):.2g} s"
            )


def _times(calibration: Calibration) -> Iterator[tuple[str, str, float, float, float]]:
    """Of each time of a kernel: entry, key, seconds, and the fewest FLOPs and bytes that it stands for."""
    for number, product in enumerate(calibration.matrix_products):
        m, n, k = product.m, product.n, product.k
        flops, moved = 2 * m * n * k, 2 * (m * k + k * n + m * n)
        yield f"matrix_products.{number}", "seconds", product.seconds, flops, moved
    for number, one in enumerate(calibration.attention):
        rows = one.sequences * one.tokens * one.head_dim
        flops, moved = 2 * rows * one.tokens * one.heads, 4 * rows * (one.heads + one.kv_heads)
        yield f"attention.{number}", "forward_seconds", one.forward_seconds, flops, moved
        yield f"attention.{number}", "backward_seconds", one.backward_seconds, 2.5 * flops, moved
    for number, kernel in enumerate(calibration.pointwise):
        moved = 4 * kernel.rows * kernel.columns
        yield f"pointwise.{number}", "forward_seconds", kernel.forward_seconds, 0, moved
        yield f"pointwise.{number}", "backward_seconds", kernel.backward_seconds, 0, moved
    for number, loss in enumerate(calibration.losses):
        # Some compute the gradients in the forward pass: only both passes together have all the products.
        both = loss.forward_seconds + loss.backward_seconds
        logits = loss.rows * loss.vocabulary
        key = "forward_seconds + backward_seconds"
        yield f"losses.{number}", key, both, 6 * logits * loss.hidden, 2 * logits
        for name in ("forward_seconds", "backward_seconds"):
            if getattr(loss, name) < _LEAST_SECONDS:
                yield f"losses.{number}", name, getattr(loss, name), 0, 0
    for number, update in enumerate(calibration.optimizers):
        # Gradient, float32 copy and two moments are read, the latter three written.
        yield f"optimizers.{number}", "seconds", update.seconds, 0, 28 * update.parameters
