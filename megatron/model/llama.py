# SPDX-License-Identifier: Apache-2.0
"""A Llama, or a relative of it, of megatron-core's parallel layers, as a run's configuration describes it.

The whole model is a few lines of specification (`_layer`): norms, attention, SwiGLU. How it is cut over
ranks is megatron-core's: queries, keys, values, gate and up by rows, their outputs by columns,
embedding and output layer by vocabulary.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from megatron.backend import Backend
from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.model.attention import AttentionChoice, CoreAttention, choose_attention
from megatron.model.cross_entropy import vocab_parallel_cross_entropy
from megatron.model.initialization import initialize_by_name, mark_cut_weights
from megatron.model.norms import NORMS, NormedRowParallelLinear, ProjectionNorm
from megatron.model.rotary import table_of
from megatron.neox_arguments.config import ModelConfig, RunConfig

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class BuiltModel:
    """This rank's part of the model, and what was decided while building it."""

    module: torch.nn.Module
    config: TransformerConfig
    attention: AttentionChoice
    vocab_size: int
    padded_vocab_size: int

    @property
    def parameters_on_rank(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())


def dtype_of(cfg: RunConfig) -> torch.dtype:
    """The dtype of weights and activations."""
    return _DTYPES[cfg.precision.dtype_name]


def transformer_config(cfg: RunConfig, device: torch.device) -> TransformerConfig:
    """Translates the run's configuration into megatron-core's."""
    model, parallel = cfg.model, cfg.parallel
    dtype = dtype_of(cfg)
    on_gpu = device.type != "cpu"  # a plan builds on the meta device what a GPU would hold
    recompute: dict[str, Any] = {}
    if parallel.recompute == "full":
        recompute = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": parallel.checkpoint_num_layers,
        }
    elif parallel.recompute == "selective":
        recompute = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
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
        gradient_accumulation_fusion=False,
        **recompute,
    )


class Llama(GPTModel):
    """megatron-core's GPT, in whose loss the rows that only pad the vocabulary have no probability."""

    def __init__(self, *args: Any, ids_that_exist: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ids_that_exist = ids_that_exist

    def compute_language_model_loss(self, labels_BS: torch.Tensor, logits_SBV: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each token, [B, S]; V is this rank's part of the padded vocabulary."""
        group = parallel_state.get_tensor_model_parallel_group()
        columns = logits_SBV.size(-1)
        first_id = group.rank() * columns
        loss_SB = vocab_parallel_cross_entropy(
            logits_SBV,
            labels_BS.transpose(0, 1),
            first_id=first_id,
            ids_here=min(max(0, self._ids_that_exist - first_id), columns),
            group=group,
        )
        return loss_SB.transpose(0, 1).contiguous()


def _qk_norm(model: ModelConfig, heads: int) -> type | ModuleSpec:
    """What normalises queries or keys, of which the model has `heads`."""
    norm = NORMS[model.norm]
    if model.qk_norm == "projection":
        return ModuleSpec(module=ProjectionNorm, params={"norm": norm, "heads": heads})
    return norm if model.qk_norm == "head" else IdentityOp


def _layer(cfg: RunConfig, attention: AttentionChoice) -> ModuleSpec:
    model = cfg.model
    norm: type = NORMS[model.norm]
    row_parallel: type | ModuleSpec = RowParallelLinear
    if model.norm_position == "after":
        row_parallel = ModuleSpec(module=NormedRowParallelLinear, params={"norm": norm})
        norm = IdentityOp
    attention_spec = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear,
            core_attention=functools.partial(CoreAttention, choice=attention),
            linear_proj=row_parallel,
            q_layernorm=_qk_norm(model, model.num_attention_heads),
            k_layernorm=_qk_norm(model, model.num_kv_heads),
        ),
    )
    mlp_spec = ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=row_parallel),
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=attention_spec,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=mlp_spec,
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
) -> BuiltModel:
    """Builds this rank's part of the model on its device.

    `vocab_size` is the number of ids that exist, `padded_vocab_size` the rows of the embedding.
    With `initialize` the weights are drawn by parameter name and then cut, so that every layout of a
    run starts as the same function; without, they are undefined until a checkpoint is loaded.
    """
    config = transformer_config(cfg, backend.device)
    attention = choose_attention(
        cfg.model.attention_backend, backend.device, config.params_dtype, cfg.model.head_dim
    )
    layers = [_layer(cfg, attention)] * get_num_layers_to_build(config)
    with torch.device(backend.device):
        llama = Llama(
            config,
            TransformerBlockSubmodules(layer_specs=layers, layer_norm=NORMS[cfg.model.norm]),
            ids_that_exist=vocab_size,
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
    if initialize:
        initialize_by_name(llama, cfg.model, backend, cfg.data.seed)
    module: torch.nn.Module = llama
    if config.bf16:
        module = Float16Module(config, llama)
    return BuiltModel(module, config, attention, vocab_size, padded_vocab_size)
