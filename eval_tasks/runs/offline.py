# SPDX-License-Identifier: Apache-2.0
"""What evaluate.py does without a model: scores a results folder, or a file of generations, or compares two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from eval_tasks.runs.catalogue import catalogue
from eval_tasks.results.samples import Sample, Verdict, tasks_in
from megatron.neox_arguments.errors import UserError

Tell = Callable[[str], None]


def program_judge(is_unsafe: bool) -> Callable[[str, Iterable[Sample]], Iterator[Verdict]]:
    """Runs model-written programs in a sandbox, which is opened when the first of them comes."""

    def judge(rule: str, samples: Iterable[Sample]) -> Iterator[Verdict]:
        from eval_tasks.programs.sandbox import open_sandbox
        from eval_tasks.programs.verdicts import RULES, verdicts

        return verdicts(open_sandbox(unsafe=is_unsafe), RULES[rule], samples)

    return judge


def program_warning(tasks: Iterable[str], is_unsafe: bool) -> str | None:
    """What is to be said before samples of programs are made where programs cannot be run."""
    from eval_tasks.programs.sandbox import open_sandbox
    from eval_tasks.results.task_table import TASKS

    if is_unsafe or not any(name in TASKS and TASKS[name].program for name in tasks):
        return None
    try:
        open_sandbox()
    except UserError as error:
        return f"warning: samples will be made and kept, but not scored here: {error}"
    return None


def score(folder: Path, is_unsafe: bool, tell: Tell) -> str:
    """Makes verdicts, votes, measures, tables and plots of a results folder; returns its results.md.

    Raises:
        UserError: there are no samples, or they are broken or incomplete.
    """
    from eval_tasks.results.scoring import score_folder

    if not folder.is_dir():
        raise UserError(f"--rescore={folder}: no such file or folder; give a results folder or a JSONL file")
    proofs = {name for name in tasks_in(folder) if name in catalogue() and catalogue()[name].is_proof}
    for name in sorted(proofs):
        tell(f"{name}: its proofs are checked by tools/prove.py whole")
    if proofs and proofs == set(tasks_in(folder)):
        return ""
    score_folder(folder, judge_programs=program_judge(is_unsafe), tell=tell, left_out=proofs)
    return (folder / "results.md").read_text(encoding="utf-8")


def score_file(path: Path, task: str, output: Path, undo_html: bool, is_unsafe: bool, tell: Tell) -> None:
    """Makes a results folder of anyone's generations, and says how far the file's own verdicts agree."""
    from eval_tasks.rescore import rescore

    rescore(path, task, output, undo_html, judge_programs=program_judge(is_unsafe), tell=tell)


def compare(first: Path, second: Path) -> str:
    """Two results folders as a table.

    Raises:
        UserError: a folder has no samples, or they share none.
    """
    from eval_tasks.results.compare import compare_folders, comparison_markdown

    for folder in (first, second):
        if not folder.is_dir() or not tasks_in(folder):
            raise UserError(f"--compare: {folder} holds no samples; give two folders that evaluate.py made")
    return comparison_markdown(first, second, compare_folders(first, second))
