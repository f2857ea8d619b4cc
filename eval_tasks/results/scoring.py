# SPDX-License-Identifier: Apache-2.0
"""All that a results folder has beside its samples, made from them: verdicts, votes, tables, plots."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from eval_tasks.answers.rules import AnswerRule
from eval_tasks.answers.verdicts import judged, vote
from eval_tasks.answers.votes import Ballot, ballots
from eval_tasks.answers.workers import Graders
from eval_tasks.measures.intervals import Estimate
from eval_tasks.results import measured
from eval_tasks.results.json_lines import encoded_line
from eval_tasks.results.measured import ItemVerdicts, Unfinished
from eval_tasks.results.published import differences
from eval_tasks.results.samples import (
    Sample,
    Verdict,
    iterate_samples,
    natural_order,
    samples_file,
    tasks_in,
    verdicts_file,
    votes_file,
    write_records,
)
from eval_tasks.results.tables import value_words, write_markdown
from eval_tasks.results.task_table import Task, task_named
from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole

Tell = Callable[[str], None]
# (name of a program rule, samples) → verdicts, in the order of the samples.
ProgramJudge = Callable[[str, Iterable[Sample]], Iterator[Verdict]]
RUN_FILE = "run.json"  # evaluate.py's record of what a folder was made with
_AT_ONCE = 512  # items whose votes are counted together


def disagreements_file(folder: Path, task: str) -> Path:
    """Where the samples lie on which the two graders disagree."""
    return folder / f"disagreements_{task}.jsonl"


def score_folder(
    folder: Path,
    *,
    judge_programs: ProgramJudge | None = None,
    graders: Graders | None = None,
    tell: Tell = print,
    left_out: Container[str] = (),
) -> dict[str, Any]:
    """Makes verdicts, votes, measures, tables and plots anew from the samples of a results folder.

    Args:
        folder: with `samples_<task>.jsonl`, and `run.json` where evaluate.py made it.
        judge_programs: runs model-written programs, for tasks that have some.
        graders: a pool that is open already (default: one of its own, with a process for each processor).
        tell: says in one line each what was measured.
        left_out: tasks that another program judges.

    Returns:
        what `results.json` holds.

    A task that is not finished is named, and keeps no other from its results; what it has is measured where
    that is possible, and called unfinished.

    Raises:
        UserError: there are no samples, they are broken, no task has any that can be measured, or a task is
            not known.
    """
    tasks = {name: task_named(name) for name in tasks_in(folder) if name not in left_out}
    if not tasks:
        raise UserError(f"{folder}: holds no samples_<task>.jsonl; give a folder that evaluate.py made")
    run = _run_of(folder)
    content: dict[str, Any] = {"tasks": {}, "model": run.get("model"), "settings": run.get("tasks")}
    unmeasured: list[Unfinished] = []
    with ExitStack() as stack:
        if graders is None and any(task.rule is not None for task in tasks.values()):
            graders = stack.enter_context(Graders())
        for name, task in tasks.items():
            before = Counter() if graders is None else Counter(graders.failures)
            try:
                fields = _score_task(folder, name, task, _settings_of(run, name), graders, judge_programs)
            except Unfinished as lack:
                unmeasured.append(lack)
                continue
            if graders is not None:
                fields["questions_without_answer"] = dict(graders.failures - before)
            content["tasks"][name] = fields
            tell(_summary(name, fields))
    if not content["tasks"]:
        raise unmeasured[0]
    for each in unmeasured:
        tell(f"not measured: {each}")
    _write(folder / "results.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_markdown(folder / "results.md", content)
    from eval_tasks.results.plots import draw_results  # matplotlib takes a second

    draw_results(content, folder)
    return content


def _run_of(folder: Path) -> dict[str, Any]:
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    try:
        run = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); repair or remove it") from None
    return run if isinstance(run, dict) else {}


def _settings_of(run: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What decided the samples of a task, with what the model's precision was and where the problems are
    from."""
    settings = (run.get("tasks") or {}).get(name)
    if settings is None:
        return None
    model, told = run.get("model") or {}, run.get("told") or {}
    return {
        **settings,
        "precision": model.get("dtype") or told.get("precision"),
        "local_data": (told.get("data") or {}).get(name),
    }


