# SPDX-License-Identifier: Apache-2.0
"""The names a recipe is written with: documents and steps, shards of input, stages, their outputs and
reports."""

from tools.proof_pile_2.documents import Broken, Document, Dropped, Meta, Step, version_of
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
    "Broken",
    "Document",
    "Dropped",
    "JsonLinesShard",
    "Limits",
    "Meta",
    "Omissions",
    "OneRoute",
    "ParquetShard",
    "ReadOptions",
    "Report",
    "Router",
    "Shard",
    "Stage",
    "Step",
    "make_shard",
    "plan_shards",
    "run_stage",
    "version_of",
]
