# SPDX-License-Identifier: Apache-2.0
"""What `recompute: auto` becomes: of the ways to compute activations again that fit, the cheapest in time.

Everything here is arithmetic on the configuration and the memory of a GPU, so that every rank that is told
the same memory decides alike. docs/memory.md has the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron.launcher.devices import gpu_here
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.model import pad_vocab
from megatron.planning.flops import layer_parameters
from megatron.planning.gpus import GIB, find_gpu
from megatron.planning.machine import RESERVED_BYTES, USED_SHARE
from megatron.planning.memory import Choice, Memory, choice_of, element_bytes, fullest_stage

# What a GPU's kernels compute in the time in which its memory moves a byte: 55% of 989 TFLOP/s over 3.35 TB/s
# (H100) is 162, over 4.8 TB/s (H200) 113, and 72% of 312 over 2.04 (A100 80GB) 110. NVIDIA's data sheets.
_FLOPS_A_BYTE = 150
# Parts that may be computed again in all layers that are not computed again as a whole.
_PARTS: tuple[tuple[str, ...], ...] = (
    (),
    ("layernorm",),
    ("mlp_act",),
    ("layernorm", "mlp_act"),
    ("layernorm", "mlp"),
)


def flops_again(cfg: RunConfig, choice: Choice) -> float:
    """FLOPs a token, over all layers, that the backward pass spends on what was not kept.

    Parts that only move memory count by the time that takes.
    """
    model, modules = cfg.model, choice.recompute_modules
    stage_layers = model.num_layers // choice.pipeline
    whole = choice.whole_layers(stage_layers)
    attention = 4.0 * model.seq_length * model.num_attention_heads * model.head_dim
    mlp = 6.0 * model.hidden_size * model.intermediate_size
    # Read and written by the kernel, and once more by the copy to where the layer looks for it.
    size = element_bytes(cfg)
    norms = 2 * 4 * size * model.hidden_size * _FLOPS_A_BYTE
    activation = 5 * size * model.intermediate_size * _FLOPS_A_BYTE
    of_parts = {"core_attn": attention, "layernorm": norms, "mlp_act": activation, "mlp": mlp + activation}
    a_layer = 2.0 * layer_parameters(model, 1) + attention + norms + activation
    parts = sum(of_parts[name] for name in modules)
    return (whole * a_layer + (stage_layers - whole) * parts) * choice.pipeline


def cheapest(
    cfg: RunConfig, choice: Choice, padded_vocab: int, ranks: int, accumulation: int, most_bytes: int
) -> Choice:
    """`choice` with the cheapest recomputation that needs at most `most_bytes`, or with all there is.

    `most_bytes` is without what is reserved.
    """
    layers = cfg.model.num_layers // choice.pipeline

    def fits(one: Choice) -> bool:
        _, memory = fullest_stage(cfg, one, padded_vocab, ranks, accumulation)
        return memory.total <= most_bytes

    found = []
    for modules in _parts(cfg):
        fewest, enough = 0, layers
        while fewest < enough:
            middle = (fewest + enough) // 2
            if fits(_recomputing(choice, modules, middle, layers)):
                enough = middle
            else:
                fewest = middle + 1
        found.append(_recomputing(choice, modules, enough, layers))
    fitting = [one for one in found if fits(one)]
    return min(fitting or [_recomputing(choice, (), layers, layers)], key=lambda one: flops_again(cfg, one))


def _parts(cfg: RunConfig) -> Iterator[tuple[str, ...]]:
    for modules in _PARTS:
        if "layernorm" not in modules or cfg.model.norm_position == "before":
            yield modules


def _recomputing(choice: Choice, modules: tuple[str, ...], whole: int, layers: int) -> Choice:
    """`choice` with `whole` layers of a stage computed again, and `modules` of the others."""
    changed = replace(choice, checkpoint_num_layers=1, recompute_modules=modules, recompute_num_layers=None)
    if whole == layers:
        return replace(changed, recompute="full", recompute_modules=())
    if whole:
        return replace(changed, recompute="full", recompute_num_layers=whole)
    return replace(changed, recompute="selective" if modules else "none")


def recompute_settings(choice: Choice) -> dict[str, object]:
    """The keys of a run that computes again what `choice` says."""
    return {
        "recompute": choice.recompute,
        "recompute_modules": choice.recompute_modules,
        "recompute_method": "uniform" if choice.recompute_num_layers is None else "block",
        "recompute_num_layers": choice.recompute_num_layers,
        "checkpoint_num_layers": choice.checkpoint_num_layers,
    }


@dataclass(frozen=True)
class Settled:
    """What `recompute: auto` became, and the bytes a GPU needs with it, without any and with all of it."""

    choice: Choice
    memory: Memory
    nothing_again: Memory
    everything_again: Memory
    most_bytes: int
    share_of_forward: float

    def in_words(self) -> str:
        """One line for the log."""
        return (
            f"recompute auto: {described(self.choice)}; a GPU needs {_gib(self.memory.total)} of the "
            f"{_gib(self.most_bytes)} that may be used (nothing again {_gib(self.nothing_again.total)}, "
            f"whole layers {_gib(self.everything_again.total)}), and {self.share_of_forward:.0%} of a "
            "forward pass is computed again"
        )


def described(choice: Choice) -> str:
    """`none`, `selective (layernorm)`, `full in the first 5 layers of each stage, mlp_act in the others`."""
    parts = ", ".join(choice.recompute_modules)
    if choice.recompute == "full" and choice.recompute_num_layers is not None:
        others = f", {parts} in the others" if parts else ""
        return f"full in the first {choice.recompute_num_layers} layers of each stage{others}"
    return f"{choice.recompute} ({parts})" if parts else choice.recompute


def settle(cfg: RunConfig, ranks: int, vocab: int, most_bytes: int) -> tuple[RunConfig, Settled]:
    """`cfg` with what `recompute: auto` becomes where a run may use `most_bytes` of a GPU, and why."""
    parallel = cfg.parallel
    assert parallel.recompute == "auto"
    padded = pad_vocab(vocab, cfg.model.make_vocab_size_divisible_by, parallel.model_parallel_size)
    accumulation = cfg.batch.batch_shape(ranks // parallel.model_ranks).accumulation
    run = choice_of(cfg, ranks)
    layers = cfg.model.num_layers // run.pipeline
    choice = cheapest(cfg, run, padded, ranks, accumulation, most_bytes - RESERVED_BYTES)

    def needs(one: Choice) -> Memory:
        _, memory = fullest_stage(cfg, one, padded, ranks, accumulation)
        return replace(memory, reserved=RESERVED_BYTES)

    whole = _recomputing(run, (), layers, layers)
    settled = Settled(
        choice,
        needs(choice),
        needs(_recomputing(run, (), 0, layers)),
        needs(whole),
        most_bytes,
        flops_again(cfg, choice) / flops_again(cfg, whole),
    )
    return with_recompute(cfg, choice), settled


def settled_here(cfg: RunConfig, ranks: int, *, on_gpu: bool | None) -> str:
    """For a dry run: what auto becomes on the GPUs of this machine, or how to find out."""
    if on_gpu is False:
        return "auto becomes none on CPUs; for GPUs that are not here see --plan --gpu NAME"
    found = gpu_here()
    if found is None or cfg.model.vocab_size is None:
        missing = "the memory of the GPUs" if found is None else "vocab_size"
        return f"auto is settled when the run starts: {missing} is not known here; see --plan --gpu NAME"
    name, memory_bytes = found
    gpu = find_gpu(name)
    known_bytes = memory_bytes if gpu is None else int(gpu.usable_gib * GIB)
    _, settled = settle(cfg, ranks, cfg.model.vocab_size, int(USED_SHARE * known_bytes))
    return f"on {name}: {settled.in_words()}"


def with_recompute(cfg: RunConfig, choice: Choice) -> RunConfig:
    """`cfg` with the recomputation of `choice`."""
    parallel = cfg.parallel.model_copy(update=recompute_settings(choice))
    return cfg.model_copy(update={"parallel": parallel})


def without_recompute(cfg: RunConfig) -> RunConfig:
    """What auto is on a CPU, whose memory nobody plans."""
    return cfg.model_copy(update={"parallel": cfg.parallel.model_copy(update={"recompute": "none"})})


def _gib(amount: float) -> str:
    return f"{amount / GIB:,.2f} GiB"
