# SPDX-License-Identifier: Apache-2.0
"""AlgebraicStack from its sources: rules and leakage, deduplication, splits.

`OUTPUT/work/LANGUAGE/rules` holds what passed the rules, `OUTPUT/work/LANGUAGE/chunks` what duplicates
share, and `OUTPUT/algebraic-stack/{train,validation,test}` the corpus, over all languages."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron.neox_arguments.errors import UserError
from megatron.neox_arguments.whole_files import write_whole
from tools.proof_pile_2 import outputs
from tools.proof_pile_2.algebraic_stack import github
from tools.proof_pile_2.algebraic_stack.languages import GITHUB, LANGUAGES, Language
from tools.proof_pile_2.algebraic_stack.leakage import CutTheorems, Theorem
from tools.proof_pile_2.algebraic_stack.notebooks import NotebookToMarkdown
from tools.proof_pile_2.algebraic_stack.steps import Chunks, HashSplit, LanguageRules
from tools.proof_pile_2.documents import Step
from tools.proof_pile_2.keys import DroppedLists, LaterDocuments, find_dropped
from tools.proof_pile_2.places import Place, listing
from tools.proof_pile_2.reports import Report, markdown, write_json
from tools.proof_pile_2.run import Omissions, Stage, run_stage
from tools.proof_pile_2.shards import Limits, ReadOptions, Shard, plan_shards

DUPLICATES = "duplicates: shares a chunk with an earlier document"
# Which test sets are cut out of which language.
LEAKAGE = {"lean": ("leandojo", "minif2f", "proofnet"), "isabelle": ("pisa", "minif2f"), "coq": ("minif2f",)}


@dataclass(frozen=True)
class Sources:
    """Where a language's files come from; each may be empty."""

    stack: tuple[Place, ...] = ()
    """Parquet or JSON lines with the text in `content`."""
    records: tuple[Place, ...] = ()
    """JSON lines or Parquet with the text in `text`."""
    files: tuple[Path, ...] = ()
    """Folders of source files."""
    repositories: tuple[str, ...] = ()
    """Clone URLs."""

    def __bool__(self) -> bool:
        return bool(self.stack or self.records or self.files or self.repositories)


@dataclass(frozen=True)
class Recipe:
    """All that decides what AlgebraicStack holds."""

    output: Path
    sources: dict[str, Sources]
    """By language."""
    theorems: dict[str, tuple[Theorem, ...]] = field(default_factory=dict)
    """By test set: pisa, leandojo, minif2f, proofnet."""
    deduplicate: str = "github"
    """Which languages: "github", as the released recipe, "all" or "none"."""
    seed: int = 0
    validation: float = 0.005
    test: float = 0.005
    before: str = github.BEFORE
    max_repository_bytes: int = github.MAX_REPOSITORY_BYTES
    limits: Limits = field(default_factory=Limits)

    def languages(self) -> list[Language]:
        """Those that have a source, in the order of the table."""
        return [language for language in LANGUAGES if self.sources.get(language.name)]

    def steps(self, language: Language) -> tuple[Step, ...]:
        """What a file of a language goes through before it is compared with others."""
        steps: list[Step] = [LanguageRules(language)]
        sets = LEAKAGE.get(language.name, ())
        theorems = tuple(theorem for name in sets for theorem in self.theorems.get(name, ()))
        if theorems:
            steps.append(CutTheorems(language.name, theorems))
        if language.name == "jupyter":
            steps.append(NotebookToMarkdown())
        return tuple(steps)

    def plan(self, language: Language) -> Iterator[Shard]:
        """The input of a language."""
        sources, name = self.sources[language.name], language.name
        meta = (("lang", name),)
        stack = ReadOptions(text_key="content", meta=meta, limits=self.limits)
        yield from plan_shards(sources.stack, stack, f"{name}-stack-")
        records = ReadOptions(meta=meta, limits=self.limits)
        yield from plan_shards(sources.records, records, f"{name}-records-")
        files = ReadOptions(suffixes=language.suffixes, as_files=True, meta=meta, limits=self.limits)
        yield from plan_shards(sources.files, files, f"{name}-files-")
        yield from github.plan_repositories(
            sources.repositories,
            language.suffixes,
            ReadOptions(meta=meta, limits=self.limits),
            f"{name}-git-",
            self.before,
            self.max_repository_bytes,
        )


