#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Starts a run: reads its configuration, checks all of it, and launches one process per GPU or CPU rank.

python deepy.py train.py [-d DIR] a.yml b.yml … [--set key=value] [--dry-run | --plan | --submit]
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.launcher.hosts import World
    from megatron.launcher.launchers import Choice
    from megatron.launcher.plan import RankPlan
    from megatron.neox_arguments.config import RunConfig

# Tells the ranks how the run was started, for the advice they give; never parsed.
COMMAND_VARIABLE = "DEEPY_COMMAND"
# When it was: seconds since 1970. A rank says how long it took from then to its first step.
STARTED_VARIABLE = "DEEPY_STARTED"
PLAN_OPTIONS = (
    "nodes", "gpus_per_node", "gpu", "gpu_memory", "mfu", "network_speed", "disk_speed", "calibration", "json"
)  # fmt: skip

EPILOG = """\
Files merge from left to right, later keys win, --set wins over files. What follows -- goes to the program.

Ctrl-C lets the ranks finish their step, save and stop, and so does a scheduler's SIGUSR1 or SIGTERM, or the
SIGHUP of a closed terminal; the same command goes on from there. A second Ctrl-C ends them at once.
Exit status: 0 done, or saved and stopped for a scheduler; 2 wrong input; 129 saved and stopped by SIGHUP, 130
by Ctrl-C; else that of the rank that died first (75: ranks hung or were gone, start again).

examples:
  python deepy.py train.py configs/llemma_7b.yml configs/proof_pile_2.yml
  python deepy.py train.py -d configs llemma_7b proof_pile_2 --set train_iters=100 --set launcher=local
  python deepy.py train.py -d configs llemma_7b proof_pile_2 --dry-run --world-size 256
  python deepy.py train.py -d configs llemma_34b proof_pile_2 --plan --nodes 32 --gpus-per-node 8 --gpu a100
  python deepy.py train.py -d configs llemma_7b proof_pile_2 slurm --set num_nodes=32 --submit
  python deepy.py generate.py --set num_gpus=2 -- checkpoints/llemma_7b --prompt "Let x be"
  python deepy.py tools/serve.py --set num_gpus=2 -- checkpoints/llemma_7b --port 8000
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 and a usage line where it is wrong."""
    parser = argparse.ArgumentParser(
        prog="deepy.py",
        description="Start a run on all its ranks, from YAML files that are checked as a whole first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", type=Path, help="what each rank runs, such as train.py")
    parser.add_argument(
        "configs", type=Path, nargs="*", metavar="CONFIG", help="YAML files, .yml may be left out"
    )
    parser.add_argument(
        "-d", "--conf_dir", "--conf-dir", type=Path, metavar="DIR", help="folder of the YAML files"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key")
    parser.add_argument(
        "--cpu-ranks", type=int, metavar="N", help="start N ranks on CPU, whatever GPUs there are"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what the run amounts to and print it merged, start nothing; with --submit show the script",
    )
    parser.add_argument(
        "--world-size", type=int, metavar="N",
        help="with --dry-run or --plan: as if on N ranks of another machine, whose files are not looked for",
    )  # fmt: skip
    _launch_options(parser)
    _plan_options(parser)
    typed = sys.argv[1:] if arguments is None else arguments
    cut = typed.index("--") if "--" in typed else len(typed)
    options = parser.parse_intermixed_args(typed[:cut])
    options.own_arguments = typed[cut + 1 :]
    options.command = shlex.join(["python", *(sys.argv if arguments is None else ["deepy.py", *arguments])])
    _check_options(parser, options)
    return options


def _launch_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("launch")
    group.add_argument(
        "--submit",
        action="store_true",
        help="write a batch script for num_nodes machines of SLURM, show it, hand it to sbatch",
    )
    group.add_argument(
        "--print-commands",
        action="store_true",
        help="print what would start the ranks and the configuration they would read; start nothing",
    )
    group.add_argument(
        "--frozen",
        type=Path,
        metavar="FILE",
        help="in place of YAML files: a configuration as an earlier start froze it (batch scripts use it)",
    )


def _check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What must hold between options; ends the program where it does not."""
    if options.world_size is not None and not (options.dry_run or options.plan):
        parser.error(
            "--world-size is for another machine, with --dry-run or --plan; --cpu-ranks N starts N ranks"
        )
    if options.world_size is not None and options.world_size < 1:
        parser.error("--world-size must be at least 1")
    for name in PLAN_OPTIONS:
        if getattr(options, name) is not None and not options.plan:
            parser.error(f"--{name.replace('_', '-')} goes with --plan")
    if options.plan and (options.dry_run or options.submit or options.print_commands):
        parser.error("--plan says what a run will cost and starts nothing: leave out the other")
    if options.frozen is not None and (options.configs or options.set or options.cpu_ranks is not None):
        parser.error("--frozen is a whole configuration; leave out YAML files, --set and --cpu-ranks")
    if options.submit and (options.print_commands or options.world_size is not None):
        parser.error("--submit goes with --dry-run, not with --print-commands or --world-size")
    if not (options.configs or options.frozen or _has_own_command_line(options.script)):
        parser.error(f"{options.script} needs a configuration: give YAML files")


def _has_own_command_line(script: Path) -> bool:
    """Whether a program is given what follows `--` and no run configuration."""
    return script.name in ("evaluate.py", "generate.py", "preprocess_data.py", "serve.py")


def _plan_options(parser: argparse.ArgumentParser) -> None:
    """`--plan` and what it is told about the machine; megatron/planning does the rest."""
    group = parser.add_argument_group("what a run will cost (docs/planning.md); nothing is started")
    group.add_argument(
        "--plan", action="store_true", help="groups, memory, time, checkpoints, better layouts"
    )
    group.add_argument("--nodes", type=int, metavar="N", help="machines of the run")
    group.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs of each (default: 8)")
    group.add_argument("--gpu", metavar="NAME", help="a100, a100-80gb, h100, … (default: a100)")
    group.add_argument("--gpu-memory", metavar="BYTES", help="of one GPU, such as 40GiB (default: the GPU's)")
    group.add_argument(
        "--mfu", type=float, metavar="SHARE", help="share of the peak, as 0.4 (default: a model's)"
    )
    group.add_argument(
        "--network-speed", metavar="BYTES", help="a second, from one GPU to other nodes (default: by GPU)"
    )
    group.add_argument(
        "--calibration", type=Path, action="append", metavar="FILE",
        help="what benchmarks measured on one such GPU; may be given several times",
    )  # fmt: skip
    group.add_argument(
        "--disk-speed", metavar="BYTES", help="a second, of all ranks together (default: 2GB/s)"
    )
    group.add_argument(
        "--json", type=Path, metavar="FILE",
        help="also write the plan here, for programs; - prints that and nothing else",
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status of the run."""
    os.environ[STARTED_VARIABLE] = f"{time.time():.3f}"  # inherited by the ranks, wherever they are
    options = parse(arguments)
    # After the command line is known to be right, so that --help need not wait for pydantic.
    from megatron.neox_arguments.errors import exit_on_user_error

    return exit_on_user_error(start)(options)


def start(options: argparse.Namespace) -> int:
    """Loads, checks and launches.

    Raises:
        UserError: all problems of the configuration on this machine, in one list.
    """
    if _has_own_command_line(options.script):
        from megatron.launcher.programs import start_program

        return start_program(options, Path(__file__).resolve(), tell)
    from megatron.launcher import launchers
    from megatron.launcher.connections import connections
    from megatron.launcher.frozen import HASH_VARIABLE, freeze
    from megatron.launcher.job import Job, python_of_ranks
    from megatron.launcher.plan import torn_groups

    cfg, notices = load(options)
    for notice in notices:
        tell(f"note: {notice}")
    if options.plan:
        from megatron.planning.command import run_plan

        return run_plan(cfg, options)
    if options.submit:
        from megatron.launcher.submission import submit_run

        return submit_run(cfg, options.script, Path(__file__).resolve(), dry_run=options.dry_run, tell=tell)
    plan, choice, world = plan_on(cfg, options)
    if options.dry_run:
        show(cfg, plan)
        return 0
    assert world is not None
    torn = torn_groups([len(host.slots) for host in world.hosts], cfg.parallel.model_parallel_size)
    if torn:
        tell(f"warning: {torn}")
    frozen = freeze(cfg)
    tell(f"launcher {choice.name} ({choice.reason}); {plan}; configuration {frozen.path}, "
         f"sha256 {frozen.sha256[:16]}…")  # fmt: skip
    settings = launchers.Settings(cfg.launch, cfg.slurm)
    python = python_of_ranks(cfg.launch.rank_python, cfg.slurm.slurm_container)
    command = (python, str(options.script), "--config", str(frozen.path), *options.own_arguments)
    variables = {
        HASH_VARIABLE: frozen.sha256,
        COMMAND_VARIABLE: options.command,
        **connections(cfg.parallel.model_parallel_size, on_gpu=world.on_gpu, environment=os.environ),
        **cfg.launch.environment,
    }
    job = Job(command, Path.cwd(), variables, shared=frozen.path.parent)
    if options.print_commands:
        print(launchers.shown(choice, job, world, settings, os.environ))
        return 0
    return launchers.start(choice, job, world, settings, os.environ)


def load(options: argparse.Namespace) -> tuple[RunConfig, list[str]]:
    """The configuration and what is worth saying about it; a missing script is one problem among others."""
    from megatron.neox_arguments.errors import ConfigError, Problem
    from megatron.neox_arguments.loader import load_config

    overrides = [*options.set]
    if options.cpu_ranks is not None:
        overrides.append(f"cpu_ranks={options.cpu_ranks}")
    problems = []
    if not options.script.is_file():
        remedy = "give the program of the ranks first, such as train.py"
        problems.append(Problem("script", str(options.script), "no such file", remedy))
    # A look at a run of another machine, whose files are not here.
    only_shows = options.world_size is not None or options.plan or (options.submit and options.dry_run)
    if options.frozen is not None and not problems:
        from megatron.launcher.frozen import read_frozen

        return read_frozen(options.frozen, os.environ), []
    try:
        cfg, notices = load_config(
            options.configs,
            overrides=overrides,
            directory=options.conf_dir,
            check_files=not only_shows,
        )
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    if problems:
        raise ConfigError(problems)
    return cfg, notices


def plan_on(cfg: RunConfig, options: argparse.Namespace) -> tuple[RankPlan, Choice, World | None]:
    """The ranks of this run and what starts them, with what makes them impossible raised as one ConfigError.

    There is no World where a dry run is for machines that are not here.
    """
    from megatron.launcher.devices import count_gpus
    from megatron.launcher.launchers import choose, launch_problem, lay_out
    from megatron.launcher.plan import RankPlan, plan_ranks
    from megatron.neox_arguments.checks import check_world
    from megatron.neox_arguments.errors import ConfigError

    choice, world = choose(cfg.launch, os.environ), None
    problem = None if options.world_size is not None else launch_problem(choice.name, os.environ)
    if options.world_size is not None:
        plan = RankPlan(options.world_size, f"--world-size={options.world_size}, planned only")
    elif problem is not None:
        plan = plan_ranks(cfg, count_gpus(os.environ))
    else:
        world = lay_out(choice, cfg.launch, os.environ, lambda: plan_ranks(cfg, count_gpus(os.environ)))
        plan = RankPlan(world.size, world.reason, world.on_gpu)
    problems = check_world(cfg, plan.ranks)
    if problem is not None and options.dry_run:
        tell(f"note: a start here would end with: {problem}")
    elif problem is not None:
        problems.insert(0, problem)
    if problems:
        raise ConfigError(problems)
    return plan, choice, world


def show(cfg: RunConfig, plan: RankPlan) -> None:
    """The dry run: the run in words, then all its keys as one YAML file."""
    from megatron.launcher.plan import describe

    print(f"{'ranks':<14}{plan}")
    print(describe(cfg, plan.ranks))
    if cfg.parallel.recompute == "auto":
        from megatron.planning.recompute import settled_here

        print(f"{'recompute':<14}{settled_here(cfg, plan.ranks, on_gpu=plan.on_gpu)}")
    print("\n# All keys, merged, with their defaults. Nothing was started.\n")
    print(cfg.to_yaml(), end="")


def tell(message: str) -> None:
    """A message of the launcher, apart from the run's own output."""
    print(f"deepy: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
