# SPDX-License-Identifier: Apache-2.0
"""A Llama, or a relative of it, of megatron-core's parallel layers, as a run's configuration describes it.

The whole model is a few lines of specification (`_layer`): norms, attention, SwiGLU. How it is cut over
ranks is megatron-core's: queries, keys, values, gate and up by rows, their outputs by columns,
embedding and output layer by vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from megatron.backend import Backend
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.model.attention import AttentionChoice, AttentionShape, CoreAttention, choose_attention
from megatron.model.compiled import compile_layers
from megatron.model.cross_entropy import vocab_parallel_cross_entropy
from megatron.model.fused_kernels import FusedKernels, LayerShape, choose_fused, rotary_formula
from megatron.model.fused_layers import AngleTables, RotaryAttention, SwigluModule
from megatron.model.initialization import initialize_by_name, mark_cut_weights
from megatron.model.linear import LinearLayers, choose_linear_layers
from megatron.model.norms import NORMS, ProjectionNorm
from megatron.model.output_loss import output_loss
from megatron.model.recompute import gated_mlp, mark_parts, whole_layers
from megatron.model.rotary import table_of
from megatron.neox_arguments.config import ModelConfig, RunConfig

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class BuiltModel:
    """This rank's part of the model, and what was decided while building it."""

    module: torch.nn.Module
    config: TransformerConfig
    attention: AttentionChoice
    fused: FusedKernels
    accelerators: tuple[str, ...]  # in words, for the log
    vocab_size: int
    padded_vocab_size: int

    @property
    def parameters_on_rank(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())


def dtype_of(cfg: RunConfig) -> torch.dtype:
    """The dtype of weights and activations."""
    return _DTYPES[cfg.precision.dtype_name]


def transformer_config(cfg: RunConfig, device: torch.device, linear: LinearLayers) -> TransformerConfig:
    """Translates the run's configuration into megatron-core's."""
    model, parallel = cfg.model, cfg.parallel
    dtype = dtype_of(cfg)
    on_gpu = device.type != "cpu"  # a plan builds on the meta device what a GPU would hold
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.intermediate_size,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_epsilon,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=model.use_qkv_bias,
        # Each rank sees its own heads: megatron-core then sums the gradients of the norms' one weight. A
        # weight for each head lies beside its head, and needs no sum.
        qk_layernorm=model.qk_norm == "head",
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        tensor_model_parallel_size=parallel.model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_size,
        sequence_parallel=parallel.sequence_parallel,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=not on_gpu,
        perform_initialization=False,
        # Fusions are just-in-time compiled for CUDA; on the CPU they are within noise and cost start-up.
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        **linear.config,
        **whole_layers(parallel),
    )


