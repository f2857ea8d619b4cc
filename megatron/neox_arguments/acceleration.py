# SPDX-License-Identifier: Apache-2.0
"""How a GPU computes a layer beside plain bfloat16: TransformerEngine's layers, fp8, fusions, compilation."""

from __future__ import annotations

from typing import Any, Literal

from .fields import Concern, NonNegative, Positive, key


def _implementation(known: dict[str, Any]) -> str:
    needs_engine = known["fp8_format"] is not None or known["tp_comm_overlap"]
    return "transformer_engine" if needs_engine else "local"


class AccelerationConfig(Concern):
    """Accelerators of a layer on GPUs. All but gradient_accumulation_fusion are off unless asked for."""

    fp8_format: Literal["hybrid", "e4m3"] | None = key(
        None,
        "Compute the products of the layers in fp8: hybrid has e4m3 for weights and activations and e5m2 for"
        " gradients, e4m3 the same for all.",
        aliases=("te_fp8_format",),
        derived="none; products are in bfloat16",
    )
    fp8_recipe: Literal["tensorwise", "delayed", "blockwise", "mxfp8"] = key(
        "tensorwise",
        "Where fp8 takes its scales from: tensorwise from each tensor as it is, delayed from a history of"
        " earlier steps, blockwise from blocks of 128 (Hopper), mxfp8 from blocks of 32 (Blackwell).",
    )
    fp8_amax_history_len: Positive = key(
        1,
        "Steps whose largest magnitudes fp8_recipe delayed remembers.",
        aliases=("te_fp8_amax_history_len",),
    )
    fp8_amax_compute_algo: Literal["most_recent", "max"] = key(
        "most_recent",
        "Which of that history fp8_recipe delayed scales by.",
        aliases=("te_fp8_amax_compute_algo",),
    )
    fp8_margin: NonNegative = key(
        0, "Powers of two that fp8_recipe delayed leaves free above it.", aliases=("te_fp8_margin",)
    )
    fp8_wgrad: bool = key(
        True,
        "Compute gradients of weights in fp8 too; false is for fp8_recipe delayed only.",
        aliases=("te_fp8_wgrad",),
    )
    first_last_layers_bf16: bool = key(
        False, "Compute the first and last layers in bfloat16; not with fp8_recipe delayed."
    )
    num_layers_at_start_in_bf16: NonNegative = key(1, "First layers in bfloat16 with first_last_layers_bf16.")
    num_layers_at_end_in_bf16: NonNegative = key(1, "Last layers in bfloat16 with first_last_layers_bf16.")
    tp_comm_overlap: bool = key(
        False,
        "Run tensor parallel communication in pieces beside the products that need it, by TransformerEngine;"
        " needs sequence_parallel.",
    )
    transformer_impl: Literal["local", "transformer_engine"] = key(
        _implementation,
        "Whose linear layers are used: megatron-core's own, or TransformerEngine's. Weights and checkpoints"
        " are the same.",
        derived="transformer_engine with fp8_format or tp_comm_overlap, else local",
    )
    gradient_accumulation_fusion: bool | None = key(
        None,
        "Add each weight's gradient to the sum within the product that computes it.",
        derived="true on GPUs with Apex's extension for it, or with transformer_engine",
    )
    torch_compile: Literal["none", "layer"] = key(
        "none", "Compile each layer with torch.compile, or nothing."
    )
