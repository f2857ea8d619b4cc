# SPDX-License-Identifier: Apache-2.0
"""The names a recipe is written with: documents and steps, shards of input, stages, their outputs and
reports."""

from tools.proof_pile_2.documents import Broken, Document, Dropped, Meta, Step, version_of
from tools.proof_pile_2.keys import (
    ROW,
    DroppedLists,
    KeyMaker,
    LaterDocuments,
    Resolver,
    Rows,
    find_dropped,
    group_starts,
)
from tools.proof_pile_2.outputs import finished_names, stage_shards
from tools.proof_pile_2.reports import Report
from tools.proof_pile_2.run import Omissions, OneRoute, Router, Stage, make_shard, run_stage
from tools.proof_pile_2.shards import (
    JsonLinesShard,
    Limits,
    ParquetShard,
    ReadOptions,
    Shard,
    plan_shards,
)

__all__ = [
    "ROW",
    "Broken",
    "Document",
    "Dropped",
    "DroppedLists",
    "JsonLinesShard",
    "KeyMaker",
    "LaterDocuments",
    "Limits",
    "Meta",
    "Omissions",
    "OneRoute",
    "ParquetShard",
    "ReadOptions",
    "Report",
    "Resolver",
    "Router",
    "Rows",
    "Shard",
    "Stage",
    "Step",
    "find_dropped",
    "finished_names",
    "group_starts",
    "make_shard",
    "plan_shards",
    "run_stage",
    "stage_shards",
    "version_of",
]