def stack_folder(stack: Place, language: Language) -> Place:
    """The folder of a language in the Stack's layout, `data/LANGUAGE`, or below `stack` itself.

    Errors: `UserError` where there is none."""
    names = language.stack_names or (language.name,)
    tried = [f"{parent}{name}" for parent in ("data/", "") for name in names]
    for place in tried:
        if isinstance(stack, Path):
            if (stack / place).is_dir():
                return stack / place
        elif next(listing(f"{stack.rstrip('/')}/{place}"), None) is not None:
            return f"{stack.rstrip('/')}/{place}"
    raise UserError(
        f"--stack {stack}: has no folder for {language.name} (looked for {', '.join(tried)}); leave the "
        "language out "
        "with --languages, or name its folder with --records or --files"
    )


@dataclass(frozen=True)
class _OfLanguage:
    """A language's list of duplicates, for its own shards only."""

    language: str
    lists: DroppedLists
    rule: str = DUPLICATES

    def identity(self, shard: str) -> object:
        """That of the list."""
        return self.lists.identity(shard) if self._is_mine(shard) else None

    def of(self, shard: str) -> frozenset[int]:
        """The numbers for one shard."""
        return self.lists.of(shard) if self._is_mine(shard) else frozenset()

    def _is_mine(self, shard: str) -> bool:
        return shard.split("-")[0] == self.language


def make(recipe: Recipe, *, workers: int, overwrite: bool, log_interval_seconds: float) -> Report:
    """Make the corpus, or what is not finished of it; returns and writes the report over all stages.

    Errors: `UserError`, as `run_stage` raises it."""
    duplicates: list[Omissions] = []
    filtered = Report()
    passed: list[Callable[[], Iterable[Shard]]] = []
    for language in recipe.languages():
        folder = recipe.output / "work" / language.name
        stage = Stage(f"AlgebraicStack, {language.name}", recipe.steps(language))
        plan = functools.partial(recipe.plan, language)
        report = run_stage(
            stage, plan, folder / "rules", workers=workers, overwrite=overwrite,
            log_interval_seconds=log_interval_seconds,
        )  # fmt: skip
        filtered.add(report)
        passed.append(_Passed(folder / "rules", tuple(shard.name for shard in plan())))
        if recipe.deduplicate == "all" or (recipe.deduplicate == "github" and language.origin == GITHUB):
            lists = find_dropped(
                Chunks(), LaterDocuments(), passed[-1], folder / "chunks", DUPLICATES, workers=workers,
                log_interval_seconds=log_interval_seconds,
            )  # fmt: skip
            duplicates.append(_OfLanguage(language.name, lists))
    split = HashSplit(recipe.seed, recipe.validation, recipe.test)
    options = {"seed": recipe.seed, "validation": recipe.validation, "test": recipe.test}
    final = Stage("AlgebraicStack", (), options, split, tuple(duplicates))
    report = run_stage(
        final,
        lambda: (shard for of_language in passed for shard in of_language()),
        recipe.output / "algebraic-stack",
        workers=workers,
        overwrite=overwrite,
        log_interval_seconds=log_interval_seconds,
    )
    return _write_whole(recipe.output, filtered, report)


@dataclass(frozen=True)
class _Passed:
    """What passed a language's rules, as shards."""

    folder: Path
    names: tuple[str, ...]

    def __call__(self) -> Iterator[Shard]:
        yield from outputs.stage_shards(self.folder, "documents", self.names)


def _write_whole(output: Path, filtered: Report, final: Report) -> Report:
    """One report from the sources to the splits."""
    whole = Report()
    whole.add(filtered)
    whole.written, whole.examples = (
        {},
        {k: v for k, v in whole.examples.items() if not k.startswith("kept: ")},
    )
    whole.add(
        Report(dropped=final.dropped, written=final.written, examples=final.examples, broken=final.broken)
    )
    write_json(output / "report.json", whole.as_json())
    steps = ["rules", "leakage", "notebook to Markdown"]
    write_whole(output / "report.md", markdown("AlgebraicStack", whole, steps).encode())
    return whole
