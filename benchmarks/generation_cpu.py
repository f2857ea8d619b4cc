#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Speed of generation on the CPU, against transformers' `generate`: the sides in turn, the same weights.

    python benchmarks/generation_cpu.py [--rounds 5] [--output FILE]

The shape of SmolLM2-135M with random weights, as a Hugging Face folder and as a checkpoint made of it. Each
side reads the same prompts, of 64 tokens down to half as many, and writes as many tokens, greedily;
the ids are compared too. transformers runs with its default cache, with its static one, and, with --compile,
with the static one and a compiled forward pass. A figure is new tokens a second, reading the prompt included,
from the median round, by the clock and by CPU time; the latter says something on a busy machine too, with
OMP_NUM_THREADS=1 (waiting threads spin). All sides are in one process, and take turns. Writes FILE.json and
FILE.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import page
from benchmarks.machine import describe

if TYPE_CHECKING:
    from megatron.backend import Backend

SHAPE: dict[str, Any] = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}

# prompts -> the ids that follow each
Generate = Callable[[list[list[int]]], list[list[int]]]


def native(checkpoint: Path, backend: Backend, dtype: str, new_tokens: int) -> Generate:
    """This engine."""
    from megatron.checkpointing.inference import open_model
    from megatron.text_generation import ModelSession, Request

    opened = open_model(checkpoint, backend, dtype=dtype)
    session = ModelSession(opened.built, opened.backend)

    def generate(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts)) + new_tokens
        session.open_engine(max_batch_sequences=len(prompts), max_cache_tokens=len(prompts) * longest)
        texts: dict[int, list[int]] = {session.add(Request(prompt, new_tokens)): [] for prompt in prompts}
        while not session.idle:
            for token in session.step():
                texts[token.request].append(token.token_id)
        return list(texts.values())

    return generate


def transformers_side(hf: Path, dtype: str, new_tokens: int, cache: str) -> Generate:
    """transformers; `cache` is "default", "static" or "compiled"."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=getattr(torch, dtype))
    if cache == "compiled":
        model.forward = torch.compile(model.forward, dynamic=False)
    keys = {} if cache == "default" else {"cache_implementation": "static"}

    @torch.no_grad()
    def generate(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        ids = model.generate(
            padded, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None,
            pad_token_id=0, **keys,
        )  # fmt: skip
        return [row[longest:].tolist() for row in ids]

    return generate


def make_models(folder: Path) -> None:
    """`hf` and `neox`: one model, twice."""
    from megatron.checkpointing.convert import hf_to_neox
    from tests.llamas import save_hf_llama

    save_hf_llama(folder / "hf", **SHAPE)
    hf_to_neox(folder / "hf", folder / "neox", 1)


def make_prompts(batch: int, tokens: int, is_ragged: bool) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = [tokens - (tokens // 2 * place // batch if is_ragged else 0) for place in range(batch)]
    return [
        torch.randint(2, SHAPE["vocab_size"], (length,), generator=generator).tolist() for length in lengths
    ]


def measure(sides: dict[str, Generate], prompts: list[list[int]], rounds: int) -> dict[str, Any]:
    """Tokens a second of each side, by the clock and by CPU time, and whether the ids are the same."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}
    texts: dict[str, list[list[int]]] = {}
    for turn in range(rounds + 1):
        for name in sides if turn % 2 == 0 else reversed(sides):
            started, started_cpu = time.perf_counter(), time.process_time()
            texts[name] = sides[name](prompts)
            if turn:  # the first warms up, and compiles
                seconds[name].append(time.perf_counter() - started)
                cpu_seconds[name].append(time.process_time() - started_cpu)
    count = sum(map(len, texts["native"]))
    rates, cpu_rates = (
        {name: count / statistics.median(times) for name, times in each.items()}
        for each in (seconds, cpu_seconds)
    )
    same = sum(a == b for a, b in zip(texts["native"], texts["default"], strict=True))
    return {
        "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "tokens_per_cpu_second": {name: round(rate, 1) for name, rate in cpu_rates.items()},
        "ratio": round(_ratio(rates), 2),
        "ratio_of_cpu_time": round(_ratio(cpu_rates), 2),
        "equal_texts": f"{same} of {len(prompts)}",
    }


def _ratio(rates: dict[str, float]) -> float:
    """Native to the best of the others."""
    return rates["native"] / max(rate for name, rate in rates.items() if name != "native")


def markdown(content: dict[str, Any]) -> str:
    """The page beside the JSON."""
    sides = list(content["rows"][0]["tokens_per_second"])
    cells = [
        (
            row["dtype"], row["batch"], *(row["tokens_per_second"][side] for side in sides), row["ratio"],
            row["ratio_of_cpu_time"], row["equal_texts"],
        )
        for row in content["rows"]
    ]  # fmt: skip
    names = {"native": "native, tokens/s"} | {side: f"transformers, {side} cache" for side in sides[1:]}
    head = ["dtype", "Prompts", *names.values(), "Ratio to the best", "by CPU time", "Equal texts"]
    return page.text(
        "Generation on a CPU: SmolLM2-135M's shape",
        content["machine"],
        f"Prompts of {content['prompt_tokens'] // 2} to {content['prompt_tokens']} tokens, "
        f"{content['new_tokens']} new ones each, greedy; the median of {content['rounds']} rounds after "
        "one that is dropped. Random weights: texts part where two ids are equally likely to rounding.",
        head,
        cells,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="also a compiled transformers (minutes)")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    import transformers

    from megatron.backend import initialize  # large pages, for both sides
    from megatron.neox_arguments.config import ParallelConfig

    backend = initialize(ParallelConfig(), seed=0)
    transformers.logging.set_verbosity_error()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        for dtype in options.dtypes:
            sides = {"native": native(folder / "neox", backend, dtype, options.new_tokens)}
            for cache in ("default", "static", *(["compiled"] if options.compile else [])):
                sides[cache] = transformers_side(folder / "hf", dtype, options.new_tokens, cache)
            for batch in options.batches:
                prompts = make_prompts(batch, options.prompt_tokens, is_ragged=True)
                row = {"dtype": dtype, "batch": batch, **measure(sides, prompts, options.rounds)}
                rows.append(row)
                print(json.dumps(row), flush=True)
    content = {
        "machine": describe(),
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "rows": rows,
    }
    if options.output is not None:
        page.write(options.output, content, markdown(content))


if __name__ == "__main__":
    main()
