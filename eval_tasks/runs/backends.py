# SPDX-License-Identifier: Apache-2.0
"""Where the model comes from: this engine, transformers, vLLM, or a server that speaks as OpenAI's does."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_tasks.runs.sampling import Model
from megatron.neox_arguments.errors import Problem, UserError

BACKENDS = ("native", "hf", "vllm", "openai")
# Of a file with weights this much is read at both ends to know it again; 1 MiB.
SAMPLED_BYTES = 1 << 20
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
            yield Problem("--base-url", choice.base_url, "is no http URL, and --backend openai needs one", remedy)
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


def identity(choice: ModelChoice) -> dict[str, Any]:
    """What makes results of one folder those of one model, however the folder is called."""
    if choice.backend == "openai":
        return {"url": choice.base_url, "name": choice.checkpoint}
    folder = Path(choice.checkpoint)
    if not folder.is_dir():
        return {"name": choice.checkpoint}
    if choice.backend == "native":
        folder = native_folder(folder, choice.iteration)
        return {"name": f"{folder.resolve().parent.name}/{folder.name}", "sha256": folder_digest(folder)}
    return {"name": folder.resolve().name, "sha256": folder_digest(folder)}


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


def folder_digest(folder: Path) -> str:
    """A sha256 of a model's files: names, sizes, and of each its first and its last mebibyte."""
    digest = hashlib.sha256()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        size = path.stat().st_size
        digest.update(f"{relative.as_posix()} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(SAMPLED_BYTES))
            if size > SAMPLED_BYTES:
                file.seek(max(SAMPLED_BYTES, size - SAMPLED_BYTES))
                digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


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
        opened = open_model(
            Path(choice.checkpoint), backend, iteration=choice.iteration, dtype=choice.dtype
        )
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