def _score_task(
    folder: Path,
    name: str,
    task: Task,
    settings: Mapping[str, Any] | None,
    graders: Graders | None,
    judge_programs: ProgramJudge | None,
) -> dict[str, Any]:
    """Writes the task's verdicts and votes; returns its part of results.json."""
    path = samples_file(folder, name)
    about: dict[str, tuple[int | None, str | None]] = {}
    samples = _noting(iterate_samples(path, name), about)
    if task.is_likelihood:
        found = sorted(samples, key=lambda sample: natural_order(sample.item))
        _need(found, path)
        return _fields(task, len(found), 1, measured.likelihood_metrics(found), settings)
    items = measured.grouped(_judged(name, task, samples, graders, judge_programs), about)
    _need(items, path)
    count = measured.samples_an_item(items, name)
    write_records(verdicts_file(folder, name), (each for item in items for each in item.verdicts))
    metrics = measured.answer_metrics(items, task.rule is not None and task.rule.math_verify)
    if count > 1 and task.rule is not None:
        metrics |= _vote(folder, name, task.rule, items, graders)
    else:
        votes_file(folder, name).unlink(missing_ok=True)
        metrics |= measured.pass_metrics(items) if count > 1 else {}
    differing = _write_disagreements(folder, name, items)
    fields = _fields(task, len(items), count, metrics, settings)
    return fields | {"grader_disagreements": differing} | measured.by_group(items)


def _need(found: list[Any], path: Path) -> None:
    if not found:
        raise Unfinished(f"{path}: holds no sample; finish the run with the command that began it")


def _noting(samples: Iterable[Sample], about: dict[str, tuple[int | None, str | None]]) -> Iterator[Sample]:
    for sample in samples:
        about[sample.item] = (sample.level, sample.subject)
        yield sample


def _judged(
    name: str,
    task: Task,
    samples: Iterable[Sample],
    graders: Graders | None,
    judge_programs: ProgramJudge | None,
) -> Iterator[Verdict]:
    if task.rule is not None:
        assert graders is not None
        return judged(samples, task.rule, graders)
    assert task.program is not None
    if judge_programs is None:
        raise UserError(
            f"task={name}: its answers are programs, which only evaluate.py runs; score it with that"
        )
    return judge_programs(task.program, samples)


def _vote(
    folder: Path, name: str, rule: AnswerRule, items: list[ItemVerdicts], graders: Graders | None
) -> dict[str, Estimate]:
    found: list[Ballot] = []
    for start in range(0, len(items), _AT_ONCE):
        some = items[start : start + _AT_ONCE]
        found += ballots(rule, [[each.answer for each in item.verdicts] for item in some], graders)
    votes = [
        vote(item.item, ballot, [each.correct for each in item.verdicts])
        for item, ballot in zip(items, found, strict=True)
    ]
    write_records(votes_file(folder, name), votes)
    return measured.vote_metrics(items, found, votes)


def _fields(
    task: Task,
    items: int,
    samples: int,
    metrics: Mapping[str, Estimate],
    settings: Mapping[str, Any] | None,
) -> dict[str, Any]:
    reasons = [] if task.caveat is None else [task.caveat]
    if task.figures is None:
        comparable: bool | str = "nothing was published"
    else:
        reasons += differences(task.figures, task.items, items, samples, settings)
        comparable = "; ".join(reasons) or True
    unfinished = _unfinished(items, samples, settings)
    if unfinished is not None:
        comparable = f"{unfinished}; {comparable}" if isinstance(comparable, str) else unfinished
    return {
        "title": task.title,
        "items": items,
        "samples_per_item": samples,
        "unfinished": unfinished,
        "metrics": {name: estimate.as_fields() for name, estimate in metrics.items()},
        "published": None if task.figures is None else task.figures.as_fields(),
        "comparable": comparable,
    }


def _unfinished(items: int, samples: int, settings: Mapping[str, Any] | None) -> str | None:
    """`3 of 8: unfinished`, of items or else of samples of each; None where all are there or nobody knows."""
    wanted_items, wanted_samples = ((settings or {}).get(name) for name in ("items", "k"))
    if isinstance(wanted_items, int) and items < wanted_items:
        return f"{items:,} of {wanted_items:,}: unfinished"
    if isinstance(wanted_samples, int) and samples < wanted_samples:
        return f"{samples:,} of {wanted_samples:,} samples an item: unfinished"
    return None


def _write_disagreements(folder: Path, name: str, items: Iterable[ItemVerdicts]) -> int:
    """Writes one line a sample on which the task's rule and math-verify disagree; returns how many."""
    lines = [
        encoded_line({**verdict.as_fields(), "program": None})
        for item in items
        for verdict in item.verdicts
        if verdict.math_verify is not None and verdict.math_verify != verdict.correct
    ]
    _write(disagreements_file(folder, name), b"".join(lines))
    return len(lines)


def _write(path: Path, content: str | bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make room or choose another folder with --output"
        ) from None


def _summary(name: str, fields: Mapping[str, Any]) -> str:
    shown = [metric for metric in fields["metrics"] if not metric.startswith(("pass@", "answered"))]
    if fields["samples_per_item"] > 1:
        shown = ["accuracy", f"maj@{fields['samples_per_item']}"]
    values = [
        f"{metric} {value_words(metric, fields['metrics'][metric])}"
        for metric in shown
        if metric in fields["metrics"]
    ]
    whole = f" ({fields['unfinished']})" if fields["unfinished"] else ""
    return f"{name}: {fields['items']:,} items x {fields['samples_per_item']}{whole}: {', '.join(values)}"
