# SPDX-License-Identifier: Apache-2.0
"""The figures of a run as a table in Markdown, and as the calibration that `deepy.py --plan` reads."""

from __future__ import annotations

from typing import Any

from benchmarks import page
from benchmarks.training_sides.shapes import SHAPES
from benchmarks.training_sides.sides import SIDES

FORMULA = (
    "MFU = FLOPs per token x tokens/s / peak; FLOPs per token = 6 N + 12 L d s (N without the input "
    "embedding), in brackets 6 N + 6 L d s, causal attention at half. Recomputed work is not counted. "
    "A speed is from the median step."
)


def fill(row: dict[str, Any], peak_tflops: float | None) -> None:
    """Adds what follows from a row's times."""
    if "median_seconds" not in row:
        return
    shape = SHAPES[row["shape"]].with_layers(row["layers"])
    row["tokens_per_second"] = row["micro"] * row["accumulation"] * shape.tokens / row["median_seconds"]
    row["flops_per_token"], row["flops_per_token_causal"] = shape.flops_per_token()
    for name, flops in (("mfu", row["flops_per_token"]), ("mfu_causal", row["flops_per_token_causal"])):
        row[name] = None if peak_tflops is None else row["tokens_per_second"] * flops / (peak_tflops * 1e12)


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """The engine's speed over each peer's, at the same depth."""
    engine = {
        (row["shape"], row["layers"]): row["tokens_per_second"]
        for row in rows
        if row["side"] == "engine" and "tokens_per_second" in row
    }
    for row in rows:
        ours = engine.get((row["shape"], row["layers"]))
        if row["side"] != "engine" and ours is not None and "tokens_per_second" in row:
            row["engine_ratio"] = ours / row["tokens_per_second"]


def _mfu(row: dict[str, Any]) -> str:
    return "–" if row["mfu"] is None else f"{row['mfu']:.1%} ({row['mfu_causal']:.1%})"


def _cells(row: dict[str, Any]) -> list[str]:
    side = SIDES[row["side"]]
    name, precision = f"{row['side']} {row.get('version', '')}".strip(), side.precision
    if "tokens_per_second" not in row:
        return [name, precision, str(row["layers"]), row["error"], "", "", "", ""]
    seconds = row["seconds"]
    memory = f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "–"
    return [
        name,
        precision,
        str(row["layers"]),
        f"{row['tokens_per_second']:,.0f}",
        _mfu(row),
        memory,
        f"{row['median_seconds']:.3f} ({min(seconds):.3f} to {max(seconds):.3f})",
        f"{row['engine_ratio']:.2f}" if "engine_ratio" in row else "–",
    ]


HEAD = [
    "Side",
    "Precision",
    "Layers",
    "tokens/s",
    "MFU (causal)",
    "Peak GiB",
    "Step, s (range)",
    "Engine / side",
]


def table(rows: list[dict[str, Any]]) -> str:
    return page.table(HEAD, map(_cells, rows))


def _head(content: dict[str, Any]) -> list[str]:
    """Where the figures come from."""
    settings, peak = content["settings"], content["peak_tflops"]
    peak_words = "not known, so no MFU" if peak is None else f"{peak:g} TFLOP/s, dense bfloat16"
    batch = f"{settings['accumulation']} micro-batch(es) of {settings['micro']} sequence(s)"
    return [
        "# Training on one GPU\n",
        page.origin(content["machine"]),
        f"Peak: {peak_words}. {FORMULA}\n",
        f"{settings['steps']} steps counted after {settings['dropped']} dropped, each of {batch}, in "
        f"{settings['dtype']}; every step is waited for. AdamW fused, clipping at the same norm, no step "
        "without either. Each side in a process of its own.\n",
    ]


def markdown(content: dict[str, Any]) -> str:
    """The page beside the JSON."""
    parts = _head(content)
    for name in dict.fromkeys(row["shape"] for row in content["rows"]):
        shape, rows = SHAPES[name], [row for row in content["rows"] if row["shape"] == name]
        parts.append(f"## {shape.name}\n")
        parts.append(
            f"Hidden {shape.hidden}, ffn {shape.ffn}, {shape.heads} heads of {shape.head_dim}, "
            f"{shape.kv_heads} key/value heads, {shape.tokens} tokens, vocabulary {shape.vocab}; "
            f"{shape.layers} layers when whole.\n"
        )
        if shape.left_out:
            parts.append(f"Left out: {shape.left_out}.\n")
        parts.append(table(rows))
        notes = {
            f"- {row['side']}: {SIDES[row['side']].what}; {row['notes']}\n" for row in rows if "notes" in row
        }
        parts.append("".join(sorted(notes)))
    return "\n".join(parts)


def calibration(content: dict[str, Any]) -> dict[str, Any]:
    """The engine's steps in the form of megatron/planning/calibration.py, which names the whole network."""
    steps = []
    for row in content["rows"]:
        if row["side"] != "engine" or "median_seconds" not in row:
            continue
        shape = SHAPES[row["shape"]].with_layers(row["layers"])
        cut = ("num_attention_heads", "num_kv_heads", "intermediate_size", "vocab_size")
        ranks = shape.tensor_ranks
        keys = {
            name: size * ranks if name in cut and isinstance(size, int) else size
            for name, size in shape.model_keys().items()
        }
        steps.append(
            {
                "model": {
                    name: keys[name]
                    for name in (
                        "num_layers", "hidden_size", "num_attention_heads", "num_kv_heads", "head_dim",
                        "intermediate_size", "seq_length", "vocab_size",
                    )
                },
                "tensor": ranks,
                "micro": row["micro"],
                "accumulation": row["accumulation"],
                "recompute": row["recompute"],
                "fused": row["fused"],
                "seconds": row["median_seconds"],
            }
        )  # fmt: skip
    where = content["machine"]
    return {
        "version": 1,
        "gpu": where["device"],
        "origin": {
            "command": where["command"], "torch": where["versions"]["torch"], "commit": where["commit"],
            "date": where["date"],
        },
        "steps": steps,
    }  # fmt: skip
