#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""What is in a checkpoint or a model: format, configuration, tokenizer, layout, each tensor with its norm.

    python tools/inspect_checkpoint.py checkpoints/llemma_7b
    python tools/inspect_checkpoint.py CodeLlama-7b checkpoints/llemma_7b     # how they differ: exit 1

Reads checkpoints of this program, Hugging Face folders, Meta's, GPT-NeoX's and GGUF. Tensors have Hugging
Face's names in all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.errors import exit_on_user_error

if TYPE_CHECKING:
    from megatron.checkpointing.inspection import Comparison, Summary

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in convert_checkpoint.py


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "path", help="a checkpoint, a run's save folder, the URL of either, or a model of others"
    )
    parser.add_argument("other", nargs="?", help="compare the first with this one")
    parser.add_argument("--iteration", type=int, help="take this one of a run instead of the newest")
    parser.add_argument("--quick", action="store_true", help="no norms: read names, shapes and dtypes alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tokenizer", type=Path, help="where the model has none beside it")
    parser.add_argument(
        "--config", type=Path, help="YAML file of a GPT-NeoX checkpoint without configs folder"
    )
    return parser.parse_args(argv)


def _facts_as_text(facts: dict[str, Any], summaries: dict[str, Summary]) -> list[str]:
    model, tokenizer = facts["model"], facts["tokenizer"]
    parameters = sum(math.prod(summary.shape) for summary in summaries.values())
    lines = [
        f"{facts['folder']}",
        f"  format       {facts['format']}",
        f"  model        {model['num_layers']} layers, hidden {model['hidden_size']}, "
        f"{model['num_attention_heads']} heads, {model['num_kv_heads']} KV heads of {model['head_dim']}, "
        f"MLP {model['intermediate_size']}, {model['vocab_size']:,} ids, "
        f"{'own output layer' if model['no_weight_tying'] else 'output tied to the embedding'}",
        f"  rotary base  {model['rotary_emb_base']:,.0f}, scaling {model.get('rotary_scaling') or 'none'}, "
        f"{model['max_position_embeddings']:,} positions",
    ]
    lines += [
        f"               {change['from']:,.0f} → {change['to']:,.0f} at iteration {change['iteration']}"
        for change in facts.get("rotary_history", [])
    ]
    if "iteration" in facts:
        layout = facts["layout"]
        lines += [
            f"  trained      iteration {facts['iteration']:,}, {facts['tokens_seen']:,} tokens, "
            f"{facts['sequences_seen']:,} sequences seen",
            f"  written at   TP {layout['model_parallel_size']}, PP {layout['pipe_parallel_size']}, "
            f"DP {layout['data_parallel_size']}, vocabulary padded to {facts['padded_vocab_size']:,}",
            f"  optimizer    {facts['optimizer_tensors']} tensors, {facts['optimizer_bytes'] / 1e6:,.1f} MB",
        ]
    if tokenizer.get("file"):
        lines.append(
            f"  tokenizer    {tokenizer['type']}, {tokenizer['vocab_size']:,} ids, "
            f"fingerprint {str(tokenizer['fingerprint'])[:12]}, {tokenizer['file']}"
        )
    dtypes = sorted({summary.dtype for summary in summaries.values()})
    lines.append(f"  tensors      {len(summaries)}, {parameters:,} parameters, {', '.join(dtypes)}")
    return lines + [f"  note         {notice}" for notice in facts.get("notices", [])]


def _tensors_as_text(summaries: dict[str, Summary]) -> list[str]:
    width = max(len(name) for name in summaries)
    return [
        f"{name:{width}}  {summary.dtype:8}  {'x'.join(map(str, summary.shape)):>14}"
        + ("" if summary.norm is None else f"  norm {summary.norm:<11.5g} largest {summary.largest:.4g}")
        for name, summary in summaries.items()
    ]


def _comparison_as_text(comparison: Comparison) -> list[str]:
    lines = [f"{key}: {a} | {b}" for key, (a, b) in comparison.configuration.items()]
    lines += [f"only in the first: {name}" for name in comparison.only_first]
    lines += [f"only in the second: {name}" for name in comparison.only_second]
    lines += [f"{name}: shape {a} | {b}" for name, (a, b) in comparison.other_shape.items()]
    lines += [
        f"{name}: differs by at most {gap:.4g}" + (f" ({a} | {b})" if a != b else "")
        for name, (a, b, gap) in comparison.differing.items()
    ]
    verdict = "all tensors are equal" if comparison.tensors_are_equal else "tensors DIFFER"
    return [*lines, f"{comparison.equal} tensors are equal; {verdict}"]


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become texts."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    from megatron.checkpointing.download import local_copy

    with ExitStack() as copies:
        path = copies.enter_context(local_copy(options.path, options.iteration))
        other = None if options.other is None else copies.enter_context(local_copy(options.other))
        _report(options, path, other)


def _report(options: argparse.Namespace, path: Path, other: Path | None) -> None:
    from dataclasses import asdict

    from megatron.checkpointing.inspection import compare, open_any, summary_of
    from megatron.checkpointing.sources import Hints

    hints = Hints(config=options.config, tokenizer=options.tokenizer)
    opened = open_any(path, options.iteration, hints)
    if other is not None:
        comparison = compare(opened, open_any(other, None, hints))
        if options.json:
            print(json.dumps(_finite(comparison.to_json()), indent=1))
        else:
            print("\n".join(_comparison_as_text(comparison)))
        raise SystemExit(0 if comparison.tensors_are_equal else 1)
    summaries = {name: summary_of(tensor, not options.quick) for name, tensor in opened.tensors.items()}
    if options.json:
        described = {name: asdict(summary) for name, summary in summaries.items()}
        print(json.dumps(_finite({**opened.facts, "tensors": described}), indent=1))
        return
    print("\n".join([*_facts_as_text(opened.facts, summaries), "", *_tensors_as_text(summaries)]))


if __name__ == "__main__":
    main()
