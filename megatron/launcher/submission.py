# SPDX-License-Identifier: Apache-2.0
"""`deepy.py --submit`: from a run's configuration to a batch script in its save folder, and to sbatch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from megatron.launcher import slurm
from megatron.launcher.frozen import folder_of, freeze, frozen_as
from megatron.launcher.plan import RankPlan, describe, torn_groups
from megatron.neox_arguments.checks import check_world
from megatron.neox_arguments.config import RunConfig
from megatron.neox_arguments.errors import ConfigError, Problem, UserError


def submit_run(
    cfg: RunConfig, script: Path, deepy: Path, *, dry_run: bool, tell: Callable[[str], None]
) -> int:
    """Shows the batch script of a run; writes and submits it too unless `dry_run`. Returns the exit status.

    Raises:
        UserError: the run cannot be submitted as it is, or SLURM refuses it.
    """
    ranks = _checked(cfg)
    save = cfg.checkpoint.save
    assert save is not None
    assert cfg.launch.num_nodes is not None
    save = save.resolve()
    frozen = frozen_as(cfg, folder_of(save))
    path = frozen.path.with_suffix(".sbatch")
    text = slurm.batch_script(
        _wanted(cfg, script, deepy, ranks, frozen.path, frozen.sha256), cfg.launch, cfg.slurm
    )
    plan = RankPlan(ranks, f"num_nodes={cfg.launch.num_nodes}", on_gpu=cfg.launch.cpu_ranks is None)
    tell(f"{plan}; configuration {frozen.path}")
    tell("\n" + describe(cfg, ranks))
    torn = torn_groups(
        [ranks // cfg.launch.num_nodes] * cfg.launch.num_nodes, cfg.parallel.model_parallel_size
    )
    if torn:
        tell(f"warning: {torn}")
    print(text, end="", flush=True)
    if dry_run:
        tell("nothing was written and nothing was submitted")
        return 0
    freeze(cfg)
    try:
        (save / "logs").mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(f"save={save}: {error.strerror}; choose another folder") from error
    tell(f"{slurm.submit(path)}; script {path}, log {save}/logs/slurm-<job>.out")
    return 0


def _checked(cfg: RunConfig) -> int:
    """The ranks of the run, when all that a submission needs is there."""
    problems = [*slurm.submission_problems(cfg.launch), *slurm.prologue_problems(cfg.slurm)]
    if cfg.launch.launcher not in ("auto", "slurm"):
        constraint = "was chosen, and --submit is SLURM's"
        remedy = "leave it out, or add --set launcher=slurm"
        problems.append(Problem("launcher", cfg.launch.launcher, constraint, remedy))
    if cfg.checkpoint.save is None:
        constraint = "is not set, and the ranks read their configuration there"
        problems.append(Problem("save", None, constraint, "set it to a folder on the shared disk"))
    if problems:
        raise ConfigError(problems)
    launch = cfg.launch
    assert launch.num_nodes is not None
    ranks = launch.cpu_ranks or launch.num_nodes * (launch.num_gpus or 0)
    problems = check_world(cfg, ranks)
    if problems:
        raise ConfigError(problems)
    return ranks


def _wanted(
    cfg: RunConfig, script: Path, deepy: Path, ranks: int, frozen: Path, sha256: str
) -> slurm.Submission:
    launch = cfg.launch
    assert launch.num_nodes is not None
    assert cfg.checkpoint.save is not None
    return slurm.Submission(
        python=sys.executable,
        deepy=deepy,
        script=str(script),
        arguments=("--frozen", str(frozen)),
        folder=Path.cwd(),
        save=cfg.checkpoint.save.resolve(),
        sha256=sha256,
        nodes=launch.num_nodes,
        ranks_per_node=ranks // launch.num_nodes,
        gpus_per_node=None if launch.cpu_ranks is not None else launch.num_gpus,
    )
