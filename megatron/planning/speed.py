# SPDX-License-Identifier: Apache-2.0
"""How long a step takes, by a simple model: kernels at a share of the peak, links at a share of their rating.

docs/planning.md has the model's sources, what it predicts for published runs, and what it leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron.neox_arguments.config import RunConfig
from megatron.planning.flops import flops_per_token
from megatron.planning.machine import Machine
from megatron.planning.memory import Choice, element_bytes, stage_parameters

# Large collectives reach about this share of a link's rating. An assumption.
_LINK_SHARE = 0.7

# Collectives that nothing hides, each of a micro-batch's hidden states, in a layer: two blocks, gathered
# before and scattered after (or reduced once, which moves as much); the same in the backward pass, whose
# third is hidden behind a matrix (Korthikanti et al. 2022, section 4.2.2).
_COLLECTIVES_FORWARD = 4
_COLLECTIVES_BACKWARD = 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they are spent on, as one rank sees them."""

    compute: float
    recompute: float
    tensor: float
    pipeline: float
    data: float

    @property
    def total(self) -> float:
        return self.compute + self.recompute + self.tensor + self.pipeline + self.data

    def shares(self) -> dict[str, float]:
        """What of a step goes where, the largest first."""
        parts = {
            "computing": self.compute,
            "computing again": self.recompute,
            "tensor parallel communication": self.tensor,
            "pipeline": self.pipeline,
            "gradients and weights between copies": self.data,
        }
        return {
            name: part / self.total
            for name, part in sorted(parts.items(), key=lambda row: -row[1])
            if part > 0.005 * self.total
        }


def step_time(
    cfg: RunConfig, choice: Choice, machine: Machine, padded_vocab: int, vocab: int, accumulation: int
) -> StepTime:
    """A step of `accumulation` micro-batches on every data parallel rank."""
    model, size = cfg.model, element_bytes(cfg)
    model_ranks = choice.tensor * choice.pipeline
    tokens = choice.micro * model.seq_length
    flops, causal_flops = flops_per_token(model, vocab)
    attention_flops = 2 * (flops - causal_flops)
    per_second = machine.gpu.bf16_tflops * 1e12 * machine.gpu.kernel_share
    if cfg.precision.dtype_name == "float32":
        per_second /= 16  # the tensor cores' bfloat16 over the FP32 units: 312 to 19.5 on an A100
    compute = flops * tokens / model_ranks / per_second
    again = {"full": flops / 3, "selective": attention_flops / 3, "none": 0.0}[choice.recompute]
    recompute = again * tokens / model_ranks / per_second

    in_node, between = (
        rating * 1e9 * _LINK_SHARE
        for rating in (machine.gpu.node_gb_per_second, machine.gpu.network_gb_per_second)
    )
    hidden_bytes = size * tokens * model.hidden_size
    forward = _COLLECTIVES_FORWARD * (2 if choice.recompute == "full" else 1)
    per_layer = (forward + _COLLECTIVES_BACKWARD) * hidden_bytes * (choice.tensor - 1) / choice.tensor
    is_inside = choice.tensor <= machine.gpus_per_node and machine.gpus_per_node % choice.tensor == 0
    tensor = per_layer * (model.num_layers // choice.pipeline) / (in_node if is_inside else between)

    micro = compute + recompute + tensor
    handed_on = 2 * hidden_bytes / choice.tensor / between if choice.pipeline > 1 else 0.0
    pipeline = (choice.pipeline - 1) * (micro + handed_on) + accumulation * handed_on

    data_ranks = machine.gpus // model_ranks
    link = in_node if data_ranks * choice.tensor <= machine.gpus_per_node else between
    count = stage_parameters(model, padded_vocab, choice.tensor, choice.pipeline, 0)
    moved = (data_ranks - 1) / data_ranks * count / link
    gradients = (4 if cfg.precision.grad_accum_dtype == "fp32" else 2) * moved
    weights = size * moved if cfg.parallel.zero_stage == 1 else gradients
    if cfg.parallel.overlap_grad_reduce:
        gradients = max(0.0, gradients - 2 / 3 * micro)
    if cfg.parallel.overlap_param_gather:
        weights = max(0.0, weights - 1 / 3 * micro)
    return StepTime(
        compute=compute * accumulation,
        recompute=recompute * accumulation,
        tensor=tensor * accumulation,
        pipeline=pipeline,
        data=gradients + weights,
    )


def utilisation(
    cfg: RunConfig, machine: Machine, vocab: int, tokens_per_step: int, step_seconds: float
) -> float:
    """MFU: the model's FLOPs over what the GPUs could do in that time."""
    flops, _ = flops_per_token(cfg.model, vocab)
    return flops * tokens_per_step / step_seconds / (machine.gpus * machine.gpu.bf16_tflops * 1e12)
