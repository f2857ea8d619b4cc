# SPDX-License-Identifier: Apache-2.0
"""What a proof search came to: how many of how many, with an interval, and how hard the proofs were."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from eval_tasks.measures.intervals import mean
from eval_tasks.results.published import FIGURES
from megatron.neox_arguments.whole_files import write_whole

# Theorems of miniF2F's test split.
_PUBLISHED_ITEMS = 244


def summary(task: str, lines: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `results.json`: shares with intervals, and what is usual among the proofs."""
    proved = [line for line in lines if line["proved"]]
    found: dict[str, Any] = {
        "items": len(lines),
        "samples_per_item": 1,
        "metrics": {"proved": mean([line["proved"] for line in lines]).as_fields()},
        "proved": len(proved),
        "statuses": dict(Counter(line["status"] for line in lines).most_common()),
        "seconds": round(sum(line["seconds"] for line in lines), 3),
        **_comparison(lines, settings),
    }
    if all("tactics" in line for line in lines):  # a search; proofs written whole are counted by their writer
        found["rejected_proofs"] = sum(len(line.get("rejected") or []) for line in lines)
        if proved:
            found["proofs"] = _medians(proved)
    return {"tasks": {task: found}, "model": settings.get("model"), "settings": dict(settings)}


def _medians(proved: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is usual among the proofs of a search."""
    return {
        "single_tactic": sum(len(line["tactics"] or []) == 1 for line in proved),
        "median_tactics": median(len(line["tactics"] or []) for line in proved),
        # As the paper's records count: 0 is a proof found at the first state that was expanded.
        "median_expansions": median(max(0, line["expansions"] - 1) for line in proved),
        "median_seconds": median(line["seconds"] for line in proved),
    }


def _comparison(lines: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the share may stand beside the published ones; a text says why not."""
    if settings["prover"] != "lean":
        return {"published": None, "comparable": f"nothing is published for {settings['prover']}"}
    usual = {"candidates": 32, "tactic_tokens": 256, "max_expansions": 100, "theorem_seconds": 600.0}
    other = [
        f"{key} is {settings.get(key)}, theirs {value}"
        for key, value in usual.items()
        if settings.get(key) != value
    ]
    if settings.get("decoding") != "beam":
        other.append(f"decoding is {settings.get('decoding')}, theirs beam")
    if len(lines) != _PUBLISHED_ITEMS:
        other.append(f"{len(lines)} theorems, theirs {_PUBLISHED_ITEMS}")
    published = FIGURES["minif2f_lean"].as_fields()
    return {"published": published, "comparable": "; ".join(other) or True}


def write_report(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes `results.json` and `results.md`.

    Raises:
        OSError: the disk refuses.
    """
    write_whole(folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_whole(folder / "results.md", as_markdown(content))


def _checked(found: Mapping[str, Any]) -> str:
    """What came of the proofs that were replayed, in words."""
    if "attempts" not in found:
        return f"{found.get('rejected_proofs', 0)} refused at the replay"
    each = ", ".join(f"{count} {status}" for status, count in found["attempts"].items())
    return f"{sum(found['attempts'].values())} proofs checked: {each}"


def as_markdown(content: Mapping[str, Any]) -> str:
    """The report as a page."""
    lines = ["# Proofs", ""]
    for task, found in content["tasks"].items():
        share = found["metrics"]["proved"]
        lines += [
            f"{task}: {found['proved']} of {found['items']} proved, {100 * share['value']:.1f}% "
            f"[{100 * share['low']:.1f}, {100 * share['high']:.1f}] (95%, {share['interval']}), "
            f"{found['seconds']:.0f} s of provers' time; {_checked(found)}.",
            "",
            "| Ended as | Theorems |",
            "|---|---|",
            *(f"| {status} | {count} |" for status, count in found["statuses"].items()),
            "",
        ]
        if proofs := found.get("proofs"):
            lines += [
                f"Of the proofs, {proofs['single_tactic']} are a single tactic. Median: "
                f"{proofs['median_tactics']:g} tactics, found after {proofs['median_expansions']:g} further "
                f"expansions, {proofs['median_seconds']:.1f} s.",
                "",
            ]
        if found["published"]:
            row = ", ".join(
                f"{model} {100 * figures['proved']:g}%" for model, figures in found["published"].items()
            )
            verdict = (
                "comparable" if found["comparable"] is True else f"not comparable: {found['comparable']}"
            )
            lines += [f"Published, miniF2F test: {row} ({verdict}).", ""]
    return "\n".join(lines)
