# SPDX-License-Identifier: Apache-2.0
"""Memory and time of conversions, both ways, against copying the same bytes with `cp`.

    python benchmarks/convert_memory.py [--layers 8] [--hidden 4096] [--folder DIR] [--output FILE]

Makes a Llama of random bfloat16 weights in the shape of Code Llama 7B with so many layers (32 are the whole,
13.5 GB), in shards of at most 5 GB. Each conversion is the command of a user in a process of its own; its
memory is the most that was ever resident (ru_maxrss), pages of mapped files included. `cp` copies the folder
before and after each; its time is the mean of the two. All times run until all is on the disk (`sync`).
Writes FILE.json and FILE.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import page
from benchmarks.machine import describe
from megatron.checkpointing import huggingface
from megatron.checkpointing.lazy import LazyTensor, outline

ROOT = Path(__file__).resolve().parents[1]
VOCAB, FFN_RATIO = 32016, 11008 / 4096


def random_tensor(shape: tuple[int, ...]) -> LazyTensor:
    """Random bfloat16 below 2, made when they are written."""

    def read() -> torch.Tensor:
        bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16)
        return bits.bitwise_and_(~0x4000).view(torch.bfloat16)  # the exponent's first bit: all finite

    return LazyTensor(outline(shape, torch.bfloat16), read)


def make_model(folder: Path, layers: int, hidden: int) -> int:
    """Writes the model and a tokenizer of its size; returns the bytes of its weights."""
    ffn = round(hidden * FFN_RATIO)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {prefix + f"self_attn.{x}_proj.weight": (hidden, hidden) for x in "qkvo"}
        shapes |= {prefix + f"mlp.{x}_proj.weight": (ffn, hidden) for x in ("gate", "up")}
        shapes[prefix + "mlp.down_proj.weight"] = (hidden, ffn)
        shapes |= {prefix + f"{x}_layernorm.weight": (hidden,) for x in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (VOCAB, hidden)}
    tensors = {name: random_tensor(shape) for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    huggingface.write_weights(folder, tensors)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 128,
        "intermediate_size": ffn,
        "vocab_size": VOCAB,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return sum(tensor.size_bytes for tensor in tensors.values())


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    words = {"</s>": 0, "<unk>": 1} | {f"w{n}": n for n in range(2, VOCAB)}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


def timed(command: list[str]) -> tuple[float, float, int]:
    """(seconds, CPU seconds, most resident bytes) of a command in a process of its own."""
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    seconds = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def measure(folder: Path, layers: int, hidden: int) -> list[dict[str, Any]]:
    model, neox, back, copy = (folder / name for name in ("model", "neox", "back", "copy"))
    size_bytes = make_model(model, layers, hidden)
    convert = [sys.executable, "tools/convert_checkpoint.py"]

    def cp() -> float:
        seconds, _, _ = timed(["cp", "-r", str(model), str(copy)])
        shutil.rmtree(copy)
        return seconds

    copies = [cp()]
    into = timed([*convert, "hf-to-neox", "--input", str(model), "--output", str(neox)])
    copies.append(cp())
    out = timed([*convert, "neox-to-hf", "--input", str(neox), "--output", str(back)])
    shutil.rmtree(neox)
    copies.append(cp())
    before, after = huggingface.open_tensors(model), huggingface.open_tensors(back)
    assert before.keys() == after.keys()
    for name in before:
        a, b = (side[name].read().view(torch.int16) for side in (before, after))
        assert torch.equal(a, b), name
    rows = []
    for place, (way, (seconds, cpu_seconds, peak)) in enumerate((("hf-to-neox", into), ("neox-to-hf", out))):
        beside = copies[place : place + 2]
        rows.append(
            {
                "way": way,
                "weights_gb": round(size_bytes / 1e9, 2),
                "largest_tensor_mib": round(VOCAB * hidden * 2 / 2**20),
                "peak_mib": round(peak / 2**20),
                "seconds": round(seconds, 1),
                "cpu_seconds": round(cpu_seconds, 1),
                "cp_seconds": [round(value, 1) for value in beside],
                "ratio": round(seconds * 2 / sum(beside), 2),
            }
        )
    return rows


def markdown(content: dict[str, Any]) -> str:
    """The page beside the JSON."""
    rows = content["rows"]
    cells = [
        (
            f"`{row['way']}`", f"{row['peak_mib']:,} MiB", f"{row['seconds']} s", f"{row['cpu_seconds']} s",
            " and ".join(f"{seconds} s" for seconds in row["cp_seconds"]), row["ratio"],
        )
        for row in rows
    ]  # fmt: skip
    return page.text(
        "Converting a model, against copying it",
        content["machine"],
        f"{content['layers']} layers of width {content['hidden']}, random bfloat16: "
        f"{rows[0]['weights_gb']} GB, the largest tensor {rows[0]['largest_tensor_mib']} MiB. `cp` of "
        "the same folder before and after; the ratio is to the mean of the two.",
        ("Way", "Most memory", "Time", "CPU time", "cp", "Ratio to cp"),
        cells,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--folder", type=Path, help="where to write, up to three times the model")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(Path(folder), options.layers, options.hidden)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    content = {
        "machine": describe(),
        "layers": options.layers,
        "hidden": options.hidden,
        "rows": rows,
    }
    if options.output is not None:
        page.write(options.output, content, markdown(content))


if __name__ == "__main__":
    main()
