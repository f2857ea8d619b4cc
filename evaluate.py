#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measures a checkpoint on the tasks of the paper: python evaluate.py CHECKPOINT --tasks A,B --output DIR."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.neox_arguments.errors import ConfigError, Problem, UserError, exit_on_user_error

if TYPE_CHECKING:
    from eval_tasks.runs.backends import ModelChoice
    from eval_tasks.runs.run import Asked, TaskPlan
    from eval_tasks.runs.settings import Settings

BACKENDS = ("native", "hf", "vllm", "openai")
INSTALL = "pip install -r requirements/requirements-eval.txt"

EPILOG = """\
Samples are saved as they are made. Stopped or killed at any moment, the same command goes on and ends with
the same results; a changed setting is refused by name. Verdicts, tables and plots are made from samples alone
(--rescore makes them anew), and no model is loaded where all samples are there.

examples:
  python evaluate.py checkpoints/llemma_7b --tasks llemma_math,llemma_gsm8k --output results/llemma_7b
  python evaluate.py llemma-7b-hf --backend hf --tasks llemma_math_maj --k 16 --output results/llemma_7b
  python evaluate.py base-hf --tasks llemma_gsm8k --data llemma_gsm8k=test.jsonl --limit 50 --output base
  python deepy.py evaluate.py --set num_gpus=8 -- llemma_34b --tasks llemma_math --output results/34b
  python evaluate.py llemma --backend openai --base-url http://127.0.0.1:8000/v1 --tasks llemma_sat --output s
  python evaluate.py --rescore results/llemma_7b
  python evaluate.py --rescore others.jsonl --task llemma_math --output results/others
  python evaluate.py --compare results/base results/llemma_7b
"""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description="Measure a checkpoint on the tasks of the paper, or score what was generated before.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", nargs="?", metavar="CHECKPOINT",
        help="a save folder, a global_stepN or Hugging Face folder; with --backend openai the model's name",
    )  # fmt: skip
    parser.add_argument("--tasks", metavar="A,B", help="tasks by name, separated by commas")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the results")
    parser.add_argument("--list-tasks", action="store_true", help="show all tasks and end")
    _model_options(parser)
    _task_options(parser)
    offline = parser.add_argument_group("scoring, without a model")
    offline.add_argument(
        "--rescore", type=Path, metavar="PATH",
        help="score again: a results folder, or anyone's generations in JSONL (problem, generation, "
        "reference, perhaps correct) with --task and --output",
    )  # fmt: skip
    offline.add_argument("--task", metavar="NAME", help="with --rescore FILE: whose rule is used")
    offline.add_argument("--html", action="store_true", help="with --rescore FILE: undo HTML entities first")
    offline.add_argument(
        "--unsafe-programs",
        action="store_true",
        help="run model-written programs without isolation where there is none: on a machine you can lose",
    )
    offline.add_argument(
        "--compare", nargs=2, type=Path, metavar="DIR", help="two results folders, item by item"
    )
    return parser.parse_args(argv)


def _model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--backend", choices=BACKENDS, help="default: native or hf, by what lies in the folder"
    )
    group.add_argument("--iteration", type=int, help="of a native checkpoint, instead of the newest")
    group.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="default: the checkpoint's"
    )
    group.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="samples at a time (default: 8)"
    )
    group.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="GPUs of --backend vllm")
    group.add_argument(
        "--base-url", metavar="URL", help="of --backend openai, such as http://127.0.0.1:8000/v1"
    )
    group.add_argument(
        "--api-key-variable", default="OPENAI_API_KEY", metavar="NAME",
        help="environment variable with the key of --backend openai (default: OPENAI_API_KEY)",
    )  # fmt: skip
    group.add_argument(
        "--tokenizer", metavar="FOLDER", help="of --backend openai, which likelihoods need it for"
    )


def _task_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tasks")
    group.add_argument(
        "--data", action="append", default=[], metavar="TASK=FILE.jsonl",
        help="take a task's problems from here instead of the hub; may be repeated",
    )  # fmt: skip
    group.add_argument(
        "--data-field", action="append", default=[], metavar="TASK.FIELD=NAME",
        help="which field of that file is the problem, reference, level, subject or choices",
    )  # fmt: skip
    group.add_argument(
        "--limit", type=int, metavar="N", help="at most N items of a task, of its subjects in turn"
    )
    group.add_argument("--k", type=int, metavar="N", help="samples of an item, of tasks ending in _maj")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="default: the task's, 1024")
    group.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    group.add_argument("--overwrite", action="store_true", help="begin tasks again whose settings changed")


def _range_problems(options: argparse.Namespace) -> Iterator[Problem]:
    for name in ("limit", "k", "max_new_tokens", "batch_size", "tensor_parallel"):
        value = getattr(options, name)
        if value is not None and value < 1:
            yield Problem(f"--{name.replace('_', '-')}", value, "is less than 1", "give 1 or more")
    for name, remedy in (("checkpoint", "name the model's folder first"), ("tasks", "--list-tasks shows all"),
                         ("output", "give a folder for the results")):  # fmt: skip
        if not getattr(options, name):
            yield Problem(name.upper() if name == "checkpoint" else f"--{name}", None, "is not set", remedy)
    for name in ("task", "html"):
        if getattr(options, name):
            yield Problem(f"--{name}", None, "goes with --rescore FILE", "leave it out")
    if not -(2**63) <= options.seed < 2**63:  # torch's
        yield Problem("--seed", options.seed, "is not of 64 bits", f"give at most {2**63 - 1}")
    if importlib.util.find_spec("lm_eval") is None:
        yield Problem("lm-eval", None, "is not installed", INSTALL)


