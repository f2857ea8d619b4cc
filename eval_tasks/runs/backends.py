# SPDX-License-Identifier: Apache-2.0
"""Where the model comes from: this engine, transformers, vLLM, or a server that speaks as OpenAI's does."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_tasks.runs.sampling import Model
from megatron.neox_arguments.errors import Problem, UserError

BACKENDS = ("native", "hf", "vllm", "openai")
# Of a file: size, time of its last change in nanoseconds, inode, sha256. Who it was read by knows it again.
FileRead = Sequence[Any]
# Files read at a time; more of them than this is said before.
_READERS, _LARGE_BYTES = 8, 4 << 30
# Batches in a call of an engine that lets requests come and go.
CALLS = 4
QUIET = {"disable_tqdm": True}
# ../model is a folder
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is run. `checkpoint` is a folder, or the name a server knows the model by."""

    checkpoint: str
    backend: str
    dtype: str | None
    batch_size: int
    seed: int
    iteration: int | None = None
    tensor_parallel: int = 1
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    tokenizer: str | None = None


def kind_of(checkpoint: str) -> str | None:
    """`native` or `hf` by what lies in the folder; None where it is neither."""
    folder = Path(checkpoint)
    if (folder / "checkpoint.json").is_file() or (folder / "latest").is_file():
        return "native"
    if any(folder.glob("global_step*/checkpoint.json")):
        return "native"
    return "hf" if (folder / "config.json").is_file() else None


def choice_problems(choice: ModelChoice, ranks: int) -> Iterator[Problem]:
    """What is wrong with a choice, without loading anything."""
    if choice.backend == "openai":
        if not (choice.base_url or "").startswith(("http://", "https://")):
            remedy = "give the part before /completions, as in --base-url http://127.0.0.1:8000/v1"
            yield Problem(
                "--base-url", choice.base_url, "is no http URL, and --backend openai needs one", remedy
            )
    else:
        if choice.base_url is not None:
            yield Problem("--base-url", choice.base_url, "goes with --backend openai", "leave one out")
        yield from _folder_problems(choice)
    if choice.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        yield Problem("--backend", "vllm", "vllm is not installed", "pip install vllm, or take --backend hf")
    if ranks > 1 and choice.backend != "native":
        yield Problem("--backend", choice.backend, f"runs in one process, not in {ranks}", "start it without")
    if choice.tensor_parallel > 1 and choice.backend != "vllm":
        remedy = "for native start several ranks: deepy.py evaluate.py --set num_gpus=N -- …"
        yield Problem("--tensor-parallel", choice.tensor_parallel, "goes with --backend vllm", remedy)
    if choice.tokenizer is not None and choice.backend != "openai":
        yield Problem("--tokenizer", choice.tokenizer, "goes with --backend openai", "leave it out")
    if choice.iteration is not None and choice.backend != "native":
        yield Problem("--iteration", choice.iteration, "goes with --backend native", "leave it out")
    if choice.dtype is not None and choice.backend == "openai":
        yield Problem("--dtype", choice.dtype, "is the server's choice", "leave it out")


def _folder_problems(choice: ModelChoice) -> Iterator[Problem]:
    found = kind_of(choice.checkpoint)
    if found == ("native" if choice.backend == "native" else "hf"):
        return
    if choice.backend != "native" and not Path(choice.checkpoint).exists():
        if _HUB_NAME.fullmatch(choice.checkpoint):
            return
    constraint = {"native": "is a checkpoint of this program", "hf": "is a Hugging Face folder"}
    remedy = {
        "native": "take --backend native, or convert it with tools/convert_checkpoint.py neox-to-hf",
        "hf": "take --backend hf, or convert it with tools/convert_checkpoint.py hf-to-neox",
        None: "give a save folder, a global_stepN folder, a Hugging Face folder or a name at the hub",
    }
    nothing = "holds no model" if Path(choice.checkpoint).exists() else "no such folder"
    yield Problem("CHECKPOINT", choice.checkpoint, constraint.get(found or "", nothing), remedy[found])


