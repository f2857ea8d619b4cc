# SPDX-License-Identifier: Apache-2.0
"""deepy.py with programs that are no runs: generate.py, evaluate.py, serve.py, preprocess_data.py.

They take what follows `--` as their own command line. The YAML files, if any, say only where they run; keys
of runs may stand there. generate.py, evaluate.py and serve.py get one rank, or as many as num_gpus or
cpu_ranks say; preprocess_data.py is one process, which starts its own workers, or as many as cpu_ranks says,
one a node.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from megatron.launcher import launchers, slurm
from megatron.launcher.devices import count_gpus
from megatron.launcher.job import Job, python_of_ranks
from megatron.launcher.plan import RankPlan
from megatron.neox_arguments.config import LaunchConfig, SlurmConfig
from megatron.neox_arguments.errors import ConfigError, Problem, UserError
from megatron.neox_arguments.loader import load_launch

ONE_PROCESS = ("preprocess_data.py",)


def start_program(options: argparse.Namespace, deepy: Path, tell: Callable[[str], None]) -> int:
    """Starts, shows or submits; returns the exit status.

    Raises:
        UserError: the command line or the files are wrong.
    """
    launch, asked, notices = load_launch(options.configs, _overrides(options), options.conf_dir)
    for notice in notices:
        tell(f"note: {notice}")
    _check(options)
    if options.submit:
        return _submit(options, launch, asked, deepy, tell)
    if _is_alone(options.script, launch):
        choice = launchers.Choice("local", f"{options.script.name} is one process")
    else:
        choice = launchers.choose(launch, os.environ)
    problem = launchers.launch_problem(choice.name, os.environ)
    if problem is not None:
        raise ConfigError([problem])
    world = launchers.lay_out(choice, launch, os.environ, lambda: _here(options.script, launch))
    python = python_of_ranks(launch.rank_python, asked.slurm_container)
    job = Job((python, str(options.script), *options.own_arguments), Path.cwd(), launch.environment)
    settings = launchers.Settings(launch, asked)
    if options.print_commands or options.dry_run:
        print(launchers.shown(choice, job, world, settings, os.environ))
        return 0
    return launchers.start(choice, job, world, settings, os.environ)


def _is_alone(script: Path, launch: LaunchConfig) -> bool:
    return script.name in ONE_PROCESS and launch.cpu_ranks is None


def _overrides(options: argparse.Namespace) -> list[str]:
    ranks = [] if options.cpu_ranks is None else [f"cpu_ranks={options.cpu_ranks}"]
    return [*options.set, *ranks]


def _check(options: argparse.Namespace) -> None:
    if not options.script.is_file():
        remedy = "give the program first, such as generate.py"
        raise ConfigError([Problem("script", str(options.script), "no such file", remedy)])
    if not options.own_arguments:
        raise UserError(
            f"{options.script}: nothing follows `--`; give its own command line there, as in "
            f"deepy.py {options.script} -- --help"
        )
    if options.frozen is not None or options.world_size is not None:
        raise UserError(f"{options.script}: is no run; leave out --frozen and --world-size")


def _here(script: Path, launch: LaunchConfig) -> RankPlan:
    """The ranks of a program on this machine."""
    gpus = count_gpus(os.environ)
    if launch.cpu_ranks is not None:
        return RankPlan(launch.cpu_ranks, f"cpu_ranks={launch.cpu_ranks}", on_gpu=False)
    if (launch.num_gpus or 0) > gpus.count:
        constraint = f"{gpus.count} found here (by {gpus.found_by})"
        raise ConfigError([Problem("num_gpus", launch.num_gpus, constraint, "use fewer, or cpu_ranks")])
    ranks = 1 if script.name in ONE_PROCESS else launch.num_gpus or 1
    return RankPlan(ranks, "num_gpus" if launch.num_gpus else "one process", on_gpu=gpus.count > 0)


def _submit(
    options: argparse.Namespace,
    launch: LaunchConfig,
    asked: SlurmConfig,
    deepy: Path,
    tell: Callable[[str], None],
) -> int:
    problems = slurm.prologue_problems(asked)
    if problems:
        raise ConfigError(problems)
    alone = _is_alone(options.script, launch)
    nodes = launch.num_nodes or 1
    ranks = launch.cpu_ranks or nodes * (launch.num_gpus or 1)
    files = ["--conf_dir", str(options.conf_dir.resolve())] if options.conf_dir is not None else []
    files += [str(path if options.conf_dir is not None else path.resolve()) for path in options.configs]
    sets = [part for text in _overrides(options) for part in ("--set", text)]
    wanted = slurm.Submission(
        python=sys.executable,
        deepy=deepy,
        script=str(options.script),
        arguments=(*files, *sets, "--", *options.own_arguments),
        folder=Path.cwd(),
        save=None,
        sha256=None,
        nodes=1 if alone else nodes,
        ranks_per_node=1 if alone else ranks // nodes,
        gpus_per_node=None if alone or launch.cpu_ranks is not None else launch.num_gpus,
    )
    text = slurm.batch_script(wanted, launch, asked)
    print(text, end="", flush=True)
    if options.dry_run:
        tell("nothing was written and nothing was submitted")
        return 0
    path = Path.cwd() / f"{options.script.stem}.sbatch"
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; start it in a folder that can be written") from error
    tell(f"{slurm.submit(path)}; script {path}")
    return 0
