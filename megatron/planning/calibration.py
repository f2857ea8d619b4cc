# SPDX-License-Identifier: Apache-2.0
"""What was measured on one GPU, for a plan to be counted with: the file of `deepy.py … --plan --calibration`.

The file is JSON; all lists may be empty or absent, and what is not measured stays assumed and is said to be.
`benchmarks/calibrate.py` and `benchmarks/train_gpu.py` write it; several files of the same GPU may be given.
Times are medians, in seconds, of one call, with caches as calls leave them.

    {
      "version": 1,
      "gpu": "NVIDIA H200",
      "origin": {"command": "python benchmarks/calibrate.py …", "torch": "2.13.0", "commit": "…"},
      "matrix_products": [{"m": 4096, "n": 22016, "k": 4096, "seconds": 0.0011}],
      "attention": [{"sequences": 1, "tokens": 4096, "heads": 32, "kv_heads": 32, "head_dim": 128,
                     "kernel": "cudnn", "forward_seconds": 0.0003, "backward_seconds": 0.0008}],
      "pointwise": [{"kernel": "rmsnorm", "fused": true, "rows": 4096, "columns": 4096,
                     "forward_seconds": 2e-5, "backward_seconds": 4e-5}],
      "losses": [{"fused": true, "rows": 4096, "hidden": 4096, "vocabulary": 32016,
                  "forward_seconds": 0.002, "backward_seconds": 0.004}],
      "optimizers": [{"parameters": 1000000000, "seconds": 0.012}],
      "steps": [{"model": {"num_layers": 8, "hidden_size": 4096, "num_attention_heads": 32,
                           "num_kv_heads": 32, "head_dim": 128, "intermediate_size": 11008,
                           "seq_length": 4096, "vocab_size": 32016},
                 "tensor": 1, "micro": 1, "accumulation": 1, "recompute": "none", "fused": true,
                 "seconds": 0.35}]
    }
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron.neox_arguments.errors import UserError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# More than any size of a network or of a micro-batch, and so little that products of several stay numbers.
Count = Annotated[int, Field(gt=0, le=2**24)]
Parameters = Annotated[int, Field(gt=0, le=2**40)]


class _Entry(BaseModel):
    """Unknown keys are errors: a misspelt one would be a measurement that is not used."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MatrixProduct(_Entry):
    """`[m, k] @ [k, n]` in bfloat16, the sum in float32: m is the tokens in a forward pass."""

    m: Count
    n: Count
    k: Count
    seconds: Seconds


class Attention(_Entry):
    """Causal attention of `sequences` x `tokens`, in bfloat16; `kernel` is its name in a run's log."""

    sequences: Count
    tokens: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    kernel: str
    forward_seconds: Seconds
    backward_seconds: Seconds

    @model_validator(mode="after")
    def _heads_share_keys(self) -> Attention:
        _divides("kv_heads", self.kv_heads, "heads", self.heads)
        return self


class Pointwise(_Entry):
    """A kernel that is bound by memory. `columns` is the width of what comes out.

    `rmsnorm`: rows x columns in, the same out. `rotary`: rows x columns are queries and keys together.
    `swiglu`: rows x 2 columns in, rows x columns out.
    """

    kernel: Literal["rmsnorm", "rotary", "swiglu"]
    fused: bool
    rows: Count
    columns: Count
    forward_seconds: Seconds
    backward_seconds: Seconds


class Loss(_Entry):
    """The output layer and the cross-entropy together: [rows, hidden] and [vocabulary, hidden] to a loss."""

    fused: bool
    rows: Count
    hidden: Count
    vocabulary: Count
    forward_seconds: Seconds
    backward_seconds: Seconds


class OptimizerStep(_Entry):
    """AdamW on float32 copies of `parameters` bfloat16 weights, clipping included, nothing sharded."""

    parameters: Parameters
    seconds: Seconds


class StepModel(_Entry):
    """The shape of the network that a step was measured with."""

    num_layers: Count
    hidden_size: Count
    num_attention_heads: Count
    num_kv_heads: Count
    head_dim: Count
    intermediate_size: Count
    seq_length: Count
    vocab_size: Count

    @model_validator(mode="after")
    def _heads_share_keys(self) -> StepModel:
        _divides("num_kv_heads", self.num_kv_heads, "num_attention_heads", self.num_attention_heads)
        return self


class Step(_Entry):
    """A whole training step on one GPU, optimizer included.

    With `tensor` over 1 the GPU stood for one of that many tensor parallel ranks of `model`, the whole
    network: it had a rank's shapes, and communicated with nobody, so that each norm had the whole sequence.
    `fused` as in `Pointwise`, for all of them.
    """

    model: StepModel
    tensor: Count = 1
    micro: Count
    accumulation: Count = 1
    recompute: Literal["none", "selective", "full"]
    fused: bool
    seconds: Seconds

    @model_validator(mode="after")
    def _ranks_share_the_model(self) -> Step:
        for key in ("num_attention_heads", "num_kv_heads", "intermediate_size"):
            _divides("tensor", self.tensor, key, getattr(self.model, key))
        return self


def _divides(key: str, size: int, of_key: str, of_size: int) -> None:
    if of_size % size:
        raise ValueError(f"{key}={size} does not divide {of_key}={of_size}")


KINDS = ("matrix_products", "attention", "pointwise", "losses", "optimizers", "steps")


class Calibration(_Entry):
    """The file; see the top of this module."""

    version: Literal[1]
    gpu: str
    origin: dict[str, str] = {}
    matrix_products: tuple[MatrixProduct, ...] = ()
    attention: tuple[Attention, ...] = ()
    pointwise: tuple[Pointwise, ...] = ()
    losses: tuple[Loss, ...] = ()
    optimizers: tuple[OptimizerStep, ...] = ()
    steps: tuple[Step, ...] = ()

    def joined(self, other: Calibration) -> Calibration:
        """The measurements of both; where both have a shape, this one's count."""
        lists = {kind: (*getattr(self, kind), *getattr(other, kind)) for kind in KINDS}
        return self.model_copy(update=lists)

    def measured(self) -> list[str]:
        """The kinds that it has measurements of."""
        return [kind for kind in KINDS if getattr(self, kind)]


def read_calibration(path: Path) -> Calibration:
    """The measurements in a file.

    Raises:
        UserError: it cannot be read, or is no such file; the message names the first wrong entry.
    """
    remedy = "write it with benchmarks/calibrate.py or benchmarks/train_gpu.py"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("is no JSON object, and a calibration is one, with version, gpu and lists")
        return Calibration.model_validate(content)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
        elif isinstance(error, RecursionError):
            what = "has lists or objects too deep in one another"
        else:
            what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"--calibration={path}: {what}; {remedy}") from error
