#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in and out: hf-to-neox makes one of a model in any known format, neox-to-hf the way back.

Formats that hf-to-neox tells by their files: Hugging Face (safetensors, or .bin), Meta (consolidated.NN.pth
and params.json), GPT-NeoX and its Llemma branch (layer_NN-model_MM or mp_rank_MM files), GGUF. Models: Llama
1 to 3.2, Code Llama, Mistral without a sliding window, Qwen 2, 2.5 and 3, and OLMo 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron.neox_arguments.errors import UserError, exit_on_user_error

# torch's large pages, read when it is imported: most of a conversion's own time is fresh memory.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    to_neox = commands.add_parser(
        "hf-to-neox",
        help="a model of any of these formats becomes a checkpoint and a model.yml",
    )
    to_neox.add_argument(
        "--input", type=Path, required=True, help="the model's folder as downloaded, or a .gguf file"
    )
    to_neox.add_argument(
        "--output", type=Path, required=True, help="new folder for global_step0 and model.yml"
    )
    to_neox.add_argument(
        "--tp", type=int, default=1, help="model_parallel_size for model.yml; the checkpoint loads at any"
    )
    to_neox.add_argument(
        "--tokenizer",
        type=Path,
        help="tokenizer.json or tokenizer.model, where the model has none beside it",
    )
    to_neox.add_argument(
        "--config",
        type=Path,
        help="the run's YAML file, where a GPT-NeoX checkpoint has no configs folder",
    )
    to_hf = commands.add_parser("neox-to-hf", help="a checkpoint becomes a Hugging Face folder")
    to_hf.add_argument(
        "--input", required=True, help="a run's save folder, or one global_stepN folder, or the URL of either"
    )
    to_hf.add_argument("--output", type=Path, required=True, help="new folder")
    to_hf.add_argument("--iteration", type=int, help="take this one instead of the newest")
    to_hf.add_argument(
        "--verify",
        action="store_true",
        help="compare the logits of both sides on real text; exit 1 if they differ",
    )
    return parser.parse_args(argv)


def _import(options: argparse.Namespace) -> None:
    from megatron.checkpointing.convert import hf_to_neox
    from megatron.checkpointing.sources import Hints
    from megatron.neox_arguments.config import ModelConfig

    if options.tp < 1:
        raise UserError(f"--tp={options.tp}: must be at least 1")
    hints = Hints(config=options.config, tokenizer=options.tokenizer)
    record, source = hf_to_neox(options.input, options.output, options.tp, hints)
    model = ModelConfig(**record.model)
    for notice in source.notices:
        print(f"note: {notice}")
    print(
        f"{options.output}: from {source.format}: {model.num_layers} layers, hidden {model.hidden_size}, "
        f"{model.num_attention_heads} heads, {model.num_kv_heads} KV heads, {record.vocab_size} ids, "
        f"{record.dtype}, rotary base {record.rotary_base:,.0f}\n"
        f"next: python deepy.py train.py {options.output / 'model.yml'} your_run.yml"
    )


def _export(options: argparse.Namespace) -> None:
    from megatron.checkpointing.convert import neox_to_hf
    from megatron.checkpointing.download import local_copy

    # What a URL names is here no longer than it is needed.
    with local_copy(options.input, options.iteration) as source:
        folder = neox_to_hf(source, options.output, options.iteration)
        print(f"{options.output}: from {folder if source == Path(options.input) else options.input}")
        if options.verify:
            from megatron.checkpointing.verify import compare_logits

            comparison = compare_logits(folder, options.output)
            print(comparison.describe())
            if not comparison.is_equal:
                raise SystemExit(1)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = _arguments(argv)
    (_import if options.command == "hf-to-neox" else _export)(options)


if __name__ == "__main__":
    main()
