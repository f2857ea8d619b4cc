#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which weights of the sources are best: short runs over mixtures, a surface through what they measure, its
best point: `mixture.py a.yml b.yml --documents math.jsonl --output O`.

Each point is a run of `deepy.py train.py` with the user's YAML and other `train_data_weights`, from the same
base checkpoint."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.errors import UserError, exit_on_user_error
from tools.argument_types import at_least

if TYPE_CHECKING:
    from tools.mixture_parts.settings import Measure, Point, Study

ARRAY_VARIABLE = "SLURM_ARRAY_TASK_ID"
EPILOG = """\
The same command goes on where it was stopped: finished points are kept. See docs/mixture.md.

examples:
  python tools/mixture.py base/model.yml run.yml --set train_iters=500 --documents math_test.jsonl \\
      --template '{problem} {solution}' --design lattice --levels 3 --fix pile=0.02 --output mix --plan
  python tools/mixture.py base/model.yml run.yml slurm.yml … --output mix --submit --at-once 8
  python tools/mixture.py base/model.yml run.yml … --output mix --fit
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Find the best weights of the training sources by short runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # tasks of an array job get the words as they were typed
    )
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="YAML files of the short run")
    parser.add_argument("-d", "--conf-dir", type=Path, metavar="DIR", help="folder of the YAML files")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key")
    parser.add_argument("--cpu-ranks", type=at_least(1), metavar="N", help="as deepy.py's")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the study")
    _add_design(parser)
    _add_measure(parser)
    what = parser.add_argument_group("what to do (default: run every point that is not finished, then fit)")
    one = what.add_mutually_exclusive_group()
    one.add_argument("--plan", action="store_true", help="show points and cost; run and write nothing")
    one.add_argument("--point", metavar="I", help="run this point alone; array: the one of this SLURM task")
    one.add_argument("--fit", action="store_true", help="fit what is finished, run nothing")
    one.add_argument(
        "--submit", action="store_true", help="hand the unfinished points to SLURM as an array job"
    )
    what.add_argument("--dry-run", action="store_true", help="with --submit: show the script, submit nothing")
    what.add_argument("--at-once", type=at_least(1), metavar="N", help="with --submit: tasks at a time")
    what.add_argument("--keep-checkpoints", action="store_true", help="also after a point is measured")
    what.add_argument(
        "--plan-options", default="", metavar="TEXT",
        help="with --plan: for deepy.py --plan, as '--nodes 1 --gpu h100'",
    )  # fmt: skip
    return parser


def _add_design(parser: argparse.ArgumentParser) -> None:
    design = parser.add_argument_group("mixtures")
    design.add_argument(
        "--design", choices=("lattice", "dirichlet"), default="lattice",
        help="a grid of the simplex, or random mixtures spread over it (default: lattice)",
    )  # fmt: skip
    design.add_argument(
        "--levels",
        type=at_least(1),
        default=3,
        metavar="M",
        help="of the lattice: shares of i/M (default: 3)",
    )
    design.add_argument("--points", type=at_least(1), metavar="N", help="of the Dirichlet design")
    design.add_argument(
        "--weights", nargs="+", default=[], metavar="A,B,…", help="mixtures of your own, beside the design's"
    )
    design.add_argument(
        "--only-weights", action="store_true", help="run those of --weights alone, without a design"
    )
    design.add_argument(
        "--fix", nargs="+", default=[], metavar="NAME=SHARE", help="sources that keep a share"
    )
    design.add_argument(
        "--bounds", nargs="+", default=[], metavar="NAME=LOW:HIGH", help="of a source's share of all"
    )
    design.add_argument(
        "--repeats", type=at_least(1), default=1, metavar="N", help="runs of each mixture, with other seeds"
    )
    design.add_argument("--design-seed", type=int, default=1, metavar="N", help="(default: 1)")
    design.add_argument(
        "--model", choices=("linear", "quadratic"), default="quadratic",
        help="Scheffé polynomial of the surface (default: quadratic)",
    )  # fmt: skip


def _add_measure(parser: argparse.ArgumentParser) -> None:
    measure = parser.add_argument_group("measure")
    measure.add_argument("--documents", type=Path, metavar="FILE", help="JSONL: bits per byte of its texts")
    measure.add_argument(
        "--template", default="{text}", help="text of a line, from its keys (default: {text})"
    )
    measure.add_argument("--max-documents", type=at_least(1), metavar="N")
    measure.add_argument(
        "--max-tokens", type=at_least(1), default=1024, metavar="N", help="of a text (default: 1024)"
    )
    measure.add_argument(
        "--metric-command", metavar="TEXT",
        help="instead of --documents: a command with {checkpoint}, {point} and {json}, which it writes",
    )  # fmt: skip
    measure.add_argument("--metric", metavar="PATH", help="keys down to the number, as results/gsm8k/acc")
    measure.add_argument("--maximise", action="store_true", help="a larger --metric is better")


def measure_of(args: argparse.Namespace) -> Measure:
    """The measure that the options ask for.

    Raises:
        UserError: none or two, or a file is not there.
    """
    import hashlib

    from tools.mixture_parts.settings import Measure

    if (args.documents is None) == (args.metric_command is None):
        raise UserError("--documents, --metric-command: give one of the two, which says what is measured")
    if (args.metric_command is None) != (args.metric is None):
        raise UserError("--metric: names the number in what --metric-command writes; give both")
    if args.maximise and args.metric is None:
        raise UserError("--maximise: bits per byte are better when they are less; it goes with --metric")
    digest = ""
    if args.documents is not None:
        try:
            digest = hashlib.sha256(args.documents.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"--documents={args.documents}: {error.strerror}; give a JSONL file") from None
    return Measure(
        None if args.documents is None else str(args.documents.resolve()), args.template, digest,
        args.max_documents, args.max_tokens, args.metric_command, args.metric, args.maximise,
    )  # fmt: skip


def study_of(args: argparse.Namespace) -> Study:
    """The study of a command line; nothing is written.

    Raises:
        UserError: options or configuration are wrong.
    """
    import numpy as np

    from megatron.neox_arguments.loader import load_config
    from tools.mixture_parts import design, settings

    settings.check_overrides(args.set)
    # A run that saves: each point will, in its own folder.
    saved = f"save={json.dumps(str(args.output.resolve() / settings.POINTS))}"
    base, _ = load_config(args.configs, overrides=[*args.set, saved], directory=args.conf_dir)
    space = settings.space_of(base, args.fix, args.bounds)
    chosen = [design.given(space, args.weights)] if args.weights else []
    if args.only_weights and not args.weights:
        raise UserError("--only-weights: there are none; give --weights")
    if not args.only_weights and args.design == "lattice":
        chosen.append(design.lattice(space, args.levels))
    elif not args.only_weights:
        if args.points is None:
            raise UserError("--design=dirichlet: needs a number of mixtures; add --points")
        chosen.append(design.dirichlet(space, args.points, args.design_seed))
    points = settings.points_of(np.concatenate(chosen), space, args.repeats, base.data.seed)
    directory = None if args.conf_dir is None else args.conf_dir.resolve()
    configs = tuple(path if directory is not None else path.resolve() for path in args.configs)
    return settings.Study(
        args.output, configs, directory, tuple(args.set), space, points, measure_of(args), base
    )


def show_plan(study: Study, args: argparse.Namespace) -> None:
    """Points, and what they cost by deepy.py's own plan of the user's run.

    Raises:
        UserError: the plan cannot be made.
    """
    import shlex
    import tempfile

    from tools.mixture_parts.runs import ROOT, read_result
    from tools.mixture_parts.surface import count_of_terms

    print("point  " + "  ".join(f"{name:>12}" for name in study.space.names) + "        seed")
    for point in study.points:
        shares = "  ".join(f"{weight:>12.4f}" for weight in point.weights)
        done = "  finished" if read_result(study, point) is not None else ""
        print(f"{point.number:>5}  {shares}  {point.seed:>10}{done}")
    needed = count_of_terms(len(study.space.free), args.model)
    print(f"{len(study.points)} runs; the {args.model} surface has {needed} coefficients")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        directory = [] if study.directory is None else ["--conf_dir", str(study.directory)]
        command = [
            sys.executable, str(ROOT / "deepy.py"), str(ROOT / "train.py"), *directory,
            *map(str, study.configs),
            *(part for text in study.overrides for part in ("--set", text)), "--set", f"save={folder}",
            *_cpu_ranks(args), "--plan", "--json", str(out), *shlex.split(args.plan_options),
        ]  # fmt: skip
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise UserError(f"--plan: the cost of a point is not known\n{ended.stderr.strip()}")
        plan: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    runs, hours = len(study.points), plan["gpu_hours"]
    print(
        f"a run: {plan['steps']:,} steps, {plan['tokens']:,} tokens, {plan['flops']:.3g} FLOPs, {hours:.2f} "
        f"hours of {plan['gpu']} (MFU {plan['mfu']:.0%}); all: {runs * plan['tokens']:,} tokens, "
        f"{runs * hours:.1f} GPU hours, without measuring"
    )


def _cpu_ranks(args: argparse.Namespace) -> list[str]:
    return [] if args.cpu_ranks is None else ["--cpu-ranks", str(args.cpu_ranks)]


def chosen_point(study: Study, text: str) -> Point:
    """The point that `--point` names.

    Raises:
        UserError: there is no such point.
    """
    if text == "array":
        text = os.environ.get(ARRAY_VARIABLE, "")
        if not text:
            raise UserError(
                f"--point=array: {ARRAY_VARIABLE} is not set; it is for the job that --submit makes"
            )
    if not text.isdigit() or int(text) >= len(study.points):
        raise UserError(f"--point={text}: give a number from 0 to {len(study.points) - 1}, or array")
    return study.points[int(text)]


def without_submission(typed: Sequence[str]) -> list[str]:
    """The command line of one task: the words that were typed, without those of the submission."""
    kept: list[str] = []
    words = iter(typed)
    for word in words:
        if word == "--at-once":
            next(words)
        elif word not in ("--submit", "--dry-run") and not word.startswith("--at-once="):
            kept.append(word)
    return kept


def submit(study: Study, args: argparse.Namespace, typed: Sequence[str]) -> None:
    """An array job with a task for each unfinished point.

    Raises:
        UserError: nothing is left, a key is missing, or SLURM refuses.
    """
    from megatron.launcher import slurm
    from megatron.neox_arguments.errors import ConfigError
    from tools.mixture_parts.runs import ROOT, read_result
    from tools.mixture_parts.settings import write_text

    left = [str(point.number) for point in study.points if read_result(study, point) is None]
    if not left:
        raise UserError(f"--submit: every point of {study.output} is finished; use --fit")
    launch = study.base.launch
    if problems := slurm.submission_problems(launch):
        raise ConfigError(problems)
    assert launch.num_nodes is not None
    ranks = launch.cpu_ranks or launch.num_nodes * (launch.num_gpus or 0)
    wanted = slurm.Submission(
        python=sys.executable, deepy=ROOT / "tools" / "mixture.py", script="--point",
        arguments=("array", *without_submission(typed)), folder=Path.cwd(), save=None, sha256=None,
        nodes=launch.num_nodes,
        ranks_per_node=ranks // launch.num_nodes,
        gpus_per_node=None if launch.cpu_ranks is not None else launch.num_gpus,
    )  # fmt: skip
    at_once = f"%{args.at_once}" if args.at_once is not None else ""
    asked = study.base.slurm
    asked = asked.model_copy(
        update={
            "slurm_job_name": asked.slurm_job_name or study.output.name,
            "slurm_options": (*asked.slurm_options, f"--array={','.join(left)}{at_once}"),
        }
    )
    text = slurm.batch_script(wanted, launch, asked)
    print(text, end="")
    if args.dry_run:
        print("nothing was written and nothing was submitted", file=sys.stderr)
        return
    lay_down(study)
    path = study.output / "mixture.sbatch"
    write_text(path, text)
    print(
        f"{slurm.submit(path)}; script {path}; when all have ended: the same command with --fit",
        file=sys.stderr,
    )


def lay_down(study: Study) -> None:
    """The study's record, its points' files and the texts of its measure.

    Raises:
        UserError: the folder holds something else, or a point's configuration is wrong.
    """
    from tools.mixture_parts.runs import TEXTS, write_texts
    from tools.mixture_parts.settings import laid_down

    laid_down(study)
    if not (study.output / TEXTS).exists():
        write_texts(study.measure, study.output)
    study.config(study.points[0])


def run(study: Study, points: Sequence[Point], args: argparse.Namespace) -> None:
    """Runs what is not finished of some points.

    Raises:
        UserError: a run failed. Stopped: it was asked to stop.
    """
    from tools.mixture_parts.runs import read_result, run_point

    lay_down(study)
    for point in points:
        was_done = read_result(study, point) is not None
        if not was_done:
            print(f"point {point.number}: {study.folder(point)}/run.log", file=sys.stderr, flush=True)
        result = run_point(study, point, _cpu_ranks(args), args.keep_checkpoints)
        how = "finished before" if was_done else f"{result.seconds:.0f} s"
        shares = ", ".join(f"{weight:.3f}" for weight in point.weights)
        print(f"point {point.number} ({shares}): {study.measure.name} {result.value:.5f}; {how}", flush=True)


def fit(study: Study, model: str) -> None:
    """Fits and reports the finished points.

    Raises:
        UserError: they do not decide the surface.
    """
    from tools.mixture_parts.report import BEST_YAML, in_words, write_report
    from tools.mixture_parts.runs import read_result

    results = [result for point in study.points if (result := read_result(study, point)) is not None]
    if len(results) < len(study.points):
        print(f"{len(results)} of {len(study.points)} points are finished", file=sys.stderr)
    content = write_report(study, results, model)
    print(in_words(study, content))
    print(f"{study.output / BEST_YAML}: for the long run")


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    typed = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    args = parser.parse_intermixed_args(typed)
    if (args.dry_run or args.at_once is not None) and not args.submit:
        parser.error("--dry-run and --at-once go with --submit")
    study = study_of(args)
    if args.plan:
        show_plan(study, args)
        return
    if args.submit:
        submit(study, args, typed)
        return
    from tools.mixture_parts.runs import Stopped

    try:
        if args.point is not None:
            run(study, [chosen_point(study, args.point)], args)
            return
        if not args.fit:
            run(study, study.points, args)
        fit(study, args.model)
    except Stopped:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
