# SPDX-License-Identifier: Apache-2.0
"""What of a run's software changes its speed: which kernels are fused, and what runs beside what."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.neox_arguments.config import RunConfig


@dataclass(frozen=True)
class Software:
    """A kernel that is not fused is a chain of plain ones.

    `gradients_fused` adds a weight's gradient to the float32 buffer in the matrix product itself.
    `tensor_overlap` hides tensor parallel collectives behind the matrix product before or after them.
    `fp8` has the layers' products in 8 bits, not the output layer's, nor attention, nor those of the
    first `bf16_layers_at_start` and the last `bf16_layers_at_end` layers of the model.
    `stops_early` leaves out the last product of a layer that is computed again, whose result nobody keeps, as
    torch's own checkpoint does (`torch.utils.checkpoint.set_checkpoint_early_stop`) and megatron-core's not.
    `chunks` is the number of model chunks of each pipeline stage (1: not interleaved).
    `attention` is `flash`, `cudnn` or `flash3`; None is the one that a run on that GPU takes.
    """

    norm_fused: bool = True
    rotary_fused: bool = False
    swiglu_fused: bool = True
    loss_fused: bool = False
    gradients_fused: bool = False
    tensor_overlap: bool = False
    fp8: bool = False
    bf16_layers_at_start: int = 0
    bf16_layers_at_end: int = 0
    stops_early: bool = False
    chunks: int = 1
    attention: str | None = None

    def fp8_layers(self, first: int, count: int, of_all: int) -> tuple[int, int]:
        """Where products in 8 bits begin and end among `count` layers of `of_all`, from the `first` on.

        Numbers of layers, counted from `first`; megatron-core counts over the model too
        (`is_first_last_bf16_layer`, fp8_utils.py).
        """
        if not self.fp8:
            return 0, 0
        begin = min(count, max(0, self.bf16_layers_at_start - first))
        return begin, max(begin, min(count, of_all - self.bf16_layers_at_end - first))


# The kernel that a backend is, of those whose speed is published; others are the one that a run would take.
_ATTENTION = {"flash_attn": "flash", "torch_flash": "flash", "cudnn": "cudnn", "flash_attn_3": "flash3"}


def software_of(cfg: RunConfig) -> Software:
    """The software of this repository, as a run is configured, on a GPU.

    torch's RMSNorm is one kernel, SwiGLU is compiled by megatron-core; rotary embedding and the loss are made
    of several kernels, and gradients are added by one of their own, unless the configuration names others.
    What `fused_kernels: auto` will choose is not known before the run, and counted as plain.
    """
    model, acceleration = cfg.model, cfg.acceleration
    has_bf16_layers = acceleration.fp8_format is not None and acceleration.first_last_layers_bf16
    fused = model.fused_kernels not in ("auto", "plain") or acceleration.torch_compile == "layer"
    return Software(
        norm_fused=fused or model.norm == "rmsnorm",
        rotary_fused=fused,
        loss_fused=model.cross_entropy_fusion_impl == "linear",
        gradients_fused=bool(acceleration.gradient_accumulation_fusion)
        or acceleration.transformer_impl == "transformer_engine",
        tensor_overlap=acceleration.tp_comm_overlap,
        fp8=acceleration.fp8_format is not None,
        bf16_layers_at_start=acceleration.num_layers_at_start_in_bf16 if has_bf16_layers else 0,
        bf16_layers_at_end=acceleration.num_layers_at_end_in_bf16 if has_bf16_layers else 0,
        attention=_ATTENTION.get(model.attention_backend),
    )
