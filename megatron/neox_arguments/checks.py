# SPDX-License-Identifier: Apache-2.0
"""What must hold between keys: divisibility, agreement, and combinations that are not built.

A check names the keys it reads, and is left out while one of them is wrong by itself, so that a single
mistake is reported once.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator
from typing import Any

from . import acceleration_checks  # noqa: F401  (its rules are in CHECKS once it is imported)
from .config import CheckpointConfig, DataConfig, RunConfig
from .errors import ConfigError, Problem, shown
from .model import FAMILIES
from .rules import CHECKS, Facts
from .rules import rule as _check
from .urls import holds_password, is_url, without_password


def run_checks(
    cfg: RunConfig, facts: Facts | None = None, wrong: Collection[str] = (), *, layout_only: bool = False
) -> list[Problem]:
    """Every broken rule whose keys are not in `wrong`. `facts` is what was said beside the fields."""
    return [
        problem
        for check in CHECKS
        if (check.layout or not layout_only) and check.keys.isdisjoint(wrong)
        for problem in check.run(cfg, facts or {})
    ]


def check_world(cfg: RunConfig, world_size: int) -> list[Problem]:
    """What keeps `cfg` from running on `world_size` ranks: the model's cut, and the batch."""
    tensor, pipeline = cfg.parallel.model_parallel_size, cfg.parallel.pipeline_size
    problems = run_checks(cfg, layout_only=True)
    if world_size < 1 or world_size % cfg.parallel.model_ranks:
        constraint = (
            f"times pipe_parallel_size={pipeline} is {cfg.parallel.model_ranks},"
            f" which does not divide {world_size} {'rank' if world_size == 1 else 'ranks'}"
        )
        remedy = f"start a multiple of {cfg.parallel.model_ranks} ranks, or cut the model less"
        return [*problems, Problem("model_parallel_size", tensor, constraint, remedy)]
    absent = [rank for rank in cfg.logging.profile_ranks if cfg.logging.profile and rank >= world_size]
    if absent:
        constraint = f"is not one of {world_size} {'rank' if world_size == 1 else 'ranks'}"
        problems.append(Problem("profile_ranks", absent[0], constraint, f"use 0 to {world_size - 1}"))
    try:
        cfg.batch.batch_shape(world_size // cfg.parallel.model_ranks)
    except ConfigError as error:
        problems += error.problems
    return problems


def divisors(number: int) -> str:
    """The divisors of `number` in words, the largest few where there are many."""
    found = [n for n in range(1, min(number, 4096) + 1) if number % n == 0]
    shown = [str(n) for n in found[-6:]] if len(found) > 8 else [str(n) for n in found]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def _not_divisible(key: str, value: int, by_key: str, by: int, fix: str | None = None) -> Problem:
    remedy = fix or f"use {by_key} {divisors(value)}"
    return Problem(key, value, f"is not divisible by {by_key}={by}", remedy)


# --- the network ---


@_check("hidden_size", "num_attention_heads", "head_dim")
def _heads_fill_hidden(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    model = cfg.model
    filled = model.head_dim == model.hidden_size // model.num_attention_heads
    if filled and model.hidden_size % model.num_attention_heads:
        fix = f"use num_attention_heads {divisors(model.hidden_size)}, or set head_dim"
        yield _not_divisible(
            "hidden_size", model.hidden_size, "num_attention_heads", model.num_attention_heads, fix
        )
    elif model.head_dim % 2:
        yield Problem(
            "head_dim", model.head_dim, "is odd, and rotary embeddings turn pairs", "use an even number"
        )


@_check("num_attention_heads", "num_kv_heads", "attention_type")
def _heads_share_keys(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    heads, kv_heads, kind = cfg.model.num_attention_heads, cfg.model.num_kv_heads, cfg.model.attention_type
    if heads % kv_heads:
        fix = f"use num_kv_heads {divisors(heads)}"
        yield _not_divisible("num_attention_heads", heads, "num_kv_heads", kv_heads, fix)
    wanted = {
        "multihead": (kv_heads == heads, f"num_kv_heads={heads}"),
        "multiquery": (kv_heads == 1, "num_kv_heads=1"),
        "groupedquery": (kv_heads < heads or heads == 1, "num_kv_heads under num_attention_heads"),
    }
    holds, means = wanted.get(kind or "", (True, ""))
    if not holds:
        constraint = f"means {means}, and num_kv_heads={kv_heads}"
        yield Problem("attention_type", kind, constraint, "leave attention_type out, or change num_kv_heads")


@_check("use_qkv_bias", "qk_norm", "norm_position")
def _some_family(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    if cfg.model.families:
        return
    keys = {"use_qkv_bias": False, "qk_norm": "none", "norm_position": "before"}
    differing = next(key for key, value in keys.items() if getattr(cfg.model, key) != value)
    others = " and ".join(f"{key}={shown(getattr(cfg.model, key))}" for key in keys if key != differing)
    constraint = f"with {others} is a network of no family, so that no program could load its export"
    known = "; or ".join(
        ", ".join(f"{key}: {shown(value)}" for key, value in features.items()) + f" ({family})"
        for family, features in FAMILIES.items()
        if features
    )
    yield Problem(
        differing, getattr(cfg.model, differing), constraint, f"leave all three out, or have {known}"
    )


@_check("seq_length", "max_position_embeddings")
def _positions(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    model = cfg.model
    if model.seq_length > model.max_position_embeddings:
        constraint = f"is more than max_position_embeddings={model.max_position_embeddings}"
        yield Problem(
            "seq_length", model.seq_length, constraint, f"set max_position_embeddings to {model.seq_length}"
        )


@_check("rotary_scaling")
def _scaling(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    scaling = cfg.model.rotary_scaling
    if scaling is None:
        return
    llama3 = {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    extra = sorted(llama3 & scaling.model_fields_set)
    if scaling.type == "linear" and extra:
        key = f"rotary_scaling.{extra[0]}"
        value = getattr(scaling, extra[0])
        yield Problem(key, value, "has no meaning with type linear", "remove it, or use type llama3")
    if scaling.type == "llama3" and scaling.low_freq_factor >= scaling.high_freq_factor:
        constraint = f"is not under high_freq_factor={scaling.high_freq_factor:g}"
        yield Problem(
            "rotary_scaling.low_freq_factor", scaling.low_freq_factor, constraint, "Llama 3.1 has 1 and 4"
        )


@_check("num_layers")
def _attention_layers(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    layers = facts.get("attention_layers")
    if layers is not None and layers != cfg.model.num_layers:
        constraint = f"names {layers} layers, and num_layers={cfg.model.num_layers}"
        remedy = f'write [[["flash"], {cfg.model.num_layers}]]'
        yield Problem("attention_config", None, constraint, remedy)


# --- its cut over ranks ---


@_check(
    "model_parallel_size", "num_attention_heads", "num_kv_heads", "attention_type", "intermediate_size",
    "hidden_size", layout=True,
)  # fmt: skip
def _tensor_parallel(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    size = cfg.parallel.model_parallel_size
    cut = {
        "num_attention_heads": cfg.model.num_attention_heads,
        "num_kv_heads": cfg.model.num_kv_heads,
        "intermediate_size": cfg.model.intermediate_size,
    }
    for key, value in cut.items():
        repeated = key == "num_kv_heads" and value == cfg.model.num_attention_heads
        if value % size and not repeated:
            yield _not_divisible(key, value, "model_parallel_size", size)


@_check("model_parallel_size", "sequence_parallel", "seq_length", layout=True)
def _sequence_parallel(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    size, tokens = cfg.parallel.model_parallel_size, cfg.model.seq_length
    if not cfg.parallel.sequence_parallel:
        return
    if size == 1:
        constraint = "splits the sequence over tensor parallel ranks, and model_parallel_size=1"
        yield Problem("sequence_parallel", True, constraint, "leave it out: it follows model_parallel_size")
    elif tokens % size:
        fix = f"use a multiple of {size}, or sequence_parallel: false"
        yield _not_divisible("seq_length", tokens, "model_parallel_size", size, fix)


@_check("pipe_parallel_size", "num_layers", layout=True)
def _pipeline(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    layers, size = cfg.model.num_layers, cfg.parallel.pipeline_size
    if layers % size:
        yield _not_divisible("num_layers", layers, "pipe_parallel_size", size)


@_check(
    "recompute", "recompute_method", "checkpoint_num_layers", "num_layers", "pipe_parallel_size", layout=True
)
def _recompute(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    parallel = cfg.parallel
    every, stage_layers = parallel.checkpoint_num_layers, cfg.model.num_layers // parallel.pipeline_size
    if every == 1:
        return
    if parallel.recompute != "full":
        constraint = f"has no meaning with recompute: {parallel.recompute}"
        yield Problem("checkpoint_num_layers", every, constraint, "remove it, or use recompute: full")
    elif parallel.recompute_method == "block":
        constraint = "groups layers, and recompute_method: block keeps what goes into each"
        yield Problem(
            "checkpoint_num_layers", every, constraint, "remove it, or use recompute_method: uniform"
        )
    elif every > max(1, stage_layers):
        constraint = f"is more than the {stage_layers} layers of a pipeline stage"
        yield Problem("checkpoint_num_layers", every, constraint, f"use at most {stage_layers}")


@_check(
    "recompute", "recompute_method", "recompute_num_layers", "num_layers", "pipe_parallel_size", layout=True
)
def _recomputed_block(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    parallel = cfg.parallel
    count, stage_layers = parallel.recompute_num_layers, cfg.model.num_layers // parallel.pipeline_size
    if parallel.recompute_method == "block" and parallel.recompute != "full":
        constraint = f"has no meaning with recompute: {parallel.recompute}"
        yield Problem("recompute_method", "block", constraint, "remove it, or use recompute: full")
    elif parallel.recompute_method == "block" and count is None:
        constraint = "needs recompute_num_layers"
        yield Problem("recompute_method", "block", constraint, f"set it, to {stage_layers} at most")
    elif parallel.recompute_method == "uniform" and count is not None:
        constraint = "has no meaning without recompute_method: block"
        remedy = "remove it, or set recompute_method; checkpoint_num_layers is for uniform"
        yield Problem("recompute_num_layers", count, constraint, remedy)
    elif count is not None and count > max(1, stage_layers):
        constraint = f"is more than the {stage_layers} layers of a pipeline stage"
        yield Problem("recompute_num_layers", count, constraint, f"use at most {stage_layers}")


@_check("recompute", "recompute_method", "recompute_modules", "norm_position")
def _recomputed_modules(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    parallel, modules = cfg.parallel, cfg.parallel.recompute_modules
    has_parts = parallel.recompute == "selective" or parallel.recompute_method == "block"
    if modules and not has_parts:
        constraint = f"has no meaning with recompute: {parallel.recompute}"
        remedy = "remove it, or use recompute: selective"
        yield Problem("recompute_modules", list(modules), constraint, remedy)
    elif parallel.recompute == "selective" and not modules:
        constraint = "is empty, and recompute: selective computes them again"
        yield Problem("recompute_modules", [], constraint, "name some, or use recompute: none")
    elif len(set(modules)) < len(modules):
        yield Problem("recompute_modules", list(modules), "names one twice", "name each once")
    elif {"mlp", "mlp_act"} <= set(modules):
        yield Problem("recompute_modules", list(modules), "has mlp_act, which is a part of mlp", "keep mlp")
    elif "layernorm" in modules and cfg.model.norm_position == "after":
        constraint = "has layernorm, the norms before attention and MLP, and norm_position is after"
        yield Problem("recompute_modules", list(modules), constraint, "leave layernorm out")


@_check("zero_stage", "overlap_param_gather", "overlap_grad_reduce")
def _overlap(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    parallel = cfg.parallel
    if parallel.overlap_param_gather and parallel.zero_stage == 0:
        constraint = "gathers what ZeRO-1 sharded, and zero_stage=0"
        yield Problem("overlap_param_gather", True, constraint, "set it to false, or use zero_stage: 1")
    elif parallel.overlap_param_gather and parallel.overlap_grad_reduce is False:
        constraint = "needs overlap_grad_reduce: true"
        yield Problem("overlap_param_gather", True, constraint, "set both, or neither")


@_check("cpu_ranks", "distributed_backend")
def _cpu_backend(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    if cfg.launch.cpu_ranks is not None and cfg.parallel.distributed_backend == "nccl":
        constraint = f"needs GPUs, and cpu_ranks={cfg.launch.cpu_ranks}"
        yield Problem("distributed_backend", "nccl", constraint, "use distributed_backend: gloo")


# --- precision ---


@_check("precision", "grad_accum_dtype", "fp32_allreduce")
def _gradients(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    precision = cfg.precision
    if precision.precision == "fp32" and precision.grad_accum_dtype != "fp32":
        constraint = "contradicts precision=fp32"
        yield Problem("grad_accum_dtype", precision.grad_accum_dtype, constraint, "use fp32")
    elif precision.fp32_allreduce != (precision.grad_accum_dtype == "fp32"):
        constraint = (
            f"contradicts grad_accum_dtype={precision.grad_accum_dtype}:"
            " gradients are reduced in the buffer they are accumulated in"
        )
        yield Problem(
            "fp32_allreduce", precision.fp32_allreduce, constraint, "leave fp32_allreduce out: it follows"
        )


@_check("exp_avg_dtype", "exp_avg_sq_dtype", "store_param_remainders", "zero_stage", "precision")
def _optimizer_states(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    optimizer = cfg.optimizer
    plain = {"exp_avg_dtype": "fp32", "exp_avg_sq_dtype": "fp32", "store_param_remainders": False}
    for key, value in plain.items():
        if getattr(optimizer, key) != value and cfg.parallel.zero_stage == 0:
            constraint = "needs the optimizer of zero_stage 1, and zero_stage=0"
            remedy = "use zero_stage: 1, which on one rank shards nothing"
            yield Problem(key, getattr(optimizer, key), constraint, remedy)
            return
    if optimizer.store_param_remainders and cfg.precision.precision == "fp32":
        constraint = "keeps what bfloat16 weights lack, and precision=fp32"
        yield Problem("store_param_remainders", True, constraint, "remove it: fp32 weights have no copy")


# --- batch and schedule ---


@_check("train_micro_batch_size_per_gpu", "train_batch_size")
def _some_batch(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    if cfg.batch.train_micro_batch_size_per_gpu is None and cfg.batch.train_batch_size is None:
        try:
            cfg.batch.batch_shape(1)
        except ConfigError as error:
            yield from error.problems


@_check("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")
def _batch_divides(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    micro, accumulation = cfg.batch.train_micro_batch_size_per_gpu, cfg.batch.gradient_accumulation_steps
    total, step = cfg.batch.train_batch_size, (micro or 1) * (accumulation or 1)
    if total is not None and total % step:
        by = f"train_micro_batch_size_per_gpu={micro} x gradient_accumulation_steps={accumulation}"
        by = by if micro and accumulation else by.split(" x ")[0 if micro else 1]
        remedy = f"use a multiple of {step}, or leave one of the keys out"
        yield Problem("train_batch_size", total, f"is not divisible by {by}", remedy)


@_check("train_iters", "lr_decay_iters", "warmup", "warmup_iters")
def _warmup(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    schedule = cfg.schedule
    fraction = round((schedule.warmup or 0.0) * schedule.lr_decay_iters)
    if schedule.warmup is not None and schedule.warmup_iters != fraction:
        constraint = f"contradicts warmup={schedule.warmup:g}, which is {fraction} steps"
        yield Problem(
            "warmup_iters", schedule.warmup_iters, constraint, "set one of the two, the other to null"
        )
    elif schedule.warmup_iters > schedule.lr_decay_iters:
        constraint = f"is more than lr_decay_iters={schedule.lr_decay_iters}"
        yield Problem("warmup_iters", schedule.warmup_iters, constraint, "use a shorter warm-up")


@_check("lr_decay_style", "lr_decay_iters", "warmup_iters", "wsd_decay_iters", "train_iters", "warmup")
def _wsd(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    schedule = cfg.schedule
    decay, rest = schedule.wsd_decay_iters, schedule.lr_decay_iters - schedule.warmup_iters
    if schedule.lr_decay_style == "wsd" and decay > rest >= 0:
        constraint = f"is more than the {rest} steps after warm-up"
        yield Problem("wsd_decay_iters", decay, constraint, f"use at most {rest}")
    if schedule.lr_decay_style != "wsd" and decay != schedule.lr_decay_iters // 10:
        constraint = f"has no meaning with lr_decay_style={schedule.lr_decay_style}"
        yield Problem("wsd_decay_iters", decay, constraint, "remove it, or use lr_decay_style: wsd")


@_check("lr", "min_lr", "decay_lr_to", "lr_decay_style")
def _final_lr(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    peak, lowest, fraction = cfg.optimizer.lr, cfg.schedule.min_lr, cfg.schedule.decay_lr_to
    explicit = "min_lr" in cfg.schedule.model_fields_set
    if explicit and fraction is not None and abs(lowest - fraction * peak) > 1e-6 * peak:
        constraint = f"contradicts decay_lr_to={fraction:g}, which is {fraction * peak:g}"
        yield Problem("min_lr", lowest, constraint, "set one of the two, the other to null")
    elif lowest > peak:
        yield Problem("min_lr", lowest, f"is more than lr={peak:g}", "use a smaller one")


# --- data ---


@_check("data_path", "train_data_paths", "valid_data_paths", "test_data_paths")
def _one_kind_of_data(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    data = cfg.data
    lists = [name for name in ("train", "valid", "test") if getattr(data, f"{name}_data_paths")]
    if data.data_path is not None and lists:
        constraint = f"is cut by split, and {lists[0]}_data_paths is set too"
        yield Problem(
            "data_path", data.data_path, constraint, "keep one of the two, and set the other to null"
        )
    if data.data_path is None and data.split != DataConfig().split:
        yield Problem("split", data.split, "cuts data_path, which is not set", "remove it, or set data_path")


@_check("split")
def _split(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    text = cfg.data.split
    try:
        shares = [float(share) for share in text.replace("/", ",").split(",")]
        good = 1 <= len(shares) <= 3 and all(0 <= share < 1e9 for share in shares) and shares[0] > 0
    except ValueError:
        good = False
    if not good:
        yield Problem(
            "split", text, "is not up to three shares, the first above 0", "write for instance 969,30,1"
        )


def _lists_agree(kind: str, names_key: str) -> None:
    paths_key, weights_key = f"{kind}_data_paths", f"{kind}_data_weights"

    @_check(paths_key, weights_key, names_key, "data_path")
    def check(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
        paths: tuple[Any, ...] = getattr(cfg.data, paths_key)
        weights: tuple[float, ...] = getattr(cfg.data, weights_key)
        names: tuple[str, ...] = getattr(cfg.data, names_key)
        single = kind == "train" and cfg.data.data_path is not None
        for key, values in ((weights_key, weights), (names_key, names)):
            if len(values) != (1 if single and key == names_key else len(paths)):
                constraint = f"has {len(values)} entries, and {paths_key} has {len(paths)}"
                yield Problem(key, list(values), constraint, "write one for each path, in the same order")
        if weights and not sum(weights) > 0:
            yield Problem(weights_key, list(weights), "are all 0", "give at least one a weight above 0")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield Problem(names_key, twice[0], "names two sources", "give each its own name")


for _kind, _names in (("train", "data_names"), ("valid", "valid_data_names"), ("test", "test_data_names")):
    _lists_agree(_kind, _names)


# --- what goes wrong ---


@_check("loss_spike_ratio", "slow_rank_ratio")
def _ratios(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    for key in ("loss_spike_ratio", "slow_rank_ratio"):
        value = getattr(cfg.recovery, key)
        if 0 < value <= 1:
            constraint = "is a multiple of the median, which half of all numbers are above"
            yield Problem(key, value, constraint, "use one above 1, or 0 to switch it off")


# --- where things go ---


_SAVING = (
    "checkpoint_factor",
    "keep_last_n_checkpoints",
    "checkpoint_milestone_factor",
    "extra_save_iters",
    "async_save",
    "s3_path",
)


@_check("save", *_SAVING)
def _saving(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    checkpoint = cfg.checkpoint
    for key in _SAVING:
        value = getattr(checkpoint, key)
        if value and checkpoint.save is None:
            shown = list(value) if isinstance(value, tuple) else value
            yield Problem(key, shown, "has no meaning without save", "set save to a folder, or remove it")


@_check("load", "iteration", "finetune", "no_load_optim", "no_load_rng", "save")
def _loading(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    checkpoint = cfg.checkpoint
    if checkpoint.load is not None:
        return
    for key in ("iteration", "finetune", "no_load_optim", "no_load_rng"):
        value = getattr(checkpoint, key)
        if value is not None and value is not False:
            yield Problem(key, value, "has no meaning without load", "set load to a folder, or remove it")


@_check("load", "save")
def _downloads_have_a_place(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    load = cfg.checkpoint.load
    if is_url(load) and cfg.checkpoint.save is None:
        shown_url = without_password(str(load))
        constraint = "is downloaded into save, which is not set"
        yield Problem("load", shown_url, constraint, "set save to a folder")


@_check("s3_path", "upload_wait_minutes")
def _upload_wait(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    minutes = cfg.checkpoint.upload_wait_minutes
    if cfg.checkpoint.s3_path is None and minutes != CheckpointConfig().upload_wait_minutes:
        yield Problem("upload_wait_minutes", minutes, "has no meaning without s3_path", "remove it")


@_check("load", "s3_path")
def _credentials(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    for key in ("load", "s3_path"):
        value = getattr(cfg.checkpoint, key)
        if isinstance(value, str) and holds_password(value):
            constraint = "holds a name or password, which would be written to logs and checkpoints"
            remedy = "leave out what stands before @, and give it in the environment"
            yield Problem(key, without_password(value), constraint, remedy)


@_check("use_wandb", "wandb_mode", "wandb_project", "wandb_host")
def _wandb(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    host = cfg.logging.wandb_host
    if host is not None and not host.startswith(("http://", "https://")):
        yield Problem("wandb_host", host, "is not a web address", "write for instance https://api.wandb.ai")


@_check("profile", "profile_step_start", "profile_step_stop", "profile_ranks", "log_dir", "save")
def _profile(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    logging = cfg.logging
    first, end = logging.profile_step_start, logging.profile_step_stop
    if first >= end:
        constraint = f"is where the trace ends, and profile_step_start={first} is not before it"
        yield Problem("profile_step_stop", end, constraint, f"use {first + 2} for two iterations")
    if not logging.profile:
        return
    if logging.log_dir is None and cfg.checkpoint.save is None:
        yield Problem("profile", True, "writes to log_dir, which is not set", "set log_dir, or save")
    if not logging.profile_ranks:
        yield Problem("profile_ranks", [], "names no rank, and profile is true", "write for instance [0]")


@_check("launcher", "hostfile", "num_nodes", "include", "exclude", "num_gpus", "cpu_ranks")
def _machines(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    launch = cfg.launch
    alone = {"local": "which uses this machine alone", "slurm": "where SLURM hands out the machines"}
    for key in ("hostfile", "num_nodes", "include", "exclude"):
        value = getattr(launch, key)
        if key == "num_nodes" and launch.launcher == "slurm":
            continue
        if value is not None and launch.launcher in alone:
            constraint = f"has no meaning with launcher={launch.launcher}, {alone[launch.launcher]}"
            yield Problem(key, value, constraint, "remove it, or use launcher: openmpi or pdsh")
            return
    if launch.include is not None and launch.exclude is not None:
        yield Problem("exclude", launch.exclude, "is set beside include", "keep one of the two")
    if launch.cpu_ranks is not None and launch.num_nodes and launch.cpu_ranks % launch.num_nodes:
        fix = f"use a multiple of {launch.num_nodes}"
        yield _not_divisible("cpu_ranks", launch.cpu_ranks, "num_nodes", launch.num_nodes, fix)


@_check("environment")
def _variables(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    for name in cfg.launch.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield Problem("environment", name, "is not the name of a variable", "use letters, digits and _")


def _is_one_word(option: str) -> bool:
    """Whether an option with quotes of its own is one word to sbatch; one without any is quoted for it."""
    if not re.search(r"[\"'\\]", option):
        return True
    try:
        return len(shlex.split(option)) == 1
    except ValueError:
        return False


@_check("slurm_options", "slurm_prologue", "slurm_container", "slurm_container_mounts")
def _slurm(cfg: RunConfig, facts: Facts) -> Iterator[Problem]:
    for option in cfg.slurm.slurm_options:
        if not re.fullmatch(r"--[a-z][a-z0-9-]*(=.+)?", option):
            constraint = "is not an option of sbatch on one line"
            yield Problem("slurm_options", option, constraint, "write it as --name or --name=value")
        elif not _is_one_word(option):
            constraint = "holds quotes or backslashes that do not make it one word"
            yield Problem("slurm_options", option, constraint, 'quote the value, as --comment="it\'s"')
    if cfg.slurm.slurm_container_mounts and cfg.slurm.slurm_container is None:
        yield Problem(
            "slurm_container_mounts", list(cfg.slurm.slurm_container_mounts),
            "has no meaning without slurm_container", "name an image, or remove it",
        )  # fmt: skip