def output_problems(choice: ModelChoice, output: Path) -> Iterator[Problem]:
    """Results inside the model's folder would be files of the model, and change it."""
    model = None if choice.backend == "openai" else Path(choice.checkpoint).resolve()
    for folder in (output.resolve(), *output.resolve().parents):
        if (folder == model and (folder / "config.json").is_file()) or (folder / "checkpoint.json").is_file():
            remedy = "choose a folder beside it"
            yield Problem("--output", str(output), f"lies in the folder of a model, {folder}", remedy)
            return


def identity(
    choice: ModelChoice, known: Mapping[str, FileRead], tell: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, FileRead]]:
    """What makes results of one folder those of one model, however the folder is called, and which files were
    read for it. A server's address is no part of it.

    `known` are files read before, which are not read again while they are as they were.
    """
    folder = Path(choice.checkpoint)
    if choice.backend == "openai" or not folder.is_dir():
        return {"name": choice.checkpoint}, {}
    name = folder.resolve().name
    if choice.backend == "native":
        folder = native_folder(folder, choice.iteration)
        name = f"{folder.resolve().parent.name}/{folder.name}"
    digest, files = folder_digest(folder, known, tell)
    return {"name": name, "sha256": digest}, files


def precision_of(choice: ModelChoice) -> str | None:
    """The precision that the model computes in; None where nobody here knows."""
    if choice.dtype is not None or choice.backend == "openai" or not Path(choice.checkpoint).is_dir():
        return choice.dtype
    if choice.backend == "native":
        from megatron.checkpointing.record import CheckpointRecord

        return CheckpointRecord.read(native_folder(Path(choice.checkpoint), choice.iteration)).dtype
    try:
        config = json.loads(Path(choice.checkpoint, "config.json").read_bytes())
    except (OSError, ValueError):
        return None  # who loads it says what is wrong
    found = (config.get("dtype") or config.get("torch_dtype")) if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def native_folder(checkpoint: Path, iteration: int | None) -> Path:
    """The global_stepN folder that is meant.

    Raises:
        UserError: there is none.
    """
    from megatron.checkpointing import folders

    found = folders.find(checkpoint, iteration)
    if found is None:
        raise UserError(f"{checkpoint}: holds no checkpoint; give a save folder or a global_stepN folder")
    return found


def folder_digest(
    folder: Path, known: Mapping[str, FileRead], tell: Callable[[str], None]
) -> tuple[str, dict[str, FileRead]]:
    """A sha256 of a model's files, whole: of names, sizes and contents, hidden files left out.

    A file is not read where `known` has one of its path, size, time of change and inode, nor where the
    checkpoint's manifest has its sha256 and it was not changed since that was written. The second result is
    `known` for the next time.

    Raises:
        UserError: a file cannot be read, or the manifest is damaged.
    """
    from megatron.checkpointing import manifest

    try:
        sealed = manifest.read(folder) or {}
        sealed_ns = (folder / manifest.MANIFEST).stat().st_mtime_ns if sealed else 0
        sizes: dict[str, int] = {}
        found: dict[str, FileRead] = {}
        open_ones: list[tuple[str, Path]] = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if name == manifest.MANIFEST or any(part.startswith(".") for part in name.split("/")):
                continue
            status = path.stat()
            sizes[name] = status.st_size
            state = [status.st_size, status.st_mtime_ns, status.st_ino]
            before = known.get(str(path.resolve()))
            if name in sealed and status.st_mtime_ns <= sealed_ns and state[0] == sealed[name].size_bytes:
                found[name] = [*state, sealed[name].sha256]
            elif before is not None and list(before[:3]) == state:
                found[name] = before
            else:
                found[name] = state
                open_ones.append((name, path))
        size_bytes = sum(sizes[name] for name, _ in open_ones)
        if size_bytes > _LARGE_BYTES:
            tell(f"reading {size_bytes / 1e9:.0f} GB of the model to know it again")
        with ThreadPoolExecutor(_READERS, thread_name_prefix="digest") as pool:
            read = pool.map(manifest.describe, [path for _, path in open_ones])
            for (name, _), entry in zip(open_ones, read, strict=True):
                found[name] = [*found[name], entry.sha256]
    except manifest.Damaged as error:
        raise UserError(f"{folder}: {error}; take another checkpoint") from None
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    text = "".join(f"{name} {found[name][0]} {found[name][3]}\n" for name in sorted(found))
    files = {str((folder / name).resolve()): entry for name, entry in found.items() if name not in sealed}
    return hashlib.sha256(text.encode()).hexdigest(), files