def _checked(options: argparse.Namespace, ranks: int) -> tuple[Asked, ModelChoice]:
    """Raises:
    ConfigError: all that is wrong with the command line.
    """
    from eval_tasks.runs.backends import ModelChoice, choice_problems, kind_of, output_problems
    from eval_tasks.runs.catalogue import chosen
    from eval_tasks.runs.local_data import local_files
    from eval_tasks.runs.run import Asked

    problems = list(_range_problems(options))
    names = [name.strip() for name in (options.tasks or "").split(",") if name.strip()]
    try:
        entries = chosen(names)
    except ConfigError as error:
        problems += error.problems
        entries = []
    local, wrong = local_files(options.data, options.data_field, names)
    problems += wrong
    choice = ModelChoice(
        checkpoint=options.checkpoint or "",
        backend=options.backend or kind_of(options.checkpoint or "") or "hf",
        dtype=options.dtype,
        batch_size=options.batch_size,
        seed=options.seed,
        iteration=options.iteration,
        tensor_parallel=options.tensor_parallel,
        base_url=options.base_url,
        key_variable=options.api_key_variable,
        tokenizer=options.tokenizer,
    )
    if options.checkpoint:
        problems += choice_problems(choice, ranks)
        if options.output:
            problems += output_problems(choice, options.output)
    asked = Asked(
        options.output, entries, local, options.limit, options.k, options.max_new_tokens, options.overwrite
    )
    problems += asked.problems()
    if problems:
        raise ConfigError(problems)
    return asked, choice


def _evaluate(options: argparse.Namespace) -> None:
    ranks, rank = (
        int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0"))
    )
    try:
        asked, choice = _checked(options, ranks)
    except UserError as error:
        if rank > 0:  # rank 0 says it
            raise SystemExit(error.exit_code) from None
        raise
    _silence()
    if rank > 0:
        _follow(choice, ranks)
        return
    from eval_tasks.runs.offline import program_warning, score
    from eval_tasks.runs.run import keep, plans, unfinished

    if warning := program_warning([entry.name for entry in asked.tasks], options.unsafe_programs):
        _tell(warning)
    found = plans(asked, choice, _tell)
    settings = keep(asked, choice, found, _tell)
    left = unfinished(asked, found)
    if left or ranks > 1:  # other ranks wait for this one
        _make(asked, choice, left, ranks, settings)
    else:
        _tell("all samples are here")
    print(score(asked.folder, options.unsafe_programs, _tell), end="")


def _make(asked: Asked, choice: ModelChoice, left: list[TaskPlan], ranks: int, settings: Settings) -> None:
    """Opens the model, on rank 0, and has it make what is left."""
    from eval_tasks.runs import backends
    from eval_tasks.runs.run import make_all

    if choice.backend == "native":
        with backends.native_model(choice, ranks) as model:
            assert model is not None
            make_all(asked, left, model, _tell, settings)
        return
    if choice.backend == "openai":
        model = backends.open_server(choice, any(not plan.entry.is_generated for plan in left))
    else:
        model = backends.open_hf(choice) if choice.backend == "hf" else backends.open_vllm(choice)
    make_all(asked, left, model, _tell, settings)


def _follow(choice: ModelChoice, ranks: int) -> None:
    """Has its share of the model, on another rank than 0, until that is done."""
    from eval_tasks.runs.backends import native_model

    with native_model(choice, ranks):
        pass


def _rescore(options: argparse.Namespace) -> None:
    """Scores a results folder anew, or a file of generations."""
    from eval_tasks.runs.offline import score, score_file

    problems = []
    is_file = options.rescore.is_file()
    for name, remedy in (("task", "name the task whose rule is used"), ("output", "give a new folder")):
        if is_file and not getattr(options, name):
            problems.append(Problem(f"--{name}", None, "is not set, and --rescore FILE needs it", remedy))
    for name in ("checkpoint", "tasks", "data", "limit", "k", "overwrite"):
        if getattr(options, name):
            word = "CHECKPOINT" if name == "checkpoint" else f"--{name}"
            problems.append(Problem(word, None, "does not go with --rescore", "leave it out"))
    for name in ("task", "output", "html"):
        if not is_file and getattr(options, name):
            problems.append(Problem(f"--{name}", None, "goes with --rescore FILE", "leave it out"))
    if problems:
        raise ConfigError(problems)
    if is_file:
        score_file(
            options.rescore, options.task, options.output, options.html, options.unsafe_programs, print
        )
    else:
        print(score(options.rescore, options.unsafe_programs, _tell), end="")


def _silence() -> None:
    """Leaves the floor to our own lines: one bar for documents and one a batch say less."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _tell(message: str) -> None:
    print(f"evaluate: {message}", file=sys.stderr, flush=True)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    if options.list_tasks:
        from eval_tasks.runs.catalogue import listing

        print(listing())
    elif options.compare is not None:
        from eval_tasks.runs.offline import compare

        print(compare(*options.compare))
    elif options.rescore is not None:
        _rescore(options)
    else:
        try:
            _evaluate(options)
        except KeyboardInterrupt:
            _tell("stopped; what is saved stays, and the same command goes on from there")
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
