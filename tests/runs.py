# SPDX-License-Identifier: Apache-2.0
"""Small runs through the commands a user types: a corpus, a Llama, deepy.py, generate.py, the tools."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron.launcher.ports import free_port
from megatron.monitoring.jsonl import RunHistory, read_history
from tests.llamas import save_hf_llama
from tests.ranks import rank_environment
from tests.warm import warm_python

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 300
# Variables that would make a command a part of some other run.
OF_A_LAUNCHER = ("SLURM_", "DEEPY_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_")
WORDS = 254  # of the tokenizer of tests/llamas.py, w2 to w255

TRAINING: dict[str, Any] = {
    "seq_length": 32,
    "rotary_emb_base": 10000,
    "precision": "fp32",
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "Adam", "params": {"lr": 1.0e-3, "betas": [0.9, 0.95]}},
    "weight_decay": 0.1,
    "train_iters": 8,
    "warmup_iters": 2,
    "decay_lr_to": 0.033,
    "eval_interval": 4,
    "eval_iters": 2,
    "checkpoint_factor": 4,
    "tensorboard": False,
    "plots": False,
    "model_parallel_size": 1,
    "data_names": ["arxiv", "code"],
}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if "error: " in line]


def command(*arguments: object, is_cold: bool = False) -> list[str]:
    """A command line of one of the scripts of this repository; a cold one starts its own interpreter."""
    script, *rest = arguments
    return [sys.executable if is_cold else str(warm_python()), str(ROOT / str(script)), *map(str, rest)]


def start(
    folder: Path, *arguments: object, is_cold: bool = False, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts a command in `folder`; its output goes to `out.txt` and `err.txt` there."""
    folder.mkdir(parents=True, exist_ok=True)
    base = {name: value for name, value in os.environ.items() if not name.startswith(OF_A_LAUNCHER)}
    with open(folder / "out.txt", "w") as out, open(folder / "err.txt", "w") as err:
        return subprocess.Popen(
            command(*arguments, is_cold=is_cold),
            cwd=folder,
            env={**base, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
        )


def finish(process: subprocess.Popen[str], folder: Path, limit_seconds: float = LIMIT_SECONDS) -> Done:
    """Waits for the end; a command over its limit is killed and fails the test with its output."""
    try:
        process.wait(limit_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"over {limit_seconds} s\n{(folder / 'err.txt').read_text()[-4000:]}") from None
    return Done(process.returncode, (folder / "out.txt").read_text(), (folder / "err.txt").read_text())


def run(folder: Path, *arguments: object, is_cold: bool = False) -> Done:
    return finish(start(folder, *arguments, is_cold=is_cold), folder)


@dataclass(frozen=True)
class Place:
    """A folder with all that runs start from: `hf` and `base` (the same Llama), and token files."""

    folder: Path

    @property
    def model_yaml(self) -> Path:
        return self.folder / "base" / "model.yml"

    def tokens(self, name: str) -> Path:
        return self.folder / f"{name}_text_document"

    def keys(self, **changes: Any) -> dict[str, Any]:
        """TRAINING with this place's data, and changes; a change to None leaves the key out."""
        data = {
            "train_data_paths": [str(self.tokens("arxiv")), str(self.tokens("code"))],
            "train_data_weights": [2, 1],
            "valid_data_paths": [str(self.tokens("held_arxiv")), str(self.tokens("held_code"))],
            "valid_data_names": ["arxiv", "code"],
            "test_data_paths": [str(self.tokens("held_code"))],
        }
        return {key: value for key, value in {**TRAINING, **data, **changes}.items() if value is not None}

    def write(self, path: Path, **changes: Any) -> Path:
        """Writes `keys` as a YAML file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.keys(**changes)))
        return path

    def arguments(self, folder: Path, ranks: int = 2, **changes: Any) -> list[object]:
        """deepy.py's command line for a run whose files all lie in `folder`."""
        config = self.write(folder / "run.yml", **{"save": str(folder / "save"), **changes})
        return ["deepy.py", ROOT / "train.py", self.model_yaml, config, "--cpu-ranks", ranks]

    def train(self, folder: Path, ranks: int = 2, *, is_cold: bool = False, **changes: Any) -> Done:
        return run(folder, *self.arguments(folder, ranks, **changes), is_cold=is_cold)


def write_texts(path: Path, seed: int, count: int) -> Path:
    """Documents with a rule in them: each word follows from the one before, by a step of its document."""
    generator = random.Random(seed)
    with open(path, "w") as file:
        for _ in range(count):
            first, step = generator.randrange(WORDS), generator.choice((3, 5))
            length = generator.randrange(20, 60)
            text = " ".join(f"w{2 + (first + step * place) % WORDS}" for place in range(length))
            file.write(json.dumps({"text": text}) + "\n")
    return path


def tokenise(texts: Path, prefix: Path, vocab_file: Path) -> Done:
    return run(
        texts.parent, "tools/preprocess_data.py", "--input", texts, "--output-prefix", prefix,
        "--tokenizer-type", "HFTokenizer", "--vocab-file", vocab_file, "--append-eod", "--workers", 1,
    )  # fmt: skip


def make_place(folder: Path, **llama: Any) -> Place:
    """Builds a `Place` with the tools."""
    place = Place(folder)
    save_hf_llama(folder / "hf", **{"num_hidden_layers": 2, **llama})
    for seed, (name, count) in enumerate(
        {"arxiv": 120, "code": 80, "held_arxiv": 30, "held_code": 30}.items()
    ):
        texts = write_texts(folder / f"{name}.jsonl", seed, count)
        done = tokenise(texts, folder / name, folder / "hf" / "tokenizer.json")
        assert done.status == 0, done.err
    done = run(
        folder,
        "tools/convert_checkpoint.py",
        "hf-to-neox",
        "--input",
        folder / "hf",
        "--output",
        folder / "base",
    )
    assert done.status == 0, done.err
    return place


def history_of(save: Path) -> RunHistory:
    return read_history(save / "logs" / "metrics.jsonl")


def latest(save: Path) -> str:
    return (save / "latest").read_text().strip()


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes: what a refused run must leave as it was."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str], limit_seconds: float = LIMIT_SECONDS
) -> None:
    """Waits while `process` runs; that it ends before, or takes too long, fails the test."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode} too early"
        assert time.monotonic() < deadline, f"nothing came in {limit_seconds} s"
        time.sleep(0.005)


def has_done(save: Path, iteration: int) -> Callable[[], bool]:
    """Whether the record of the run in `save` has the line of an iteration."""
    record = save / "logs" / "metrics.jsonl"
    line = f'"kind": "step", "iteration": {iteration},'
    return lambda: record.is_file() and line in record.read_text()


def call_on_ranks(folder: Path, function: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns on each of `ranks` ranks; it is importable by name."""
    folder.mkdir(parents=True, exist_ok=True)
    call = (function.__module__, function.__qualname__, arguments)
    (folder / "call").write_bytes(pickle.dumps(call))
    results = run_on_ranks(folder, ranks, lambda rank: ("tests/ranks.py", folder, rank))
    for rank, done in enumerate(results):
        assert done.status == 0, f"rank {rank}: {done.err[-4000:]}"
    return [pickle.loads((folder / f"result{rank}").read_bytes()) for rank in range(ranks)]


def run_on_ranks(folder: Path, ranks: int, arguments: Callable[[int], Sequence[object]]) -> list[Done]:
    """Runs a command once per rank, with the places of torchrun in the environment and no launcher."""
    port = free_port()
    started = []
    for rank in range(ranks):
        environment = rank_environment(rank, ranks, port)
        started.append(start(folder / f"rank{rank}", *arguments(rank), environment=environment))
    try:
        return [finish(process, folder / f"rank{rank}") for rank, process in enumerate(started)]
    finally:
        for process in started:
            process.kill()