class Llama(GPTModel):
    """megatron-core's GPT, in whose loss the rows that only pad the vocabulary have no probability."""

    def __init__(
        self, *args: Any, ids_that_exist: int, loss_with_output_layer: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._ids_that_exist = ids_that_exist
        self._loss_with_output_layer = loss_with_output_layer

    def compute_language_model_loss(self, labels_BS: torch.Tensor, logits_SBV: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each token, [B, S]; V is this rank's part of the padded vocabulary."""
        labels_SB = labels_BS.transpose(0, 1)
        loss_SB = vocab_parallel_cross_entropy(logits_SBV, labels_SB, **self._ids_here(logits_SBV.size(-1)))
        return loss_SB.transpose(0, 1).contiguous()

    def _postprocess(
        self, hidden_states: torch.Tensor, labels: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """megatron-core's way from the last hidden states to the loss, around the logits where asked."""
        if labels is None or not self.post_process or not self._loss_with_output_layer:
            result: torch.Tensor = super()._postprocess(hidden_states=hidden_states, labels=labels, **kwargs)
            return result
        is_shared = self.share_embeddings_and_output_weights
        weight_VC = self.shared_embedding_or_output_weight() if is_shared else self.output_layer.weight
        loss_SB = output_loss(
            hidden_states,
            weight_VC,
            labels.transpose(0, 1),
            sequence_parallel=self.config.sequence_parallel,
            **self._ids_here(len(weight_VC)),
        )
        return loss_SB.transpose(0, 1).contiguous()

    def _ids_here(self, rows: int) -> dict[str, Any]:
        """Which ids this rank's rows are, and with whom it shares the vocabulary."""
        group = parallel_state.get_tensor_model_parallel_group()
        first_id = group.rank() * rows
        ids_here = min(max(0, self._ids_that_exist - first_id), rows)
        return {"first_id": first_id, "ids_here": ids_here, "group": group}


def layer_shape(cfg: RunConfig, backend: Backend) -> LayerShape:
    """What a layer computes on one rank in one micro-batch."""
    model, ranks = cfg.model, backend.tensor_parallel_size
    return LayerShape(
        tokens=model.seq_length,
        sequences=cfg.batch.batch_shape(backend.data_parallel_size).micro,
        norm_tokens=model.seq_length // (ranks if cfg.parallel.sequence_parallel else 1),
        hidden=model.hidden_size,
        kv_heads=model.num_kv_heads // ranks,
        queries=model.num_attention_heads // model.num_kv_heads,
        head_dim=model.head_dim,
        ffn=model.intermediate_size // ranks,
        eps=model.rms_norm_epsilon,
    )


def _choose_kernels(
    cfg: RunConfig,
    backend: Backend,
    config: TransformerConfig,
    is_trained: bool,
    log: Callable[[str], None],
) -> tuple[AttentionChoice, FusedKernels]:
    """Before the model takes its memory. `config` is told where SwiGLU comes from."""
    shape, device, dtype = layer_shape(cfg, backend), backend.device, config.params_dtype
    heads = AttentionShape(
        shape.tokens, shape.sequences, shape.kv_heads * shape.queries, shape.kv_heads, shape.head_dim,
        cfg.model.attention_dropout,
    )  # fmt: skip
    attention = choose_attention(
        cfg.model.attention_backend, device, dtype, heads, is_trained=is_trained, log=log
    )
    fused = choose_fused(cfg.model, shape, device, dtype, is_trained=is_trained, log=log)
    if fused.swiglu.name != "plain":
        # megatron-core's name for an activation that the layer specification brings.
        config.use_te_activation_func, config.bias_activation_fusion = True, False
    return attention, fused


def _qk_norm(model: ModelConfig, heads: int, fused: FusedKernels) -> type | ModuleSpec:
    """What normalises queries or keys, of which the model has `heads`."""
    norm = NORMS[model.norm]
    if model.qk_norm == "projection":
        return ModuleSpec(module=ProjectionNorm, params={"norm": norm, "heads": heads})
    return _norm(model, fused) if model.qk_norm == "head" else IdentityOp


def _norm(model: ModelConfig, fused: FusedKernels) -> ModuleSpec:
    return ModuleSpec(module=NORMS[model.norm], params={"kernel": fused.norm.kernel})


def _layer(
    cfg: RunConfig, attention: AttentionChoice, fused: FusedKernels, linear: LinearLayers
) -> ModuleSpec:
    model = cfg.model
    norm: type | ModuleSpec = _norm(model, fused)
    row_parallel: type | ModuleSpec = linear.row
    if model.norm_position == "after":
        made = functools.partial(NORMS[model.norm], kernel=fused.norm.kernel)
        row_parallel = ModuleSpec(module=linear.normed_row, params={"norm": made})
        norm = IdentityOp
    attention_module, rotary = SelfAttention, {}
    if fused.rotary.kernel is not rotary_formula:
        attention_module = RotaryAttention
        rotary = {"rotary": fused.rotary.kernel, "tables": AngleTables()}
    attention_spec = ModuleSpec(
        module=attention_module,
        params={"attn_mask_type": AttnMaskType.causal, **rotary},
        submodules=SelfAttentionSubmodules(
            linear_qkv=linear.column,
            core_attention=functools.partial(CoreAttention, choice=attention),
            linear_proj=row_parallel,
            q_layernorm=_qk_norm(model, model.num_attention_heads, fused),
            k_layernorm=_qk_norm(model, model.num_kv_heads, fused),
        ),
    )
    mlp = gated_mlp(
        MLPSubmodules(
            linear_fc1=linear.column,
            activation_func=ModuleSpec(module=SwigluModule, params={"swiglu": fused.swiglu.kernel}),
            linear_fc2=row_parallel,
        )
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=attention_spec,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def build(
    cfg: RunConfig,
    backend: Backend,
    vocab_size: int,
    padded_vocab_size: int,
    *,
    initialize: bool = True,
    is_trained: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> BuiltModel:
    """Builds this rank's part of the model on its device.

    `vocab_size` is the number of ids that exist, `padded_vocab_size` the rows of the embedding.
    With `initialize` the weights are drawn by parameter name and then cut, so that every layout of a
    run starts as the same function; without, they are undefined until a checkpoint is loaded. A model that
    is not trained is read by `model/reading.py`, so that no kernels are measured for it. `log` hears of
    damaged or refused files of measured times.
    """
    linear = choose_linear_layers(cfg, backend.device)
    if linear.starts is not None:
        linear.starts(backend.data_parallel_size)
    config = transformer_config(cfg, backend.device, linear)
    attention, fused = _choose_kernels(cfg, backend, config, is_trained, log)
    layers = [_layer(cfg, attention, fused, linear)] * get_num_layers_to_build(config)
    with torch.device(backend.device):
        llama = Llama(
            config,
            TransformerBlockSubmodules(layer_specs=layers, layer_norm=_norm(cfg.model, fused)),
            ids_that_exist=vocab_size,
            loss_with_output_layer=cfg.model.cross_entropy_fusion_impl == "linear",
            vocab_size=padded_vocab_size,
            max_sequence_length=cfg.model.seq_length,
            pre_process=backend.pipeline_parallel_rank == 0,
            post_process=backend.is_last_stage,
            share_embeddings_and_output_weights=not cfg.model.no_weight_tying,
            position_embedding_type="rope",
            rotary_base=int(cfg.model.rotary_emb_base),
        )
    # megatron-core's table has no linear scaling and one fixed form of Llama 3's: ours replaces it.
    llama.rotary_pos_emb.inv_freq = table_of(cfg.model).to(backend.device)
    llama.to(backend.device)
    mark_cut_weights(llama)
    mark_parts(llama.decoder.layers, cfg.parallel)
    if initialize:
        initialize_by_name(llama, cfg.model, backend, cfg.data.seed)
    compiled = compile_layers(llama.decoder.layers, cfg.acceleration.torch_compile, backend.device)
    module: torch.nn.Module = llama
    if config.bf16:
        module = Float16Module(config, llama)
    accelerators = (*linear.words, *compiled)
    return BuiltModel(module, config, attention, fused, accelerators, vocab_size, padded_vocab_size)
