# SPDX-License-Identifier: Apache-2.0
"""How the work is spread over GPUs, what is computed again, and in which number formats."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from .fields import Concern, NonNegative, Positive, key


class ParallelConfig(Concern):
    """The layout of the model over ranks."""

    model_parallel_size: Positive = key(
        1, "Ranks that share each layer (tensor parallelism).", aliases=("tensor_model_parallel_size",)
    )
    pipe_parallel_size: NonNegative = key(
        0, "Ranks in a row that hold successive layers; 0 and 1 both mean no pipeline."
    )
    sequence_parallel: bool = key(
        lambda known: known["model_parallel_size"] > 1,
        "Split activations between layers over the sequence, beside tensor parallelism.",
        derived="true where model_parallel_size is over 1",
    )
    zero_stage: Literal[0, 1] = key(
        1, "1 shards the optimizer's state over data parallel ranks (ZeRO-1), 0 does not."
    )
    overlap_grad_reduce: bool = key(False, "Reduce gradients while the backward pass still runs.")
    overlap_param_gather: bool = key(False, "Gather updated parameters while the forward pass already runs.")
    reduce_bucket_size: Positive | None = key(
        None, "Parameters in one bucket of gradient reduction.", derived="megatron-core's choice"
    )
    recompute: Literal["none", "selective", "full"] = key(
        "none", "Activations computed again in the backward pass: none, those of attention, or whole layers."
    )
    checkpoint_num_layers: Positive = key(1, "Layers between two kept activations with recompute full.")
    distributed_backend: Literal["nccl", "gloo"] | None = key(
        None, "Communication library.", derived="nccl with GPUs, gloo without"
    )
    distributed_timeout_minutes: Positive = key(
        10, "Minutes that a rank waits for the others before the run is stopped."
    )

    @property
    def pipeline_size(self) -> int:
        """Pipeline stages, at least 1."""
        return max(1, self.pipe_parallel_size)

    @property
    def model_ranks(self) -> int:
        """Ranks that together hold one copy of the model."""
        return self.model_parallel_size * self.pipeline_size


def _short_name(value: object) -> object:
    return {"bfloat16": "bf16", "float32": "fp32"}.get(value, value) if isinstance(value, str) else value


class PrecisionConfig(Concern):
    """Number formats."""

    precision: Literal["bfloat16", "fp32"] = key(
        "bfloat16", "Format of weights and activations; the optimizer keeps fp32 copies."
    )
    grad_accum_dtype: Annotated[Literal["fp32", "bf16"], BeforeValidator(_short_name)] = key(
        "fp32",
        "Format in which gradients are accumulated.",
        aliases=("data_types.grad_accum_dtype",),
        also=("bfloat16", "float32"),
    )
    fp32_allreduce: bool = key(
        lambda known: known["grad_accum_dtype"] == "fp32",
        "Reduce gradients over ranks in fp32; they are reduced in the buffer they are accumulated in.",
        derived="true with grad_accum_dtype fp32",
    )

    @property
    def dtype_name(self) -> str:
        """torch's name of the format of weights and activations."""
        return {"bfloat16": "bfloat16", "fp32": "float32"}[self.precision]