@contextlib.contextmanager
def native_model(choice: ModelChoice, ranks: int) -> Iterator[Model | None]:
    """This engine, tensor parallel over all ranks; None on the ranks that follow the first, when they may go.

    A call has more requests than are written at a time, so that rows of the cache seldom stand empty.
    """
    from eval_tasks.models.native import NativeLM
    from megatron.backend import initialize, shut_down
    from megatron.checkpointing.inference import open_model
    from megatron.neox_arguments.config import ParallelConfig
    from megatron.trainer.telling import end_once

    backend = initialize(ParallelConfig(model_parallel_size=ranks), choice.seed)
    try:
        opened = open_model(Path(choice.checkpoint), backend, iteration=choice.iteration, dtype=choice.dtype)
        lm = NativeLM(opened, batch_size=choice.batch_size, seed=choice.seed)
        if not lm.is_first:
            lm.follow()
            yield None
        else:
            with lm:
                yield Model(lm, CALLS * choice.batch_size, True, call_options=QUIET)
    except UserError as error:
        end_once(error)
    finally:
        shut_down()


def open_hf(choice: ModelChoice) -> Model:
    """transformers, in this process, on the first GPU or the CPU."""
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM

    transformers.logging.set_verbosity_error()
    try:
        lm = HFLM(
            pretrained=choice.checkpoint,
            dtype=choice.dtype or "auto",
            batch_size=choice.batch_size,
            device="cuda" if torch.cuda.is_available() else "cpu",
            # lm-eval's own defaults give sums that are 3e-4 off over a vocabulary of 49,152, and the wrong row
            # where two requests cut one text at different places (docs/generation.md).
            softmax_dtype="float64",
            logits_cache=False,
        )
    except Exception as error:  # whatever reading somebody's files comes to, SafetensorError among them
        place = _broken_weights(Path(choice.checkpoint)) or choice.checkpoint
        why = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{place}: transformers cannot read it ({type(error).__name__}: {why}); look at the folder, or copy "
            "it again"
        ) from error
    # transformers would draw among the likeliest 50 by default, which the paper does not.
    return Model(lm, choice.batch_size, False, {"top_k": 0}, transformers.set_seed, QUIET)


def _broken_weights(folder: Path) -> Path | None:
    """The first file of weights whose header does not fit it, as of one that was cut short."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError):
            return path
    return None


def open_vllm(choice: ModelChoice) -> Model:
    """vLLM, in this process and its own."""
    from lm_eval.models.vllm_causallms import VLLM

    lm = VLLM(
        pretrained=choice.checkpoint,
        dtype=choice.dtype or "auto",
        tensor_parallel_size=choice.tensor_parallel,
        batch_size="auto",
        seed=choice.seed,
    )
    return Model(lm, CALLS * choice.batch_size, True, call_options=QUIET)


def open_server(choice: ModelChoice, is_scored: bool) -> Model:
    """A server; `is_scored` where likelihoods will be asked for.

    Raises:
        UserError: likelihoods need a tokenizer, and none was named.
    """
    from eval_tasks.models.completions import Completions

    if is_scored and choice.tokenizer is None:
        raise UserError("--tokenizer: is not set, and a likelihood needs it; give the model's folder or name")
    assert choice.base_url is not None
    key = os.environ.get(choice.key_variable) or None
    lm = Completions(choice.base_url, choice.checkpoint, key, choice.tokenizer, choice.batch_size, 600)
    return Model(lm, choice.batch_size, True)
