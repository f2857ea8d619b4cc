# SPDX-License-Identifier: Apache-2.0
"""How the work is spread over GPUs, what is computed again, and in which number formats."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .fields import Concern, NonNegative, Positive, key

# megatron-core's names; mlp_act, the product of the gate and what it gates, is ours.
RecomputedModule = Literal["core_attn", "layernorm", "mlp_act", "mlp"]


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
    overlap_grad_reduce: bool | None = key(
        None,
        "Reduce gradients while the backward pass still runs.",
        derived="true on GPUs with several data parallel ranks",
    )
    overlap_param_gather: bool | None = key(
        None,
        "Gather updated parameters while the forward pass already runs.",
        derived="that of overlap_grad_reduce with zero_stage 1, else false",
    )
    reduce_bucket_size: Positive | None = key(
        None,
        "Parameters in one bucket of gradient reduction; what overlaps is all buckets but the last.",
        derived="40 million, or 1 million for each data parallel rank where that is more",
    )
    recompute: Literal["none", "selective", "full", "auto"] = key(
        "none",
        "Activations computed again in the backward pass: none, those of recompute_modules (selective), of "
        "whole layers (full), or auto: the cheapest in time that fits on the GPUs the run gets.",
    )
    recompute_modules: Annotated[tuple[RecomputedModule, ...], Field(strict=False)] = key(
        lambda known: ("core_attn",) if known["recompute"] == "selective" else (),
        "Parts of a layer that recompute selective computes again: core_attn, layernorm, mlp_act, mlp; with "
        "recompute_method block those of the layers that are not computed again as a whole.",
        derived="core_attn with recompute selective, else none",
    )
    recompute_method: Literal["uniform", "block"] = key(
        "uniform",
        "With recompute full: uniform computes every layer again, block the first recompute_num_layers of "
        "each pipeline stage.",
    )
    recompute_num_layers: Positive | None = key(
        None, "Layers of each pipeline stage that recompute_method block computes again."
    )
    checkpoint_num_layers: Positive = key(
        1, "Layers between two kept activations with recompute full, recompute_method uniform."
    )
    distributed_backend: Literal["nccl", "gloo"] | None = key(
        None, "Communication library.", derived="nccl with GPUs, gloo without"
    )
    distributed_timeout_minutes: Positive = key(
        10, "Minutes that a rank waits for the others before the run is stopped."
    )

    def overlaps(self, *, on_gpu: bool, data_ranks: int) -> tuple[bool, bool]:
        """Whether gradients are reduced, and parameters gathered, while there is computing to be done.

        `data_ranks` are the ranks that hold the same weights.
        """
        reduces, gathers = self.overlap_grad_reduce, self.overlap_param_gather
        if reduces is None:
            reduces = bool(gathers) or (on_gpu and data_ranks > 1)
        if gathers is None:
            gathers = reduces and self.zero_stage == 1
        return reduces, gathers

    @property
    def pipeline_size(self) -> int:
        """Pipeline stages, at least 1."""
        return max(1, self.pipe_parallel_size)

    @property
    def recomputed_layers(self) -> int | None:
        """Layers of a pipeline stage that are computed again as a whole; None means all of them."""
        if self.recompute != "full":
            return 0
        return self.recompute_num_layers if self.recompute_method == "block" else None

    @property
    def model_ranks(self) -> int:
        """Ranks that together hold one copy of the model."""
        return self.model_parallel_size * self.pipeline_size


def _short_name(value: object) -> object:
    return {"bfloat16": "bf16", "float32": "fp32"}.get(value, value) if isinstance(value, str) else value


# fp32 or bf16, also by torch's names.
StateFormat = Annotated[Literal["fp32", "bf16"], BeforeValidator(_short_name)]
FORMATS_ALSO = ("bfloat16", "float32")


class PrecisionConfig(Concern):
    """Number formats."""

    precision: Literal["bfloat16", "fp32"] = key(
        "bfloat16", "Format of weights and activations; the optimizer keeps fp32 copies."
    )
    grad_accum_dtype: StateFormat = key(
        "fp32",
        "Format in which gradients are accumulated.",
        aliases=("data_types.grad_accum_dtype", "main_grads_dtype"),
        also=FORMATS_ALSO,
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
