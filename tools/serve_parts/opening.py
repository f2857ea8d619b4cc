# SPDX-License-Identifier: Apache-2.0
"""The model to serve: a checkpoint of this program, or a model of any format that is converted first.

A foreign model goes through the conversion of tools/convert_checkpoint.py into a temporary folder, so there
is one way in; the folder is gone when the weights are in memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.backend import Backend
from megatron.checkpointing import folders
from megatron.checkpointing.convert import hf_to_neox
from megatron.checkpointing.export_files import GENERATION
from megatron.checkpointing.inference import OpenedModel, open_model
from megatron.checkpointing.record import BASE_FILES
from megatron.neox_arguments.config import ModelConfig
from megatron.trainer.telling import on_main_rank
from tools.serve_parts.chat_template import ChatTemplate, read_chat_template


@dataclass(frozen=True)
class OpenedForServing:
    """A model in memory, with what its files say about its use."""

    opened: OpenedModel
    template: ChatTemplate
    stop_ids: tuple[int, ...]
    notices: tuple[str, ...] = ()

    def details(self) -> dict[str, Any]:
        """What `/api/tags` tells of a model beside its name."""
        record, parameters = self.opened.record, self.opened.built.parameters_on_rank
        count = parameters * self.opened.backend.tensor_parallel_size
        families = ModelConfig.model_validate(record.model).families
        return {
            "size": count * {"float32": 4}.get(record.dtype, 2),
            "digest": hashlib.sha256(json.dumps(dataclasses.asdict(record)).encode()).hexdigest(),
            "details": {
                "format": "native",
                "family": families[0],
                "families": families[:1],
                "parameter_size": f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M",
                "quantization_level": {"float32": "F32", "bfloat16": "BF16"}.get(record.dtype, record.dtype),
            },
        }


def open_for_serving(
    checkpoint: Path,
    backend: Backend,
    *,
    iteration: int | None,
    rotary_base: float | None,
    dtype: str | None,
) -> OpenedForServing:
    """Opens a run's save folder, a global_stepN folder, or a model of a format that is converted.

    Raises:
        UserError: it is none of these, damaged, or does not fit the ranks.
    """
    if iteration is not None or folders.find(checkpoint, None) is not None or not _is_foreign(checkpoint):
        return _open(checkpoint, backend, iteration, rotary_base, dtype)
    with _converted(checkpoint, backend) as (converted, notices):
        found = _open(converted, backend, None, rotary_base, dtype)
        return dataclasses.replace(found, notices=notices)


def _is_foreign(path: Path) -> bool:
    """Whether there is a model in another format; what is neither is told by open_model."""
    return (
        path.suffix == ".gguf"
        or any(path.glob("*.gguf"))
        or any((path / name).is_file() for name in ("config.json", "params.json"))
    )


@contextlib.contextmanager
def _converted(source: Path, backend: Backend) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A checkpoint made of a foreign model, for as long as it is read."""
    with contextlib.ExitStack() as stack:

        def convert() -> tuple[Path, tuple[str, ...]]:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="serve-")))
            _, found = hf_to_neox(source, folder / "converted", 1)
            notice = (
                f"{source}: {found.format}, converted for this start; tools/convert_checkpoint.py keeps one"
            )
            return folder / "converted", (notice, *found.notices)

        yield on_main_rank(convert)
        on_main_rank(lambda: None)  # every rank has read before the folder goes


def _open(
    checkpoint: Path, backend: Backend, iteration: int | None, rotary_base: float | None, dtype: str | None
) -> OpenedForServing:
    opened = open_model(checkpoint, backend, iteration=iteration, rotary_base=rotary_base, dtype=dtype)
    base = opened.folder / BASE_FILES
    template = read_chat_template(base)
    if opened.tokenizer.name == "SPMTokenizer" and not template.is_pass_through:
        problem = "the model's chat template names control tokens, which its tokenizer.model reads as text"
        remedy = f"put the model's tokenizer.json into {BASE_FILES}/ of the checkpoint"
        template = dataclasses.replace(template, problem=f"{problem}; {remedy}")
    return OpenedForServing(opened, template, _stop_ids(base, opened))


def _stop_ids(base: Path, opened: OpenedModel) -> tuple[int, ...]:
    """The end of document, and what the generation settings of the base model say ends a text."""
    declared: Any = None
    if (base / GENERATION).is_file():
        with contextlib.suppress(ValueError):
            declared = json.loads((base / GENERATION).read_text(encoding="utf-8")).get("eos_token_id")
    ids = declared if isinstance(declared, list) else [declared]
    known = [i for i in ids if isinstance(i, int) and 0 <= i < opened.record.vocab_size]
    return tuple(dict.fromkeys([opened.tokenizer.eod_id, *known]))
