# SPDX-License-Identifier: Apache-2.0
"""The recipes' stages and steps under datatrove's executors: local processes, SLURM arrays and Ray.

`StageBlock` is a whole stage: each task makes the shards that are its share, with the same bytes as
`run_stage`. When all tasks are done, `run_stage` with the same arguments finds every shard finished and
writes the report:

    executor = SlurmPipelineExecutor([StageBlock(stage, plan, folder)], tasks=100, …)

`StepBlock` is a single step between datatrove's own readers, filters and writers, and `ShardReader` reads
our shards for them. datatrove is optional: requirements/requirements-data.txt has it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document as DatatroveDocument
from datatrove.pipeline.base import PipelineStep

from tools.proof_pile_2 import outputs
from tools.proof_pile_2.documents import Broken, Document, Dropped, Step
from tools.proof_pile_2.run import Stage, enter, make_shard
from tools.proof_pile_2.shards import Shard


class StageBlock(PipelineStep):
    """A stage: task `rank` of `world_size` makes every shard whose number has this remainder. What is
    finished is kept, as with `run_stage`; a folder of another stage is refused."""

    name = "stage"
    type = "proof_pile_2"

    def __init__(self, stage: Stage, plan: Callable[[], Iterable[Shard]], folder: Path) -> None:
        super().__init__()
        self.stage, self.plan, self.folder = stage, plan, folder

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[DatatroveDocument]:
        """Make this task's shards; nothing is handed on."""
        enter(self.stage, self.folder)
        for shard in itertools.islice(self.plan(), rank, None, world_size):
            fingerprint = self.stage.fingerprint(shard)
            report = outputs.finished_report(self.folder, shard.name, fingerprint)
            if report is None:
                report = make_shard(self.stage, shard, self.folder, fingerprint)
                self.stat_update("shards made")
            else:
                self.stat_update("shards kept")
            self.stat_update("documents in", value=report.total("read").documents, unit="shard")
            self.stat_update("documents out", value=report.total("written").documents, unit="shard")
        yield from ()


class ShardReader(PipelineStep):
    """Our shards as a reader; what is broken is counted."""

    name = "shards"
    type = "proof_pile_2"

    def __init__(self, plan: Callable[[], Iterable[Shard]]) -> None:
        super().__init__()
        self.plan = plan

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[DatatroveDocument]:
        """The documents of this task's shards, after those that are handed in."""
        yield from data or ()
        for shard in itertools.islice(self.plan(), rank, None, world_size):
            for number, item in enumerate(shard.read()):
                if isinstance(item, Broken):
                    self.stat_update("broken")
                else:
                    self.stat_update("documents")
                    yield DatatroveDocument(item.text, f"{shard.name}/{number}", metadata=dict(item.meta))


class StepBlock(PipelineStep):
    """One step; dropped documents are counted by their rules."""

    type = "proof_pile_2"

    def __init__(self, step: Step) -> None:
        self.name = step.name
        super().__init__()
        self.step = step

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[DatatroveDocument]:
        """The documents that the step passes on; pieces of one document are numbered."""
        for given in data or ():
            with self.track_time():
                outcome = self.step(Document(given.text, dict(given.metadata)))
                whole = isinstance(outcome, (Document, Dropped))
                results = [outcome] if isinstance(outcome, (Document, Dropped)) else list(outcome)
            for number, result in enumerate(results):
                if isinstance(result, Dropped):
                    self.stat_update(f"dropped: {result.rule}")
                else:
                    self.stat_update("passed on")
                    name = given.id if whole else f"{given.id}.{number}"
                    yield DatatroveDocument(result.text, name, given.media, dict(result.meta))
