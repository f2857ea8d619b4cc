# SPDX-License-Identifier: Apache-2.0
"""What a table of speeds must say about where it comes from."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch", "triton", "megatron-core", "transformers", "torchtitan", "litgpt", "flash-attn", "flash-attn-3",
    "transformer-engine", "apex", "liger-kernel", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip


def installed_versions() -> dict[str, str]:
    """Versions of what matters for speed; "not installed" is an answer too."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# Nothing that is measured reads these.
PAGES = [f":!*.{suffix}" for suffix in ("md", "png")] + [":!benchmarks/*.json"]


def commit() -> str:
    """The commit of this repository, and whether files differ from it other than pages and results."""
    found = _output("git", "rev-parse", "HEAD")
    if not found:
        return "not known: no git here"
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", ":/", *PAGES)
    return f"{found} with changes" if changed else found


def describe() -> dict[str, Any]:
    """Hardware, driver, versions, commit, time, command."""
    on_gpu = torch.cuda.is_available()
    query = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {os.cpu_count()} cores",
        "nvidia-smi": _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
        if on_gpu
        else "",
        "cuda": torch.version.cuda or "none",
        "cudnn": str(torch.backends.cudnn.version()) if on_gpu else "none",
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": installed_versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python", *sys.argv]),
    }
