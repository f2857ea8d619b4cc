# SPDX-License-Identifier: Apache-2.0
"""One side timed in a process of its own: `python -m benchmarks.training_sides.measuring ORDER.json`.

Every step is waited for, on every side. Tokens lie on the device already: reading them is measured elsewhere.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_sides.shapes import SHAPES, Shape
from benchmarks.training_sides.sides import SIDES, Built, Order

OUT_OF_MEMORY = "out of memory"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sequences(order: Order, steps: int) -> torch.Tensor:
    """Random tokens [steps, A, B, S + 1], equal for all sides."""
    generator = torch.Generator().manual_seed(0)
    size = (steps, order.accumulation, order.micro, order.shape.tokens + 1)
    return torch.randint(0, order.shape.vocab, size, generator=generator).to(order.device)


def time_steps(built: Built, order: Order, steps: int, dropped: int) -> dict[str, Any]:
    """Seconds of `steps` steps after the first `dropped`, their losses, and the most memory in use."""
    sequences = _sequences(order, min(8, steps + dropped))
    seconds, cpu_seconds, losses = [], [], []
    for number in range(steps + dropped):
        _wait(order.device)
        began, cpu_began = time.perf_counter(), time.process_time()
        loss = built.step(sequences[number % len(sequences)])
        _wait(order.device)
        if number >= dropped:
            seconds.append(time.perf_counter() - began)
            cpu_seconds.append(time.process_time() - cpu_began)
        losses.append(float(loss))
    found: dict[str, Any] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "losses": losses}
    found["median_seconds"] = statistics.median(seconds)
    if order.device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(order.device)
        found["reserved_bytes"] = torch.cuda.max_memory_reserved(order.device)
    return found


def write_trace(built: Built, order: Order, path: Path) -> None:
    """Two steps, after one to warm the profiler up."""
    from megatron.trainer.trace import Trace

    trace = Trace(path, 2, 4, built.configs, lambda line: print(line, file=sys.stderr))
    sequences = _sequences(order, 1)
    for number in range(1, 4):
        trace.begins(number)
        built.step(sequences[0])
        _wait(order.device)
        trace.ends(number)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """What came of one side; `error` where it has no figures."""
    device = torch.device(request["device"])
    chosen = request["shape"]  # a name, or the fields of another shape
    shape = (SHAPES[chosen] if isinstance(chosen, str) else Shape(**chosen)).with_layers(request["layers"])
    order = Order(shape, device, request["micro"], request["accumulation"], request["dtype"], request["keys"])
    side = SIDES[request["side"]]
    began = time.perf_counter()
    try:
        built = side.build(order)
        found = time_steps(built, order, request["steps"], request["dropped"])
        found.update(parameters=built.parameters, notes=built.notes)
        found.update(recompute=built.recompute, fused=built.is_fused)
        found["whole_seconds"] = time.perf_counter() - began
        if request["trace"]:
            write_trace(built, order, Path(request["trace"]))
    except torch.OutOfMemoryError:
        return {"error": OUT_OF_MEMORY}
    except NotImplementedError as error:
        return {"error": str(error)}
    except Exception as error:  # a peer of another version: its row says so, the others go on
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0][:200]
        return {"error": f"failed: {type(error).__name__}: {first}"}
    return found


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(request["answer"]).write_text(json.dumps(measure(request)))


if __name__ == "__main__":
    main()
